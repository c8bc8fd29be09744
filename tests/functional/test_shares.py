"""Shares of variance against brute force over orders, plain numpy and scikit-learn."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from lightning_interp.functional.contribution import fit
from lightning_interp.functional.shares import (
    MAX_LMG,
    Spread,
    debiased_share,
    lmg,
    r_squared,
    relative_weights,
    shares,
    spread,
)
from lightning_interp.functional.table import table
from lightning_interp.functional.weights import Weights

SEEDS = st.integers(0, 2**31)
WIDTHS = st.lists(st.integers(1, 3), min_size=1, max_size=5)


def blocks_of(widths: list[int]) -> list[slice]:
    ends = np.cumsum(widths).tolist()
    return [slice(e - w, e) for e, w in zip(ends, widths)]


def sample(seed: int, q: int, c: int = 2, n: int = 80):
    """Correlated columns, outputs and weights."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, q)) @ rng.normal(size=(q, q)) + rng.normal(size=q)
    o = z @ rng.normal(size=(q, c)) + rng.normal(size=(n, c))
    return z, o, rng.uniform(0.1, 2, n)


def spread_of(z: np.ndarray, o: np.ndarray, w: np.ndarray) -> Spread:
    index = torch.arange(len(z), dtype=torch.float64).unsqueeze(1)
    return spread(torch.tensor(z), table(index, torch.tensor(o)), torch.tensor(w))


def plain_r2(z: np.ndarray, o: np.ndarray, w: np.ndarray) -> float:
    if not z.shape[1]:
        return 0.0
    e = o - LinearRegression().fit(z, o, sample_weight=w).predict(z)
    centred = o - np.average(o, axis=0, weights=w)
    return 1 - float((w[:, None] * e**2).sum() / (w[:, None] * centred**2).sum())


@given(SEEDS, st.integers(1, 4), st.integers(1, 3))
def test_r_squared_is_that_of_weighted_least_squares(seed, q, c):
    z, o, w = sample(seed, q, c)
    s = spread_of(z, o, w)
    assert r_squared(s) == pytest.approx(plain_r2(z, o, w), abs=1e-9)
    assert r_squared(s, [0]) == pytest.approx(plain_r2(z[:, :1], o, w), abs=1e-9)
    assert r_squared(s, []) == 0


@given(SEEDS, st.integers(1, 3))
def test_spread_of_grouped_rows_is_that_of_the_samples(seed, c):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2, (60, 2)).astype(float)
    o = rng.normal(30, 1, (60, c))
    grouped = table(torch.tensor(values), torch.tensor(o))
    per_cell = rng.uniform(0.1, 2, (2, 2))
    index = grouped.values.long().numpy()
    few = spread(grouped.values, grouped, torch.tensor(per_cell[index[:, 0], index[:, 1]]))
    single = values.astype(int)
    many = spread_of(values, o, per_cell[single[:, 0], single[:, 1]])
    torch.testing.assert_close(few.zz, many.zz)
    torch.testing.assert_close(few.zo, many.zo, rtol=1e-8, atol=1e-10)
    assert few.total == pytest.approx(many.total, rel=1e-9)


@given(SEEDS, WIDTHS)
@settings(max_examples=30)
def test_lmg_is_the_average_gain_over_all_orders_of_entry(seed, widths):
    blocks = blocks_of(widths)
    z, o, w = sample(seed, sum(widths))
    s = spread_of(z, o, w)
    gain = np.zeros(len(widths))
    orders = list(permutations(range(len(widths))))
    for order in orders:
        entered, before = [], 0.0
        for j in order:
            entered += range(blocks[j].start, blocks[j].stop)
            now = r_squared(s, entered)
            gain[j] += now - before
            before = now
    np.testing.assert_allclose(lmg(s, blocks), gain / len(orders), atol=1e-8)


def test_lmg_is_the_average_gain_of_refitted_regressions():
    z, o, w = sample(11, 4)
    widths = [1, 2, 1]
    blocks = blocks_of(widths)
    gain = np.zeros(3)
    for order in permutations(range(3)):
        entered, before = [], 0.0
        for j in order:
            entered += range(blocks[j].start, blocks[j].stop)
            now = plain_r2(z[:, entered], o, w)
            gain[j] += (now - before) / 6
            before = now
    np.testing.assert_allclose(lmg(spread_of(z, o, w), blocks), gain, atol=1e-8)


@given(SEEDS, WIDTHS)
def test_shares_interactions_and_unexplained_sum_to_one(seed, widths):
    z, o, w = sample(seed, sum(widths) + 1)
    full = spread_of(z, o, w)
    main = list(range(sum(widths)))
    kept = Spread(full.zz[main][:, main], full.zo[main], full.total)
    interactions, unexplained = r_squared(full) - r_squared(kept), 1 - r_squared(full)
    assert interactions >= -1e-12
    assert unexplained >= -1e-12
    assert min(shares(kept, blocks_of(widths))) >= -1e-12
    assert sum(shares(kept, blocks_of(widths))) + interactions + unexplained == pytest.approx(1, abs=1e-9)


def test_uncorrelated_variables_have_their_own_squared_slopes():
    z = np.array([[a, b] for a in (-0.5, 0.5) for b in (-0.5, 0.5)] * 5)
    s = spread_of(z, z @ np.array([[3.0], [4.0]]), np.ones(20))
    assert shares(s, blocks_of([1, 1])) == pytest.approx([9 / 25, 16 / 25])
    assert relative_weights(s, blocks_of([1, 1])) == pytest.approx([9 / 25, 16 / 25])


