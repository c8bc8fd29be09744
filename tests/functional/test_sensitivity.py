"""Sensitivity against plain formulas; how often its test is wrong is measured in benchmarks/coverage.py."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_interp.functional.coding import code
from lightning_interp.functional.contribution import effects, fit
from lightning_interp.functional.direction import pattern
from lightning_interp.functional.sensitivity import derivative, derivative_test, holm, tcav
from lightning_interp.functional.table import table
from lightning_interp.functional.weights import sample_weights

SEEDS = st.integers(0, 2**31)
P_VALUES = st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), min_size=0, max_size=12)


@given(SEEDS, st.integers(1, 3), st.integers(1, 4))
def test_the_derivative_is_the_slope_of_a_linear_head_along_the_direction(seed, c, m):
    rng = np.random.default_rng(seed)
    head, direction, h = rng.normal(size=(c, 6)), rng.normal(size=(m, 6)), rng.normal(size=6)
    moved = np.array([head @ (h + step) - head @ h for step in direction])
    np.testing.assert_allclose(derivative(torch.tensor(head), torch.tensor(direction)), moved, atol=1e-12)


def sample(seed: int, n: int = 80, c: int = 2, d: int = 6, sources: int | None = None):
    """Two binary variables and a continuous one, activations with unequal noise, gradients, sources."""
    rng = np.random.default_rng(seed)
    first = rng.permutation(np.arange(n) % 2)
    second = np.where(rng.random(n) < 0.7, first, 1 - first)
    values = np.column_stack([first, second, rng.normal(size=n) + first])
    noise = rng.normal(size=(n, d)) * np.exp(0.5 * rng.normal(size=(n, 1)))
    h = values @ rng.normal(size=(3, d)) + noise
    source = None if sources is None else torch.tensor(rng.integers(0, sources, n))
    return torch.tensor(values), torch.tensor(h), torch.tensor(rng.normal(size=(c, d))), source


def read_out(values, h, gradient, source=None, mode="balanced", design=None):
    """The equation fitted to h·ḡ, the rows' weights and columns for single samples, and all contrasts."""
    ones = torch.ones(len(values), dtype=torch.float64)
    design = design or code(values, ones, ["a", "b", "x"], ["binary", "binary", "continuous"])
    rows = table(values, h @ gradient.T, source)
    weights = sample_weights(design, rows.values, rows.count, mode)
    fitted = fit(design.encode(rows.values), rows, weights, source is not None)
    contrast = torch.cat([torch.zeros(3, 1), torch.eye(3)], dim=1).double()
    return fitted, contrast, design, sample_weights(design, values, ones, mode).row


def along_the_pattern(values, h, gradient, design, w):
    """S of every variable, from the weighted moments of single samples."""
    z, w = design.encode(values), w[:, None]
    zc, hc = z - (w * z).sum(0), h - (w * h).sum(0)
    return derivative(gradient, pattern(zc.T @ (w * zc), zc.T @ (w * hc)))


@given(SEEDS, st.sampled_from(["balanced", "natural"]), st.sampled_from([None, 40]))
def test_the_derivative_along_the_pattern_is_the_effect_on_the_projection(seed, mode, sources):
    values, h, gradient, source = sample(seed, sources=sources)
    fitted, contrast, design, w = read_out(values, h, gradient, source, mode)
    s = along_the_pattern(values, h, gradient, design, w)
    torch.testing.assert_close(effects(fitted, contrast).value, s, rtol=1e-9, atol=1e-10)


@given(SEEDS, st.sampled_from([None, 40]))
def test_the_test_of_the_derivative_is_that_of_the_effect_on_the_projection(seed, sources):
    values, h, gradient, source = sample(seed, sources=sources)
    fitted, contrast, design, w = read_out(values, h, gradient, source)
    s = along_the_pattern(values, h, gradient, design, w)
    got, effect = derivative_test(s, fitted, contrast, len(values)), effects(fitted, contrast)
    torch.testing.assert_close(got.z, effect.value / effect.se, rtol=1e-8, atol=1e-10, equal_nan=True)
    outside = (effect.low > 0) | (effect.high < 0)
    assert torch.equal(got.p < 0.05, outside)


