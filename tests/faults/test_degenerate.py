"""Degenerate data: whatever the shapes, dtypes, cells and covariances, what is promised to be a number is one."""

import math
import warnings

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_interp import Concept, Confounder, Monitor
from lightning_interp.discovery import Discovery
from lightning_interp.errors import InterpError, InterpWarning
from lightning_interp.functional.dependence import hsic, partial_correlation
from lightning_interp.functional.direction import drift, lda, mean_difference, pattern, ridge_filter
from lightning_interp.functional.entanglement import participation, subspace_cosine
from lightning_interp.functional.erasure import leace, random_leace
from lightning_interp.functional.moments import moments
from lightning_interp.functional.probe import auroc
from lightning_interp.functional.splits import clarity, cut, distinct, readable_splits

SEEDS = st.integers(0, 2**31)
FORMS = st.sampled_from(["normal", "constant", "zero", "duplicates", "one row differs", "rank one", "huge", "tiny", "offset"])
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


def matrix(n, d, form, seed):
    """`[n, d]` of a form."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rank_one = x[:, :1] * x[:1]
    differs = torch.zeros(n, d, dtype=torch.float64)
    differs[n // 2] = 1
    return {
        "normal": x,
        "constant": torch.full_like(x, 3.7),
        "zero": torch.zeros_like(x),
        "duplicates": x[:, :1].expand(n, d).clone(),
        "one row differs": differs,
        "rank one": rank_one,
        "huge": x * 1e4,
        "tiny": x * 1e-7,
        "offset": x * 1e-3 + 1e3,
    }[form]


class Given(nn.Module):
    """Gives the outputs that are in its inputs, and a layer on the way."""

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.layer, self.head = nn.Identity(), nn.Identity()

    def forward(self, x):
        self.layer(x[:, self.width :])
        return self.head(x[:, : self.width])


@st.composite
def probe_sets(draw):
    n, d, c = draw(st.integers(1, 70)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    seed = draw(SEEDS)
    outputs, hidden = (matrix(n, width, draw(FORMS), seed + i) for i, width in enumerate((c, d)))
    generator = torch.Generator().manual_seed(seed)

    def labels():
        kind = draw(st.sampled_from(["binary", "levels", "continuous", "constant", "holes", "one apart", "text"]))
        levels = torch.randint(0, 2 if kind in ("binary", "holes", "text") else 4, (n,), generator=generator)
        if kind == "continuous":
            return torch.randn(n, generator=generator)
        if kind == "constant":
            return torch.ones(n)
        if kind == "one apart":
            return (torch.arange(n) == 0).long()
        if kind == "text":
            return [("no", "yes")[int(v)] for v in levels]
        return torch.where(torch.rand(n, generator=generator) < 0.3, torch.nan, levels.float()) if kind == "holes" else levels

    a = labels()
    b = a if draw(st.sampled_from([False, False, False, True])) else labels()
    batch = {"x": torch.cat([outputs, hidden], 1).to(draw(DTYPES)), "a": a, "b": b}
    batch["target"] = torch.randint(0, max(2, c), (n,), generator=generator)
    if draw(st.booleans()):
        batch["target"] = torch.randn(n, generator=generator)
    return batch, c


def numbers(found):
    """All floats in plain types."""
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, (list, tuple)):
        return [x for part in found for x in numbers(part)]
    return [found] if isinstance(found, float) else []


@given(probe_sets(), st.sampled_from(["balanced", "natural"]), st.booleans(), st.booleans())
def test_an_event_holds_no_nan(probe, weights, interactions, clustered):
    batch, width = probe
    model = Given(width)
    if clustered:
        batch["source"] = torch.arange(len(batch["x"])) // 3
    monitor = Monitor(
        model, [Concept("a"), Confounder("b")], ["layer"], output="head", target="target", inputs="x", weights=weights,
        interactions=interactions, cluster="source" if clustered else None, warn_above=1e9,
        measures=("contribution", "decodability", "groups", "entanglement"),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpWarning)
        try:
            for half in (slice(None, None, 2), slice(1, None, 2)):  # two batches
                part = {k: v[half] for k, v in batch.items()}
                if len(part["x"]):
                    with monitor.watching(part):
                        model(part["x"])
            event = monitor.event(1)
        except InterpError:
            return
    assert all(map(math.isfinite, event.scalars().values())), event.scalars()
    assert all(map(math.isfinite, numbers(event.to_dict())))
    shares = [s.value for s in event.contribution.values()]
    if all(s is not None for s in shares):
        assert sum(shares) == pytest.approx(1, abs=1e-6)
    str(event)


@settings(max_examples=20)
@given(probe_sets())
def test_a_discovery_holds_no_nan(probe):
    batch, width = probe
    batch = {k: v * 3 if isinstance(v, list) else torch.cat([v] * 3) for k, v in batch.items()}
    batch["id"] = torch.arange(len(batch["x"]))
    hidden = batch["x"][:, width:].double()
    assume(float((hidden - hidden[:1]).abs().max()) > 0)
    model = Given(width)
    d = Discovery(
        model, "layer", [Concept("a"), Confounder("b")], output="head", target="target", inputs="x", features=3, sample_id="id"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpWarning)
        try:
            with d.watching(batch):
                model(batch["x"])
            event = d.event(1)
        except InterpError:
            return
    assert all(map(math.isfinite, event.scalars().values())), event.scalars()
    assert all(map(math.isfinite, numbers(event.to_dict())))


@given(st.integers(2, 40), st.integers(1, 8), FORMS, FORMS, SEEDS)
def test_directions_and_probes_of_any_activation_are_finite(n, d, form, others, seed):
    h = matrix(n, d, form, seed)
    level = torch.arange(n) % 2
    z = level.double() - 0.5
    x = matrix(n, 1, others, seed + 1)
    m = moments(h, x, (level + 1).unsqueeze(1), 3)
    assert bool(torch.isfinite(m.gram).all())
    centred, zc = h - h.mean(0), z - z.mean()
    hh, zh, zz = centred.T @ centred / n, (zc @ centred / n).unsqueeze(0), (zc @ zc / n).view(1, 1)
    means = torch.stack([h[level == k].mean(0) for k in (0, 1)])
    found = [pattern(zz, zh), ridge_filter(hh, zh), mean_difference(means), lda(hh, means)]
    for direction in found:
        assert bool(torch.isfinite(direction).all()), form
        moved, cosine = drift(direction, found[0]), subspace_cosine(direction, found[0])
        if float(direction.abs().max()) == 0 or float(found[0].abs().max()) == 0:
            assert math.isnan(moved)  # said in its docstring: there is no direction
        else:
            assert -1e-9 <= moved <= 1
            assert 0 <= cosine <= 1
    eraser = leace(hh, zh.T, h.mean(0))
    other = random_leace(hh, h.mean(0), h, 1, torch.Generator().manual_seed(seed))
    size = h.abs().max().clamp_min(1e-300)
    for e in (eraser, other):
        assert bool(torch.isfinite(h + e.step(h)).all())
        assert float(((h + e.step(h)).abs().max()) / size) < 1e3
    assert bool(torch.isfinite(auroc(h, (level == 1).unsqueeze(1).expand(n, d))).all())


@given(st.integers(4, 40), st.integers(1, 8), FORMS, SEEDS)
def test_splits_of_any_activation_are_finite(n, d, form, seed):
    h = matrix(n, d, form, seed)
    found = cut(h)
    assert bool(((found.explained >= 0) & (found.explained <= 1)).all())
    assert all(bool(torch.isfinite(part).all()) for part in found)
    splits = readable_splits(h, torch.eye(d, dtype=torch.float64), rounds=5)
    if form not in ("constant", "zero"):
        assert bool(torch.isfinite(splits.codes(h)).all()), form
    clear = clarity(h, found.threshold)
    assert bool(((clear >= 0) & (clear <= 1)).all())
    assert len(distinct(h > h.mean(0), torch.arange(d), d, 0.9)) >= 1


@given(st.integers(4, 40), st.integers(1, 6), FORMS, FORMS, SEEDS)
def test_dependence_of_any_activation_and_its_gradient_are_finite(n, d, form, other, seed):
    h = matrix(n, d, form, seed).requires_grad_()
    z, given = matrix(n, 1, other, seed + 1), matrix(n, 2, "rank one", seed + 2)
    correlation = partial_correlation(h, z, given)
    assert bool(torch.isfinite(correlation).all())
    assert float(correlation.detach().abs().max()) <= 1 + 1e-6
    found = hsic(h, z)
    total = correlation.square().sum() + (0 if found is None else found)
    (gradient,) = torch.autograd.grad(total, h)
    assert bool(torch.isfinite(gradient).all()), (form, other)


@given(st.integers(1, 5), st.integers(1, 6), FORMS, SEEDS)
def test_participation_of_any_squares_is_finite(p, d, form, seed):
    each, mean = participation(matrix(p, d, form, seed).square())
    assert math.isfinite(mean)
    assert not bool(torch.isinf(each).any())
