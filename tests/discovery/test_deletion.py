"""Deleting a feature: what is taken out, and the check against a loop that hooks the layer by hand."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from discovery.feature_scenes import discovery, draws, feed, looked, model, rows, samples
from nets import said
from torch import nn

from lightning_interp.activations.pooling import Pooling
from lightning_interp.activations.select import select
from lightning_interp.batches import Inputs
from lightning_interp.discovery import Discovery
from lightning_interp.discovery.deletion import deletions, eraser
from lightning_interp.passes import Caller
from lightning_interp.passes.above import Above, with_siblings
from lightning_interp.reading import Reader

N = 300


def test_an_eraser_takes_out_what_the_feature_adds_and_leaves_what_the_named_variables_add():
    values = (draws(N, 1) > 0.4).double()
    has = (draws(N, seed=1) + values[:, 0]) > 0.5
    h = draws(N, 5, seed=2) + 2 * has[:, None] * draws(1, 5, seed=3) + values @ draws(1, 5, seed=4)
    found = rows(h, draws(N, 1, seed=5), values, draws(N, seed=6))
    cut = eraser(found, has)
    assert cut.rank == 1
    w = np.sqrt(found.weight.numpy())[:, None]
    x = np.column_stack([np.ones(N), values.numpy(), has.numpy()])

    def coefficients(a):
        return np.linalg.lstsq(w * x, w * a.numpy(), rcond=None)[0]

    before, after = coefficients(h), coefficients(cut(h))
    assert np.abs(before[2]).max() > 1
    assert np.abs(after[2]).max() < 1e-9
    whole = found.weight / found.weight.sum()
    assert torch.allclose((whole @ cut(h)), whole @ h)  # the mean stays
    assert torch.allclose(cut(cut(h)), cut(h))


def test_a_feature_that_is_a_named_variable_is_not_taken_out():
    values = (draws(N, 1) > 0.4).double()
    found = rows(draws(N, 3, seed=1) + values, draws(N, 1, seed=2), values, draws(N, seed=3))
    assert eraser(found, values[:, 0] > 0.5).rank == 0


@pytest.mark.parametrize("tanh", [False, True])
def test_what_goes_is_that_of_a_loop_that_hooks_the_layer_by_hand(tanh):
    net, batch = model(tanh), samples()
    found = looked(net, batch)
    event = found.latest
    checked = [f for f in event.features if f.causal is not None]
    assert len(checked) == min(3, len(event.features))

    # by hand, in the order of the batch: balanced weights over moo, [1, moo] held fixed
    captured = {}
    handle = net.encoder[1].register_forward_hook(lambda m, a, out: captured.update(h=out.detach().clone()))
    with torch.no_grad():
        plain = net(batch["x"])
    handle.remove()
    h, moo = captured["h"], batch["moo"].double()
    n = len(moo)
    weight = torch.where(moo > 0, 0.5 / moo.sum(), 0.5 / (n - moo.sum()))
    x = torch.stack([torch.ones(n, dtype=torch.float64), moo], 1)
    root = weight.sqrt()[:, None]

    def residual(a):
        return a - x @ torch.linalg.lstsq(root * x, root * a).solution

    def left(raw):
        return float((weight[:, None] * residual((raw[:, 1] - raw[:, 0])[:, None]) ** 2).sum())

    for f in checked:
        j = found._found.names.index(f.name)
        has = (found._found.code.codes(h) > found._found.code.threshold)[:, j].double()[:, None]
        s, rest = residual(has), residual(h)
        if s.abs().max() < 1e-9:  # moo itself
            assert f.causal == 0
            continue
        hz = (weight[:, None] * rest).T @ s
        within = rest - s @ hz.T / (weight[:, None] * s**2).sum()
        cov = within.T @ (weight[:, None] * within)
        q = hz / hz.norm()
        damped = cov + cov.trace() * q @ q.T + 1e-2 * cov.trace() / len(cov) * torch.eye(len(cov))
        read = torch.linalg.solve(damped, q)
        read = read / (q.T @ read)
        mean = weight @ h

        def edit(module, args, out, read=read, q=q, mean=mean):
            return out - (out - mean) @ read @ q.T

        handle = net.encoder[1].register_forward_hook(edit)
        with torch.no_grad():
            edited = net(batch["x"])
        handle.remove()
        assert f.causal == pytest.approx(1 - left(edited) / left(plain), rel=1e-6, abs=1e-9)
    assert max(f.causal for f in checked) > 0.5


def test_deleting_what_is_read_takes_all_and_what_is_not_read_nothing():
    """A net that reads one of two units, each of which is a feature."""
    has = torch.stack([torch.arange(N) % 3 == 0, torch.arange(N) % 2 == 0], 1)
    x = has.double() + 1e-9 * draws(N, 2)
    net = nn.Sequential(nn.Identity(), nn.Linear(2, 1, bias=False)).double()
    net[1].weight.data = torch.tensor([[2.0, 0.0]]).double()
    found = Discovery(net, "0", inputs="x", sample_id="id")
    batch = {"x": x, "id": torch.arange(N)}
    feed(found, net, batch)
    reader = Reader([], Inputs("x"), None, None, "id")
    kept = rows(x, net(x).detach(), torch.zeros(N, 0), key=reader.read(batch).key)
    order = reader.read(batch).key.argsort()
    cuts = [eraser(kept, has[order, j]) for j in (0, 1)]
    gone = deletions(found._caller(), "0", found._watcher.layers["0"], cuts, "binary", reader, found._replay, kept)
    assert gone == pytest.approx([1, 0], abs=1e-6)


def test_an_output_below_the_layer_is_withheld():
    """The head reads the encoder's first part: nothing that is deleted after it can reach it."""

    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.aside = model(), nn.Linear(6, 6).double()

        def forward(self, x):
            out = self.net(x)
            self.aside(self.net.encoder(x))
            return out

    net, batch = Aside(), samples()
    found = looked(net, batch, layer="aside", output="net.head")
    assert found.latest.features
    assert all(f.causal is None for f in found.latest.features)


