"""Partial correlation and HSIC: against loops, numpy and scipy, unbiased, free of scale, safe where degenerate."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from scipy.stats import pearsonr

from lightning_interp.functional.dependence import (
    gaussian_kernel,
    hsic,
    own_hsic,
    partial_correlation,
    residuals,
    unbiased_hsic,
)

SEEDS = st.integers(0, 2**31)


def data(seed=0, n=30, d=4, m=2, g=3):
    """Activations, columns and given columns, all correlated, with means that are not 0."""
    rng = np.random.default_rng(seed)
    given_ = rng.normal(1, 1, (n, g))
    z = rng.normal(size=(n, m)) + given_ @ rng.normal(size=(g, m))
    h = rng.normal(5, 1, (n, d)) + z @ rng.normal(size=(m, d)) + given_ @ rng.normal(size=(g, d))
    return h, z, given_


def tensors(*arrays):
    return [torch.tensor(a) for a in arrays]


def lstsq_residuals(x, given_):
    columns = np.concatenate([np.ones((len(x), 1)), given_], axis=1)
    return x - columns @ np.linalg.lstsq(columns, x, rcond=None)[0]


# --- partial correlation ----------------------------------------------------------------------------------------------


@given(SEEDS, st.integers(0, 4))
def test_partial_correlation_is_that_of_least_squares_residuals_by_scipy(seed, g):
    h, z, given_ = data(seed, g=g)
    a, b = lstsq_residuals(z, given_), lstsq_residuals(h, given_)
    wanted = [[pearsonr(a[:, j], b[:, i]).statistic for i in range(4)] for j in range(2)]
    np.testing.assert_allclose(partial_correlation(*tensors(h, z, given_)), wanted, rtol=1e-8, atol=1e-9)


def test_without_given_columns_it_is_the_plain_correlation():
    h, z, _ = data()
    found = partial_correlation(*tensors(h, z), torch.zeros(30, 0, dtype=torch.float64))
    np.testing.assert_allclose(found, np.corrcoef(z.T, h.T)[:2, 2:], rtol=1e-10)


@given(SEEDS)
def test_given_columns_of_any_rank_are_safe(seed):
    h, z, given_ = data(seed)
    doubled = np.column_stack([given_, given_[:, :1] + 2 * given_[:, 1:2], np.ones(30), given_])
    np.testing.assert_allclose(
        partial_correlation(*tensors(h, z, doubled)), partial_correlation(*tensors(h, z, given_)), rtol=1e-7, atol=1e-9
    )


@given(SEEDS, st.floats(-18, 18), st.floats(-3, 3))
def test_partial_correlation_is_free_of_scale_and_shift(seed, power, shift):
    h, z, given_ = data(seed)
    wanted = partial_correlation(*tensors(h, z, given_))
    scaled = partial_correlation(*tensors(h * 10.0**power, -z + shift, given_))
    np.testing.assert_allclose(scaled, -wanted, rtol=1e-7, atol=1e-9)


def test_a_tiny_activation_in_float32_is_not_a_dead_one():
    h, z, given_ = (x.float() for x in tensors(*data()))
    found = partial_correlation(1e-30 * h, z, given_)
    assert torch.allclose(found, partial_correlation(h, z, given_), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_and_columns_with_nothing_left_give_0_and_a_finite_gradient(dtype):
    h, z, given_ = (x.to(dtype) for x in tensors(*data()))
    h = torch.stack([torch.zeros(30, dtype=dtype), torch.full((30,), 0.1, dtype=dtype), 3 * given_[:, 0] + 7, h[:, 0]], dim=1)
    z = torch.stack([z[:, 0], given_.sum(1), torch.full((30,), 0.3, dtype=dtype)], dim=1)
    h.requires_grad_()
    found = partial_correlation(h, z, given_)
    assert found[0, 3].abs() > 0.05
    assert not found[:, :3].any()
    assert not found[1:].any()
    (found**2).sum().backward()
    assert bool(torch.isfinite(h.grad).all())
    assert not h.grad[:, :3].any()
    assert h.grad[:, 3].abs().max() > 0


def test_two_given_classes_leave_the_within_class_correlation():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 20)
    h, z = rng.normal(size=40) + 10 * label, rng.normal(size=40) + 3 * label
    h = h + 0.5 * z
    a, b = (x - np.array([x[label == c].mean() for c in label]) for x in (h, z))
    found = partial_correlation(*tensors(h[:, None], z[:, None], label[:, None].astype(float)))
    assert float(found) == pytest.approx((a @ b) / math.sqrt(a @ a * (b @ b)), rel=1e-9)


def test_the_square_is_biased_by_one_over_the_degrees_of_freedom():
    rng = np.random.default_rng(1)
    n, g = 16, 3
    squares = []
    for _ in range(300):
        h, z, given_ = tensors(rng.normal(size=(n, 20)), rng.normal(size=(n, 1)), rng.normal(size=(n, g)))
        squares.append(float((partial_correlation(h, z, given_) ** 2).mean()))
    assert np.mean(squares) == pytest.approx(1 / (n - g - 1), abs=4 * np.std(squares) / math.sqrt(300))


def test_partial_correlation_gradient_by_finite_differences():
    h, z, given_ = tensors(*data(n=12, d=3))
    h.requires_grad_()
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: partial_correlation(a, b, given_), (h, z))
    assert torch.autograd.gradcheck(lambda a: residuals(a, given_), (h,))


# --- HSIC -------------------------------------------------------------------------------------------------------------


def kernel_loop(x):
    square = squareform(pdist(x, "sqeuclidean"))
    apart = np.sort(square[np.triu_indices(len(x), 1)])
    median = apart[(len(apart) - 1) // 2]  # the lower one, as torch's
    return np.exp(-square / (median or apart.mean()))


def hsic_by_terms(k, l):  # noqa: E741
    """E kl + E k·E l − 2 E[E k·E l], each a mean over distinct indices."""
    n = len(k)
    two = np.mean([k[i, j] * l[i, j] for i, j in itertools.permutations(range(n), 2)])
    four = np.mean([k[i, j] * l[q, r] for i, j, q, r in itertools.permutations(range(n), 4)])
    three = np.mean([k[i, j] * l[i, q] for i, j, q in itertools.permutations(range(n), 3)])
    return two + four - 2 * three


@given(SEEDS, st.integers(4, 7))
def test_unbiased_hsic_is_the_mean_over_distinct_indices(seed, n):
    rng = np.random.default_rng(seed)
    k, l = (kernel_loop(rng.normal(size=(n, 2))) for _ in range(2))  # noqa: E741
    assert float(unbiased_hsic(*tensors(k, l))) == pytest.approx(hsic_by_terms(k, l), abs=1e-12)


@given(SEEDS, st.integers(2, 12))
def test_own_hsic_is_the_trace_with_centring_matrices(seed, n):
    k = kernel_loop(np.random.default_rng(seed).normal(size=(n, 2)))
    h = np.eye(n) - 1 / n
    assert float(own_hsic(torch.tensor(k))) == pytest.approx(np.trace(k @ h @ k @ h) / (n - 1) ** 2, abs=1e-12)


@given(SEEDS, st.integers(2, 15), st.integers(1, 4))
def test_the_kernel_has_the_median_as_its_bandwidth(seed, n, d):
    x = np.random.default_rng(seed).normal(size=(n, d))
    np.testing.assert_allclose(gaussian_kernel(torch.tensor(x)), kernel_loop(x), rtol=1e-9)


def test_the_kernel_is_safe_where_most_or_all_distances_are_0():
    rare = torch.zeros(20, 1, dtype=torch.float64)
    rare[0] = 1
    found = gaussian_kernel(rare)
    assert found[0, 1] == pytest.approx(math.exp(-1 / (19 / 190)))  # the mean distance in its place
    assert found[1, 2] == 1
    same = torch.full((5, 2), 0.3, requires_grad=True)
    assert torch.equal(gaussian_kernel(same), torch.ones(5, 5))
    gaussian_kernel(same).sum().backward()
    assert not same.grad.any()


def normalised_loop(h, z, cell):
    """Class by class: centred within classes, divided by the pooled norm, then kernels by scipy."""
    centred = h.copy()
    for c in set(cell):
        centred[cell == c] -= h[cell == c].mean(0)
    units = centred / np.sqrt((centred**2).sum(0))
    total = samples = 0
    for c in sorted(set(cell)):
        rows = cell == c
        n = rows.sum()
        if n < 4 or len(np.unique(z[rows], axis=0)) < 2:
            continue
        k, l = kernel_loop(units[rows]), kernel_loop(z[rows])  # noqa: E741
        e = np.eye(n) - 1 / n
        size = np.sqrt(np.trace(k @ e @ k @ e) * np.trace(l @ e @ l @ e)) / (n - 1) ** 2
        total, samples = total + n * float(unbiased_hsic(*tensors(k, l))) / size, samples + n
    return total / samples


@given(SEEDS)
def test_hsic_equals_a_loop_over_classes(seed):
    h, z, _ = data(seed, n=40)
    cell = np.random.default_rng(seed).integers(0, 3, 40) * 5  # classes need not be numbered without gaps
    cell[:2], cell[2:8] = 99, 7  # one of two samples, one in which z is constant
    z[2:8] = 1.5
    found = hsic(*tensors(h, z, cell))
    assert float(found) == pytest.approx(normalised_loop(h, z, cell), rel=1e-8, abs=1e-10)


@given(SEEDS, st.floats(-6, 6), st.integers(0, 3))
def test_neither_value_nor_gradient_rewards_a_unit_that_shrinks(seed, power, unit):
    h, z, _ = data(seed)
    cell = np.arange(30) % 2
    scaled = h.copy()
    scaled[:, unit] *= 10.0**power
    wanted = hsic(*tensors(h, z, cell))
    assert float(hsic(*tensors(scaled, z, cell))) == pytest.approx(float(wanted), rel=1e-6, abs=1e-9)
    free = torch.tensor(h, requires_grad=True)
    (gradient,) = torch.autograd.grad(hsic(free, *tensors(z, cell)), free)
    assert gradient.norm() > 1e-6
    along = (gradient * free.detach()).sum(0)  # change of the value as each unit grows
    assert float(along.abs().max()) < 1e-9 * float(gradient.norm() * free.detach().norm())


@given(SEEDS)
def test_hsic_does_not_care_for_order_classes_means_or_rotations_of_z(seed):
    h, z, _ = data(seed)
    rng = np.random.default_rng(seed)
    cell = np.arange(30) % 2
    wanted = float(hsic(*tensors(h, z, cell)))
    order = rng.permutation(30)
    shifted = h + 100.0 * cell[:, None]
    turned = z @ np.linalg.qr(rng.normal(size=(2, 2)))[0]
    for other in ((h[order], z[order], cell[order]), (shifted, z, cell), (h, 3 * turned + 1, cell), (h, z, 1 - cell)):
        assert float(hsic(*tensors(*other))) == pytest.approx(wanted, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("width", [1, 16])
def test_hsic_is_0_on_average_under_independence_and_finds_what_correlation_cannot(width):
    rng = np.random.default_rng(0)
    cell = torch.tensor(np.arange(64) % 2)
    none, square = [], []
    for _ in range(300):
        z = np.where(rng.random((64, 1)) < 0.2, 0.5, -0.5)
        h = rng.normal(size=(64, width))
        none.append(float(hsic(*tensors(h, z), cell)))
        square.append(float(hsic(*tensors(h * (2 + 3 * z), z), cell)))  # the spread goes with z, the mean does not
    assert abs(np.mean(none)) < 4 * np.std(none) / math.sqrt(300)
    assert min(none) < 0
    assert np.mean(square) > 0.05


def test_hsic_of_a_function_of_the_variable_is_near_1():
    z = torch.arange(200).remainder(2).double().unsqueeze(1) - 0.5
    assert float(hsic(3 * z + 1, z)) == pytest.approx(1, abs=1e-3)


def test_classes_that_are_not_independent_together_are_so_each_alone():
    rng = np.random.default_rng(0)
    cell = np.repeat([0, 1], 100)
    z = np.where(rng.random(200) < 0.8, cell, 1 - cell)[:, None] - 0.5
    h = rng.normal(size=(200, 3)) + 4 * cell[:, None]
    assert float(hsic(*tensors(h, z))) > 0.15
    assert abs(float(hsic(*tensors(h, z, cell)))) < 0.03


def test_hsic_is_none_where_no_class_can_be_measured():
    h, z, _ = tensors(*data(n=9))
    assert hsic(h, z, torch.arange(9) // 3) is None
    assert hsic(h, torch.ones(9, 1, dtype=torch.float64)) is None
    assert hsic(h[:3], z[:3]) is None
    assert hsic(h[:4], z[:4]) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hsic_of_dead_units_is_0_with_a_finite_gradient(dtype):
    z = torch.arange(12).remainder(3).to(dtype).unsqueeze(1)
    cell = torch.arange(12) // 6
    h = torch.full((12, 3), 0.1, dtype=dtype, requires_grad=True)
    found = hsic(h, z, cell)
    assert float(found.detach()) == 0
    found.backward()
    assert not h.grad.any()
    half = torch.zeros(12, 3, dtype=dtype)
    half[6:, 1] = torch.arange(6).to(dtype) ** 2  # alive in one class, in one unit
    half.requires_grad_()
    hsic(half, z, cell).backward()
    assert bool(torch.isfinite(half.grad).all())
    assert half.grad[6:, 1].any()


def test_hsic_gradient_is_that_of_the_numerator_with_bandwidth_and_size_held():
    h, z, _ = data(n=10)
    free = torch.tensor(h, requires_grad=True)
    (found,) = torch.autograd.grad(hsic(free, torch.tensor(z)), free)
    centred = h - h.mean(0)
    units = centred / np.sqrt((centred**2).sum(0))
    apart = np.sort(pdist(units, "sqeuclidean"))
    bandwidth = apart[(len(apart) - 1) // 2]
    k, l = kernel_loop(units), torch.tensor(kernel_loop(z))  # noqa: E741
    size = float((own_hsic(torch.tensor(k)) * own_hsic(l)).sqrt())

    def held(a):
        a = a - a.mean(0)
        a = a / (a**2).sum(0).sqrt()
        return unbiased_hsic(torch.exp(-((a.unsqueeze(1) - a) ** 2).sum(2) / bandwidth), l) / size

    assert torch.autograd.gradcheck(held, (free,))
    (wanted,) = torch.autograd.grad(held(free), free)
    assert torch.allclose(found, wanted, rtol=1e-8, atol=1e-12)