def test_twins_share_alike_also_where_they_cannot_be_told_apart():
    z, o, w = sample(4, 1)
    s = spread_of(np.repeat(z, 2, axis=1), o, w)
    half = plain_r2(z, o, w) / 2
    assert lmg(s, blocks_of([1, 1])) == pytest.approx([half, half], abs=1e-9)
    assert relative_weights(s, blocks_of([1, 1])) == pytest.approx([half, half], abs=1e-9)


def plain_relative_weights(z: np.ndarray, o: np.ndarray) -> np.ndarray:
    """Johnson (2000): z is replaced by its closest orthogonal columns, here by a singular value decomposition."""
    x = (z - z.mean(0)) / z.std(0) / np.sqrt(len(z))
    left, singular, right = np.linalg.svd(x, full_matrices=False)
    orthogonal = left @ right
    loading = right.T @ np.diag(singular) @ right
    centred = o - o.mean(0)
    beta = orthogonal.T @ centred
    return loading**2 @ (beta**2).sum(1) / (centred**2).sum()


@given(SEEDS, st.integers(1, 12), st.integers(1, 3))
def test_relative_weights_are_johnsons_and_sum_to_r_squared(seed, q, c):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(80, q)) @ (np.eye(q) + 0.15 * rng.normal(size=(q, q)))
    o = z @ rng.normal(size=(q, c)) + rng.normal(size=(80, c))
    s = spread_of(z, o, np.ones(80))
    np.testing.assert_allclose(relative_weights(s, blocks_of([1] * q)), plain_relative_weights(z, o), atol=1e-9)
    whole = relative_weights(s, [slice(0, q)])[0]
    assert whole == pytest.approx(r_squared(s), abs=1e-9)


@pytest.mark.parametrize(("p", "method"), [(MAX_LMG, lmg), (MAX_LMG + 1, relative_weights)])
def test_shares_change_method_above_ten_variables(p, method):
    z, o, w = sample(9, p)
    s, blocks = spread_of(z, o, w), blocks_of([1] * p)
    assert shares(s, blocks) == method(s, blocks)
    assert sum(shares(s, blocks)) == pytest.approx(r_squared(s), abs=1e-8)


def test_a_constant_output_has_no_shares():
    s = Spread(torch.eye(2).double(), torch.zeros(2, 1).double(), 0.0)
    assert shares(s, blocks_of([1, 1])) == [0, 0]
    assert relative_weights(s, blocks_of([1, 1])) == [0, 0]
    assert debiased_share(s, slice(0, 1), torch.zeros(1, 1).double(), torch.zeros(1, 1).double()) == 0
    assert shares(s, []) == []


def test_the_debiased_share_is_its_formula():
    s = Spread(torch.tensor([[0.25]]).double(), torch.zeros(1, 2).double(), 4.0)
    b, variance = torch.tensor([[2.0, -1.0]]).double(), torch.tensor([[0.6]]).double()
    assert debiased_share(s, slice(0, 1), b, variance) == pytest.approx((5 - 0.6) * 0.25 / 4)
    assert debiased_share(s, slice(0, 1), b / 10, variance) == 0


def replicates_of_an_unused_variable(levels: int, count: int = 600):
    """Outputs that ignore the second variable, unequal variances and cells: (raw, correction, share) of each."""
    rng = np.random.default_rng(0)
    cell = np.repeat(np.arange(2 * levels), np.resize([40, 12, 25], 2 * levels))
    first, second = cell // levels, cell % levels
    codes = np.vstack([np.eye(levels - 1), -np.ones(levels - 1)])
    z = torch.tensor(np.column_stack([first - 0.5, codes[second]]))
    size = np.bincount(cell)
    w = torch.tensor(1 / (2 * levels * size[cell]))
    weights = Weights("balanced", w, torch.tensor(cell), *[torch.empty(0)] * 3, 0.0, None)
    block, index = slice(1, levels), torch.arange(len(cell), dtype=torch.float64).unsqueeze(1)
    out = []
    for _ in range(count):
        o = first[:, None] + rng.normal(size=(len(cell), 2)) * (1 + first[:, None])
        rows = table(index, torch.tensor(o))
        fitted, s = fit(z, rows, weights), spread(z, rows, w)
        b, covariance = fitted.coefficients[1:][block], fitted.covariance(slice(2, 1 + levels))
        raw = float(torch.einsum("ic,ij,jc->", b, s.zz[block, block], b)) / s.total
        correction = float((s.zz[block, block] * covariance).sum()) / s.total
        out.append((raw, correction, debiased_share(s, block, b, covariance)))
    return np.array(out).T


@pytest.mark.parametrize("levels", [2, 4])
def test_the_debiased_share_of_an_unused_variable_is_zero_on_average_before_it_is_cut_at_zero(levels):
    raw, correction, share = replicates_of_an_unused_variable(levels)
    error = raw - correction
    assert abs(error.mean()) < 3.5 * error.std() / np.sqrt(len(error))
    assert raw.mean() > 10 * raw.std() / np.sqrt(len(raw))  # the raw share is not zero: the test could fail
    np.testing.assert_allclose(share, np.clip(error, 0, None), atol=1e-12)
    assert share.mean() < 0.6 * raw.mean()
