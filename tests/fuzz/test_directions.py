"""`direction`, `entanglement` and `dependence` on generated activations and covariances."""

import math

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fuzz.inputs import FLAWS, SEEDS, activations, close, finite, flawed, groups, normal, untouched
from lightning_interp.functional.dependence import (
    gaussian_kernel,
    hsic,
    own_hsic,
    partial_correlation,
    residuals,
    standardised,
    unbiased_hsic,
)  # fmt: skip
from lightning_interp.functional.direction import drift, lda, mean_difference, pattern, ridge_filter, told_apart
from lightning_interp.functional.entanglement import collateral, contributions, participation, subspace_cosine
from lightning_interp.functional.erasure import Eraser, leace
from lightning_interp.functional.moments import Target, cross, moments
from lightning_interp.functional.probe import stack

WIDE = st.sampled_from([torch.float64, torch.float32])
UNITS = st.sampled_from([2.0**-20, 1.0, 2.0**20])


def covariance(x):
    about = x.detach().double() - x.detach().double().mean(0)
    return about.T @ about / len(x)


@st.composite
def subspaces(draw, d, least=1):
    """`[m, d]`, possibly with zero or dependent rows."""
    return flawed(draw(st.integers(least, 4)), d, draw(FLAWS), draw(SEEDS)) * draw(UNITS)


@given(st.integers(1, 4), st.integers(1, 6), SEEDS, UNITS)
def test_a_pattern_is_the_regression_of_the_activation(q, d, seed, unit):
    z = normal(30, q, seed) * torch.logspace(-3, 3, q, dtype=torch.float64)
    h = normal(30, d, seed + 1) * unit
    zc, hc = z - z.mean(0), h - h.mean(0)
    got = untouched(pattern, zc.T @ zc / 30, zc.T @ hc / 30)
    expected = torch.linalg.lstsq(zc, hc).solution
    close(got, expected, 1e-6, 1e-9 * float(expected.abs().max()))


@given(activations(2, 30, 5), st.integers(1, 3))
def test_columns_are_told_apart_by_the_rank_they_add(x, width):
    x = x.detach().double()
    width = min(width, x.shape[1])
    deviation = x.std(0, unbiased=False)
    x = (x - x.mean(0)) / torch.where(deviation > 1e-9, deviation, 1)  # as coded variables are
    columns = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    got = untouched(told_apart, columns.T @ columns / len(x), width)
    assert isinstance(got, bool)
    values = [torch.linalg.svdvals(columns[:, at:]) for at in (0, width)]
    assume(all(not bool(((s > 1e-5 * s[0]) & (s < 1e-2 * s[0])).any()) for s in values))  # no rank in between
    whole, rest = (int((s > 1e-3 * s[0]).sum()) for s in values)
    assert got == (whole - rest == width)


@given(activations(1), st.integers(1, 3), SEEDS, UNITS)
def test_a_ridge_filter_is_finite_and_turns_with_the_unit(h, m, seed, unit):
    hh = covariance(h)
    zh = normal(m, len(hh), seed) * hh.diagonal().sqrt()
    got = untouched(ridge_filter, hh, zh)
    finite(got)
    assert got.shape == zh.shape
    if hh.any():
        close(untouched(ridge_filter, hh * unit**2, zh * unit) * unit, got, 1e-6, 1e-9 * float(got.abs().max()))


@given(st.integers(2, 5), st.data())
def test_differences_of_means_do_not_see_where_the_origin_is(levels, data):
    means = flawed(levels, data.draw(st.integers(1, 6)), data.draw(FLAWS), data.draw(SEEDS))
    got = untouched(mean_difference, means)
    size = float(means.abs().max()) + 1
    close(mean_difference(means + 5), got, 1e-9, 1e-12 * size)
    close(got, means[1:] - means[:1] if levels == 2 else means - means.sum(0) / levels, 1e-9, 1e-12 * size)
    close(got.sum(0) if levels > 2 else got * 0, torch.zeros_like(got if levels == 2 else got[0]), 0, 1e-12 * levels * size)
    within = covariance(flawed(10, means.shape[1], data.draw(FLAWS), data.draw(SEEDS)))
    finite(untouched(lda, within, means))
    close(lda(within, means), ridge_filter(within, got))


