"""Directions against least squares and scikit-learn, and drift against known rotations."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from lightning_interp.functional.direction import drift, lda, mean_difference, pattern, ridge_filter
from lightning_interp.functional.moments import Target, cross, moments
from lightning_interp.functional.shares import spread
from lightning_interp.functional.table import table

SEEDS = st.integers(0, 2**31)


def centred_moments(z: np.ndarray, h: np.ndarray, w: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    w = (w / w.sum())[:, None]
    zc, hc = z - (w * z).sum(0), h - (w * h).sum(0)
    return torch.tensor(zc.T @ (w * zc)), torch.tensor(zc.T @ (w * hc))


def weighted_lstsq(z: np.ndarray, h: np.ndarray, w: np.ndarray) -> np.ndarray:
    root = np.sqrt(w)[:, None]
    x = np.concatenate([np.ones((len(z), 1)), z], axis=1)
    return np.linalg.lstsq(root * x, root * h, rcond=None)[0][1:]


@given(SEEDS, st.integers(1, 5), st.integers(1, 8))
def test_the_pattern_is_the_weighted_regression_of_the_activation_on_the_variables(seed, q, d):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(60, q)) @ (np.eye(q) + 0.3 * rng.normal(size=(q, q)))
    h, w = rng.normal(10, 1, (60, d)), rng.uniform(0.1, 2, 60)
    np.testing.assert_allclose(pattern(*centred_moments(z, h, w)), weighted_lstsq(z, h, w), rtol=1e-7, atol=1e-9)


@given(SEEDS)
def test_the_pattern_from_streamed_moments_is_that_of_the_rows(seed):
    rng = np.random.default_rng(seed)
    n, cell = 80, rng.integers(0, 4, 80)
    cell[:4] = range(4)
    z = np.column_stack([cell // 2 - 0.5, cell % 2 - 0.5])
    x = rng.normal(3, 2, n) + cell
    h = rng.normal(1e3, 1, (n, 5)) + z @ rng.normal(size=(2, 5)) + x[:, None]
    per_cell = rng.uniform(0.2, 2, 4)
    m = moments(torch.tensor(h), torch.tensor(x)[:, None], torch.tensor(cell + 1)[:, None], 5)
    groups, weight = torch.arange(1, 5), torch.tensor(per_cell)
    codes = torch.tensor([[a, b] for a in (-0.5, 0.5) for b in (-0.5, 0.5)]).double()
    targets = [Target(groups, codes), Target(groups, torch.empty(0), 0, 3.0, 2.0)]
    zh = torch.cat([cross(m, t, weight).covariance for t in targets])
    everything = np.column_stack([z, (x - 3) / 2])
    rows = table(torch.arange(n).double()[:, None], torch.zeros(n, 1))
    zz = spread(torch.tensor(everything), rows, torch.tensor(per_cell[cell])).zz
    np.testing.assert_allclose(pattern(zz, zh), weighted_lstsq(everything, h, per_cell[cell]), rtol=1e-7, atol=1e-8)


def test_the_pattern_holds_the_other_variables_fixed_where_the_filter_cancels_and_the_difference_borrows():
    rng = np.random.default_rng(0)
    shape = rng.integers(0, 2, 20_000) - 0.5
    colour = np.where(rng.random(20_000) < 0.9, shape, -shape)
    h = np.column_stack([shape, colour]) + 0.3 * rng.normal(size=(20_000, 2))
    z = np.column_stack([shape, colour])
    b = pattern(*centred_moments(z, h, np.ones(20_000)))
    np.testing.assert_allclose(b, np.eye(2), atol=0.03)
    means = torch.tensor(np.array([h[shape < 0].mean(0), h[shape > 0].mean(0)]))
    assert float(mean_difference(means)[0, 1]) == pytest.approx(0.8, abs=0.03)


@given(SEEDS, st.integers(1, 10), st.integers(1, 3), st.sampled_from([1e-3, 1e-2, 1.0]))
def test_the_ridge_filter_is_scikit_learns_ridge(seed, d, m, ridge):
    rng = np.random.default_rng(seed)
    h, y = rng.normal(5, 1, (60, d)) * rng.uniform(0.1, 3, d), rng.normal(size=(60, m))
    hc, yc = h - h.mean(0), y - y.mean(0)
    alpha = 60 * ridge * np.trace(hc.T @ hc / 60) / d
    expected = Ridge(alpha=alpha).fit(h, y).coef_.reshape(m, d)
    got = ridge_filter(torch.tensor(hc.T @ hc / 60), torch.tensor(yc.T @ hc / 60), ridge)
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-11)


def test_the_mean_difference_of_two_levels_is_second_minus_first():
    assert mean_difference(torch.tensor([[1.0, 5.0], [4.0, 3.0]])).tolist() == [[3.0, -2.0]]


@given(SEEDS, st.integers(3, 6))
def test_the_mean_difference_of_more_levels_is_from_the_mean_of_levels(seed, levels):
    means = torch.tensor(np.random.default_rng(seed).normal(size=(levels, 7)))
    got = mean_difference(means)
    torch.testing.assert_close(got, torch.stack([m - sum(means) / levels for m in means]))
    assert got.sum(0).abs().max() < 1e-12


@given(SEEDS, st.integers(2, 8), st.sampled_from([0.01, 0.3]))
def test_lda_is_scikit_learns_shrunken_discriminant(seed, d, shrinkage):
    # scikit-learn shrinks to (1−s)S + s·tr(S)/d·I; dividing by 1−s is a ridge of s/(1−s) mean eigenvalues.
    rng = np.random.default_rng(seed)
    y = np.repeat([0, 1], 50)
    h = rng.normal(size=(100, d)) @ rng.normal(size=(d, d)) + np.outer(y, rng.normal(size=d))
    sklearn = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=None, priors=[0.5, 0.5])
    means = np.array([h[y == k].mean(0) for k in (0, 1)])
    within = sum(np.cov(h[y == k].T, bias=True) for k in (0, 1)) / 2
    scatter = (1 - shrinkage) * within + shrinkage * np.trace(within) / d * np.eye(d)
    sklearn.set_params(covariance_estimator=FixedCovariance(scatter)).fit(h, y)
    got = lda(torch.tensor(within), torch.tensor(means), shrinkage / (1 - shrinkage))
    np.testing.assert_allclose(got / (1 - shrinkage), sklearn.coef_, rtol=1e-7, atol=1e-10)


class FixedCovariance:
    """Hands scikit-learn a covariance that is known already."""

    def __init__(self, covariance):
        self.covariance_ = covariance

    def fit(self, x):
        return self

    def get_params(self, deep=True):
        return {"covariance": self.covariance_}


def subspaces(seed: int, m: int, d: int = 9):
    rng = np.random.default_rng(seed)
    return rng, rng.normal(size=(m, d))


@given(SEEDS, st.integers(1, 4))
def test_drift_is_zero_for_another_basis_of_the_same_subspace(seed, m):
    rng, rows = subspaces(seed, m)
    basis = rng.normal(size=(m, m)) + 3 * np.eye(m)
    assert drift(torch.tensor(basis @ rows), torch.tensor(rows)) == pytest.approx(0, abs=1e-9)
    assert drift(torch.tensor(-7 * rows), torch.tensor(rows)) == pytest.approx(0, abs=1e-12)


@given(SEEDS, st.integers(1, 4))
def test_drift_is_one_for_orthogonal_subspaces(seed, m):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(9, 9)))[0]
    assert drift(torch.tensor(3 * q[:m]), torch.tensor(q[m : 2 * m])) == pytest.approx(1, abs=1e-9)


@given(st.floats(0, np.pi / 2), st.floats(0, np.pi / 2), SEEDS)
def test_drift_is_one_minus_the_mean_cosine_of_known_angles(a, b, seed):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))[0]
    turned = np.array([np.cos(a) * q[0] + np.sin(a) * q[1], np.cos(b) * q[2] + np.sin(b) * q[3]])
    expected = 1 - (np.cos(a) + np.cos(b)) / 2
    assert drift(torch.tensor(turned), torch.tensor(q[[0, 2]])) == pytest.approx(expected, abs=1e-9)
    assert drift(torch.tensor(q[[0, 2]]), torch.tensor(turned)) == pytest.approx(expected, abs=1e-9)


def test_drift_from_a_subspace_to_one_that_holds_it_counts_the_dimensions_that_are_new():
    q = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    line = torch.stack([q[0], 2 * q[0]])
    assert drift(q[:2], line) == pytest.approx(0.5, abs=1e-9)
    assert drift(line, q[:2]) == pytest.approx(0.5, abs=1e-9)


def test_drift_from_nothing_is_unknown():
    assert np.isnan(drift(torch.zeros(1, 3), torch.ones(1, 3)))
    assert np.isnan(drift(torch.ones(2, 3), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])))


@given(SEEDS, st.integers(3, 5))
def test_drift_sees_the_same_subspace_in_mean_differences_of_reordered_levels(seed, levels):
    # L deviations from the mean of levels span L − 1 dimensions: one row is the others' sum.
    rng = np.random.default_rng(seed)
    rows = mean_difference(torch.tensor(rng.normal(size=(levels, 9))))
    other = rows[torch.tensor(rng.permutation(levels))]
    assert drift(other, rows) == pytest.approx(0, abs=1e-6)
