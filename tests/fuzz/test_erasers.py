"""`erasure` and `folding` on generated activations, cells and covariances, of deficient rank above all."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuzz.inputs import FLAWS, FLOATS, SEEDS, activations, close, finite, flawed, groups, normal, outcome, untouched
from lightning_interp.errors import VariableError
from lightning_interp.functional.erasure import (
    Eraser,
    LowRank,
    Second,
    balanced,
    balanced_leace,
    erased,
    leace,
    natural,
    net,
    partial_leace,
    random_leace,
    second,
    slopes,
    weighted_leace,
)  # fmt: skip
from lightning_interp.functional.folding import pointwise, read, read_bias, scaled, spread, written, written_bias
from lightning_interp.functional.moments import moments

UNITS = st.sampled_from([2.0**-20, 1.0, 2.0**20])
RIDGES = st.sampled_from([0.0, 1e-4, 1e-2])


def centred(x):
    return x - x.mean(0)


def correlated(h, z):
    """The largest covariance of a unit with a column, in units of their spreads before anything was erased."""
    return centred(h.double()).T @ centred(z) / max(1, len(h))


def size_of(h):
    return float(centred(h.double()).square().mean(0).sum().sqrt()) if len(h) else 0.0


@st.composite
def labelled(draw, least=2):
    """Activations, float64 and detached, and columns z `[n, k]`, some of them dependent or zero."""
    h = draw(activations(least)).detach()
    z = flawed(len(h), draw(st.integers(0, 3)), draw(st.sampled_from(["none", "copied column", "zero column", "rank one"])),
               draw(SEEDS))  # fmt: skip
    return h, z


@given(labelled(), RIDGES)
def test_leace_leaves_no_covariance_whatever_the_rank(rows, ridge):
    h, z = rows
    x = centred(h.double())
    e = untouched(leace, x.T @ x / len(x), x.T @ centred(z) / len(x), h.double().mean(0), ridge)
    finite(*e)
    assert e.rank <= min(h.shape[1], z.shape[1])
    close(e.write @ e.read, torch.eye(e.rank).double(), 0, 1e-6)
    close(e.write @ e.write.T, torch.eye(e.rank).double(), 0, 1e-9)
    after = untouched(e, h.double())
    # A mean of a million leaves ten digits of sixteen.
    noise = 1e-14 * float(h.double().abs().max()) * (1 + float(e.read.norm(dim=0).max()) if e.rank else 1)
    assert float(correlated(after, z).abs().max() if z.shape[1] else 0) <= 1e-6 * size_of(h) + 10 * noise
    close(e(after), after, 1e-6, 1e-6 * size_of(h) + 10 * noise)
    close(e.step(h.double()) + h.double(), after)
    assert e(h).dtype == h.dtype
    assert all(torch.equal(a, b) for a, b in zip(e.to(h), e))


@given(labelled(), UNITS)
def test_leace_is_the_same_edit_in_any_unit(rows, unit):
    h, z = rows
    x = centred(h.double())
    hh, hz, mean = x.T @ x / len(x), x.T @ centred(z) / len(x), h.double().mean(0)
    a, b = leace(hh, hz, mean), leace(hh * unit**2, hz * unit, mean * unit)
    assert a.rank == b.rank
    size = float(h.double().abs().max()) + 1e-300
    close(b.step(h.double() * unit) / unit, a.step(h.double()), 1e-5, 1e-6 * size)


@given(labelled(), st.sampled_from([1e-4, 1e-2]))
def test_a_covariance_known_by_its_rows_is_erased_as_the_whole_one(rows, ridge):
    h, z = rows
    x = centred(h.double()) / len(h) ** 0.5
    low = LowRank(x)
    assert len(low) == h.shape[1]
    close(low.trace, x.square().sum())
    if float(low.trace) > 0:
        b = normal(h.shape[1], 2, 0)
        alpha = ridge * float(low.trace) / len(low)
        close((x.T @ x) @ low.solve(b, alpha) + alpha * low.solve(b, alpha), b, 1e-5, 1e-6)
    hz, mean = x.T @ centred(z) / len(h) ** 0.5, h.double().mean(0)
    a, b = untouched(leace, low, hz, mean, ridge), leace(x.T @ x, hz, mean, ridge)
    assert a.rank == b.rank
    close(a.step(h.double()), b.step(h.double()), 1e-4, 1e-5 * (float(h.double().abs().max()) + 1e-300))


@given(activations(0).map(torch.Tensor.detach), st.integers(0, 3), SEEDS)
def test_a_random_subspace_is_of_the_rank_asked_for_or_of_what_there_is(h, rank, seed):
    x = centred(h.double())
    generator = torch.Generator().manual_seed(seed)
    mean = h.double().mean(0) if len(h) else h.new_zeros(h.shape[1]).double()
    e = untouched(random_leace, x.T @ x / max(1, len(x)), mean, h, rank, generator)
    finite(*e)
    assert e.rank <= rank
    assert not e.rank or bool((h != h[:1]).any())
    close(e.write @ e.read, torch.eye(e.rank).double(), 0, 1e-6)


@st.composite
def celled(draw, full=False):
    """Activations, moments over cells of two binary variables and continuous columns, and the codes of the cells."""
    h = draw(activations(4, 40)).detach()
    n = len(h)
    a, b = (draw(groups(n, 2))[0] for _ in range(2))
    cell = a * 2 + b
    if full:
        cell = torch.arange(n) % 4
    x = flawed(n, 0 if full else draw(st.integers(0, 2)), draw(FLAWS), draw(SEEDS))
    codes = torch.tensor([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]).double()
    return h, x, cell, moments(h, x, (cell + 1).unsqueeze(1), 5), codes


def close_second(got, h, z, w):
    """`Second` as the weighted sums over rows say."""
    w = (w / w.sum()).unsqueeze(1)
    hd = h.double()
    hc, zc = hd - (w * hd).sum(0), z - (w * z).sum(0)
    one, other = float(hd.abs().max()), float(z.abs().max()) + 1
    close(got.hh, hc.T @ (w * hc), 1e-9, 1e-12 * one**2)
    close(got.zh, zc.T @ (w * hc), 1e-9, 1e-12 * one * other)
    close(got.zz, zc.T @ (w * zc), 1e-9, 1e-12 * other**2)
    close(got.h, (w * hd).sum(0), 1e-9, 1e-12 * one)
    close(got.z, (w * z).sum(0), 1e-9, 1e-12 * other)


@given(celled())
def test_natural_moments_are_those_of_the_rows(case):
    h, x, cell, m, codes = case
    got = untouched(natural, m, codes)
    close_second(got, h, torch.cat([codes[cell], x], 1), torch.ones(len(h)).double())
    assert all(torch.equal(a, b) for a, b in zip(second(m, codes, "natural"), got))
    b = untouched(slopes, got)
    finite(b)
    assert b.shape == got.zh.shape


@given(celled(full=True))
def test_balanced_moments_weigh_cells_alike_and_pool_what_is_within(case):
    h, _, cell, m, codes = case
    got = untouched(balanced, m, codes)
    means = torch.stack([h[cell == k].double().mean(0) for k in range(4)])
    within = h.double() - means[cell]
    between = means - means.mean(0)
    size = float(h.double().abs().max()) ** 2
    close(got.hh, within.T @ within / len(h) + between.T @ between / 4, 1e-9, 1e-12 * size)
    close(got.zh, codes.T @ between / 4, 1e-9, 1e-12 * size**0.5)
    close(got.zz, codes.T @ codes / 4)
    assert all(torch.equal(a, b) for a, b in zip(second(m, codes, "balanced"), got))


@given(celled(), st.sampled_from([[0], [1], [0, 1]]), RIDGES)
def test_what_is_not_told_apart_is_refused_and_everything_else_erased(case, confounder, ridge):
    h, x, cell, m, codes = case
    z = torch.cat([codes[cell], x], 1)
    left_over, problem = outcome(VariableError, net, natural(m, codes), confounder)
    if problem is not None:
        assert "told apart" in str(problem)
        for erase in (partial_leace, lambda *a: weighted_leace(*a, weights="natural")):
            with pytest.raises(VariableError):
                erase(m, codes, confounder)
        return
    variance, covariance = left_over
    finite(variance, covariance)
    assert bool((variance > 0).all())
    own = z[:, confounder]
    others = [j for j in range(z.shape[1]) if j not in confounder]
    given_ = torch.cat([torch.ones(len(h), 1).double(), centred(z[:, others])], 1)
    given_ = given_ / given_.norm(dim=0).clamp_min(1e-300)
    left = own - given_ @ torch.linalg.lstsq(given_, own, driver="gelsd").solution
    close(variance, (left**2).mean(0), 1e-4, 1e-7)
    e = untouched(partial_leace, m, codes, confounder, ridge)
    finite(*e)
    assert all(torch.equal(a, b) for a, b in zip(e, weighted_leace(m, codes, confounder, "natural", ridge)))
    after = e(h.double())
    noise = 1e-13 * float(h.double().abs().max()) * (1 + float(e.read.norm(dim=0).max()) if e.rank else 1)
    assert float((left.T @ centred(after) / len(h)).abs().max()) <= 1e-6 * size_of(h) + 100 * noise


@given(celled(full=True), st.sampled_from([[0], [1], [0, 1]]), RIDGES)
def test_under_balanced_weights_cell_means_no_longer_differ(case, confounder, ridge):
    h, _, cell, m, codes = case
    e = untouched(balanced_leace, m, codes, confounder, ridge)
    finite(*e)
    assert all(torch.equal(a, b) for a, b in zip(e, weighted_leace(m, codes, confounder, "balanced", ridge)))
    means = torch.stack([e(h[cell == k].double()).mean(0) for k in range(4)])
    noise = 1e-13 * float(h.double().abs().max()) * (1 + float(e.read.norm(dim=0).max()) if e.rank else 1)
    assert float((codes[:, confounder].T @ centred(means)).abs().max()) <= 1e-5 * size_of(h) + 100 * noise


@given(celled(), st.integers(0, 2), SEEDS)
def test_moments_of_erased_activations_need_no_row(case, rank, seed):
    h, x, cell, m, _ = case
    e = leace(torch.eye(h.shape[1]).double(), normal(h.shape[1], rank, seed), h.double().mean(0))
    got, expected = untouched(erased, m, e), moments(e(h.double()), x, (cell + 1).unsqueeze(1), 5)
    one, other = float(h.double().abs().max()) + 1e-300, float(x.abs().max()) + 1 if x.numel() else 1.0
    close(got.mean, expected.mean, 1e-9, 1e-10 * max(one, other))
    close(got.cross, expected.cross, 1e-9, 1e-10 * len(h) * other * max(one, other))
    close(got.gram, expected.gram, 1e-9, 1e-10 * len(h) * one**2)
    assert isinstance(second(got, case[4], "natural"), Second)


@st.composite
def erasers(draw, d):
    """An eraser of any rank, 0 too."""
    rank = draw(st.integers(0, d))
    a = normal(d, d, draw(SEEDS))
    return leace(a @ a.T / d + torch.eye(d).double() / 10, normal(d, rank, draw(SEEDS)), normal(1, d, draw(SEEDS))[0])


@given(st.integers(1, 5), FLOATS, st.data())
def test_folded_weights_write_and_read_what_the_eraser_would(d, dtype, data):
    e = data.draw(erasers(d))
    weight, bias = normal(d, 3, data.draw(SEEDS)).to(dtype), normal(1, d, data.draw(SEEDS))[0].to(dtype)
    x = normal(6, 3, data.draw(SEEDS))
    made = x @ untouched(written, weight, e).T + untouched(written_bias, bias, e)
    close(made, e(x @ weight.double().T + bias.double()), 1e-9, 1e-9)
    close(written(weight.T, e, 1), written(weight, e).T)
    share = written_bias(bias, e, constant=False)
    close(share + (e.mean @ e.read) @ e.write, written_bias(bias, e), 1e-9, 1e-9)
    head, out = normal(2, d, data.draw(SEEDS)).to(dtype), normal(1, 2, data.draw(SEEDS))[0].to(dtype)
    h = normal(6, d, data.draw(SEEDS))
    folded = h @ untouched(read, head, e).T + untouched(read_bias, out, head, e)
    close(folded, e(h) @ head.double().T + out.double(), 1e-9, 1e-9)
    kernel = normal(2 * d * 2, 1, data.draw(SEEDS)).reshape(2, d, 2).to(dtype)
    flat = e(h).unsqueeze(2).expand(-1, -1, 2)
    with_kernel = torch.einsum("nd,cdk->nc", h, read(kernel, e)) + read_bias(out, kernel, e)
    close(with_kernel, torch.einsum("ndk,cdk->nc", flat, kernel.double()) + out.double(), 1e-9, 1e-9)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), FLOATS, st.data())
def test_an_eraser_is_carried_through_scales_and_places(d, before, after, dtype, data):
    e = data.draw(erasers(d))
    h = normal(5, d, data.draw(SEEDS))
    scale, shift = normal(1, d, data.draw(SEEDS))[0].exp(), normal(1, d, data.draw(SEEDS))[0]
    scale = scale * torch.where(torch.arange(d) % 2 == 0, 1.0, -1.0)
    moved = untouched(scaled, e, scale, shift)
    close(moved(h * scale + shift), e(h) * scale + shift, 1e-7, 1e-7)
    places = normal(5, before * d * after, data.draw(SEEDS)).reshape(5, before, d, after)
    everywhere = untouched(spread, e, before, after)
    got = everywhere(places.flatten(1)).reshape(places.shape)
    close(got, untouched(pointwise, places, e, 2), 1e-9, 1e-9)
    assert isinstance(everywhere, Eraser)
    low = places.to(dtype)
    assert pointwise(low, e, 2).dtype == dtype
    assert pointwise(low[:0], e, 2).shape == (0, before, d, after)
