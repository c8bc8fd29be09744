"""The dual ridge probe: the primal one on the same rows, and nothing read where there is nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from lightning_interp.functional.entanglement import collateral
from lightning_interp.functional.erasure import LowRank, leace
from lightning_interp.functional.kernel_probe import kernel_collateral, kernel_probe, row_products
from lightning_interp.functional.moments import Target, cross, moments
from lightning_interp.functional.probe import held_out_r2, ridge_probe, stack

SEEDS = st.integers(0, 2**31)


def rows(seed: int, n: int, d: int, mean: float = 0.0):
    """Activations, and three columns of which two are in them."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randn(n, 3, generator=g, dtype=torch.float64)
    h = torch.randn(n, d, generator=g, dtype=torch.float64) + y[:, :2] @ torch.randn(2, d, generator=g, dtype=torch.float64)
    return h + mean, y


@settings(max_examples=20)
@given(SEEDS, st.sampled_from([3, 40, 90]), st.sampled_from([1e-3, 1.0]), st.sampled_from([0.0, 100.0]))
def test_predictions_are_those_of_scikit_learns_ridge(seed, d, ridge, mean):
    h, y = rows(seed, 50, d, mean)
    fitted = torch.randperm(50, generator=torch.Generator().manual_seed(seed))[:30]
    alpha = ridge * float(((h[fitted] - h[fitted].mean(0)) ** 2).sum()) / d
    expected = Ridge(alpha=alpha).fit(h[fitted], y[fitted]).predict(h)
    got = kernel_probe(row_products(h), fitted, y, d, ridge)
    np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("n", [1, 511, 512, 513, 1100])
def test_products_made_in_blocks_are_those_of_all_pairs(n):
    h, _ = rows(0, n, 5, mean=3.0)
    centred = h - h.mean(0)
    torch.testing.assert_close(row_products(h), centred @ centred.T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_a_constant_layer_predicts_the_mean(value):
    _, y = rows(1, 40, 3)
    fitted = torch.arange(20)
    got = kernel_probe(row_products(torch.full((40, 60), value, dtype=torch.float64)), fitted, y, 60)
    torch.testing.assert_close(got, y[:20].mean(0).expand(40, -1))


def test_random_labels_are_never_read_from_a_layer_with_more_units_than_rows():
    h, _ = rows(2, 300, 1000)
    h *= torch.arange(1, 1001) ** -0.5  # as real layers have it: a few large directions
    g = torch.Generator().manual_seed(3)
    y = torch.randint(2, (300, 200), generator=g).double()
    second = torch.arange(300) % 2 > 0
    products = row_products(h)
    sides = []
    for fitted, held in ((~second, second), (second, ~second)):
        guess = kernel_probe(products, fitted.nonzero().flatten(), y, 1000)[held]
        sides.append(1 - ((y[held] - guess) ** 2).sum(0) / ((y[held] - y[held].mean(0)) ** 2).sum(0))
    r2 = (sides[0] + sides[1]) / 2
    assert float((r2 > 0).double().mean()) <= 0.05
    assert float(r2.mean()) < 0


@given(SEEDS, st.sampled_from([5, 30]))
def test_a_covariance_of_low_rank_gives_the_eraser_of_the_whole_one(seed, d):
    h, y = rows(seed, 20, d)
    hc, yc = h - h.mean(0), y - y.mean(0)
    whole = leace(hc.T @ hc / 20, hc.T @ yc[:, :2] / 20, h.mean(0), 1e-2)
    low = leace(LowRank(hc / 20**0.5), hc.T @ yc[:, :2] / 20, h.mean(0), 1e-2)
    torch.testing.assert_close(low(h), whole(h), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close((low(h) - low(h).mean(0)).T @ yc[:, :2], torch.zeros(d, 2).double(), rtol=0, atol=1e-9)


@settings(max_examples=20)
@given(SEEDS, st.sampled_from([6, 60]))
def test_collateral_is_that_of_the_moments(seed, d):
    h, _ = rows(seed, 80, d)
    g = torch.Generator().manual_seed(seed + 1)
    level = torch.randint(2, (80, 2), generator=g)
    level[:4] = torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1]])
    second = torch.arange(80) // 2 % 2 > 0
    h[:, :2] += level
    y, blocks = level.double(), [slice(0, 1), slice(1, 2)]
    hc = h - h.mean(0)
    erasers = [leace(hc.T @ hc / 80, hc.T @ (y[:, j : j + 1] - y[:, j : j + 1].mean(0)) / 80, h.mean(0), 1e-2) for j in (0, 1)]
    folds, known = [], []
    for mine in (~second, second):
        m = moments(h[mine], torch.zeros(int(mine.sum()), 0), torch.stack([1 + level[mine, 0], 3 + level[mine, 1]], 1), 5)
        targets = [Target(torch.tensor([1 + 2 * j, 2 + 2 * j]), torch.tensor([[0.0], [1.0]]).double()) for j in (0, 1)]
        folds.append(m)
        known.append(stack([cross(m, t) for t in targets]))
    for got, expected in zip(kernel_collateral(h, second, y, blocks, erasers), collateral(folds, known, blocks, erasers)):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-8)


def test_the_projection_that_was_left_reads_less_than_half_of_the_rows():
    # 400 units of which 100 directions matter: as many numbers per row as a projection to 100, against half of the rows.
    g = torch.Generator().manual_seed(5)
    n, d = 800, 400
    z = torch.randn(n, d, generator=g, dtype=torch.float64) * torch.arange(1, d + 1) ** -0.5
    y = z[:, 10:20].sum(1, keepdim=True)
    second = torch.arange(n) % 2 > 0

    def read(h, target, half):
        m = [moments(h[x], target[x], torch.zeros(int(x.sum()), 0).long(), 1) for x in (~half, half)]
        t = [cross(one, Target(torch.tensor([0]), torch.empty(0), 0)) for one in m]
        return float(held_out_r2(ridge_probe(m[0], t[0]), m[1], t[1], [slice(0, 1)]))

    projected = read(z @ torch.randn(d, 100, generator=g, dtype=torch.float64) / 10, y, second)
    assert projected < read(z[::2], y[::2], torch.arange(n // 2) % 2 > 0) < read(z, y, second)
