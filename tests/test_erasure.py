"""`Erasure` in a plain PyTorch loop: the forward pass is the formula by hand, the gradient goes straight through."""

import copy
import io
import math
import warnings
from collections import OrderedDict, namedtuple

import pytest
import torch
from callbacks.boring import Animals, hooks, loader
from sklearn.linear_model import Ridge
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_interp import Concept, Confounder, Erasure, capture
from lightning_interp.cell_moments import cell_moments
from lightning_interp.errors import InterpError, InterpWarning, LabelError, LayerError, VariableError

GRASS, MOO = Confounder("grass"), Concept("moo")
RIDGE = 1e-2


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def batches(n=192, size=32, seed=1, dtype=torch.float64):
    torch.manual_seed(seed)  # of the order
    return list(loader(Animals(n, seed, dtype=dtype), shuffle=True, batch=size))


def erasure_of(model, *given, layer="0", **options):
    options = {"every_n_steps": 6, "start_rows": 1, "memory_rows": 10**15, **options}
    return Erasure(model, GRASS, layer, given or [MOO], **options)


def watch(erasure, model, found):
    for batch in found:
        with erasure.watching(batch):
            model(batch["x"])


def root(s, power):
    values, vectors = torch.linalg.eigh(s)
    return vectors @ torch.diag(values**power) @ vectors.T


def by_hand(h, grass, moo, weight=None, ridge=RIDGE):
    """x -> h − W⁺PW(h − mean), as the theorem writes it, every cell of grass and moo weighted alike."""
    weight = torch.ones(len(h), dtype=torch.float64) if weight is None else weight
    cell = (2 * grass + moo).long()
    means, within = [], 0
    for c in range(4):
        rows, w = h[cell == c], weight[cell == c, None]
        means.append((w * rows).sum(0) / w.sum())
        within = within + (w * (rows - means[c])).T @ (rows - means[c])
    middle = sum(means) / 4
    s = within / weight.sum() + sum(torch.outer(m - middle, m - middle) for m in means) / 4
    s = s + ridge * s.trace() / len(s) * torch.eye(len(s), dtype=torch.float64)
    z = torch.tensor([-0.5, -0.5, 0.5, 0.5]).double()
    hz = sum(z[c] * (means[c] - middle) for c in range(4))[:, None] / 4
    u = torch.linalg.qr(root(s, -0.5) @ hz)[0]
    return lambda x: x - (x - middle) @ root(s, -0.5) @ u @ u.T @ root(s, 0.5)


def activations(model, found, layer="0"):
    whole = {key: torch.cat([b[key] for b in found]) for key in ("x", "grass", "moo")}
    with capture(model, [layer]) as seen, torch.no_grad():
        model(whole["x"])
    return seen[layer], whole["grass"], whole["moo"]


# --- the forward pass and its gradient --------------------------------------------------------------------------------


def test_the_forward_pass_is_the_formula_by_hand():
    model, found = net(), batches()
    erasure = erasure_of(model)
    watch(erasure, model, found)
    f = by_hand(*activations(model, found))
    assert erasure.weights == "balanced"
    for batch in batches(seed=2):
        raw = model[0](batch["x"])
        with erasure.applied(), capture(model, ["0"]) as seen:
            out = model(batch["x"])
        torch.testing.assert_close(seen["0"], f(raw), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(out, model[2](model[1](f(raw))))
        assert (f(raw) - raw).abs().max() > 0.1
        assert torch.equal(model(batch["x"]), model[2](model[1](raw)))  # gone outside


def test_the_past_fades_with_the_rows():
    model, found = net(), batches()
    erasure = erasure_of(model, every_n_steps=2, memory_rows=100)
    watch(erasure, model, found)
    h, grass, moo = activations(model, found)
    weight = torch.tensor([math.exp(-128 / 100)] * 64 + [math.exp(-64 / 100)] * 64 + [1.0] * 64).double()
    f = by_hand(h, grass, moo, weight)
    torch.testing.assert_close(erasure.eraser(h), f(h), rtol=1e-8, atol=1e-8)
    assert (by_hand(h, grass, moo)(h) - f(h)).abs().max() > 1e-3


def test_the_gradient_goes_straight_through():
    model, found = net(), batches()
    erasure = erasure_of(model)
    watch(erasure, model, found)
    f, batch = by_hand(*activations(model, found)), found[0]
    with erasure.watching(batch):
        F.cross_entropy(model(batch["x"]), batch["moo"]).backward()
    found_gradient = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    h = model[0](batch["x"])
    F.cross_entropy(model[2](model[1](h + (f(h) - h).detach())), batch["moo"]).backward()
    for one, p in zip(found_gradient, model.parameters()):
        torch.testing.assert_close(one, p.grad, rtol=1e-8, atol=1e-10)


def test_a_step_is_erased_by_the_fit_before_it():
    model, found = net(), batches()
    erasure = erasure_of(model, every_n_steps=2)
    with erasure.watching(found[0]):
        assert torch.equal(model(found[0]["x"]), model[2](model[1](model[0](found[0]["x"]))))
    assert erasure.eraser is None
    watch(erasure, model, found[1:2])
    first = erasure.eraser
    with erasure.watching(found[2]), capture(model, ["0"]) as seen:
        model(found[2]["x"])
    torch.testing.assert_close(seen["0"], first(model[0](found[2]["x"])).detach())
    assert erasure.eraser is first
    watch(erasure, model, found[3:4])
    assert erasure.eraser is not first


class Inner(nn.Module):
    """Gives its activation in a container."""

    def __init__(self, wrap, conv=False):
        super().__init__()
        self.layer = nn.Conv2d(1, 4, 2) if conv else nn.Linear(6, 8)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.layer(x))


