"""Readable splits: the cut against every threshold in turn, what is planted found, and the fixed point that they are."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from lightning_interp.functional.splits import (
    GAUSSIAN_CLARITY,
    LEAST_SHARE,
    beside,
    clarity,
    cut,
    distinct,
    readable_splits,
    split_apart,
)

READINGS = st.lists(st.integers(-4, 4) | st.floats(-5, 5, width=16), min_size=2, max_size=12)


def best_cut(x, least):
    """Every threshold in turn: (between-sides share of the variance, sides)."""
    found = (0.0, np.zeros(len(x), dtype=bool))
    for threshold in sorted(set(x))[:-1]:
        over = x > threshold
        if min(over.sum(), (~over).sum()) >= least:
            within = sum(((x[side] - x[side].mean()) ** 2).sum() for side in (over, ~over))
            share = 1 - within / ((x - x.mean()) ** 2).sum()
            if share > found[0] + 1e-12:
                found = (share, over)
    return found


@given(READINGS, st.integers(1, 3))
def test_the_cut_is_the_best_of_all_thresholds(values, least):
    x = np.array(values, dtype=float)
    share, _over = best_cut(x, least)
    got = cut(torch.tensor(x).unsqueeze(1), least)
    assert float(got.explained) == pytest.approx(share, abs=1e-9)
    sides = x > float(got.threshold)
    if share == 0:
        assert not sides.any()  # no cut is to be had
        assert float(got.low) == pytest.approx(x.mean()) == float(got.high)
        return
    assert min(sides.sum(), (~sides).sum()) >= least
    assert float(got.low) == pytest.approx(x[~sides].mean(), abs=1e-9)
    assert float(got.high) == pytest.approx(x[sides].mean(), abs=1e-9)
    within = sum(((x[side] - x[side].mean()) ** 2).sum() for side in (sides, ~sides))
    assert within == pytest.approx((1 - share) * ((x - x.mean()) ** 2).sum(), abs=1e-9)  # one of the best, where several are


def test_columns_are_cut_each_by_itself():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = cut(x, 5)
    for j in range(4):
        for part, alone in zip(whole, cut(x[:, j : j + 1], 5)):
            assert float(part[j]) == pytest.approx(float(alone[0]), rel=1e-12)


def test_neighbouring_numbers_are_cut_apart():
    x = torch.tensor([1.0, math.nextafter(1.0, 2.0)], dtype=torch.float64).unsqueeze(1)
    assert (x > cut(x).threshold).flatten().tolist() == [False, True]
    above = torch.nextafter(x[1:], torch.tensor(2.0, dtype=torch.float64))  # the middle of these two would round up
    pair = torch.cat([x[1:], above])
    assert (pair > cut(pair).threshold).flatten().tolist() == [False, True]


def test_clarity_is_one_for_two_values_and_that_of_a_normal_distribution_for_no_split():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
    assert float(clarity(normal, cut(normal).threshold)) == pytest.approx(2 / math.pi, abs=0.01)
    assert pytest.approx(2 / math.pi) == GAUSSIAN_CLARITY
    two = (torch.rand(200, 1, generator=generator) < 0.3).double() * 7 - 3
    assert float(clarity(two, cut(two).threshold)) == pytest.approx(1)
    x = torch.rand(100, 2, generator=generator, dtype=torch.float64)
    sides = (x > 0.4).double()
    expected = [np.corrcoef(x[:, j], sides[:, j])[0, 1] ** 2 for j in (0, 1)]
    assert clarity(x, torch.tensor([0.4, 0.4])).tolist() == pytest.approx(expected)
    assert clarity(torch.ones(10, 1, dtype=torch.float64), torch.tensor([2.0])).tolist() == [0]


def planted(n=600, d=20, agreement=0.85, noise=0.3, seed=0):
    """Activations that hold a feature and a variable that it travels with, at `2·agreement − 1`, each along its direction."""
    generator = torch.Generator().manual_seed(seed)
    variable = (torch.rand(n, generator=generator) < 0.5).double()
    agrees = torch.rand(n, generator=generator) < agreement
    feature = torch.where(agrees, variable, 1 - variable)
    h = noise * torch.randn(n, d, generator=generator, dtype=torch.float64)
    ways = torch.randn(2, d, generator=generator, dtype=torch.float64)
    return h + torch.stack([variable, feature], 1) @ (ways / ways.norm(dim=1, keepdim=True) * 2), variable, feature


def correlations(found, h, truth):
    sides = found.codes(h) > found.threshold
    return torch.tensor([abs(np.corrcoef(sides[:, j], truth)[0, 1]) for j in range(sides.shape[1]) if sides[:, j].any()])


def starts(d, count=30, seed=1):
    return torch.randn(d, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_feature_is_found_though_it_travels_with_another():
    h, variable, feature = planted()
    assert abs(np.corrcoef(variable, feature)[0, 1]) > 0.65
    found = readable_splits(h, starts(20))
    assert correlations(found, h, feature).max() > 0.999
    assert correlations(found, h, variable).max() > 0.999
    _, _s, v = torch.linalg.svd(h - h.mean(0))  # what the first components alone would have given
    projected = (h - h.mean(0)) @ v[:2].T
    assert max(abs(np.corrcoef(projected[:, j], feature)[0, 1]) for j in (0, 1)) < 0.95


def test_a_probe_that_is_fitted_to_the_sides_gives_them_back():
    """A start that stands still is a fixed point: scikit-learn's ridge on its sides, cut in two, has the same sides."""
    h, _, _ = planted(noise=0.6)
    found = readable_splits(h, starts(20), ridge=1e-2, rounds=300)
    sides = (found.codes(h) > found.threshold).double()
    centred = h - h.mean(0)
    alpha = 1e-2 * float((centred**2).sum()) / h.shape[1]
    for j in range(sides.shape[1]):
        reading = torch.tensor(Ridge(alpha=alpha).fit(h.numpy(), sides[:, j].numpy()).predict(h.numpy())).unsqueeze(1)
        again = reading > cut(reading, math.ceil(LEAST_SHARE * len(h))).threshold
        assert torch.equal(again[:, 0], sides[:, j].bool())


