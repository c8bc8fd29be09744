"""`moments` and `probe` on generated activations: against sums over rows, in any split, order and unit."""

import math
from unittest import mock

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuzz.inputs import FLAWS, SEEDS, activations, close, finite, flawed, groups, normal, untouched
from lightning_interp.functional.moments import Cross, Moments, Target, coarsen, cross, moments, products
from lightning_interp.functional.probe import (
    Probe,
    auroc,
    balanced_accuracy,
    block_r2,
    constant,
    held_out_products,
    held_out_r2,
    ridge_probe,
    stack,
)  # fmt: skip


@st.composite
def grouped(draw, least=0):
    """Activations `[n, d]`, continuous columns `[n, q]`, groups `[n]` in 1…k, and k."""
    h = draw(activations(least))
    x = flawed(len(h), draw(st.integers(0, 3)), draw(FLAWS), draw(SEEDS)) if draw(st.booleans()) else h[:, :0].double()
    member, k = draw(groups(len(h)))
    return h, x.detach(), member + 1, k


def of_rows(h, x, member, k, crossed, pairs):
    """`Moments` by numpy, a group at a time."""
    y = np.concatenate([x.double().numpy(), h.detach().double().numpy()], 1)
    parts = [y] + [y[member.numpy() == g] for g in range(1, k + 1)]
    mean = np.stack([p.mean(0) if len(p) else np.zeros(y.shape[1]) for p in parts])
    about = [p - m for p, m in zip(parts, mean)]
    q = x.shape[1]
    products = np.stack([a[:, :q].T @ a for a in about])[:crossed]
    gram = about[0][:, q:].T @ about[0][:, q:]
    out = np.array([len(p) for p in parts]).astype(float), mean, products, gram if pairs else np.diag(gram)
    return Moments(*(torch.tensor(o) for o in out))


def alike(a, b, size, rtol=1e-9):
    """Means to the digits of `size`, the largest number that was summed, products to those of its square."""
    n = float(a.count[0]) + 1
    close(a.count, b.count)
    close(a.mean, b.mean, rtol, 1e-13 * size)
    close(a.cross, b.cross, rtol, 1e-12 * n * size**2)
    close(a.gram, b.gram, rtol, 1e-12 * n * size**2)


def largest(*tensors):
    return max((float(t.detach().abs().max()) for t in tensors if t.numel()), default=0.0)


@given(grouped(), st.booleans(), st.integers(0, 5))
def test_moments_are_those_of_a_loop_over_groups(rows, pairs, crossed):
    h, x, member, k = rows
    crossed = min(crossed, k + 1)
    got = untouched(moments, h, x, member.unsqueeze(1), k + 1, crossed, pairs)
    finite(*got)
    assert got.columns == x.shape[1]
    assert got.hidden.shape == (k + 1, h.shape[1])
    assert all(t.dtype == torch.float64 for t in got)
    alike(got, of_rows(h, x, member, k, crossed, pairs), largest(h, x))
    close(got.squares, got.gram if not pairs else got.gram.diagonal())
    assert bool((got.squares >= 0).all())


@given(activations(dtypes=st.just(torch.float64)), st.integers(1, 4))
def test_products_are_whole_whatever_the_strip(y, strip):
    with mock.patch("lightning_interp.functional.moments._STRIP", strip):
        got = untouched(products, y.detach())
    close(got, y.detach().T @ y.detach(), 1e-9, 1e-13 * len(y) * largest(y) ** 2)
    close(got, got.T, 1e-9, 1e-13 * len(y) * largest(y) ** 2)


@given(grouped(), st.integers(0, 40), st.booleans())
def test_moments_of_parts_add_up_in_any_order(rows, at, pairs):
    h, x, member, k = rows
    first, rest = (moments(h[s], x[s], member[s].unsqueeze(1), k + 1, None, pairs) for s in (slice(at), slice(at, None)))
    whole = moments(h, x, member.unsqueeze(1), k + 1, None, pairs)
    alike(untouched(Moments.__add__, first, rest), whole, largest(h, x))
    alike(rest + first, whole, largest(h, x))
    order = torch.randperm(len(h), generator=torch.Generator().manual_seed(at))
    alike(moments(h[order], x[order], member[order].unsqueeze(1), k + 1, None, pairs), whole, largest(h, x))
    nothing = moments(h[:0], x[:0], member[:0].unsqueeze(1), k + 1, None, pairs)
    assert all(torch.equal(a, b) for a, b in zip(whole + nothing, whole))
    assert all(torch.equal(a, b) for a, b in zip(nothing + whole, whole))


@given(grouped())
def test_moments_of_small_numbers_are_those_of_the_same_in_double(rows):
    h, x, member, k = rows
    a, b = (moments(one, x, member.unsqueeze(1), k + 1) for one in (h, h.double()))
    assert all(torch.equal(s, t) for s, t in zip(a, b))