@given(st.integers(1, 6), st.data())
def test_drift_and_cosine_are_of_subspaces_not_of_their_vectors(d, data):
    a, b = data.draw(subspaces(d)), data.draw(subspaces(d))
    moved, cosine = untouched(drift, a, b), untouched(subspace_cosine, a, b)
    assert math.isnan(moved) or -1e-9 <= moved <= 1 + 1e-9
    assert math.isnan(cosine) or -1e-9 <= cosine <= 1 + 1e-9
    assert math.isnan(cosine) == (not a.any() or not b.any())
    assert math.isnan(moved) == (not (a != 0).any(1).all() or not (b != 0).any(1).all())
    for same, other in (((drift(b, a)), moved), (subspace_cosine(b, a), cosine), (subspace_cosine(a * 3, b / 7), cosine)):
        assert (math.isnan(same) and math.isnan(other)) or abs(same - other) < 1e-6
    if not math.isnan(cosine):
        assert abs(subspace_cosine(a, a) - 1) < 1e-6
        turned = torch.linalg.qr(normal(d, d, 0)).Q
        assert abs(subspace_cosine(a @ turned, b @ turned) - cosine) < 1e-5
    if not math.isnan(moved):
        assert abs(drift(a, a * 2)) < 1e-6


@given(st.integers(1, 4), activations(2), SEEDS)
def test_what_variables_add_to_neurons_is_counted_from_one_to_all_of_them(many, h, seed):
    d = h.shape[1]
    variance = covariance(h).diagonal()
    patterns = [normal(w % 2 + 1, d, seed + w) * variance.sqrt() * (seed % 3 > 0) for w in range(many)]
    spreads = [covariance(normal(20, len(b), seed + 9)) for b in patterns]
    got = untouched(contributions, patterns, spreads, variance)
    finite(got)
    assert got.shape == (many, d)
    assert bool((got >= -1e-12).all())
    assert not got[:, variance == 0].any()
    each, mean = untouched(participation, got)
    assert torch.equal(each.isnan(), (got == 0).all(0))
    assert bool(((each > 1 - 1e-9) & (each < many + 1e-9))[~each.isnan()].all())
    assert math.isnan(mean) if each.isnan().all() else 1 - 1e-9 <= mean <= many + 1e-9


@given(activations(4, 60).map(torch.Tensor.detach), st.data())
def test_collateral_is_a_number_for_every_variable_that_varies(h, data):
    n, d = h.shape
    first, second = ((data.draw(groups(n, 2))[0]) for _ in range(2))
    member = torch.stack([first + 1, second + 3], 1)
    half = n // 2
    folds = [moments(h[s], h[s, :0], member[s], 5) for s in (slice(half), slice(half, None))]
    codes = torch.tensor([[-0.5], [0.5]]).double()
    targets = [stack([cross(m, Target(torch.tensor(g), codes)) for g in ([1, 2], [3, 4])]) for m in folds]
    whole = folds[0] + folds[1]
    e = leace(whole.gram / n, cross(whole, Target(torch.tensor([1, 2]), codes)).covariance.T, whole.hidden[0])
    nothing = Eraser(whole.hidden[0], torch.zeros(d, 0).double(), torch.zeros(0, d).double())
    before, after = untouched(collateral, folds, targets, [slice(0, 1), slice(1, 2)], [e, nothing])
    varies = torch.stack([t.variance > 0 for t in targets]).all(0)
    assert torch.equal(~before.isnan(), varies)
    assert torch.equal(~after.isnan(), varies.expand(2, -1))
    assert not bool((torch.cat([before, after.flatten()]) > 1 + 1e-6).any())
    close(after[1], before)
    assert collateral(folds, targets, [slice(0, 1)], [])[1].shape == (0, 1)