class Output(OrderedDict):
    """As a ModelOutput is."""


Pair = namedtuple("Pair", "first second")
EXTRA = torch.ones(3)


@pytest.mark.parametrize(
    ("wrap", "layer", "get"),
    [
        (lambda h: (h, EXTRA), "0", lambda o: o[0]),
        (lambda h: [EXTRA.long(), h], "0:1", lambda o: o[1]),
        (lambda h: Pair(h, EXTRA), "0", lambda o: o.first),
        (lambda h: {"other": EXTRA, "hidden": h}, "0:hidden", lambda o: o["hidden"]),
        (lambda h: Output(last=h, every=(EXTRA, h)), "0:last", lambda o: o["every"][1]),
    ],
    ids=["tuple", "list", "namedtuple", "dict", "ModelOutput"],
)
def test_the_right_tensor_of_a_container_is_replaced(wrap, layer, get):
    torch.manual_seed(0)
    model = nn.Sequential(Inner(wrap))
    erasure = erasure_of(model, layer=layer)
    found = batches(dtype=torch.float32)
    watch(erasure, model, found)
    raw = model(found[0]["x"])
    with erasure.applied():
        out = model(found[0]["x"])
    assert type(out) is type(raw)
    torch.testing.assert_close(get(out), erasure.eraser(get(raw)))
    left = [t for t in (out.values() if isinstance(out, dict) else out) if t is EXTRA or (torch.is_tensor(t) and len(t) == 3)]
    assert len(left) == (0 if isinstance(out, Output) else 1)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_convolutions_pooled_vector_is_erased_by_one_step_at_every_place(wrapped):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), Inner(lambda h: (h,) if wrapped else h, conv=True))
    erasure = erasure_of(model, layer="1")
    found = batches(dtype=torch.float32)
    watch(erasure, model, found)
    raw = model(found[0]["x"])
    with erasure.applied():
        out = model(found[0]["x"])
    raw, out = (raw[0], out[0]) if wrapped else (raw, out)
    assert raw.shape == (32, 4, 1, 2)
    step = out - raw
    torch.testing.assert_close(step, step[..., :1].expand_as(step))
    torch.testing.assert_close(out.mean((2, 3)), erasure.eraser(raw.mean((2, 3))))


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "masked_mean"])
def test_tokens_are_erased_as_they_are_pooled(pooling):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Unflatten(1, (3, 2)), nn.Linear(2, 4))
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]]).repeat(16, 1)
    found = [{**b, "attention_mask": mask} for b in batches(dtype=torch.float32)]
    erasure = erasure_of(model, layer="1", pooling=pooling)
    watch(erasure, model, found)
    raw = model(found[0]["x"])
    with erasure.applied(found[0]):
        out = model(found[0]["x"])

    def pool(a):
        places = {"first": torch.tensor([0, 1]), "last": torch.tensor([1, 2])}
        if pooling in places:
            return a[torch.arange(32), places[pooling].repeat(16)]
        return a.mean(1) if pooling == "mean" else (a * mask[..., None]).sum(1) / 2

    torch.testing.assert_close(pool(out), erasure.eraser(pool(raw)))
    assert (pool(out) - pool(raw)).abs().max() > 0.01
    if pooling == "masked_mean":
        assert torch.equal(out[mask == 0], raw[mask == 0])