def test_codes_are_0_and_1_at_the_centres_of_the_sides():
    h, _, _ = planted()
    found = readable_splits(h, starts(20, 5))
    codes = found.codes(h.float())
    assert codes.dtype == torch.float64
    codes = found.codes(h)
    for j in range(5):
        over = codes[:, j] > found.threshold[j]
        assert float(codes[over, j].mean()) == pytest.approx(1)
        assert float(codes[~over, j].mean()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("change", ["shift", "scale", "rotation"])
def test_splits_do_not_depend_on_the_units_of_the_activation(change):
    h, _, _ = planted(noise=0.6)
    first = starts(20)
    turn = torch.linalg.qr(starts(20, 20, seed=5))[0]
    other = {"shift": h + 100 * starts(20, 1)[:, 0], "scale": 1e-6 * h, "rotation": h @ turn}[change]
    before = readable_splits(h, first)
    after = readable_splits(other, turn.T @ first if change == "rotation" else first)
    assert torch.allclose(before.codes(h), after.codes(other), atol=1e-6)
    assert torch.allclose(before.threshold, after.threshold, atol=1e-6)


def test_the_order_of_starts_and_rows_does_not_matter():
    h, _, _ = planted()
    order = torch.randperm(len(h), generator=torch.Generator().manual_seed(3))
    some = torch.tensor([3, 1])
    whole = readable_splits(h, starts(20))
    again = readable_splits(h[order], starts(20)[:, some])
    assert torch.allclose(whole.select(some).codes(h)[order], again.codes(h[order]), atol=1e-9)


NOTHING = {
    "constant": torch.ones(100, 5),
    "nearly constant": torch.full((100, 5), 0.1) * torch.tensor([1.0, 3, 7, 11, 13]),
    "zero": torch.zeros(100, 5),
}
SOMETHING = {
    "rank 1": torch.randn(100, 1, generator=torch.Generator().manual_seed(0)) @ torch.randn(1, 5),
    "more units than rows": torch.randn(20, 60, generator=torch.Generator().manual_seed(0)),
    "few rows": torch.tensor([[0.0, 1], [1, 3], [2, 2]]),
    "two rows": torch.tensor([[0.0, 1], [1, 3]]),
    "one dead unit": torch.randn(100, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1, 0, 1]),
}


@pytest.mark.parametrize("name", [*NOTHING, *SOMETHING])
def test_degenerate_activations_give_finite_splits(name):
    h = {**NOTHING, **SOMETHING}[name]
    found = readable_splits(h, torch.cat([starts(h.shape[1], 6), torch.zeros(h.shape[1], 1)], 1))
    assert all(torch.isfinite(part).all() for part in found)
    sides = found.codes(h) > found.threshold
    assert split_apart(sides)[:6].any() == (name in SOMETHING)
    assert not split_apart(sides)[6]  # a start of zeros leads nowhere
    assert torch.isfinite(clarity(found.codes(h), found.threshold)).all()


def test_outliers_are_no_feature():
    h = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    h[:, 0] *= 1e-6
    h[:3, 0] += 100  # 1 %
    found = readable_splits(h, torch.eye(3))
    assert bool(split_apart(found.codes(h) > found.threshold)[1:].all())
    sides = found.codes(h) > found.threshold
    rare = h[:, 0] > 1
    assert not any(torch.equal(sides[:, j], rare) or torch.equal(~sides[:, j], rare) for j in range(3))
    dead = torch.zeros(300, 1)
    dead[:3] = 1
    alone = readable_splits(dead, torch.ones(1, 1))  # what is left to be cut is under 2 %
    assert not (alone.codes(dead) > alone.threshold).any()


def test_distinct_takes_the_best_of_those_that_are_alike():
    a = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0]).bool()
    b = torch.tensor([1, 1, 0, 0, 1, 1, 0, 0, 1, 0, 1, 0]).bool()
    sides = torch.stack([a, ~a, b, a], 1)
    assert distinct(sides, torch.tensor([1, 0, 2, 3]), 4, 0.3) == [1, 2]
    assert distinct(sides, torch.tensor([0, 2, 3, 1]), 4, 0.99) == [0, 2]
    assert distinct(sides, torch.tensor([3, 2, 1]), 1, 0.3) == [3]
    assert distinct(sides, torch.tensor([], dtype=torch.int64), 4, 0.3) == []


def test_what_is_left_beside_variables_is_that_of_a_regression():
    _, variable, feature = planted()
    z = torch.stack([variable, torch.arange(len(variable)) % 3.0], 1)
    sides = torch.stack([feature, variable], 1).bool()
    x = np.column_stack([np.ones(len(z)), z.numpy()])
    y = sides.double().numpy()
    assert np.allclose(beside(sides, z), y - x @ np.linalg.lstsq(x, y, rcond=None)[0])
    assert float(beside(sides, z)[:, 1].abs().max()) < 1e-12
    assert torch.allclose(beside(sides, z[:, :0]), sides.double() - sides.double().mean(0))
    assert torch.allclose(beside(sides, torch.cat([z, z], 1)), beside(sides, z))