@given(activations(0), st.data())
def test_residuals_are_orthogonal_to_what_is_given(x, data):
    half = x.dtype in (torch.float16, torch.bfloat16)
    given_ = flawed(len(x), data.draw(st.integers(0, 4)), data.draw(FLAWS), data.draw(SEEDS), half).to(x.dtype)
    left = untouched(residuals, x, given_)
    finite(left)
    assert left.shape == x.shape
    assert left.dtype == x.dtype
    if x.dtype == torch.float64 and len(x):
        columns = torch.cat([given_.new_ones(len(x), 1), given_], 1)
        columns = columns / columns.norm(dim=0).clamp_min(1e-300)
        centred = (x - x.mean(0)).detach()
        rounding = 1e-15 * x.detach().abs().max()
        assert float((columns.T @ left.detach()).abs().max()) <= len(x) * float(1e-7 * centred.abs().max() + rounding)


@given(activations(0, dtypes=WIDE), UNITS, st.data())
def test_partial_correlations_are_correlations_in_any_unit_and_have_a_gradient(h, unit, data):
    n = len(h)
    z = flawed(n, data.draw(st.integers(1, 2)), data.draw(FLAWS), data.draw(SEEDS)).to(h.dtype)
    held = flawed(n, data.draw(st.integers(0, 3)), data.draw(FLAWS), data.draw(SEEDS)).to(h.dtype)
    got = untouched(partial_correlation, h, z, held)
    finite(got)
    assert got.shape == (z.shape[1], h.shape[1])
    assert not bool((got.abs() > 1 + 1e-4).any())
    close(partial_correlation(h * unit, z, held), got, 1e-6, 1e-6)
    columns = untouched(standardised, h, held)
    lengths = columns.norm(dim=0)
    assert bool(((lengths - 1).abs() < 1e-5).logical_or(lengths == 0).all())
    wanted = h.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad((partial_correlation(wanted, z, held) ** 2).sum(), wanted)
    finite(gradient)


@given(activations(2, 24, dtypes=WIDE), UNITS)
def test_kernels_are_of_distances_alone(x, unit):
    k = untouched(gaussian_kernel, x)
    finite(k)
    assert bool(((k >= 0) & (k <= 1)).all())
    assert torch.equal(k.diagonal(), torch.ones_like(k.diagonal()))
    assert torch.equal(k, k.T)
    close(gaussian_kernel(x * unit), k, 1e-4, 1e-5)
    assert float(untouched(own_hsic, k.detach())) >= 0


@given(st.integers(4, 12), st.integers(1, 3), SEEDS, st.booleans())
def test_the_unbiased_hsic_is_the_mean_over_quadruples(n, d, seed, equal):
    k = gaussian_kernel(normal(n, d, seed) if not equal else torch.ones(n, d).double())
    other = gaussian_kernel(normal(n, 1, seed + 1).round())
    got = float(untouched(unbiased_hsic, k, other))
    a, b = (m - torch.diag(m.diagonal()) for m in (k, other))
    trace = sum(float(a[i, j] * b[i, j]) for i in range(n) for j in range(n))
    both = float(a.sum() * b.sum()) / ((n - 1) * (n - 2))
    rows = sum(float(a[i].sum() * b[i].sum()) for i in range(n))
    assert abs(got - (trace + both - 2 * rows / (n - 2)) / (n * (n - 3))) < 1e-12
    centre = torch.eye(n).double() - 1 / n
    close(own_hsic(k), ((centre @ k @ centre) ** 2).sum() / (n - 1) ** 2, 1e-9, 1e-15)


@given(activations(0, 30, dtypes=WIDE), st.data())
def test_hsic_is_a_number_wherever_a_class_has_four_samples_and_two_values(h, data):
    n = len(h)
    member, k = data.draw(groups(n, 3))
    z = flawed(n, 1, data.draw(st.sampled_from(["none", "all zero", "one row differs", "repeated rows"])), data.draw(SEEDS))
    z = z.to(h.dtype)
    several = data.draw(st.booleans())
    got = untouched(hsic, h, z, member if several else None)
    parts = [member == g for g in range(k)] if several else [torch.ones(n, dtype=torch.bool)]
    possible = any(int(p.sum()) >= 4 and bool((z[p] != z[p][:1]).any()) for p in parts)
    assert (got is not None) == possible
    if got is None:
        return
    finite(got)
    assert float(got.detach()) < 1.5
    wanted = h.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(hsic(wanted, z, member if several else None), wanted)
    finite(gradient)