def test_bfloat16_stays_bfloat16():
    torch.manual_seed(0)
    model, found = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), batches(dtype=torch.float32)
    erasure = erasure_of(model)
    with torch.autocast("cpu", torch.bfloat16):
        watch(erasure, model, found)
        raw = model[0](found[0]["x"])
        with erasure.applied(), capture(model, ["0"]) as seen:
            model(found[0]["x"])
    assert erasure.eraser.read.dtype == torch.float64
    assert seen["0"].dtype == raw.dtype == torch.bfloat16
    torch.testing.assert_close(seen["0"].float(), erasure.eraser(raw.float()), rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputed_activation_is_erased_as_well(reentrant):
    class Recomputing(nn.Module):
        def __init__(self, on):
            super().__init__()
            self.inner, self.on = net(), on

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=reentrant) if self.on else self.inner(x)

    gradients = []
    for on in (True, False):
        model, found = Recomputing(on), batches()
        erasure = erasure_of(model, layer="inner.0", every_n_steps=2)
        for batch in found:
            with erasure.watching(batch):
                F.cross_entropy(model(batch["x"].requires_grad_()), batch["moo"]).backward()
        gradients.append([p.grad for p in model.parameters()])
        assert erasure.skipped == 0
    for one, other in zip(*gradients):
        assert torch.equal(one, other)


def test_a_pass_in_evaluation_mode_within_the_step_is_not_learned_from():
    model, found = net(), batches()
    erasures = [erasure_of(model), erasure_of(model)]
    watch(erasures[0], model, found)
    for batch in found:
        with erasures[1].watching(batch):
            model.eval()
            model(batch["x"] + 100)
            model.train()
            model(batch["x"])
    for one, other in zip(erasures[0].eraser, erasures[1].eraser):
        assert torch.equal(one, other)


# --- what is left -----------------------------------------------------------------------------------------------------


def test_what_remains_is_measured_on_rows_that_came_after_the_fit():
    model, found = net(), batches(1280, 128)
    erasure = erasure_of(model, every_n_steps=5)
    watch(erasure, model, found[:5])
    assert erasure.remaining is None
    watch(erasure, model, found[5:])
    assert abs(erasure.remaining) < 0.06
    stale = erasure_of(model, every_n_steps=5)
    watch(stale, model, found[:5])
    with torch.no_grad():
        model[0].weight[:, 1] = torch.randn(8, generator=torch.Generator().manual_seed(1)).double()  # written anew
    watch(stale, model, found[5:])
    assert stale.remaining > 0.5


def test_what_remains_is_the_cross_fitted_probe_of_scikit_learn():
    model, found = net(), batches(256, 128)
    erasure = Erasure(model, Confounder("age", label=lambda b: b["x"][:, 1] + b["x"][:, 3]), "0", every_n_steps=1, start_rows=1)
    watch(erasure, model, found[:1])
    eraser = erasure.eraser
    watch(erasure, model, found[1:])
    with torch.no_grad():
        h = eraser(model[0](found[1]["x"]))
    age = found[1]["x"][:, 1] + found[1]["x"][:, 3]
    second = (torch.arange(128) % 2 == 1) ^ True  # one cell, every other row; the other way round in odd steps
    scores = []
    for fold in (second, ~second):
        (a, x), (b, y) = ((h[f] - h[f].mean(0), age[f] - age[f].mean()) for f in (fold, ~fold))
        alpha = 1e-2 * float((a**2).sum()) / 8
        fitted = Ridge(alpha=alpha, fit_intercept=False).fit(a.numpy(), x.numpy())
        scores.append(fitted.score(b.numpy(), y.numpy()))
    assert erasure.remaining == pytest.approx(sum(scores) / 2, rel=1e-9)


def test_what_remains_waits_for_rows_in_every_cell():
    model, found = net(), batches(320, 32)
    erasure = erasure_of(model, every_n_steps=1)
    watch(erasure, model, found[:2])
    assert erasure.remaining is None
    watch(erasure, model, found[2:])
    assert erasure.remaining is not None


# --- variables --------------------------------------------------------------------------------------------------------