@given(grouped(), st.lists(st.integers(-1, 4), min_size=1, max_size=5), st.integers(0, 5))
def test_groups_are_picked_repeated_and_emptied(rows, index, crossed):
    h, x, member, k = rows
    index = [min(i, k) for i in index]
    m = moments(h, x, member.unsqueeze(1), k + 1)
    got = untouched(m.select, torch.tensor(index), crossed)
    for place, i in enumerate(index):
        close(got.count[place], m.count[i] if i >= 0 else torch.tensor(0.0).double())
        close(got.mean[place], m.mean[i] if i >= 0 else torch.zeros_like(m.mean[0]))
        if place < crossed:
            close(got.cross[place], m.cross[i] if i >= 0 else torch.zeros_like(m.cross[0]))
    assert len(got.cross) == min(crossed, len(index))
    assert got.gram is m.gram


@given(grouped(), st.data())
def test_merged_groups_have_the_moments_of_their_rows(rows, data):
    h, x, member, k = rows
    into = torch.tensor([0, *data.draw(st.lists(st.integers(1, 3), min_size=k, max_size=k))])
    got = untouched(coarsen, moments(h, x, member.unsqueeze(1), k + 1), into, 4)
    alike(got, moments(h, x, into[member].unsqueeze(1), 4), largest(h, x))


@given(grouped(1), st.data())
def test_cross_moments_are_those_of_weighted_rows(rows, data):
    h, x, member, k = rows
    m = moments(h, x, member.unsqueeze(1), k + 1)
    seed = data.draw(SEEDS)
    column = data.draw(st.integers(-1, x.shape[1] - 1))
    codes = normal(k, data.draw(st.integers(1, 3)), seed)
    weight = normal(k, 1, seed + 1)[:, 0].exp() if data.draw(st.booleans()) else None
    target = Target(torch.arange(1, k + 1), codes, column, center=0.5, scale=2.0)
    got = untouched(cross, m, target, weight)
    finite(*got)
    w = torch.ones(len(h), dtype=torch.float64) if weight is None else weight[member - 1]
    w = (w / w.sum()).unsqueeze(1)
    y = codes[member - 1] if column < 0 else (x[:, [column]] - 0.5) / 2
    hd = h.detach().double()
    yc, hc = y - (w * y).sum(0), hd - (w * hd).sum(0)
    size = largest(y) + 1
    close(got.mean, (w * y).sum(0), 1e-9, 1e-12 * size)
    close(got.variance, (w * yc**2).sum(0), 1e-9, 1e-12 * size**2)
    close(got.covariance, yc.T @ (w * hc), 1e-9, 1e-12 * size * largest(h))
    one = got.columns(slice(0, 1))
    assert all(torch.equal(a, b[:1]) for a, b in zip(one, got))


@st.composite
def folds(draw, least=1):
    """Moments and target columns of two folds, the rows, and blocks of columns: a two-way variable, then a continuous one."""
    h = draw(activations(2 * least, 40)).detach()
    n = len(h)
    x = flawed(n, 1, draw(st.sampled_from(["none", "constant column", "mean of a million", "all zero"])), draw(SEEDS))
    member, _ = draw(groups(n, 2))
    half = n // 2
    out = []
    for s in (slice(half), slice(half, None)):
        m = moments(h[s], x[s], (member[s] + 1).unsqueeze(1), 3)
        level = cross(m, Target(torch.tensor([1, 2]), torch.tensor([[-0.5], [0.5]]).double()))
        number = cross(m, Target(torch.tensor([1, 2]), torch.empty(0), 0, float(x[0, 0]), 1.0))
        out.append((m, untouched(stack, [level, number]), h[s], torch.cat([member[s].double().unsqueeze(1) - 0.5, x[s]], 1)))
    return out, [slice(0, 1), slice(1, 2)]


@given(folds(), st.sampled_from([1e-4, 1e-2, 1.0]))
def test_a_ridge_probe_solves_its_normal_equations_whatever_the_activation(both, ridge):
    ((m, target, _, _), (other, held, rows, _)), blocks = both
    probe = untouched(ridge_probe, m, target, ridge)
    finite(*probe)
    d = m.gram.shape[0]
    s = m.gram / m.count[0]
    if constant(m):
        assert not probe.weight.any()
    else:
        alpha = ridge * s.diagonal().sum() / d
        close(
            (s + alpha * torch.eye(d).double()) @ probe.weight,
            target.covariance.T,
            1e-6,
            1e-9 * float(target.covariance.abs().max()),
        )
    scores = untouched(probe.scores, rows)
    close(scores, rows.double() @ probe.weight + probe.bias)
    summed = largest(rows.double().abs() @ probe.weight.abs())  # at a mean of a million most of it cancels
    close(probe.between(rows[:1].double().expand(2, -1)), scores[0], 1e-9, 1e-12 * (summed + largest(scores)))
    one = probe.columns(slice(1, 2))
    close(one.scores(rows), scores[:, 1:], 1e-9, 1e-9 * (largest(scores) + 1) + 1e-12 * summed)
    r2 = untouched(held_out_r2, probe, other, held, blocks)
    assert torch.equal(r2.isnan(), held.variance <= 0)
    assert not bool((r2 > 1 + 1e-9).any())


