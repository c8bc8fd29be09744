"""Moments against plain loops over rows, and the promise that they add."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_interp.functional.moments import Moments, Target, cross, moments

SEEDS = st.integers(0, 2**31)
D, Q, GROUPS = 5, 2, 8  # groups: 0 all rows; 1–3 the levels of one variable; 4–6 of another; 7 always empty


def sample(seed: int, n: int = 60, mean: float = 1e4):
    rng = np.random.default_rng(seed)
    h = rng.normal(mean, 1, (n, D)) @ (np.eye(D) + 0.2 * rng.normal(size=(D, D)))
    x = rng.normal(mean, 2, (n, Q)) + 0.5 * (h[:, :Q] - h[:, :Q].mean(0))
    member = np.column_stack([rng.integers(1, 4, n), rng.integers(4, 7, n)])
    return h, x, member


def of(h: np.ndarray, x: np.ndarray, member: np.ndarray) -> Moments:
    return moments(torch.tensor(h), torch.tensor(x), torch.tensor(member), GROUPS)


def plain(h: np.ndarray, x: np.ndarray, member: np.ndarray) -> Moments:
    y = np.concatenate([x, h], axis=1)
    q = x.shape[1]
    count, mean = np.zeros(GROUPS), np.zeros((GROUPS, y.shape[1]))
    cross_, gram = np.zeros((GROUPS, q, y.shape[1])), np.zeros((D, D))
    for g in range(GROUPS):
        rows = [y[i] for i in range(len(y)) if g == 0 or g in member[i]]
        count[g] = len(rows)
        if rows:
            mean[g] = np.mean(rows, axis=0)
        for row in rows:
            cross_[g] += np.outer((row - mean[g])[:q], row - mean[g])
            if g == 0:
                gram += np.outer((row - mean[g])[q:], (row - mean[g])[q:])
    return Moments(*(torch.tensor(a) for a in (count, mean, cross_, gram)))


def assert_same(a: Moments, b: Moments, tolerance: float = 1e-10) -> None:
    for x, y in zip(a, b):
        scale = float(y.abs().max()) if y.numel() else 0.0
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance * scale)


@given(SEEDS)
def test_moments_are_those_of_a_loop_over_rows_also_at_a_large_mean(seed):
    data = sample(seed)
    assert_same(of(*data), plain(*data))


@given(SEEDS, st.randoms(use_true_random=False))
def test_seven_random_parts_add_up_to_the_whole(seed, random):
    h, x, member = sample(seed)
    part = np.random.default_rng(seed + 1).integers(0, 7, len(h))
    parts = [of(h[part == k], x[part == k], member[part == k]) for k in range(7)]
    random.shuffle(parts)
    total = parts[0]
    for p in parts[1:]:
        total = total + p
    assert_same(total, of(h, x, member))


@given(SEEDS)
def test_rows_sorted_by_level_add_up_too(seed):
    h, x, member = sample(seed)
    parts = [of(h[member[:, 0] == k], x[member[:, 0] == k], member[member[:, 0] == k]) for k in (3, 1, 2)]
    assert_same(parts[0] + parts[1] + parts[2], of(h, x, member))
    assert_same(parts[0] + (parts[1] + parts[2]), of(h, x, member))


def test_single_rows_add_up_to_the_whole():
    h, x, member = sample(3, n=30)
    total = of(h[:0], x[:0], member[:0])
    for i in range(30):
        total = total + of(h[i : i + 1], x[i : i + 1], member[i : i + 1])
    assert_same(total, of(h, x, member))


def test_an_empty_part_adds_exactly_nothing():
    h, x, member = sample(1)
    whole, empty = of(h, x, member), of(h[:0], x[:0], member[:0])
    for both in (whole + empty, empty + whole):
        for a, b in zip(both, whole):
            assert torch.equal(a, b)
    for a in empty + empty:
        assert not a.any()


def test_without_continuous_variables_there_are_no_cross_products():
    h, x, member = sample(2)
    got = of(h, x[:, :0], member) + of(h, x[:, :0], member)
    assert got.columns == 0
    assert got.cross.shape == (GROUPS, 0, D)
    assert_same(got, of(*(np.concatenate([a, a]) for a in (h, x[:, :0], member))))


def test_low_precision_activations_are_summed_in_double():
    h = torch.full((100_000, 1), 0.1, dtype=torch.float16)
    got = moments(h, torch.zeros(100_000, 0), torch.ones(100_000, 1, dtype=torch.int64), 2)
    assert float(got.hidden[0, 0]) == pytest.approx(float(h[0, 0]), rel=1e-12)
    assert float(got.gram[0, 0]) < 1e-15


def test_select_repeats_groups_and_makes_empty_ones():
    m = of(*sample(4))
    got = m.select(torch.tensor([0, 2, 2, -1]))
    assert got.count.tolist() == [m.count[0], m.count[2], m.count[2], 0]
    assert torch.equal(got.mean[1], m.mean[2])
    assert torch.equal(got.cross[2], m.cross[2])
    assert not got.mean[3].any()
    assert not got.cross[3].any()
    assert torch.equal(got.gram, m.gram)


def test_selecting_and_adding_commute():
    h, x, member = sample(5)
    a, b = of(h[:20], x[:20], member[:20]), of(h[20:], x[20:], member[20:])
    index = torch.tensor([0, 3, 1, -1])
    assert_same(a.select(index) + b.select(index), (a + b).select(index))


def plain_cross(t: np.ndarray, h: np.ndarray, w: np.ndarray):
    """Mean, variance and covariance by a loop over rows."""
    w = w / w.sum()
    mean = sum(w[i] * t[i] for i in range(len(t)))
    hidden = sum(w[i] * h[i] for i in range(len(t)))
    variance = sum(w[i] * (t[i] - mean) ** 2 for i in range(len(t)))
    covariance = sum(w[i] * np.outer(t[i] - mean, h[i] - hidden) for i in range(len(t)))
    return mean, variance, covariance


@given(SEEDS, st.booleans(), st.sampled_from([0.0, 1e4]))
def test_the_cross_moments_of_a_discrete_target_are_those_of_a_loop(seed, weighted, mean):
    h, x, member = sample(seed, mean=mean)
    rng = np.random.default_rng(seed)
    codes, per_level = rng.normal(size=(3, 4)), rng.uniform(0.2, 2, 3)
    target = Target(torch.tensor([1, 2, 3]), torch.tensor(codes))
    level = member[:, 0] - 1
    w = per_level[level] if weighted else np.ones(len(h))
    got = cross(of(h, x, member), target, torch.tensor(per_level) if weighted else None)
    for a, b in zip(got, plain_cross(codes[level], h, w)):
        np.testing.assert_allclose(a, b, atol=1e-9)


@given(SEEDS, st.booleans(), st.integers(0, Q - 1), st.sampled_from([0.0, 1e4]))
def test_the_cross_moments_of_a_continuous_target_are_those_of_a_loop(seed, weighted, column, mean):
    h, x, member = sample(seed, mean=mean)
    per_level = np.random.default_rng(seed).uniform(0.2, 2, 3)
    center, scale = float(x[:, column].mean()), float(x[:, column].std())
    target = Target(torch.tensor([4, 5, 6]), torch.empty(0), column, center, scale)
    w = per_level[member[:, 1] - 4] if weighted else np.ones(len(h))
    got = cross(of(h, x, member), target, torch.tensor(per_level) if weighted else None)
    expected = plain_cross(((x[:, column] - center) / scale)[:, None], h, w)
    assert [tuple(a.shape) for a in got] == [(1,), (1,), (1, D)]
    for a, b in zip(got, expected):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_an_empty_level_changes_nothing():
    h, x, member = sample(6)
    m = of(h, x, member)
    some = Target(torch.tensor([1, 2, 3]), torch.tensor([[-1.0], [0.0], [1.0]]).double())
    more = Target(torch.tensor([1, 2, 3, 7]), torch.tensor([[-1.0], [0.0], [1.0], [9.0]]).double())
    for a, b in zip(cross(m, some), cross(m, more)):
        torch.testing.assert_close(a, b)
    groups = torch.tensor([4, 5, 6]), torch.tensor([4, 5, 6, 7])
    for a, b in zip(*(cross(m, Target(g, torch.empty(0), 0, 1e4, 2.0)) for g in groups)):
        torch.testing.assert_close(a, b)
