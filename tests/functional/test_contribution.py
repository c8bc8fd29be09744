"""The equation and its intervals against plain loops over samples, then what they must mean."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_interp.functional.contribution import RankError, effects, fit, interval_note, robustness_value
from lightning_interp.functional.table import Table, table
from lightning_interp.functional.weights import MAX_CELLS, Weights

SEEDS = st.integers(0, 2**31)


def weights_of(w: np.ndarray, cell: np.ndarray) -> Weights:
    """Weights of given numbers, one row per sample."""
    none = torch.empty(0)
    return Weights("natural", torch.tensor(w), torch.tensor(cell), none, none, none, 0.0, None)


def plain_table(values: np.ndarray, output: np.ndarray, source: np.ndarray | None = None) -> Table:
    """One row per sample: nothing is grouped."""
    n = len(values)
    ones, zeros = torch.ones(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    ids = zeros.long() if source is None else torch.tensor(source)
    return Table(torch.tensor(values), ids, ones, torch.tensor(output), torch.zeros(output.shape).double(), zeros, zeros)


def sample(seed: int, n: int = 60, q: int = 3, c: int = 2, cells: int = 4, sources: int = 15):
    """Columns z, outputs, weights, cells and sources, with unequal variances."""
    rng = np.random.default_rng(seed)
    cell = rng.permutation(np.arange(n) % cells)
    z = np.concatenate([(cell[:, None] >> np.arange(2) & 1) - 0.5, rng.normal(size=(n, q - 2))], axis=1)
    o = z @ rng.normal(size=(q, c)) + rng.normal(size=(n, c)) * np.exp(rng.normal(size=(n, 1)))
    w = rng.uniform(0.2, 3, cells)[cell]
    return z, o, w / w.sum(), cell, rng.integers(0, sources, n)


def with_intercept(z: np.ndarray) -> np.ndarray:
    return np.concatenate([np.ones((len(z), 1)), z], axis=1)


def loop_of_hc2(z, o, w, cell, contrast):
    """b, var and Welch's df over cells of one contrast, sample by sample, as the design's formulas read."""
    x = with_intercept(z)
    bread = np.linalg.inv(sum(w[i] * np.outer(x[i], x[i]) for i in range(len(x))))
    moment = sum(w[i] * np.outer(x[i], o[i]) for i in range(len(x)))
    b = bread @ moment
    variance, squares = np.zeros(o.shape[1]), {}
    for i in range(len(x)):
        loading = contrast @ bread @ x[i] * w[i]
        leverage = w[i] * x[i] @ bread @ x[i]
        variance += loading**2 * (o[i] - x[i] @ b) ** 2 / (1 - leverage)
        squares.setdefault(cell[i], []).append(loading**2)
    total = sum(sum(s) for s in squares.values())
    df = total**2 / sum(sum(s) ** 2 / max(len(s) - 1, 0.5) for s in squares.values())
    return contrast @ b, variance, max(df, 1.0)


def dense_bell_mccaffrey(z, w, contrast):
    """Satterthwaite's degrees of freedom of Σ a e² under equal variances, by n × n matrices."""
    x = with_intercept(z)
    projection = np.linalg.inv(x.T @ np.diag(w) @ x) @ x.T @ np.diag(w)
    residual_maker = np.eye(len(x)) - x @ projection
    covariance = residual_maker @ residual_maker.T
    a = (contrast @ projection) ** 2 / np.diag(residual_maker)
    return (a @ np.diag(covariance)) ** 2 / (a @ covariance**2 @ a)


def dense_cr2(z, o, w, cell, source, contrast):
    """b, var, Welch's and Bell & McCaffrey's df of one contrast: matrix square roots of every source's block of I − H."""
    x = with_intercept(z)
    bread = np.linalg.inv(x.T @ np.diag(w) @ x)
    b = bread @ x.T @ np.diag(w) @ o
    root = np.sqrt(w)[:, None] * x
    hat = root @ bread @ root.T
    e = np.sqrt(w)[:, None] * (o - x @ b)
    ids = np.unique(source)
    loadings = np.zeros((len(ids), len(x)))
    for g, name in enumerate(ids):
        at = np.flatnonzero(source == name)
        values, vectors = np.linalg.eigh(np.eye(len(at)) - hat[np.ix_(at, at)])
        adjust = vectors @ np.diag(values**-0.5) @ vectors.T
        loadings[g, at] = contrast @ bread @ root[at].T @ adjust
    variance = ((loadings @ e) ** 2).sum(0)
    maker = loadings @ (np.eye(len(x)) - hat) * np.sqrt(w)  # scores from errors
    omega = maker @ maker.T  # their covariance where errors are independent and alike
    loading = x @ bread @ contrast * w
    squares = {}
    for pair in {(cell[i], source[i]) for i in range(len(x))}:
        at = (cell == pair[0]) & (source == pair[1])
        squares.setdefault(pair[0], []).append(loading[at].sum() ** 2)
    total = sum(sum(s) for s in squares.values())
    welch = total**2 / sum(sum(s) ** 2 / max(len(s) - 1, 0.5) for s in squares.values())
    return contrast @ b, variance, welch, np.trace(omega) ** 2 / np.trace(omega @ omega)