@given(SEEDS, st.floats(1, 50))
def test_the_standard_error_shrinks_with_the_root_of_the_samples_that_the_derivative_rests_on(seed, ratio):
    values, h, gradient, _ = sample(seed)
    fitted, contrast, _, _ = read_out(values, h, gradient)
    s = torch.tensor(np.random.default_rng(seed).normal(size=(3, 2)))  # of all samples, not of the kept ones
    got = derivative_test(s, fitted, contrast, ratio * len(values))
    torch.testing.assert_close(got.z, s / (effects(fitted, contrast).se * ratio**-0.5), rtol=1e-9, atol=1e-12)


@given(SEEDS, st.floats(-8, 8))
def test_p_values_are_scipys_two_sided_students_t(seed, factor):
    values, h, gradient, _ = sample(seed, n=30)
    fitted, contrast, _, _ = read_out(values, h, gradient, mode="natural")
    effect = effects(fitted, contrast)
    got = derivative_test(factor * effect.se, fitted, contrast, 30)
    expected = 2 * stats.t.sf(abs(factor), effect.df.numpy())
    np.testing.assert_allclose(got.p, np.where(effect.se.isnan(), np.nan, expected), rtol=1e-9)


def test_a_tiny_p_value_is_not_rounded_to_zero():
    values, h, gradient, _ = sample(0, n=400)
    fitted, contrast, _, _ = read_out(values, h, gradient)
    effect = effects(fitted, contrast)
    got = derivative_test(40 * effect.se, fitted, contrast, 400)
    np.testing.assert_allclose(got.p, 2 * stats.t.sf(40, effect.df.numpy()), rtol=1e-6)
    assert (got.p > 0).all()


@given(SEEDS, st.floats(0.01, 100))
def test_the_test_does_not_depend_on_the_gradients_scale(seed, scale):
    values, h, gradient, _ = sample(seed)
    tests = []
    for g in (gradient, scale * gradient):
        fitted, contrast, design, w = read_out(values, h, g)
        tests.append(derivative_test(along_the_pattern(values, h, g, design, w), fitted, contrast, len(values)))
    for a, b in zip(*tests):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9, equal_nan=True)


def test_sources_that_share_their_noise_widen_the_standard_error():
    values, h, gradient, _ = sample(3, n=100)
    many, shared = values.repeat(4, 1), torch.arange(100).repeat(4)
    contrast = read_out(values, h, gradient)[1]
    s = torch.ones(3, 2, dtype=torch.float64)
    alone, blind, told = (
        derivative_test(s, read_out(v, x, gradient, source)[0], contrast, len(v)).z
        for v, x, source in ((values, h, None), (many, h.repeat(4, 1), None), (many, h.repeat(4, 1), shared))
    )
    torch.testing.assert_close(told, alone, rtol=1e-6, atol=0)  # copies tell nothing new
    assert (blind > 1.9 * told).all()


def test_a_withheld_interval_leaves_the_test_unknown():
    values, h, gradient, _ = sample(0)
    values[:, 1] = values[:, 0]
    values[0, 1] = 1 - values[0, 0]  # a cell of one sample
    fitted, contrast, _, _ = read_out(values, h, gradient)
    got = derivative_test(torch.ones(3, 2).double(), fitted, contrast, len(values))
    assert got.z.isnan().all()
    assert got.p.isnan().all()


def test_a_layer_without_gradient_is_not_significant():
    values, h, gradient, _ = sample(0)
    fitted, contrast, design, w = read_out(values, h, 0 * gradient)
    got = derivative_test(along_the_pattern(values, h, 0 * gradient, design, w), fitted, contrast, len(values))
    assert got.p.isnan().all()


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
