"""`kernel_probe`, `splits` and `topk` on generated activations."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fuzz.inputs import SEEDS, activations, close, finite, flawed, groups, normal, untouched
from lightning_interp.functional.entanglement import collateral
from lightning_interp.functional.erasure import leace
from lightning_interp.functional.kernel_probe import kernel_collateral, kernel_probe, row_products
from lightning_interp.functional.moments import Target, cross, moments
from lightning_interp.functional.probe import ridge_probe, stack
from lightning_interp.functional.splits import (
    Cut,
    Splits,
    beside,
    clarity,
    cut,
    distinct,
    readable_splits,
    split_apart,
)  # fmt: skip
from lightning_interp.functional.topk import TopKCode, train_top_k

MILD = st.sampled_from(["none", "rank one", "copied column", "zero column", "all zero"])
DOUBLE = st.just(torch.float64)
UNITS = st.sampled_from([2.0**-20, 1.0, 2.0**20])


@given(activations(1, 40, dtypes=DOUBLE))
def test_products_of_rows_are_about_their_mean(h):
    got = untouched(row_products, h.detach())
    about = h.detach() - h.detach().mean(0)
    close(got, about @ about.T, 1e-9, 1e-14 * float(h.detach().square().sum()))
    close(got, got.T, 1e-9, 1e-14 * float(h.detach().square().sum()))
    if not bool((h != h[:1]).any()):
        assert not got.any()


@given(activations(4, 40, dtypes=DOUBLE).map(torch.Tensor.detach), st.data())
def test_the_dual_probe_reads_what_the_ridge_probe_reads(h, data):
    n, d = h.shape
    level, _ = data.draw(groups(n, 2))
    y = torch.cat([level.double().unsqueeze(1) - 0.5, normal(n, 1, data.draw(SEEDS))], 1)
    fitted = torch.arange(0, n, 2)
    got = untouched(kernel_probe, row_products(h), fitted, y, d)
    finite(got)
    assert got.shape == y.shape
    m = moments(h[fitted], y[fitted, 1:], (level[fitted] + 1).unsqueeze(1), 3)
    codes = torch.tensor([[-0.5], [0.5]]).double()
    target = stack([cross(m, Target(torch.tensor([1, 2]), codes)), cross(m, Target(torch.tensor([1, 2]), torch.empty(0), 0))])
    expected = ridge_probe(m, target).scores(h)
    offset = (h.abs().amax(0) / h.std(0, unbiased=False).clamp_min(1e-300)).clamp(max=1e12).max()
    digits = 1e-6 + 1e-14 * float(offset) ** 2
    if digits < 1e-3:
        close(got, expected, 1e-4, 10 * digits * float(y.abs().max()))
    elsewhere = y.clone()
    elsewhere[1::2] += 7
    assert torch.equal(kernel_probe(row_products(h), fitted, elsewhere, d), got)  # those are not looked at


@given(activations(6, 40, dtypes=DOUBLE, flaws=MILD), st.data())
def test_collateral_of_rows_is_that_of_moments(h, data):
    h = h.detach()
    n = len(h)
    level, _ = data.draw(groups(n, 2))
    y = level.double().unsqueeze(1) - 0.5
    fold = torch.arange(n) % 2 == 1
    ms = [moments(h[s], h[s, :0], (level[s] + 1).unsqueeze(1), 3) for s in (~fold, fold)]
    codes = torch.tensor([[-0.5], [0.5]]).double()
    targets = [cross(m, Target(torch.tensor([1, 2]), codes)) for m in ms]
    whole = ms[0] + ms[1]
    e = leace(whole.gram / n, cross(whole, Target(torch.tensor([1, 2]), codes)).covariance.T, whole.hidden[0])
    before, after = untouched(kernel_collateral, h, fold, y, [slice(0, 1)], [e])
    expected = collateral(ms, targets, [slice(0, 1)], [e])
    close(before, expected[0], 1e-4, 1e-5)
    close(after, expected[1], 1e-4, 1e-5)
    assert kernel_collateral(h, fold, y, [slice(0, 1)], [])[1].shape == (0, 1)


def best_of(x, least):
    """The best cut of numbers in two by trying them all: what it explains, or None."""
    x = x.sort().values
    about = float(((x - x.mean()) ** 2).sum())
    found = []
    for i in range(1, len(x)):
        if x[i] > x[i - 1] and min(i, len(x) - i) >= least:
            low, high = x[:i], x[i:]
            within = float(((low - low.mean()) ** 2).sum() + ((high - high.mean()) ** 2).sum())
            found.append(1 - within / about if about else 0.0)
    return max(found, default=None)


@given(activations(1, 20, dtypes=st.sampled_from([torch.float64, torch.float32])), st.integers(1, 4))
def test_a_cut_is_the_best_of_all(readings, least):
    readings = readings.detach()
    got = untouched(cut, readings, least)
    assert isinstance(got, Cut)
    finite(*got)
    size = float(readings.abs().max())
    for j, column in enumerate(readings.T):
        best = best_of(column.double(), least)
        over = int((column > got.threshold[j]).sum())
        if best is None:
            assert over == 0
            assert float(got.explained[j]) == 0
            continue
        assert least <= over <= len(column) - least
        digits = torch.finfo(readings.dtype).eps * (size / float(column.double().std(unbiased=False)))
        if digits < 1e-6:
            sides = column > got.threshold[j]
            low, high = column[~sides].double(), column[sides].double()
            within = float(((low - low.mean()) ** 2).sum() + ((high - high.mean()) ** 2).sum())
            whole = float(((column.double() - column.double().mean()) ** 2).sum())
            assert abs((1 - within / whole) - best) < 1e-3  # as good as the best
            assert abs(float(got.explained[j]) - best) < 1e-3
            assert abs(float(got.low[j]) - float(low.mean())) < 1e-4 * size
            assert abs(float(got.high[j]) - float(high.mean())) < 1e-4 * size


@given(activations(1, 40), st.integers(1, 4), SEEDS, UNITS)
def test_readable_splits_are_numbers_and_read_their_rows_from_nought_to_one(h, starts, seed, unit):
    h = h.detach()
    begin = normal(h.shape[1], starts, seed) * unit
    begin[:, 0] *= seed % 2  # a start that is nowhere
    got = untouched(readable_splits, h, begin)
    assert isinstance(got, Splits)
    finite(*got)
    codes = untouched(got.codes, h)
    finite(codes)
    sides = codes > got.threshold
    apart = untouched(split_apart, sides)
    assert torch.equal(apart, (sides.double().mean(0) - 0.5).abs() <= 0.48)
    flat = float(h.double().abs().max()) * 1e-14 * float(got.read.abs().max())
    for j in range(starts):
        if bool(sides[:, j].any()) and flat < 1e-6:
            assert abs(float(codes[sides[:, j], j].mean()) - 1) < 1e-4
            assert abs(float(codes[~sides[:, j], j].mean())) < 1e-4
        if not bool(got.read[:, j].any()):
            assert not sides[:, j].any()
    few = got.select(torch.tensor([0]))
    close(few.codes(h), codes[:, :1], 1e-9, 1e-12 + flat)
    clear = untouched(clarity, codes, got.threshold)
    finite(clear)
    assert bool(((clear >= 0) & (clear <= 1)).all())


@given(activations(0, 40, dtypes=DOUBLE), st.data())
def test_clarity_is_the_squared_correlation_with_the_sides(codes, data):
    codes = codes.detach()
    threshold = codes[: len(codes) // 2 + 1].mean(0).nan_to_num()
    got = untouched(clarity, codes, threshold)
    if len(codes):
        finite(got)
    for j in range(codes.shape[1]):
        side, about = (codes[:, j] > threshold[j]).double(), codes[:, j] - codes[:, j].mean() if len(codes) else codes[:, j]
        if len(codes) and 0 < float(side.mean()) < 1 and float(about.std()) > 1e-7 * float(codes[:, j].abs().max()):
            expected = float(torch.corrcoef(torch.stack([codes[:, j], side]))[0, 1]) ** 2
            assert abs(float(got[j]) - expected) < 1e-6
    sides = codes > threshold
    named = flawed(len(codes), data.draw(st.integers(0, 3)), data.draw(MILD), data.draw(SEEDS))
    left = untouched(beside, sides, named)
    finite(left)
    if len(codes):
        columns = torch.cat([torch.ones(len(named), 1).double(), named], 1)
        columns = columns / columns.norm(dim=0).clamp_min(1e-300)
        assert float((columns.T @ left).abs().max()) < 1e-5 * len(codes)


@given(activations(1, 30, dtypes=DOUBLE), st.integers(0, 5), st.floats(0, 1), SEEDS)
def test_no_two_that_are_taken_are_alike(sides, most, alike, seed):
    sides = sides.detach()
    order = torch.randperm(sides.shape[1], generator=torch.Generator().manual_seed(seed))
    taken = untouched(distinct, sides, order, most, alike)
    assert len(taken) == len(set(taken)) <= most
    unit = sides - sides.mean(0)
    unit = unit / unit.norm(dim=0).clamp_min(1e-300)
    products = (unit.T @ unit).abs()
    for i, a in enumerate(taken):
        assert all(float(products[a, b]) <= alike + 1e-9 for b in taken[:i])
    if len(taken) < most:
        for j in set(order.tolist()) - set(taken):
            assert any(float(products[j, b]) > alike - 1e-9 for b in taken)


@given(activations(1, 20), st.integers(1, 6), SEEDS, st.data())
def test_a_top_k_code_is_finite_sparse_and_goes_on_from_where_it_was(h, atoms, seed, data):
    h = h.detach()
    k = data.draw(st.integers(1, atoms))
    got = untouched(train_top_k, h, atoms, k, 3, 1e-3, torch.Generator().manual_seed(seed))
    assert isinstance(got, TopKCode)
    finite(got.read, got.bias, got.write, got.center, got.scale, got.threshold)
    codes = untouched(got.codes, h)
    finite(codes)
    assert codes.shape == (len(h), atoms)
    assert bool((codes >= 0).all())
    assert bool(((codes > 0).sum(1) <= k).all())
    close(got.select(torch.tensor([atoms - 1])).codes(h), codes[:, -1:])
    again = train_top_k(h, atoms, k, 0, 1e-3, torch.Generator().manual_seed(seed), got)
    assert torch.equal(again.read, got.read)
    same = train_top_k(h, atoms, k, 3, 1e-3, torch.Generator().manual_seed(seed))
    assert torch.equal(same.read, got.read)
    other = train_top_k(h, atoms + 1, 1, 0, 1e-3, torch.Generator().manual_seed(seed), got)  # of another size: from the start
    assert other.write.shape == (atoms + 1, h.shape[1])