@given(SEEDS, st.integers(1, 3), st.integers(2, 4))
def test_coefficients_and_hc2_intervals_are_those_of_a_loop_over_samples(seed, c, q):
    z, o, w, cell, _ = sample(seed, q=q, c=c)
    contrast = np.random.default_rng(seed).normal(size=(2, 1 + q))
    got = effects(fit(torch.tensor(z), plain_table(z, o), weights_of(w, cell)), torch.tensor(contrast))
    for k in range(2):
        value, variance, welch = loop_of_hc2(z, o, w, cell, contrast[k])
        df = max(1.0, min(welch, dense_bell_mccaffrey(z, w, contrast[k])))
        np.testing.assert_allclose(got.value[k], value, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(got.se[k], np.sqrt(variance), rtol=1e-9)
        np.testing.assert_allclose(got.df[k], df, rtol=1e-9)
        half = stats.t.ppf(0.975, df) * np.sqrt(variance)
        np.testing.assert_allclose(got.low[k], value - half, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(got.high[k], value + half, rtol=1e-8, atol=1e-10)


@given(SEEDS, st.integers(2, 4), st.sampled_from([12, 60]))
def test_degrees_of_freedom_in_one_cell_are_bell_and_mccaffreys(seed, q, n):
    # There Welch's are n − 1, and Bell & McCaffrey's at most the rank n − q − 1 of the residuals.
    z, o, _, _, _ = sample(seed, n=n, q=q)
    rng = np.random.default_rng(seed)
    w, contrast = rng.uniform(0.01, 3, n), rng.normal(size=(3, 1 + q))
    fitted = fit(torch.tensor(z), plain_table(z, o), weights_of(w, np.zeros(n, int)))
    expected = [max(1.0, dense_bell_mccaffrey(z, w, k)) for k in contrast]
    np.testing.assert_allclose(fitted.degrees_of_freedom(torch.tensor(contrast)), expected, rtol=1e-8)
    assert max(expected) <= n - q - 1 + 1e-6


@given(SEEDS, st.integers(1, 4))
def test_bell_and_mccaffreys_degrees_of_freedom_of_grouped_rows_are_those_of_single_ones(seed, levels):
    rng = np.random.default_rng(seed)
    z = np.column_stack([rng.integers(0, 2, 70), rng.integers(0, 1 + levels, 70)]).astype(float)
    z[:2], z[2:4] = [[0, 0], [1, 1]], [[0, 1], [1, 0]]
    o, w = rng.normal(size=(70, 1)), rng.uniform(0.1, 2, (2, 1 + levels))
    rows = table(torch.tensor(z), torch.tensor(o))
    assert rows.count.max() > 1
    a, b = rows.values.long().T.numpy()
    few = fit(rows.values, rows, weights_of(w[a, b], np.zeros(len(a), int)))
    each, contrast = w[z[:, 0].astype(int), z[:, 1].astype(int)], rng.normal(size=(3, 3))
    expected = [dense_bell_mccaffrey(z, each, k) for k in contrast]
    np.testing.assert_allclose(few.degrees_of_freedom(torch.tensor(contrast)), expected, rtol=1e-8)


def test_the_slope_of_a_skewed_variable_has_fewer_degrees_of_freedom_than_its_cells_tell():
    x = np.random.default_rng(0).exponential(size=(100, 1)) ** 2
    rows = plain_table(x, np.zeros((100, 1)))
    fitted = fit(torch.tensor(x), rows, weights_of(np.full(100, 0.01), np.zeros(100, int)))
    assert float(fitted.degrees_of_freedom(torch.tensor([[0.0, 1.0]]).double())) < 20


@given(SEEDS, st.sampled_from([5, 15, 60]))
def test_clustered_intervals_are_those_of_dense_matrix_square_roots(seed, sources):
    z, o, w, cell, source = sample(seed, sources=sources)
    contrast = np.random.default_rng(seed).normal(size=(2, 4))
    rows = plain_table(z, o, source)
    fitted = fit(torch.tensor(z), rows, weights_of(w, cell), clustered=True)
    variance, df = fitted.variance(torch.tensor(contrast)), fitted.degrees_of_freedom(torch.tensor(contrast))
    if fitted.leverage > 0.99:
        return  # the square root has no inverse; the interval is withheld
    fewer = fitted.sources.bell_mccaffrey(torch.tensor(contrast))
    for k in range(2):
        _, expected, welch, satterthwaite = dense_cr2(z, o, w, cell, source, contrast[k])
        np.testing.assert_allclose(variance[k], expected, rtol=1e-7)
        np.testing.assert_allclose(fewer[k], satterthwaite, rtol=1e-7)
        np.testing.assert_allclose(df[k], max(1.0, min(welch, satterthwaite)), rtol=1e-7)


@given(SEEDS)
def test_sources_of_one_sample_each_give_the_unclustered_standard_error(seed):
    z, o, w, cell, _ = sample(seed)
    contrast, source = torch.eye(4, dtype=torch.float64), np.random.default_rng(seed).permutation(60)
    alone = effects(fit(torch.tensor(z), plain_table(z, o), weights_of(w, cell)), contrast)
    sourced = effects(fit(torch.tensor(z), plain_table(z, o, source), weights_of(w, cell), clustered=True), contrast)
    torch.testing.assert_close(sourced.value, alone.value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sourced.se, alone.se, rtol=1e-9, atol=1e-12, equal_nan=True)
    expected = [max(1.0, min(dense_cr2(z, o, w, cell, source, k)[2:])) for k in contrast.numpy()]
    np.testing.assert_allclose(sourced.df[:, 0], expected, rtol=1e-8)


@given(SEEDS)
def test_sources_of_one_sample_each_give_the_unclustered_interval_where_the_weights_are_equal(seed):
    z, o, _, cell, _ = sample(seed)
    equal, contrast = weights_of(np.full(60, 1 / 60), cell), torch.eye(4, dtype=torch.float64)
    source = np.random.default_rng(seed).permutation(60)
    alone = effects(fit(torch.tensor(z), plain_table(z, o), equal), contrast)
    sourced = effects(fit(torch.tensor(z), plain_table(z, o, source), equal, clustered=True), contrast)
    for a, b in zip(alone[:6], sourced[:6]):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize(("n0", "n1"), [(4, 40), (40, 4), (10, 10), (2, 2)])
def test_in_two_cells_both_degrees_of_freedom_are_welchs(n0, n1, each):
    # Two cells of sources, weighted equally.
    cell, source = np.repeat([0, 1], [n0 * each, n1 * each]), np.arange((n0 + n1) * each) // each
    z, w = (cell - 0.5)[:, None], np.repeat([1 / (2 * n0 * each), 1 / (2 * n1 * each)], [n0 * each, n1 * each])
    rows = plain_table(z, np.random.default_rng(0).normal(size=(len(z), 1)), source)
    fitted = fit(torch.tensor(z), rows, weights_of(w, cell), clustered=True)
    difference = torch.tensor([[0.0, 1.0]]).double()
    welch = (1 / n0 + 1 / n1) ** 2 / (1 / (n0**2 * (n0 - 1)) + 1 / (n1**2 * (n1 - 1)))
    assert float(fitted.sources.bell_mccaffrey(difference)) == pytest.approx(welch, rel=1e-9)
    assert float(fitted.degrees_of_freedom(difference)) == pytest.approx(welch, rel=1e-9)


def test_the_slope_of_a_skewed_variable_of_the_source_has_fewer_degrees_of_freedom_than_its_sources_tell():
    source = np.arange(400) // 4
    x = (np.random.default_rng(0).exponential(size=(100, 1)) ** 2)[source]
    rows = plain_table(x, np.zeros((400, 1)), source)
    fitted = fit(torch.tensor(x), rows, weights_of(np.full(400, 1 / 400), np.zeros(400, int)), clustered=True)
    slope = torch.tensor([[0.0, 1.0]]).double()
    assert float(fitted.degrees_of_freedom(slope)) == float(fitted.sources.bell_mccaffrey(slope)) < 20


@given(SEEDS, st.booleans())
def test_grouped_rows_lose_nothing(seed, clustered):
    rng = np.random.default_rng(seed)
    z, o, _, cell, _ = sample(seed, n=80, q=3)
    z[:, 2] = rng.integers(0, 3, 80)  # repeated values: rows to group
    source = rng.integers(0, 12, 80) if clustered else np.zeros(80, int)
    w = rng.uniform(0.2, 3, 4)
    grouped = table(torch.tensor(z), torch.tensor(o), torch.tensor(source))
    assert len(grouped.count) < 80
    cell_of = ((grouped.values[:, 0] > 0) + 2 * (grouped.values[:, 1] > 0)).numpy()
    contrast = torch.eye(4, dtype=torch.float64)
    few = fit(grouped.values, grouped, weights_of(w[cell_of], cell_of), clustered)
    many = fit(torch.tensor(z), plain_table(z, o, source), weights_of(w[cell], cell), clustered)
    torch.testing.assert_close(few.variance(contrast), many.variance(contrast), rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(few.coefficients, many.coefficients, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(few.degrees_of_freedom(contrast), many.degrees_of_freedom(contrast))
    torch.testing.assert_close(few.covariance(slice(1, 4)), many.covariance(slice(1, 4)), rtol=1e-9, atol=1e-14)
    assert few.leverage == pytest.approx(many.leverage, rel=1e-9)


@given(SEEDS, st.booleans())
def test_the_scale_of_the_weights_does_not_matter(seed, clustered):
    z, o, w, cell, source = sample(seed)
    rows, contrast = plain_table(z, o, source), torch.eye(4, dtype=torch.float64)
    one = effects(fit(torch.tensor(z), rows, weights_of(w, cell), clustered), contrast)
    other = effects(fit(torch.tensor(z), rows, weights_of(1e3 * w, cell), clustered), contrast)
    for a, b in zip(one[:6], other[:6]):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12, equal_nan=True)


@given(SEEDS, st.booleans())
def test_a_blocks_covariance_agrees_with_the_variance_of_its_contrasts(seed, clustered):
    z, o, w, cell, source = sample(seed, sources=30)
    fitted = fit(torch.tensor(z), plain_table(z, o, source), weights_of(w, cell), clustered)
    covariance = fitted.covariance(slice(1, 4))
    a = torch.tensor(np.random.default_rng(seed).normal(size=(1, 3)))
    contrast = torch.cat([torch.zeros(1, 1).double(), a], dim=1)
    assert float(a @ covariance @ a.T) == pytest.approx(float(fitted.variance(contrast).sum()), rel=1e-9)


def same(a: Table, b: Table) -> None:
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


@given(SEEDS, st.integers(1, 7), st.randoms(use_true_random=False))
def test_tables_add_up_in_any_split_and_order(seed, parts, random):
    rng = np.random.default_rng(seed)
    n = 50
    values = torch.tensor(rng.integers(-1, 2, (n, 2)).astype(float))
    output = torch.tensor(rng.normal(1e4, 1, (n, 3)))
    source = torch.tensor(rng.integers(-(2**62), 2**62, 4)[rng.integers(0, 4, n)])
    correct, scored = torch.tensor(rng.integers(0, 2, n)), torch.tensor(rng.integers(0, 2, n))
    whole = table(values, output, source, correct, scored)
    piece = rng.integers(0, parts, n)
    tables = [table(*(x[piece == k] for x in (values, output, source, correct, scored))) for k in range(parts)]
    random.shuffle(tables)
    total = tables[0]
    for t in tables[1:]:
        total = total + t
    same(total, whole)
    pairs = torch.cat([values, source[:, None].double()], dim=1)
    assert len(whole.count) == len(torch.unique(pairs, dim=0))
    assert whole.count.sum() == n


def test_a_table_holds_the_mean_and_spread_of_each_group():
    values = torch.tensor([[1.0], [0.0], [1.0], [1.0]])
    output = torch.tensor([[1.0], [5.0], [2.0], [6.0]])
    rows = table(values, output, correct=torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert rows.values.tolist() == [[0.0], [1.0]]
    assert rows.mean.tolist() == [[5.0], [3.0]]
    assert rows.m2.tolist() == [[0.0], [14.0]]
    assert rows.correct.tolist() == [0.0, 2.0]
    assert rows.scored.tolist() == [1.0, 3.0]


@pytest.mark.parametrize("bits", [0x7FF0000000000001, 0x7FF8000000000000, -1, -(2**63), 0])
def test_a_source_may_be_any_integer_also_one_that_reads_as_not_a_number(bits):
    source = torch.tensor([bits, bits, 5], dtype=torch.int64)
    rows = table(torch.zeros(3, 1), torch.tensor([[1.0], [3.0], [7.0]]), source)
    assert dict(zip(rows.source.tolist(), rows.mean[:, 0].tolist())) == {bits: 2.0, 5: 7.0}


def test_an_empty_table_adds_nothing():
    full = table(torch.tensor([[0.0], [1.0]]), torch.randn(2, 2))
    empty = table(torch.zeros(0, 1), torch.zeros(0, 2))
    same(full + empty, full)
    same(empty + full, full)


@given(SEEDS, st.integers(2, 30), st.integers(2, 30))
def test_the_effect_of_one_binary_variable_is_welchs_difference_and_standard_error(seed, n0, n1):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 1, n0), rng.normal(1, 4, n1)
    got = binary_effect(a, b)
    assert float(got.value) == pytest.approx(b.mean() - a.mean(), rel=1e-9)
    assert float(got.se) == pytest.approx(math.sqrt(a.var(ddof=1) / n0 + b.var(ddof=1) / n1), rel=1e-9)


@given(SEEDS, st.integers(3, 30), st.integers(3, 30))
def test_the_interval_of_one_binary_variable_is_welchs_where_the_variances_are_equal(seed, n0, n1):
    rng = np.random.default_rng(seed)
    a, b = stats.zscore(rng.normal(size=n0), ddof=1), 0.4 + stats.zscore(rng.normal(size=n1), ddof=1)
    welch = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    got = binary_effect(a, b)
    assert float(got.low) == pytest.approx(welch.low, rel=1e-9)
    assert float(got.high) == pytest.approx(welch.high, rel=1e-9)


@given(SEEDS, st.integers(2, 40))
def test_the_degrees_of_freedom_lie_between_the_smaller_groups_and_the_pooled_ones(seed, n0):
    n1 = 2 + seed % 40
    rng = np.random.default_rng(seed)
    df = float(binary_effect(rng.normal(size=n0), rng.normal(size=n1)).df)
    assert min(n0, n1) - 1 - 1e-9 <= df <= n0 + n1 - 2 + 1e-9


def binary_effect(a: np.ndarray, b: np.ndarray):
    n0, n1 = len(a), len(b)
    cell = np.repeat([0, 1], [n0, n1])
    w = np.repeat([1 / (2 * n0), 1 / (2 * n1)], [n0, n1])
    z = (cell - 0.5)[:, None]
    rows = plain_table(z, np.concatenate([a, b])[:, None])
    return effects(fit(torch.tensor(z), rows, weights_of(w, cell)), torch.tensor([[0.0, 1.0]]).double())


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_the_level_sets_the_width(level):
    z, o, w, cell, _ = sample(3)
    fitted = fit(torch.tensor(z), plain_table(z, o), weights_of(w, cell))
    got = effects(fitted, torch.eye(4, dtype=torch.float64), level)
    expected = stats.t.ppf(0.5 + level / 2, got.df.numpy()) * got.se.numpy()
    np.testing.assert_allclose((got.high - got.low) / 2, expected, rtol=1e-9)


def test_a_perfect_additive_output_has_its_own_coefficients():
    z, _, w, cell, _ = sample(5)
    o = 2 + z @ np.array([[1.0], [-3.0], [0.5]])
    got = fit(torch.tensor(z), plain_table(z, o), weights_of(w, cell))
    np.testing.assert_allclose(got.coefficients[:, 0], [2, 1, -3, 0.5], rtol=1e-12)


def test_a_design_of_nothing_gives_the_weighted_mean():
    o, w = np.array([[1.0], [2.0], [6.0]]), np.array([0.5, 0.25, 0.25])
    rows = plain_table(np.zeros((3, 1)), o)
    got = fit(torch.zeros(3, 0).double(), rows, weights_of(w, np.zeros(3, int)))
    assert float(got.coefficients) == pytest.approx(2.5)


def test_dependent_columns_are_named():
    z, o, w, cell, _ = sample(2, q=4)
    z[:, 3] = 2 * z[:, 1] - 1
    with pytest.raises(RankError, match="linearly dependent") as caught:
        fit(torch.tensor(z), plain_table(z, o), weights_of(w, cell))
    assert caught.value.involved == [1, 3]


def test_a_constant_column_is_named():
    z, o, w, cell, _ = sample(2)
    z[:, 2] = 4
    with pytest.raises(RankError) as caught:
        fit(torch.tensor(z), plain_table(z, o), weights_of(w, cell))
    assert caught.value.involved == [2]


def fit_of_cells(sizes: list[int], source: np.ndarray | None = None):
    cell = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(cell), 1))
    rows = plain_table(x, rng.normal(size=(len(cell), 1)), source)
    weights = weights_of(np.full(len(cell), 1 / len(cell)), cell)
    return fit(torch.tensor(x), rows, weights, clustered=source is not None)


@pytest.mark.parametrize(
    ("sizes", "note"),
    [
        ([30, 1], "withheld: the smallest cell has 1 of the 2 samples that an interval needs"),
        ([30, 2], "few: the smallest cell has 2 of the 5 samples that would be enough"),
        ([30, 4], "few: the smallest cell has 4 of the 5 samples that would be enough"),
        ([30, 5], None),
    ],
)
def test_a_small_cell_is_noted_and_a_single_sample_withholds(sizes, note):
    got = effects(fit_of_cells(sizes), torch.eye(2, dtype=torch.float64))
    assert got.note == note
    withheld = bool(note and note.startswith("withheld"))
    assert got.value.isfinite().all()
    for x in (got.se, got.low, got.high, got.robustness):
        assert bool(x.isnan().all()) == withheld


def test_a_cell_of_one_sample_withholds_only_where_the_cells_are_few_enough_to_be_balanced():
    assert interval_note(fit_of_cells([3] * (MAX_CELLS - 1) + [1])).startswith("withheld")
    many = fit_of_cells([3] * MAX_CELLS + [1])
    assert interval_note(many) == "few: the smallest cell has 1 of the 5 samples that would be enough"
    assert effects(many, torch.eye(2, dtype=torch.float64)).low.isfinite().all()
    assert interval_note(fit_of_cells([5] * (MAX_CELLS + 1))) is None


def test_many_cells_of_one_source_each_do_not_withhold_either():
    source = np.arange(2 * MAX_CELLS + 2) // 2
    note = interval_note(fit_of_cells([2] * (MAX_CELLS + 1), source))
    assert note == "few: the smallest cell has 1 of the 5 sources that would be enough"
    assert interval_note(fit_of_cells([2] * MAX_CELLS, source[: 2 * MAX_CELLS])).startswith("withheld")


def test_clustered_intervals_count_sources_not_samples():
    source = np.concatenate([np.arange(30) // 2, np.full(12, 99)])
    note = interval_note(fit_of_cells([30, 12], source))
    assert note == "withheld: the smallest cell has 1 of the 2 sources that an interval needs"
    source[-4:] = 100
    assert interval_note(fit_of_cells([30, 12], source)) == "few: the smallest cell has 2 of the 5 sources that would be enough"


def test_a_sample_that_decides_a_coefficient_alone_withholds():
    z = np.zeros((50, 1))
    z[0] = 1
    rows = plain_table(z, np.random.default_rng(0).normal(size=(50, 1)))
    got = effects(
        fit(torch.tensor(z), rows, weights_of(np.full(50, 0.02), np.zeros(50, int))), torch.eye(2, dtype=torch.float64)
    )
    assert got.note == "withheld: a sample or source has leverage 1.000, over 0.99"
    assert got.low.isnan().all()


@given(st.floats(-50, 50), st.floats(1, 1000))
def test_the_robustness_value_solves_its_own_equation(t, df):
    # Cinelli & Hazlett (2020): partial R² of RV on both sides explains the effect away where RV²/(1−RV) = f².
    rv = float(robustness_value(torch.tensor(t, dtype=torch.float64), torch.tensor(df, dtype=torch.float64)))
    assert 0 <= rv < 1
    assert rv**2 / (1 - rv) == pytest.approx(t**2 / df, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("t", [1e4, 1e9, 1e12, math.inf])
def test_the_robustness_value_of_an_overwhelming_effect_is_one(t):
    assert float(robustness_value(torch.tensor(t, dtype=torch.float64), torch.tensor(10.0))) == pytest.approx(1, abs=1e-6)
