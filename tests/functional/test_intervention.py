"""The interventional effect against the paired mean, plain loops and scipy's paired t-test."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_interp.functional.intervention import interventional_effect
from lightning_interp.functional.weights import Weights

SEEDS = st.integers(0, 2**31)


def weights_of(w: np.ndarray, cell: np.ndarray) -> Weights:
    none = torch.empty(0)
    return Weights("natural", torch.tensor(w), torch.tensor(cell), none, none, none, 0.0, None)


def flips(seed: int, n: int = 40, c: int = 2):
    """Every sample's grass is flipped; an effect of its own plus noise."""
    rng = np.random.default_rng(seed)
    grass = rng.permutation(np.arange(n) % 2)
    change_z = 1.0 - 2 * grass
    own = rng.normal(2, 1, (n, c))
    return rng, change_z, own * change_z[:, None], own


@given(SEEDS)
def test_a_binary_flip_gives_the_paired_t_tests_interval(seed):
    _, dz, do, own = flips(seed, c=1)
    got = interventional_effect(torch.tensor(dz), torch.tensor(do), weights_of(np.full(40, 1 / 40), np.zeros(40, int)))
    paired = stats.ttest_1samp(own[:, 0], 0)
    interval = paired.confidence_interval(0.95)
    assert float(got.value) == pytest.approx(own.mean(), rel=1e-9)
    assert float(got.low) == pytest.approx(interval.low, rel=1e-9)
    assert float(got.high) == pytest.approx(interval.high, rel=1e-9)
    assert float(got.df) == pytest.approx(39)


@given(SEEDS, st.integers(1, 3))
def test_a_binary_flip_gives_the_weighted_mean_of_signed_differences(seed, c):
    rng, dz, do, own = flips(seed, c=c)
    cell = rng.permutation(np.arange(40) % 4)
    w = rng.uniform(0.2, 2, 4)[cell]
    got = interventional_effect(torch.tensor(dz), torch.tensor(do), weights_of(w / w.sum(), cell))
    v = w / w.sum()
    mean = sum(v[i] * own[i] for i in range(40))
    variance = sum(v[i] ** 2 * (own[i] - mean) ** 2 / (1 - v[i]) for i in range(40))
    per_cell = [sum(v[i] ** 2 for i in range(40) if cell[i] == g) for g in range(4)]
    df = sum(per_cell) ** 2 / sum(s**2 / 9 for s in per_cell)
    np.testing.assert_allclose(got.value[0], mean, rtol=1e-9)
    np.testing.assert_allclose(got.se[0], np.sqrt(variance), rtol=1e-9)
    np.testing.assert_allclose(got.df[0], df, rtol=1e-9)


@given(SEEDS)
def test_a_continuous_change_gives_the_slope_through_the_origin(seed):
    rng = np.random.default_rng(seed)
    dz, w = rng.normal(size=30), rng.uniform(0.2, 2, 30)
    do = 1.5 * dz[:, None] + 0.1 * rng.normal(size=(30, 1))
    got = interventional_effect(torch.tensor(dz), torch.tensor(do), weights_of(w, np.zeros(30, int)))
    slope = sum(w[i] * dz[i] * do[i, 0] for i in range(30)) / sum(w[i] * dz[i] ** 2 for i in range(30))
    assert float(got.value) == pytest.approx(slope, rel=1e-9)


def test_samples_that_the_intervention_leaves_alone_do_not_count():
    _, dz, do, _ = flips(3)
    w, cell = np.full(40, 1 / 40), (dz > 0).astype(int)  # two cells, one of them not moved at all
    moved = dz > 0
    stayed = np.where(moved, dz, 0.0)
    got = interventional_effect(torch.tensor(stayed), torch.tensor(do), weights_of(w, cell))
    alone = interventional_effect(
        torch.tensor(dz[moved]), torch.tensor(do[moved]), weights_of(w[moved], np.zeros(moved.sum(), int))
    )
    for a, b in zip(got[:6], alone[:6]):
        torch.testing.assert_close(a, b)
    assert got.note is None


def test_an_intervention_that_moves_nothing_has_no_effect_to_give():
    none = interventional_effect(
        torch.zeros(4).double(), torch.zeros(4, 1).double(), weights_of(np.full(4, 0.25), np.zeros(4, int))
    )
    assert none is None


@given(SEEDS, st.integers(2, 5))
def test_copies_of_a_source_add_no_certainty(seed, copies):
    _, dz, do, _ = flips(seed)
    w, cell = np.full(40, 1 / 40), np.zeros(40, int)
    once = interventional_effect(torch.tensor(dz), torch.tensor(do), weights_of(w, cell))
    many = interventional_effect(
        torch.tensor(np.repeat(dz, copies)),
        torch.tensor(np.repeat(do, copies, axis=0)),
        weights_of(np.repeat(w, copies), np.repeat(cell, copies)),
        torch.arange(40).repeat_interleave(copies),
    )
    for a, b in zip(once[:6], many[:6]):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_sources_in_any_order_go_with_their_own_samples():
    rng, dz, do, _ = flips(8)
    w, cell, source = rng.uniform(0.2, 2, 40), rng.integers(0, 2, 40), rng.integers(-(2**62), 2**62, 12)
    source = source[rng.integers(0, 12, 40)]
    order = rng.permutation(40)
    a = interventional_effect(torch.tensor(dz), torch.tensor(do), weights_of(w, cell), torch.tensor(source))
    b = interventional_effect(
        torch.tensor(dz[order]),
        torch.tensor(do[order]),
        weights_of(w[order], cell[order]),
        torch.tensor(source[order]),
    )
    for x, y in zip(a[:6], b[:6]):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)