def test_a_continuous_confounder_and_text_labels():
    found = [{**b, "age": b["x"][:, 3], "place": list(b["place"])} for b in batches()]
    model = net()
    erasure = Erasure(model, Confounder("age"), "0", [MOO, Concept("place")], every_n_steps=6, start_rows=1)
    watch(erasure, model, found)
    h, _, moo = activations(model, found)
    place = torch.tensor([("meadow", "sea", "stable").index(p) for b in found for p in b["place"]])
    age = torch.cat([b["age"] for b in found])
    z = torch.stack([age, moo.double(), (place == 0).double(), (place == 1).double(), torch.ones(len(age)).double()], 1)
    before, after = (torch.linalg.lstsq(z, a).solution[0] for a in (h, erasure.eraser(h)))
    assert erasure.weights == "natural"
    assert before.abs().max() > 0.1
    assert after.abs().max() < 1e-9


def test_an_empty_cell_makes_it_partial_and_a_cell_that_comes_makes_it_balanced():
    model = net()
    erasure = erasure_of(model)
    found = batches()
    part = [{k: v[(b["grass"] == 1) | (b["moo"] == 0)] for k, v in b.items() if k != "place"} for b in found]
    watch(erasure, model, part)
    assert (erasure.weights, erasure.skipped) == ("natural", 0)
    h, grass, moo = activations(model, part)
    z = torch.stack([grass.double(), moo.double(), torch.ones(len(h)).double()], 1)
    assert torch.linalg.lstsq(z, erasure.eraser(h)).solution[0].abs().max() < 1e-9
    watch(erasure, model, found)
    assert erasure.weights == "balanced"
    both = [torch.cat(pair) for pair in zip((h, grass, moo), activations(model, found))]
    torch.testing.assert_close(erasure.eraser(h), by_hand(*both)(h), rtol=1e-8, atol=1e-8)


def test_a_cell_that_has_faded_is_forgotten():
    h = torch.randn(20, 3)
    values = torch.cat([torch.zeros(19, 1), torch.ones(1, 1)]).double()
    found = cell_moments(h, values, [True])
    assert found.faded(0.6).keys == ((0.0,), (1.0,))
    assert found.faded(0.4).keys == ((0.0,),)
    assert found.faded(0.4).rows == pytest.approx(8)


def test_rows_without_a_label_are_left_out():
    model, found = net(), batches()
    other = [{**b, "grass": torch.where(torch.arange(32) < 4, torch.nan, b["grass"].double())} for b in found]
    erasure = erasure_of(model)
    watch(erasure, model, other)
    kept = [{k: v[4:] for k, v in b.items() if k != "place"} for b in found]
    h, grass, moo = activations(model, kept)
    torch.testing.assert_close(erasure.eraser(h), by_hand(h, grass, moo)(h), rtol=1e-8, atol=1e-8)
    assert erasure.skipped == 0


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"grass": torch.full((32,), torch.nan)}, "no sample has all labels"),
        ({"x": torch.full((32, 6), torch.nan).double()}, "not finite"),
        ({"grass": torch.zeros(31), "moo": torch.zeros(31)}, "gave 32 rows for 31 labels"),
        ({"grass": "no"}, "without usable labels"),
    ],
    ids=["labels", "activation", "rows", "text"],
)
def test_a_bad_batch_is_skipped_counted_and_said_once(change, text):
    model, found = net(), batches()
    erasure, plain = erasure_of(model, every_n_steps=8), erasure_of(model)
    watch(plain, model, found)
    with pytest.warns(InterpWarning, match=text) as said:
        watch(erasure, model, [*found[:3], {**found[0], **change}, {**found[1], **change}, *found[3:]])
    assert len(said) == 1
    assert erasure.skipped == 2
    for one, other in zip(erasure.eraser, plain.eraser):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_a_bad_label_in_the_first_batch_is_an_error():
    with pytest.raises(LabelError, match="grass"):
        watch(erasure_of(net()), net(), [{"x": torch.zeros(4, 6), "moo": torch.zeros(4)}])


@pytest.mark.parametrize(
    ("grass", "text"),
    [(lambda b: torch.ones_like(b["moo"]), "constant so far"), (lambda b: b["moo"], "cannot be told apart")],
    ids=["constant", "identical"],
)
def test_no_fit_where_the_confounder_cannot_be_seen(grass, text):
    model, found = net(), batches()
    erasure = erasure_of(model, every_n_steps=3)
    with pytest.warns(InterpWarning, match=rf"no fit of the eraser at layer '0'.*grass.*moo.*{text}") as said:
        watch(erasure, model, [{**b, "grass": grass(b)} for b in found])
    assert len(said) == 1
    assert erasure.eraser is None
    watch(erasure, model, found)
    assert erasure.eraser.rank == 1


