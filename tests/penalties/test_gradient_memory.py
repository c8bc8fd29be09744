"""`GradientPenalty` computes nothing below its layer a second time, and finds what it would find if it did."""

import random

import numpy as np
import pytest
import torch
from penalties.test_gradient import (
    Along,
    Checkpointed,
    Image,
    Net,
    Noisy,
    Plain,
    Residual,
    Siamese,
    Tokens,
    close,
    gradients,
    taken,
)
from test_suppression import GRASS, MOO, batches
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_interp import Erasure, Suppression
from lightning_interp.passes import memory
from lightning_interp.penalties import GradientPenalty


@pytest.fixture
def forgetful(monkeypatch):
    """Makes what is called inside compute everything again."""

    def call(function):
        with monkeypatch.context() as patch:
            patch.setattr(memory, "outermost", lambda model, layer: [])
            return function()

    return call


class Counted(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Stack(Net):
    """One flat stack of modules, the layer among them; what stands before the layer is given."""

    def __init__(self, *before, after=None):
        super().__init__()
        self.all = nn.Sequential(*before)
        self.tail = nn.Sequential(nn.Tanh(), nn.Linear(8, 2)) if after is None else after
        self.below = self.above = self.drop = nn.Identity()

    def forward(self, x):
        return self.tail(self.layer(self.all(x)))


class Flat(Net):
    """In-place layers beside the layer: what the batch norm gave is written over."""

    def __init__(self):
        super().__init__()
        parts = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(8, 8), nn.Tanh()]
        self.below = nn.ModuleList(parts)

    def forward(self, x):
        for part in self.below:
            x = part(x)
        return self.above(self.layer(x) + 0.1 * x)


class Functional(Net):
    """Functions between the modules, one of them in place, and one that draws."""

    def forward(self, x):
        h = F.relu_(self.below[0](x))
        h = self.below[1](F.dropout(h, 0.3) + 0.1)
        return self.above(self.layer(h.clone()) * F.dropout(h, 0.5))


class Tuples(Net):
    """A module that gives a tuple, one that is given a list, and one that is given names and a tuple."""

    class Two(nn.Module):
        def forward(self, x):
            return x.tanh(), 2 * x

    class Both(nn.Module):
        def forward(self, parts):
            parts.append(parts[0] + parts[1])
            return parts[2]

    class Named(nn.Module):
        def forward(self, h, pair=(None, 1.0), sign=True):
            return h + (0 if pair[0] is None else pair[1] * pair[0]) if sign else h

    def __init__(self):
        super().__init__()
        self.two, self.both, self.named = self.Two(), self.Both(), self.Named()

    def forward(self, x):
        parts = list(self.two(self.below(x)))
        self.both(parts)
        return self.above(self.layer(self.named(parts[2], pair=(parts[0], 0.5), sign=True)) + parts[1])


class Hooked(Net):
    """Hooks of the user's: one on a module changes what it gives, one inside of a module hands something on."""

    def __init__(self):
        super().__init__()
        self.other = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.kept = []
        self.below.register_forward_hook(lambda module, args, output: 2 * output + torch.rand(()))
        self.other[0].register_forward_hook(lambda module, args, output: self.kept.append(output))
        self.layer.register_forward_hook(lambda module, args, output: None)

    def forward(self, x):
        self.kept.clear()
        h = self.other(self.drop(self.below(x)))
        return self.above(self.layer(h) + self.kept.pop())


class Frozen(Net):
    """A part below without gradients, and a second call of a part in evaluation mode."""

    def forward(self, x):
        with torch.no_grad():
            h = self.below(x)
        self.drop.eval()
        one = self.drop(h)
        self.drop.train()
        return self.above(self.layer(self.drop(h)) + one)


class Twice(Net):
    """The same arguments twice, other random numbers each time."""

    def forward(self, x):
        h = self.below(x)
        one, other = self.drop(h), self.drop(h)
        return self.above(self.layer(one) + other)


class Aside(Net):
    """A part below that also runs after the layer, on what it was given before."""

    def forward(self, x):
        h = self.drop(self.below(x))
        return self.above(self.layer(h) + self.drop(self.below(x)))


class Nested(Net):
    """The layer lies deep, and its parts are shared with what lies beside it."""

    def __init__(self):
        super().__init__()
        self.block = nn.ModuleDict({"one": nn.Linear(8, 8), "two": nn.Sequential(nn.Linear(8, 8), nn.Tanh())})
        self.shared = nn.Sequential(self.block["one"], nn.Tanh())
        self.layer = None
        self.block["two"].add_module("layer", nn.Linear(8, 8))

    def forward(self, x):
        h = self.shared(self.below(x))
        return self.above(self.block["two"](self.block["one"](h)) + h)


