"""Hypothesis profiles: `ci` by default, `long` for a thorough run (HYPOTHESIS_PROFILE=long); how many cases ran, at the end."""

import os
import re

import torch
from hypothesis import settings

settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=1000, deadline=None)
torch.set_num_threads(1)  # two threads on two shared cores fight over every small matrix
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_CASES = re.compile(r"(\d+) passing, (\d+) failing, and (\d+) invalid")


def pytest_terminal_summary(terminalreporter):
    """Generated cases, of all processes: the plugin hands each property's statistics over as text."""
    reports = [r for found in terminalreporter.stats.values() for r in found]
    texts = [r.__dict__["_hypothesis_stats"] for r in reports if "_hypothesis_stats" in getattr(r, "__dict__", {})]
    if texts:
        passed, failed, invalid = (sum(int(m[i]) for text in texts for m in _CASES.findall(text)) for i in range(3))
        line = f"{len(texts)} properties: {passed} generated cases passed, {failed} failed, {invalid} were not valid"
        terminalreporter.write_sep("-", line)
