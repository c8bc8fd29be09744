"""Sensitivity against plain formulas; how often its test is wrong is measured in benchmarks/coverage.py."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_interp.functional.direction import pattern
from lightning_interp.functional.sensitivity import derivative, holm, p_value, tcav, z_score

SEEDS = st.integers(0, 2**31)
P_VALUES = st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), min_size=0, max_size=12)


@given(SEEDS, st.integers(1, 3), st.integers(1, 4))
def test_the_derivative_is_the_slope_of_a_linear_head_along_the_direction(seed, c, m):
    rng = np.random.default_rng(seed)
    head, direction, h = rng.normal(size=(c, 6)), rng.normal(size=(m, 6)), rng.normal(size=6)
    moved = np.array([head @ (h + step) - head @ h for step in direction])
    np.testing.assert_allclose(derivative(torch.tensor(head), torch.tensor(direction)), moved, atol=1e-12)


@given(SEEDS, st.integers(1, 3))
def test_the_z_score_is_that_of_regressing_the_read_out_on_the_variables(seed, c):
    # S_j is the coefficient of h'ḡ on z_j; its variance given Z is σ²[(X'X)⁻¹]_jj with σ² = SSE/n.
    rng = np.random.default_rng(seed)
    n, q, d = 80, 3, 6
    z = rng.normal(size=(n, q)) @ (np.eye(q) + 0.4 * rng.normal(size=(q, q)))
    h, gradient = z @ rng.normal(size=(q, d)) + rng.normal(size=(n, d)), rng.normal(size=(c, d))
    zc, hc = z - z.mean(0), h - h.mean(0)
    direction = pattern(torch.tensor(zc.T @ zc / n), torch.tensor(zc.T @ hc / n))
    rest = hc - zc @ direction.numpy()
    residual = torch.tensor(rest.T @ rest / n)
    spread = torch.tensor(np.diag(np.linalg.inv(zc.T @ zc)).copy())
    g = torch.tensor(gradient)
    got = z_score(derivative(g, direction), g, residual, spread)
    x = np.concatenate([np.ones((n, 1)), z], axis=1)
    for k in range(c):
        y = h @ gradient[k]
        b = np.linalg.inv(x.T @ x) @ x.T @ y
        variance = ((y - x @ b) ** 2).sum() / n * np.linalg.inv(x.T @ x)
        np.testing.assert_allclose(got[:, k], b[1:] / np.sqrt(np.diag(variance)[1:]), rtol=1e-7, atol=1e-9)


@given(SEEDS, st.floats(0.01, 100))
def test_the_z_score_does_not_depend_on_the_gradients_scale(seed, scale):
    rng = np.random.default_rng(seed)
    g, direction = torch.tensor(rng.normal(size=(2, 5))), torch.tensor(rng.normal(size=(3, 5)))
    residual, spread = torch.eye(5).double(), torch.tensor(rng.uniform(0.1, 1, 3))
    one = z_score(derivative(g, direction), g, residual, spread)
    torch.testing.assert_close(z_score(derivative(scale * g, direction), scale * g, residual, spread), one)


@given(st.lists(st.floats(-40, 40), min_size=1, max_size=20))
def test_p_values_are_scipys_two_sided_normal(z):
    got = p_value(torch.tensor([z], dtype=torch.float64))
    np.testing.assert_allclose(got[0], 2 * stats.norm.sf(np.abs(z)), rtol=1e-12)


def test_an_unknown_score_has_an_unknown_p_value():
    assert p_value(torch.tensor([[math.nan, math.inf, 0.0]]).double()).tolist()[0][1:] == [0, 1]
    assert p_value(torch.tensor([[math.nan]]).double()).isnan().all()


def plain_holm(p: list[float]) -> list[float]:
    """Step down: the k-th smallest of m is multiplied by m − k + 1, and never under its predecessor."""
    known = sorted((v, i) for i, v in enumerate(p) if not math.isnan(v))
    out, running = [math.nan] * len(p), 0.0
    for k, (v, i) in enumerate(known):
        running = max(running, min(1.0, (len(known) - k) * v))
        out[i] = running
    return out


@given(P_VALUES)
def test_holm_is_the_step_down_procedure_and_leaves_out_the_unknown(p):
    np.testing.assert_allclose(holm(torch.tensor(p, dtype=torch.float64)), plain_holm(p), atol=1e-15)


@given(P_VALUES)
def test_holm_lies_between_the_p_value_and_bonferroni(p):
    known = torch.tensor([v for v in p if not math.isnan(v)], dtype=torch.float64)
    adjusted = holm(known)
    assert (adjusted >= known - 1e-15).all()
    assert (adjusted <= (known * len(known)).clamp(max=1) + 1e-15).all()


def test_holm_keeps_the_family_wise_error():
    p = torch.rand(4_000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wrong = torch.stack([holm(row).min() < 0.05 for row in p]).double().mean()
    assert float(wrong) == pytest.approx(0.05, abs=3.5 * math.sqrt(0.05 * 0.95 / 4_000))


@given(SEEDS, st.integers(1, 3))
def test_tcav_is_the_fraction_of_positive_derivatives(seed, m):
    rng = np.random.default_rng(seed)
    gradients, direction = rng.normal(size=(40, 5)), rng.normal(size=(m, 5))
    expected = [np.mean([g @ v > 0 for g in gradients]) for v in direction]
    np.testing.assert_allclose(tcav(torch.tensor(gradients), torch.tensor(direction)), expected)


def test_tcav_of_a_linear_head_is_all_or_nothing_for_any_direction():
    gradients = torch.ones(20, 1).double() @ torch.randn(1, 5, generator=torch.Generator().manual_seed(0)).double()
    direction = torch.randn(30, 5, generator=torch.Generator().manual_seed(1)).double()
    assert set(tcav(gradients, direction).tolist()) == {0.0, 1.0}