class Mapped(Net):
    """A part below inside a transform of torch.func."""

    def forward(self, x):
        h = torch.func.vmap(self.below)(x)
        return self.above(self.layer(h) + self.below(x))


class Recurrent(Net):
    """Convolution, GRU (which gives a tuple) and attention below."""

    def __init__(self):
        super().__init__()
        self.gru, self.attend = nn.GRU(8, 8, batch_first=True), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        h, _ = self.gru(self.below(x).unsqueeze(1).repeat(1, 3, 1))
        h, _ = self.attend(h, h, h)
        return self.above(self.layer(h) + h).mean(1)


class HalfCheckpointed(Net):
    """The part below in a checkpoint."""

    def __init__(self, reentrant):
        super().__init__(p=0.3)
        self.reentrant = reentrant

    def forward(self, x):
        h = checkpoint(self.below, x.requires_grad_(), use_reentrant=self.reentrant)
        return self.above(self.layer(self.drop(h)) + h)


NETS = {
    "plain": Plain,
    "dropout": lambda: Plain(p=0.5),
    "residual": lambda: Residual(p=0.5),
    "tokens": Tokens,
    "image": Image,
    "siamese": lambda: Siamese(p=0.5),
    "random numbers": Noisy,
    "in place": Flat,
    "functions": Functional,
    "tuples": Tuples,
    "hooks": lambda: Hooked(),
    "frozen": lambda: Frozen(p=0.5),
    "aside": lambda: Aside(p=0.5),
    "nested": Nested,
    "vmap": Mapped,
    "recurrent": Recurrent,
    "checkpoint all": lambda: Checkpointed("all"),
    "checkpoint above": lambda: Checkpointed("above"),
    "checkpoint below": lambda: HalfCheckpointed(False),
    "reentrant checkpoint below": lambda: HalfCheckpointed(True),
}
LAYER = {"nested": "block.two.layer"}


def step(make, layer, **options):
    np.random.seed(0)
    random.seed(0)
    model = make()
    term, kept, _ = taken(model, layer=layer, **options)
    return kept.found, gradients(term, model)


@pytest.mark.parametrize("name", NETS)
def test_derivative_and_gradients_are_those_of_a_pass_that_computes_everything(forgetful, name):
    layer = LAYER.get(name, "layer")
    found, gradient = step(NETS[name], layer)
    wanted, other = forgetful(lambda: step(NETS[name], layer))
    assert close(found, wanted, 1e-4)  # of a difference over a small step
    assert close(gradient, other, 1e-4)
    assert float(gradient.norm()) > 1e-3


@pytest.mark.parametrize("name", ["residual", "in place", "functions", "siamese", "checkpoint below"])
def test_under_autocast_they_are_as_near_to_single_precision(forgetful, name):
    wanted, other = step(NETS[name], "layer")
    with torch.autocast("cpu", torch.bfloat16):
        found, gradient = step(NETS[name], "layer")
        _, before = forgetful(lambda: step(NETS[name], "layer"))
    assert close(found, wanted, 1e-2)
    assert close(gradient, other, 2 * float((before - other).norm() / other.norm()))


def train(make, layer, steps=12):
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model = make()
    s = Suppression(model, GRASS, [MOO], GradientPenalty(), inputs="x", target="moo", layer=layer, weight=1.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _, batch in zip(range(steps), batches()):
        optimizer.zero_grad()
        with s.watching(batch):
            loss = F.cross_entropy(model(batch["x"]), batch["moo"])
        (loss + s.penalty(loss)).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), s.acted


@pytest.mark.parametrize("name", NETS)
def test_weights_after_training_are_those_of_a_pass_that_computes_everything(forgetful, name):
    layer = LAYER.get(name, "layer")
    found, acted = train(NETS[name], layer)
    wanted, _ = forgetful(lambda: train(NETS[name], layer))
    assert acted == 12
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


# --- what is not computed ---------------------------------------------------------------------------------------------


def test_nothing_below_the_layer_is_computed_again_and_all_above_is_once():
    class Whole(Net):
        def __init__(self):
            super().__init__()
            self.below = nn.Sequential(Counted(6, 8), nn.Tanh(), Counted(8, 8))
            self.layer, self.head = Counted(8, 8), Counted(8, 2)

        def forward(self, x):
            return self.head(self.layer(self.below(x)).tanh())

    model = Whole()
    taken(model)
    assert [m.calls for m in model.modules() if isinstance(m, Counted)] == [1, 1, 1, 2]
    with torch.autocast("cpu", torch.bfloat16):  # both ends are run again
        taken(model)
    assert [m.calls for m in model.modules() if isinstance(m, Counted)] == [2, 2, 2, 5]


