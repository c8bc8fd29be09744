"""Entanglement against scipy, plain loops and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from sklearn.linear_model import Ridge

from lightning_interp.functional.entanglement import collateral, contributions, participation, subspace_cosine
from lightning_interp.functional.erasure import balanced_leace
from lightning_interp.functional.moments import Target, cross, moments
from lightning_interp.functional.probe import RIDGE, stack

SEEDS = st.integers(0, 2**31)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- cosines ----------------------------------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 4), st.integers(1, 4), st.integers(4, 9))
def test_cosines_are_those_of_scipys_angles(seed, m, k, d):
    a, b = draw(seed, m, d), draw(seed + 1, k, d)
    truth = np.cos(subspace_angles(a.T.numpy(), b.T.numpy())).mean()
    assert subspace_cosine(a, b) == pytest.approx(truth, abs=1e-7)
    assert subspace_cosine(b, a) == pytest.approx(truth, abs=1e-7)


@given(SEEDS, st.floats(0.01, 100))
def test_single_directions_have_their_absolute_cosine_whatever_their_length(seed, size):
    a, b = draw(seed, 1, 5), draw(seed + 1, 1, 5)
    truth = abs(float(torch.nn.functional.cosine_similarity(a, b)))
    assert subspace_cosine(-size * a, b) == pytest.approx(truth, abs=1e-9)


def test_deviations_of_levels_count_once_for_each_dimension_they_span():
    basis = torch.eye(4, dtype=torch.float64)
    levels = torch.stack([basis[0], basis[1], -basis[0] - basis[1]])  # three rows, two dimensions
    assert subspace_cosine(levels, basis[:2]) == pytest.approx(1)
    assert subspace_cosine(levels, basis[2:]) == pytest.approx(0)
    assert subspace_cosine(levels, basis[1:3]) == pytest.approx(0.5)  # one angle 0, one 90 degrees


def test_a_direction_of_zero_has_no_cosine():
    assert math.isnan(subspace_cosine(torch.zeros(1, 3, dtype=torch.float64), draw(0, 1, 3)))


# --- participation ----------------------------------------------------------------------------------------------------


@given(SEEDS, st.integers(2, 5), st.integers(1, 6))
def test_participation_equals_a_plain_loop(seed, variables, d):
    squares = draw(seed, variables, d) ** 2
    each, mean = participation(squares)
    total = weighed = 0.0
    for j in range(d):
        a = squares[:, j].sqrt()
        ratio = float((a**2).sum()) ** 2 / float((a**4).sum())
        assert 1 - 1e-9 <= ratio <= variables + 1e-9
        assert float(each[j]) == pytest.approx(ratio)
        total += float((a**2).sum())
        weighed += float((a**2).sum()) * ratio
    assert mean == pytest.approx(weighed / total)


def test_a_neuron_serves_one_variable_all_of_them_or_none():
    squares = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    each, mean = participation(squares)
    assert each[:2].tolist() == [1, 3]
    assert each[2].isnan()
    assert mean == pytest.approx((1 * 1 + 3 * 3) / 4)
    assert math.isnan(participation(torch.zeros(2, 3, dtype=torch.float64))[1])


@given(SEEDS)
def test_contributions_are_shares_of_a_neurons_variance(seed):
    z, b = draw(seed, 500, 3), draw(seed + 1, 3, 4)
    z = torch.linalg.qr(z - z.mean(0))[0] * 500**0.5  # uncorrelated: shares of variance add up
    h = z @ b
    zz = z.T @ z / 500
    got = contributions([b[:1], b[1:]], [zz[:1, :1], zz[1:, 1:]], h.var(0, unbiased=False))
    for j in range(4):
        truth = [
            float((z[:, c] @ b[c, j : j + 1] if len(c) == 1 else z[:, c] @ b[c, j]).var(unbiased=False)) for c in ([0], [1, 2])
        ]
        assert got[:, j].tolist() == pytest.approx([t / float(h[:, j].var(unbiased=False)) for t in truth])
    torch.testing.assert_close(got.sum(0), torch.ones(4, dtype=torch.float64))


def test_a_neuron_that_does_not_vary_has_no_contributions():
    got = contributions(
        [torch.zeros(1, 2, dtype=torch.float64)], [torch.ones(1, 1, dtype=torch.float64)], torch.tensor([0.0, 1.0])
    )
    assert got.tolist() == [[0.0, 0.0]]


# --- collateral -------------------------------------------------------------------------------------------------------


def two_folds(seed, n=120, d=6):
    values = torch.tensor(list(itertools.product((0, 1), repeat=2))).repeat_interleave(n // 4, 0)
    h = draw(seed, n, d) + (values.double() - 0.5) @ draw(seed + 1, 2, d)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return values[order], h[order], torch.arange(n) < 70


def cell_moments(values, h):
    return moments(h, torch.zeros(len(h), 0), (2 * values[:, :1] + values[:, 1:]) + 1, 5)


@given(SEEDS)
def test_collateral_from_moments_is_that_of_a_probe_on_erased_rows(seed):
    values, h, first = two_folds(seed)
    codes = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)), dtype=torch.float64) - 0.5
    erasers = [balanced_leace(cell_moments(values, h), codes, [j], 1e-2) for j in (0, 1)]
    folds = [cell_moments(values[side], h[side]) for side in (first, ~first)]
    cells = torch.arange(1, 5)
    known = [stack([cross(m, Target(cells, codes[:, j : j + 1] + 0.5)) for j in (0, 1)]) for m in folds]
    before, after = collateral(folds, known, [slice(0, 1), slice(1, 2)], erasers)

    def read(rows, j):
        scores = []
        for a, b in ((first, ~first), (~first, first)):
            n, s = int(a.sum()), torch.cov(rows[a].T, correction=0)
            alpha = RIDGE * float(s.diagonal().sum()) / len(s) * n
            probe = Ridge(alpha=alpha).fit(rows[a].numpy(), values[a, j].numpy())
            scores.append(probe.score(rows[b].numpy(), values[b, j].numpy()))
        return np.mean(scores)

    for j in (0, 1):
        assert float(before[j]) == pytest.approx(read(h, j), abs=1e-9)
        for i, e in enumerate(erasers):
            assert float(after[i, j]) == pytest.approx(read(e(h), j), abs=1e-9)
    assert float(after.diagonal().max()) < 0.05  # what is erased cannot be read


def test_with_no_eraser_there_is_nothing_to_compare():
    values, h, first = two_folds(0)
    folds = [cell_moments(values[side], h[side]) for side in (first, ~first)]
    target = Target(torch.arange(1, 5), torch.tensor([[0.0], [0.0], [1.0], [1.0]], dtype=torch.float64))
    before, after = collateral(folds, [cross(m, target) for m in folds], [slice(0, 1)], [])
    assert before.shape == (1,)
    assert after.shape == (0, 1)
