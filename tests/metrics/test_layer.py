"""`LayerStatistics`: the same statistics however the rows come in, and equal to plain sums over rows."""

import pickle

import pytest
import torch

from lightning_interp.functional.coding import Factor
from lightning_interp.functional.moments import Target, cross
from lightning_interp.functional.sampling import uniform
from lightning_interp.metrics.layer import BINS, CONTROLS, FOLD, KEPT, MAX_GROUPS, LayerStatistics, is_cell, membership

D = 4


def data(n=300, levels=(2, 3), seed=0, offset=0.0):
    """Activations, values (discrete ones by `levels`, 0 for a continuous one) and keys."""
    g = torch.Generator().manual_seed(seed)
    columns = [
        torch.randint(k, (n,), generator=g).double() if k else torch.randn(n, generator=g, dtype=torch.float64) for k in levels
    ]
    values = torch.stack(columns, 1)
    mix = torch.randn(len(levels), D, generator=g, dtype=torch.float64)
    h = values @ mix + torch.randn(n, D, generator=g, dtype=torch.float64) + offset
    return h, values, torch.randint(-(2**62), 2**62, (n,), generator=g)


def summary(pieces, h, values, key, discrete, max_kept=4096, source=None):
    metric = LayerStatistics(discrete, max_kept, seed=3)
    for at in pieces:
        metric.update(h[at], values[at], key[at], None if source is None else source[at])
    return metric.compute()


def shuffled(n, size, seed):
    return list(torch.randperm(n, generator=torch.Generator().manual_seed(seed)).split(size))


