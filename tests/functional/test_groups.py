"""Accuracy by group against a loop over samples."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_interp.functional.groups import group_accuracy

SEEDS = st.integers(0, 2**31)


@given(SEEDS, st.integers(1, 6))
def test_accuracy_worst_group_and_gap_are_those_of_a_loop(seed, groups):
    rng = np.random.default_rng(seed)
    group = np.concatenate([np.arange(groups), rng.integers(0, groups, 40)])
    correct, scored = rng.integers(0, 2, len(group)), rng.integers(0, 2, len(group))
    scored[:groups] = 1
    correct = correct * scored
    accuracy = [
        sum(correct[i] for i in range(len(group)) if group[i] == g) / sum(scored[i] for i in range(len(group)) if group[i] == g)
        for g in range(groups)
    ]
    got = group_accuracy(torch.tensor(correct), torch.tensor(scored), torch.tensor(group), groups)
    np.testing.assert_allclose(got.accuracy, accuracy)
    assert accuracy[got.worst] == min(accuracy)
    assert got.gap == pytest.approx(max(accuracy) - min(accuracy), abs=1e-15)


def test_rows_of_several_samples_count_as_many():
    got = group_accuracy(torch.tensor([3.0, 1.0, 8.0]), torch.tensor([4.0, 4.0, 8.0]), torch.tensor([0, 0, 1]), 2)
    assert got.accuracy.tolist() == [0.5, 1.0]
    assert (got.worst, got.gap) == (0, 0.5)


def test_a_group_without_targets_is_neither_worst_nor_best():
    got = group_accuracy(torch.tensor([0.0, 2.0, 1.0]), torch.tensor([0.0, 2.0, 2.0]), torch.tensor([0, 1, 3]), 4)
    assert got.accuracy.isnan().tolist() == [True, False, True, False]
    assert (got.worst, got.gap) == (3, 0.5)


def test_without_targets_there_is_no_worst_group():
    got = group_accuracy(torch.zeros(2), torch.zeros(2), torch.tensor([0, 1]), 2)
    assert got.worst == -1
    assert math.isnan(got.gap)