def test_no_fit_before_there_are_rows():
    model, found = net(), batches()
    erasure = erasure_of(model, every_n_steps=1, start_rows=100)
    watch(erasure, model, found[:3])
    assert erasure.eraser is None
    assert "96 rows so far, `start_rows=100`" in erasure.obstacle
    watch(erasure, model, found[3:4])
    assert erasure.eraser is not None


def test_a_layer_that_does_not_run_is_said():
    model = nn.Sequential(net(), nn.Linear(2, 2))
    erasure = erasure_of(model, layer="1")
    with pytest.warns(InterpWarning, match="layer '1' did not run"):
        watch(erasure, model[0], batches())
    assert erasure.skipped == 6


@pytest.mark.parametrize(
    ("wrap", "text"),
    [
        (lambda h: h.mean(1), r"`layer='0'`: an activation of shape \[32\] cannot be pooled"),
        (lambda h: None, "holds no floating-point tensor, got NoneType"),
        (lambda h: h.long(), "holds no floating-point tensor, got Tensor"),
    ],
    ids=["one axis", "none", "whole numbers"],
)
def test_an_activation_that_cannot_be_erased_is_named(wrap, text):
    model = nn.Sequential(Inner(wrap))
    with pytest.raises(LayerError, match=text):
        watch(erasure_of(model), model, batches(dtype=torch.float32))
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"layer": "encoder"}, LayerError, "`layer='encoder'` is no submodule of Sequential"),
        ({"pooling": "callbacks.boring:first_column"}, LayerError, "cannot be written back"),
        ({"pooling": "flatten"}, LayerError, "cannot be written back"),
        ({"pooling": "maen"}, LayerError, "Did you mean 'mean'"),
        ({"start_rows": 0}, InterpError, "expect 1 or more, got 0, "),
        ({"memory_rows": 0}, InterpError, "expect 1 or more"),
        ({"every_n_steps": 0}, InterpError, "expect 1 or more"),
        ({"ridge": -1.0}, InterpError, "`ridge` expects 0 or more, got -1.0"),
        ({"ridge": math.nan}, InterpError, "`ridge` expects 0 or more"),
    ],
    ids=str,
)
def test_a_bad_argument_is_named(options, kind, text):
    with pytest.raises(kind, match=text):
        erasure_of(net(), **options)


def test_a_confounder_given_itself_and_a_missing_model():
    with pytest.raises(VariableError, match="two variables named 'grass'"):
        Erasure(net(), GRASS, "0", [GRASS])
    with pytest.raises(InterpError, match="has no model yet"), Erasure(None, GRASS, "0").applied():
        pass


# --- hooks and state --------------------------------------------------------------------------------------------------


def test_the_hook_is_gone_after_an_exception_and_nothing_is_learned():
    model, found = net(), batches()
    erasure = erasure_of(model, every_n_steps=1)

    def step():
        with erasure.applied(), erasure.watching(found[0]):
            assert hooks(model) == 1  # one, though two are inside each other
            model(found[0]["x"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step()
    assert hooks(model) == 0
    assert erasure.eraser is None
    watch(erasure, model, found[:1])
    assert erasure.eraser is not None
    with erasure.applied():
        copied = copy.deepcopy(model)
    assert torch.equal(copied(found[0]["x"]), model(found[0]["x"]))


def test_a_resumed_loop_has_the_same_bits():
    found = batches(448)

    def steps(erasure, model, part):
        for batch in part:
            model.zero_grad()
            with erasure.watching(batch):
                F.cross_entropy(model(batch["x"]), batch["moo"]).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad

    options = {"every_n_steps": 3, "memory_rows": 100}
    whole, model = erasure_of(None, **options), net()
    whole.bind(model)
    steps(whole, model, found)
    half, other = erasure_of(None, **options), net()
    half.bind(other)
    steps(half, other, found[:7])
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    resumed = erasure_of(other, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.load_state_dict(torch.load(file, weights_only=True))
    steps(resumed, other, found[7:])
    for one, two in zip([*model.parameters(), *whole.eraser], [*other.parameters(), *resumed.eraser]):
        assert torch.equal(one, two)
    assert resumed.remaining == whole.remaining is not None