def assert_same(a, b):
    """The same numbers, the groups in any order."""
    for keys_a, keys_b, m_a, m_b in zip(a.keys, b.keys, a.folds, b.folds):
        assert torch.isnan(keys_a[0]).all()
        assert torch.isnan(keys_b[0]).all()
        rows_a = {tuple(k.view(torch.int64).tolist()): i for i, k in enumerate(keys_a)}
        rows_b = {tuple(k.view(torch.int64).tolist()): i for i, k in enumerate(keys_b)}
        assert rows_a.keys() == rows_b.keys()
        at = torch.tensor([rows_b[k] for k in rows_a])
        assert torch.equal(m_a.count, m_b.count[at])
        torch.testing.assert_close(m_a.mean, m_b.mean[at], rtol=1e-11, atol=1e-11)
        assert len(m_a.cross) == len(m_b.cross)
        assert at[: len(m_a.cross)].max() < len(m_b.cross)
        torch.testing.assert_close(m_a.cross, m_b.cross[at[: len(m_a.cross)]], rtol=1e-10, atol=1e-9)
        torch.testing.assert_close(m_a.gram, m_b.gram, rtol=1e-11, atol=1e-9)
    for name in ("kept", "kept_values", "kept_second", "kept_source", "kept_bins"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


SETTINGS = [
    ((2, 3), [True, True]),
    ((2,), [True]),
    ((0,), [False]),
    ((0, 0), [False, False]),
    ((2, 0), [True, False]),
    ((0, 2, 3, 0), [False, True, True, False]),
    ((300,), [True]),
    ((20, 30), [True, True]),  # 600 cells: only levels are kept
    ((20, 0, 30), [True, False, True]),
]


@pytest.mark.parametrize(("n", "size", "max_kept"), [(40, 1, 4096), (40, 1, 10), (700, 71, 20), (700, 350, 4096)])
@pytest.mark.parametrize(("levels", "discrete"), SETTINGS)
def test_many_updates_in_any_order_equal_one(levels, discrete, n, size, max_kept):
    h, values, key = data(n, levels)
    one = summary([slice(None)], h, values, key, discrete, max_kept)
    assert_same(one, summary(shuffled(n, size, seed=size), h, values, key, discrete, max_kept))


@pytest.mark.parametrize(("levels", "discrete"), SETTINGS)
def test_moments_are_those_of_plain_sums_over_each_group(levels, discrete):
    h, values, key = data(400, levels, offset=50.0)
    s = summary(shuffled(400, 57, seed=1), h, values, key, discrete)
    second = uniform(key, 3, FOLD) >= 0.5
    q = [j for j, d in enumerate(discrete) if not d]
    p = len(levels)
    for fold in (0, 1):
        mine = second == bool(fold)
        x, y, hf = values[mine], torch.cat([values[mine][:, q], h[mine]], 1), h[mine]
        bins = torch.stack([(uniform(key[mine], 3, 2 + r) * BINS).floor() for r in range(CONTROLS)], 1)
        keys, m = s.keys[fold], s.folds[fold]
        centred = hf - hf.mean(0)
        torch.testing.assert_close(m.gram, centred.T @ centred, rtol=1e-11, atol=1e-9)
        for i, group in enumerate(keys):
            inside = torch.ones(len(x), dtype=torch.bool)
            for j in range(p):
                if not torch.isnan(group[j]):
                    inside &= x[:, j] == group[j]
            if not torch.isnan(group[p]):
                inside &= bins[:, int(group[p])] == group[p + 1]
            assert float(m.count[i]) == int(inside.sum())
            if inside.any():
                part = y[inside]
                torch.testing.assert_close(m.mean[i], part.mean(0), rtol=1e-11, atol=1e-11)
            if inside.any() and i < len(m.cross):
                c = part - part.mean(0)
                torch.testing.assert_close(m.cross[i], c[:, : len(q)].T @ c, rtol=1e-9, atol=1e-9)
        named = [j for j, d in enumerate(discrete) if d]
        if named:
            cells = len({tuple(r) for r in x[:, named].tolist()})
            assert len(m.cross) == 1 + (cells if cells <= MAX_GROUPS else 0)
            assert int(is_cell(keys, discrete).sum()) == (cells if cells <= MAX_GROUPS or len(named) == 1 else 0)


def factor(column, k, values):
    if not k:
        x = values[:, column]
        return Factor("v", "continuous", column, center=float(x.mean()), scale=float(x.std(unbiased=False)))
    levels = tuple(sorted(set(values[:, column].tolist())))
    return Factor("v", "categorical", column, levels, tuple(map(str, levels)))


def target_of(f, keys, discrete):
    """The variable's columns over the groups of its levels; a continuous one's over all rows."""
    if not f.discrete:
        at = torch.zeros(1, dtype=torch.int64)
        return Target(at, torch.empty(0), [j for j, d in enumerate(discrete) if not d].index(f.column), f.center, f.scale)
    others = [j for j in range(keys.shape[1]) if j != f.column]
    at = (~keys[:, f.column].isnan() & keys[:, others].isnan().all(1)).nonzero().flatten()
    return Target(at, f.encode(keys[at, f.column]))


def natural(h, z):
    """Mean, variance and covariance with h of the columns z, over single rows."""
    zc = z - z.mean(0)
    return z.mean(0), (zc**2).mean(0), zc.T @ (h - h.mean(0)) / len(h)


@pytest.mark.parametrize("order", ["few cells first", "many cells first", "together"])
@pytest.mark.parametrize("levels", [(20, 30), (20, 30, 0), (0, 18, 2, 18)])
def test_too_many_cells_fall_to_levels_and_give_the_same_natural_cross_moments(levels, order):
    n = 1500
    h, values, key = data(n, levels)
    discrete = [k > 0 for k in levels]
    few, many = slice(0, 60), slice(60, n)
    pieces = {"few cells first": [few, many], "many cells first": [many, few], "together": [slice(None)]}[order]
    s = summary(pieces, h, values, key, discrete)
    keys, m = s.total(discrete)
    assert not is_cell(keys, discrete).any()
    assert float(m.count[0]) == n
    for j, k in enumerate(levels):
        f = factor(j, k, values)
        got = cross(m, target_of(f, keys, discrete))
        for part, plain in zip(got, natural(h, f.encode(values[:, j]))):
            torch.testing.assert_close(part, plain, rtol=1e-9, atol=1e-10)


def test_one_fold_of_cells_and_one_of_levels_make_a_total():
    # 60 cells in one fold, 100 in the other: the total has levels only
    g = torch.Generator().manual_seed(0)
    key = torch.arange(4000)
    second = uniform(key, 3, FOLD) >= 0.5
    a = torch.where(second, torch.randint(10, (4000,), generator=g), torch.randint(6, (4000,), generator=g))
    values = torch.stack([a, torch.randint(10, (4000,), generator=g)], 1).double()
    h = torch.randn(4000, D, generator=g, dtype=torch.float64) + values[:, :1]
    s = summary([slice(None)], h, values, key, [True, True])
    assert is_cell(s.keys[0], [True, True]).any()
    assert not is_cell(s.keys[1], [True, True]).any()
    keys, m = s.total([True, True])
    f = factor(0, 18, values)
    got = cross(m, target_of(f, keys, [True, True]))
    for part, plain in zip(got, natural(h, f.encode(values[:, 0]))):
        torch.testing.assert_close(part, plain, rtol=1e-9, atol=1e-10)


# --- single rows ------------------------------------------------------------------------------------------------------


def test_the_kept_rows_are_those_with_the_smallest_numbers():
    h, values, key = data(300)
    s = summary(shuffled(300, 31, seed=2), h, values, key, [True, True], max_kept=40)
    chance = uniform(key, 3, KEPT)
    at = chance.argsort()[:40]
    assert torch.equal(s.kept, h[at])
    assert torch.equal(s.kept_values, values[at])
    assert torch.equal(s.kept_second, uniform(key, 3, FOLD)[at] >= 0.5)


def test_a_source_lies_in_one_fold_and_is_kept_whole():
    h, values, key = data(300)
    source = torch.arange(300) // 3
    h[:, 0] = torch.arange(300)  # tells which row it is
    s = summary(shuffled(300, 31, seed=2), h, values, key, [True, True], max_kept=60, source=source)
    fold_of, rows_of = {}, {}
    for at, second in zip(s.kept[:, 0].long().tolist(), s.kept_second.tolist()):
        assert fold_of.setdefault(at // 3, second) == second
        rows_of[at // 3] = rows_of.get(at // 3, 0) + 1
    assert set(rows_of.values()) == {3}
    assert 0 < sum(fold_of.values()) < len(fold_of) == 20
    everything = summary([slice(None)], h, values, key, [True, True], source=source)
    assert sum(float(m.count[0]) for m in everything.folds) == 300
    in_second = {int(at) // 3 for at in everything.kept[everything.kept_second, 0]}
    assert float(everything.folds[1].count[0]) == 3 * len(in_second)


@pytest.mark.parametrize("max_kept", [2, 40, 177])
@pytest.mark.parametrize("size", [1, 31, 300])
def test_whole_sources_are_kept_in_any_split_and_order(size, max_kept):
    h, values, key = data(300)
    g = torch.Generator().manual_seed(7)
    source = torch.randint(-(2**62), 2**62, (60,), generator=g)[torch.randint(60, (300,), generator=g)]
    s = summary(shuffled(300, size, seed=size), h, values, key, [True, True], max_kept, source)
    # Sources by their number, samples of a source by theirs.
    order = sorted(zip(uniform(source, 3, KEPT).tolist(), uniform(key, 3, KEPT).tolist(), range(300)))
    at = torch.tensor([i for *_, i in order[:max_kept]])
    assert torch.equal(s.kept, h[at])
    assert torch.equal(s.kept_source, source[at])
    kept = [(int((s.kept_source == x).sum()), int((source == x).sum())) for x in s.kept_source.unique()]
    assert sum(some < all_ for some, all_ in kept) <= 1
    assert_same(s, summary([slice(None)], h, values, key, [True, True], max_kept, source))


def test_membership_worked_out_once_serves_every_layer():
    h, values, key = data(300)
    known = membership(values, key, None, [True, True], seed=3)
    metric = LayerStatistics([True, True], 40, seed=3)
    metric.update(h, values, key, None, known)
    assert_same(metric.compute(), summary([slice(None)], h, values, key, [True, True], max_kept=40))


# --- the shell --------------------------------------------------------------------------------------------------------


def test_no_row_adds_nothing_and_alone_gives_none():
    h, values, key = data(50)
    metric = LayerStatistics([True, True], seed=3)
    metric.update(h[:0], values[:0], key[:0])
    assert metric.compute() is None
    metric.update(h, values, key)
    metric.update(h[:0], values[:0], key[:0])
    assert_same(metric.compute(), summary([slice(None)], h, values, key, [True, True]))


def test_reset_forgets_everything():
    h, values, key = data(50)
    metric = LayerStatistics([True, True], seed=3)
    metric.update(h * 100, values, key)
    metric.reset()
    metric.update(h, values, key)
    assert_same(metric.compute(), summary([slice(None)], h, values, key, [True, True]))


def test_it_survives_pickling():
    h, values, key = data(50)
    metric = LayerStatistics([True, True], seed=3)
    metric.update(h[:20], values[:20], key[:20])
    metric = pickle.loads(pickle.dumps(metric))
    metric.update(h[20:], values[20:], key[20:])
    assert_same(metric.compute(), summary([slice(None)], h, values, key, [True, True]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_floating_activation_is_summed_in_float64(dtype):
    h, values, key = data(300, offset=100.0)
    low = h.to(dtype)
    metric = LayerStatistics([True, True], seed=3).half()
    metric.update(low, values, key)
    assert_same(metric.compute(), summary([slice(None)], low.double(), values, key, [True, True]))


def test_an_update_does_not_change_an_earlier_summary():
    h, values, key = data(100)
    metric = LayerStatistics([True, True], seed=3)
    metric.update(h[:50], values[:50], key[:50])
    early = metric.compute()
    before = [m.mean.clone() for m in early.folds]
    metric.update(h[50:], values[50:], key[50:])
    assert all(torch.equal(m.mean, b) for m, b in zip(early.folds, before))