def test_a_step_of_other_inputs_is_computed_again():
    class Whole(Plain):
        def __init__(self):
            super().__init__()
            self.below, self.layer = Counted(6, 8), Counted(8, 8)

    model = Whole()
    taken(model, lambda m, b: m(b["x"] + 0.5))
    assert (model.below.calls, model.layer.calls) == (3, 3)  # in the step, and at both ends


def test_inputs_that_the_step_has_written_to_are_other_inputs():
    class Whole(Residual):
        def __init__(self):
            super().__init__()
            self.below = Counted(6, 8)

        def forward(self, x):
            h = self.below(x)
            x += 1  # the batch's own
            return self.above(h + self.layer(h))

    model = Whole()
    taken(model)
    assert model.below.calls == 3


def test_the_same_arguments_with_other_random_numbers_are_taken_in_their_order():
    model = Twice(p=0.5)
    _, kept, batch = taken(model)
    torch.manual_seed(3)
    h = model.below(batch["x"])
    one, other = model.drop(h), model.drop(h)
    a = model.layer(one)
    size = 1e-2 * a.norm(dim=1).mean() / kept.direction.norm(dim=1).mean()
    change = (model.above(a + size * kept.direction.float() + other) - model.above(a + other)) / size
    assert close(kept.found, (change[:, 1:] - change[:, :1]).double(), 1e-3)


def test_a_model_that_runs_twice_on_the_same_inputs_is_shifted_in_its_last_run():
    model = Residual(p=0.5)
    _, kept, batch = taken(model, lambda m, b: m(b["x"]) + m(b["x"]))
    torch.manual_seed(3)
    model(batch["x"])
    h = model.drop(model.below(batch["x"]))
    a = model.layer(h)
    size = 1e-2 * a.norm(dim=1).mean() / kept.direction.norm(dim=1).mean()
    change = (model.above(h + a + size * kept.direction.float()) - model.above(h + a)) / size
    assert close(kept.found, (change[:, 1:] - change[:, :1]).double(), 1e-3)


class Jittered(Net):
    """A module below draws from numpy, and so does what goes past the layer."""

    class Jitter(nn.Module):
        def forward(self, x):
            return x * (1 + 0.1 * float(np.random.randn()))

    def __init__(self):
        super().__init__()
        self.jitter = self.Jitter()

    def forward(self, x):
        h = self.jitter(self.below(x))
        past = h * (1 + 0.5 * float(np.random.randn()))
        return self.above(self.layer(h) + past)


def test_numbers_of_numpy_drawn_in_a_module_that_is_not_run_again_are_the_same_at_both_ends():
    # The numbers that go past the layer are others than in the step: over the small step they would be 50 times the derivative.
    found = step(Jittered, "layer")[0].detach()
    plain = step(Residual, "layer")[0].detach()
    assert 0.3 < float(found.norm() / plain.norm()) < 3


def test_what_an_erasure_does_below_the_layer_is_done_once(forgetful):
    def run():
        model = Residual()
        erasure = Erasure(model, GRASS, "below", [MOO], start_rows=1, every_n_steps=1)
        for batch in batches(size=64, epochs=1):
            with erasure.watching(batch):
                model(batch["x"])
        with erasure.applied():
            term, kept, _ = taken(model)
        return kept.found, gradients(term, model)

    found, gradient = run()
    wanted, other = forgetful(run)
    assert close(found, wanted, 1e-4)
    assert close(gradient, other, 1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own
def test_a_scripted_module_runs_as_ever(forgetful):
    class Scripted(Residual):
        def __init__(self):
            super().__init__()
            self.below = torch.jit.script(self.below)

    found, gradient = step(Scripted, "layer")
    wanted, other = forgetful(lambda: step(Scripted, "layer"))
    assert close(found, wanted, 1e-4)
    assert close(gradient, other, 1e-4)


def test_nothing_is_kept_after_the_penalty_and_no_forward_is_left_replaced():
    model = Residual(p=0.5)
    s = Suppression(model, GRASS, [MOO], Along(), inputs="x", target="moo", layer="layer", balance=False)
    batch = next(batches(size=64))
    with s.watching(batch):
        loss = F.cross_entropy(model(batch["x"]), batch["moo"])
    assert s._bound.derivative._memory.calls
    s.penalty(loss)
    assert not s._bound.derivative._memory.calls
    assert not any("forward" in vars(m) for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_pass_that_fails_leaves_no_forward_replaced():
    class Failing(Residual):
        calls = 0

        def forward(self, x):
            self.calls += 1
            h = super().forward(x)
            if self.calls > 1:
                raise RuntimeError("the user's own")
            return h

    model = Failing()
    with pytest.raises(RuntimeError, match="the user's own"):
        taken(model)
    assert not any("forward" in vars(m) for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