def test_only_the_samples_that_were_kept_are_run():
    net, batch = model(), samples()
    found = looked(net, batch)
    whole = {f.name: f.causal for f in found.latest.features}
    less = discovery(net)
    less._replay.max_bytes = 20_000
    feed(less, net, batch)
    with said("own passes use 296 samples"):
        less.event(1)
    some = {f.name: f.causal for f in less.latest.features}
    assert some.keys() == whole.keys()
    name = max(whole, key=lambda n: whole[n] or 0)
    assert some[name] == pytest.approx(whole[name], abs=0.1)
    assert some[name] != whole[name]


# --- what need not be run again ---------------------------------------------------------------------------------------


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = []
        self.stem = Counted(self, "stem")
        self.body = nn.ModuleDict({"first": Counted(self, "first"), "second": Counted(self, "second")})
        self.head = Counted(self, "head")

    def forward(self, x):
        return self.head(self.body["second"](self.body["first"](self.stem(x))))


class Counted(nn.Linear):
    def __init__(self, net, name):
        super().__init__(3, 3)
        self.name, self.net = name, [net]

    def forward(self, x):
        self.net[0].calls.append(self.name)
        return super().forward(x)


def test_what_stands_beside_the_layer_and_ran_before_it_is_not_run_again():
    net, x = Deep(), torch.randn(4, 3)
    layer = select(net, ["body.second"])["body.second"]
    layers = with_siblings(net, "body.second", layer)
    beside = {net.stem, net.head, net.body["first"], net.body["second"]}
    assert {found.module for found in layers.values()} == beside
    assert len(layers) == len(beside)
    above = Above(Caller(net, Inputs(), None, Pooling("mean"), nullcontext), layers)
    plain = above.run(x)
    net.calls.clear()
    assert torch.equal(above.edited(x, "body.second", lambda layer, a: a), plain)
    assert net.calls == ["head"]
    shifted = above.edited(x, "body.second", lambda layer, a: a + 1)
    assert torch.allclose(shifted, net.head(net.body["second"](net.body["first"](net.stem(x))) + 1))
