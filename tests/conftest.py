"""Hypothesis profiles: `ci` by default, `long` for a thorough run (HYPOTHESIS_PROFILE=long)."""

import os

import torch
from hypothesis import settings

settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=1000, deadline=None)
torch.set_num_threads(1)  # two threads on two shared cores fight over every small matrix
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