@given(folds())
def test_what_is_read_off_moments_is_what_the_rows_say(both):
    ((m, target, _, _), (other, held, rows, y)), blocks = both
    probe = ridge_probe(m, target)
    center = y.mean(0) - held.mean  # what a continuous column was centred at
    missed = y - center - (rows.double() @ probe.weight + probe.bias)
    products = untouched(held_out_products, probe, other, held, (y - y.mean(0)).T @ (y - y.mean(0)) / len(y))
    size = (largest(missed) + largest(y - y.mean(0)) + largest(rows.double() @ probe.weight) + 1) ** 2
    close(products, missed.T @ missed / len(y), 1e-6, 1e-9 * size)
    spread = ((y - y.mean(0)) ** 2).mean(0)
    expected = 1 - products.diagonal() / spread
    got = held_out_r2(probe, other, held, blocks)
    for j in range(2):
        if spread[j] > 1e-6 * size:
            close(got[j], expected[j], 1e-6, 1e-6 * size / float(spread[j]))


@given(folds(), st.sampled_from([2.0**-30, 2.0**30]))
def test_a_probe_reads_the_same_in_any_unit(both, unit):
    ((m, target, _, _), (other, held, _, _)), blocks = both
    scaled = [a._replace(mean=torch.cat([a.mean[:, :1], a.mean[:, 1:] * unit], 1), gram=a.gram * unit**2) for a in (m, other)]
    t, u = (c._replace(covariance=c.covariance * unit) for c in (target, held))
    a, b = ridge_probe(m, target), ridge_probe(scaled[0], t)
    close(b.weight * unit, a.weight, 1e-9, 1e-12 * largest(a.weight))
    close(held_out_r2(b, scaled[1], u, blocks), held_out_r2(a, other, held, blocks), 1e-6, 1e-6)


@given(st.integers(0, 4), st.integers(1, 3), st.booleans(), SEEDS)
def test_shares_of_squares_are_pooled_by_variable(many, width, several, seed):
    blocks = [slice(i * width, (i + 1) * width) for i in range(many)]
    shape = (many * width, 2) if several else (many * width,)
    total = normal(many * width, 2 if several else 1, seed).exp().reshape(shape)
    total[: width if many > 1 else 0] = 0  # one variable that does not vary
    missed = total * 0.25
    got = untouched(block_r2, missed, total, blocks)
    assert got.shape == (many, *shape[1:])
    expected = torch.full_like(got, 0.75)
    if many > 1:
        expected[0] = torch.nan
    close(got, expected)


@given(st.integers(0, 25), st.integers(1, 3), st.sampled_from([torch.float64, torch.float32]), st.booleans(), SEEDS)
def test_auroc_is_the_chance_of_the_right_order(n, t, dtype, ties, seed):
    scores = (normal(n, t, seed) * (2 if ties else 1e3)).round().to(dtype)
    positive = normal(n, t, seed + 1) > 0.5
    got = untouched(auroc, scores, positive)
    for j in range(t):
        one, zero = scores[positive[:, j], j], scores[~positive[:, j], j]
        pairs = [float(a > b) + 0.5 * float(a == b) for a in one for b in zero]
        assert math.isnan(got[j]) if not pairs else abs(float(got[j]) - sum(pairs) / len(pairs)) < 1e-12


@given(st.integers(0, 25), st.integers(1, 4), SEEDS, st.data())
def test_balanced_accuracy_is_the_mean_recall(n, columns, seed, data):
    levels = max(2, columns)
    level = torch.tensor(data.draw(st.lists(st.integers(0, levels - 1), min_size=n, max_size=n)), dtype=torch.int64)
    scores, midpoint = normal(n, columns, seed), normal(1, columns, seed + 1)[0]
    got = float(untouched(balanced_accuracy, scores, level, midpoint))
    above = scores - midpoint
    guess = [int(r[0] > 0) if columns == 1 else int(r.argmax()) for r in above]
    recalls = []
    for one in range(levels):
        mine = [g == one for g, true in zip(guess, level.tolist()) if true == one]
        recalls.append(sum(mine) / len(mine) if mine else math.nan)
    expected = sum(recalls) / levels
    assert (math.isnan(got) and math.isnan(expected)) or abs(got - expected) < 1e-12


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), SEEDS)
def test_stacked_targets_keep_their_order(widths, seed):
    parts = [Cross(normal(1, w, seed)[0], normal(1, w, seed + 1)[0] ** 2, normal(w, 4, seed + 2)) for w in widths]
    whole, start = stack(parts), 0
    for part, width in zip(parts, widths):
        assert all(torch.equal(a, b) for a, b in zip(whole.columns(slice(start, start + width)), part))
        start += width


@given(activations(1, flaws=st.sampled_from(["none", "repeated rows", "units of all sizes", "a billionth"])))
def test_only_what_does_not_vary_is_constant(h):
    m = moments(h, h[:, :0], torch.zeros(len(h), 0).long(), 1)
    varies = bool((h.double() != h[:1].double()).any())
    assert constant(m) == (not varies)
    assert isinstance(Probe(m.hidden.T, m.hidden[0, :1]).scores(h), torch.Tensor)
