"""`GradientPenalty` in a training step: the derivative, and its gradient, against forward mode and a double backward pass."""

import random
import warnings

import numpy as np
import pytest
import torch
from callbacks.boring import bits
from test_suppression import GRASS, MOO, batches
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchmetrics import MeanMetric

from lightning_interp import Suppression
from lightning_interp.errors import InterpWarning
from lightning_interp.penalties import GradientPenalty
from lightning_interp.penalties.contribution import halves

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, in forward mode


class Along(GradientPenalty):
    """Keeps the derivative along a fixed direction, every other sample of a cell the other way unless `shared`."""

    def __init__(self, shared=False, seed=0):
        super().__init__()
        self.shared, self.seed, self.found, self.direction = shared, seed, None, None

    def __call__(self, step):
        v = torch.randn(step.hidden.shape[1], generator=torch.Generator().manual_seed(self.seed)).to(step.hidden)
        sign = 1 - 2 * halves(step.cell).to(v).unsqueeze(1)
        self.direction = (torch.ones_like(sign) if self.shared else sign) * v
        self.found = step.along(self.direction)
        return (self.found**2).sum(1).mean()


class Net(nn.Module):
    """`below`, the layer, `above`; more in the subclasses."""

    def __init__(self, above=None, p=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.below = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.layer = nn.Linear(8, 8)
        self.drop = nn.Dropout(p)
        self.above = nn.Sequential(*[nn.Tanh()] if above is None else above, nn.Linear(8, 2))

    def forward(self, x):
        return self.above(self.drop(self.layer(self.drop(self.below(x)))))


def margin(o):
    o = o.double()
    return o[:, 1:] - o[:, :1]


def taken(model, step=lambda m, b: m(b["x"]), term=None, **options):
    """One step on a batch of 64: the penalty (weight 1), and the term that keeps the derivative."""
    term = Along() if term is None else term
    batch = next(batches(size=64))
    options = {"inputs": "x", "target": "moo", "layer": "layer", "balance": False, **options}
    s = Suppression(model, GRASS, [MOO], term, **options)
    torch.manual_seed(3)
    with s.watching(batch):
        loss = F.cross_entropy(step(model, batch), batch["moo"])
    return s.penalty(loss), term, batch


def gradients(total, model):
    found = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(found, model.parameters())])


def exact(function, h, direction):
    """The derivative by a backward pass of a backward pass, on the graph."""
    o = margin(function(h))
    u = torch.zeros_like(o, requires_grad=True)
    (g,) = torch.autograd.grad(o, h, u, create_graph=True)
    return torch.autograd.grad((g * direction.to(g)).sum(), u, create_graph=True)[0]


def close(found, wanted, tolerance):
    difference = float(((found - wanted).norm() / wanted.norm()).detach())
    assert difference < tolerance
    return True


# --- smooth nets ------------------------------------------------------------------------------------------------------


class Residual(Net):
    def forward(self, x):
        h = self.drop(self.below(x))
        return self.above(h + self.layer(h))

    def after(self, h, x):
        return self.above(self.drop(self.below(x)) + h)


class Plain(Net):
    def after(self, h, x):
        return self.above(self.drop(h))


class Tokens(Net):
    """[n, 3, d] at the layer."""

    def forward(self, x):
        return self.after(self.layer(self.below(x.unsqueeze(1) * torch.arange(1.0, 4.0).unsqueeze(1))), x)

    def after(self, h, x):
        return self.above(h).tanh().sum(1)


class Image(Net):
    """[n, 4, 2, 3] at the layer."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Conv2d(1, 4, (1, 2)), nn.Linear(24, 2)

    def forward(self, x):
        return self.after(self.layer(self.below(x).reshape(-1, 1, 2, 4)), x)

    def after(self, h, x):
        return self.head(h.tanh().flatten(1))


@pytest.mark.parametrize("make", [Plain, Residual, Tokens, Image])
def test_penalty_and_gradients_are_those_of_a_double_backward(make):
    model = make()
    term, kept, batch = taken(model)
    found = gradients(term, model)
    values = []
    hook = model.layer.register_forward_hook(lambda module, args, output: values.append(output))
    model(batch["x"])
    hook.remove()
    (h,) = values
    direction = kept.direction.reshape(len(h), *[1] * (h.ndim - 2), -1) if h.ndim == 3 else kept.direction
    direction = direction.reshape(*direction.shape, 1, 1) if h.ndim == 4 else direction
    wanted = exact(lambda h: model.after(h, batch["x"]), h, direction.expand_as(h))
    assert close(kept.found, wanted, 5e-3)
    penalty = (wanted**2).sum(1).mean()
    assert float(term.detach()) == pytest.approx(float(penalty.detach()), rel=1e-2)
    assert close(found, gradients(penalty, model), 2e-2)
    assert float(found.norm()) > 1e-3


def test_in_double_precision():
    def call(model, batch):
        return model(batch["x"].double())

    model = Plain().double()
    _, kept, batch = taken(model, call, inputs=call)
    h = model.layer(model.below(batch["x"].double()))
    assert close(kept.found, exact(lambda h: model.after(h, None), h, kept.direction), 5e-3)


# --- what must be the same at both ends of the difference -------------------------------------------------------------


def forward_mode(model, batch, direction, p_seed=3):
    """The derivative by `torch.func.jvp` of the whole model with the layer shifted, from the same random numbers."""

    def shifted(e):
        hook = model.layer.register_forward_hook(lambda module, args, output: output + e)
        try:
            torch.manual_seed(p_seed)
            return margin(model(batch["x"]))
        finally:
            hook.remove()

    with torch.no_grad():
        return torch.func.jvp(shifted, (torch.zeros(64, 8),), (direction.float(),))[1]


@pytest.mark.parametrize("make", [Plain, Residual])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_draws_what_it_drew_in_the_step(make, p):
    model = make(p=p)
    _, kept, batch = taken(model)
    assert close(kept.found, forward_mode(model, batch, kept.direction), 5e-3)


class Noisy(Residual):
    """Random numbers of all three generators, below and above."""

    def noise(self):
        return 0.1 * (torch.randn(()) + float(np.random.randn()) + random.random())

    def forward(self, x):
        h = self.below(x) + self.noise()
        return self.above(h + self.layer(h) * (1 + self.noise())) * (1 + self.noise())


def test_numpy_and_python_draw_what_they_drew():
    torch.manual_seed(3)
    model = Noisy()
    state, rest = np.random.get_state(), random.getstate()
    _, kept, batch = taken(model)
    np.random.set_state(state)
    random.setstate(rest)
    assert close(kept.found, forward_mode(model, batch, kept.direction), 5e-3)


class Siamese(Net):
    def forward(self, x):
        return self.above(self.layer(self.below(self.drop(x))) - 0.5 * self.layer(self.below(self.drop(-x))))

    def after(self, h, x):
        return self.above(self.layer(self.below(x)) - 0.5 * h)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_a_layer_that_runs_twice_is_shifted_in_its_last_run(p):
    model = Siamese(p=p)
    term, kept, batch = taken(model)
    if p == 0:
        h = model.layer(model.below(-batch["x"]))
        wanted = exact(lambda h: model.after(h, batch["x"]), h, kept.direction)
        assert close(kept.found, wanted, 5e-3)
        assert close(gradients(term, model), gradients((wanted**2).sum(1).mean(), model), 2e-2)
    assert float(kept.found.detach().norm()) < 30


def test_a_model_that_runs_twice_in_the_step_is_shifted_in_its_last_run():
    model = Plain()
    _, kept, batch = taken(model, lambda m, b: m(-b["x"]) + m(b["x"]))
    h = model.layer(model.below(batch["x"]))
    assert close(kept.found, exact(lambda h: model.after(h, None), h, kept.direction), 5e-3)


@pytest.mark.parametrize(
    "step",
    [
        lambda m, b: m(b["x"] + 0.5),  # not what `inputs` picks
        lambda m, b: m(b["x"] + 0 * torch.rand(64, 6)),  # other random numbers than the step's
    ],
    ids=["inputs", "draws"],
)
def test_a_pass_that_cannot_repeat_the_step_differs_in_the_shift_alone(step):
    # The skip connection goes past the layer: over the small step, any difference in it would be 20 times the derivative.
    model = Residual(p=0.5)
    _, kept, _ = taken(model, step)
    _, plain, _ = taken(model)
    assert 0.3 < float(kept.found.detach().norm()) / float(plain.found.detach().norm()) < 3


def test_batch_norm_above_sees_the_signs_but_no_shift_that_all_samples_share():
    def model():
        return Net([nn.BatchNorm1d(8), nn.Tanh()])

    shared, signed = taken(model(), term=Along(shared=True))[1], taken(model())[1]
    assert float(shared.found.detach().abs().max()) < 1e-3
    assert float(signed.found.detach().abs().mean()) > 0.1


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_under_autocast_it_is_that_of_single_precision(kind):
    model, other = Plain(), Plain()
    wanted, plain, _ = taken(other)
    with torch.autocast("cpu", kind):
        term, kept, _ = taken(model)
    assert close(kept.found, plain.found, 2e-2)
    assert close(gradients(term, model), gradients(wanted, other), 5e-2)


def test_in_pure_bfloat16_it_is_near_that_of_single_precision():
    def call(model, batch):
        return model(batch["x"].bfloat16())

    _, plain, _ = taken(Plain())
    _, kept, _ = taken(Plain().bfloat16(), call, inputs=call)
    assert close(kept.found, plain.found, 0.1)


# --- what the extra pass leaves as it was -----------------------------------------------------------------------------


def test_buffers_metrics_and_random_numbers_are_those_of_one_pass():
    class Watched(Residual):
        def __init__(self):
            super().__init__([nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3)], p=0.3)
            self.seen = MeanMetric()

        def forward(self, x):
            self.seen.update(x)
            return super().forward(x)

    model, other = Watched(), Watched()
    taken(model)
    after = torch.rand(3)
    torch.manual_seed(3)
    other(next(batches(size=64))["x"])
    assert torch.equal(after, torch.rand(3))
    assert bits(dict(model.named_buffers())) == bits(dict(other.named_buffers()))
    assert model.seen.compute() == other.seen.compute()
    assert model.seen._update_count == 1


class Checkpointed(Net):
    def __init__(self, how, reentrant=False):
        super().__init__([nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3)], p=0.3)
        self.how, self.reentrant = how, reentrant

    def forward(self, x):
        if self.how == "all":
            return checkpoint(super().forward, x, use_reentrant=False)
        if self.how == "above":
            return checkpoint(self.above, self.drop(self.layer(self.drop(self.below(x)))), use_reentrant=self.reentrant)
        return super().forward(x)


@pytest.mark.parametrize(("how", "reentrant"), [("all", False), ("above", False), ("above", True)])
def test_an_activation_checkpoint_changes_no_bit(how, reentrant):
    found = []
    for model in (Checkpointed(None), Checkpointed(how, reentrant)):
        taken(model)[0].backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*found)


def test_batch_norm_in_a_checkpoint_counts_no_pass_of_the_penaltys():
    counts = []
    for penalised in (False, True):
        model = Checkpointed("all")
        batch = next(batches(size=64))
        s = Suppression(model, GRASS, [MOO], Along(), inputs="x", target="moo", layer="layer", balance=False)
        with s.watching(batch):
            loss = F.cross_entropy(model(batch["x"]), batch["moo"])
        (loss + s.penalty(loss) if penalised else loss).backward()
        counts.append(int(model.above[0].num_batches_tracked))
    assert counts == [2, 2]  # the second is the checkpoint's own


# --- where it has nothing to act on -----------------------------------------------------------------------------------


class OffPath(Net):
    def forward(self, x):
        h = self.drop(self.below(x))
        self.layer(h)
        return self.above(h)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_a_layer_that_the_output_does_not_depend_on_is_said(p):
    with pytest.warns(InterpWarning, match="the output 'forward' does not answer to the layer 'layer': its derivative is 0"):
        term, kept, _ = taken(OffPath(p=p))
    assert float(term.detach()) == 0
    assert not kept.found.any()


class Detached(Net):
    def forward(self, x):
        return self.above(self.layer(self.below(x)).detach())


def test_a_layer_that_is_detached_still_shapes_what_stands_above():
    model, other = Detached(), Plain()
    term, kept, _ = taken(model)
    wanted, plain, _ = taken(other)
    assert torch.equal(kept.found, plain.found)
    found = gradients(term, model)
    assert close(found[-18:], gradients(wanted, other)[-18:], 1e-5)
    assert not found[:-18].any()


@pytest.mark.parametrize("kind", [None, torch.bfloat16])
def test_an_in_place_layer_right_after_it(kind):
    found = []
    for inplace in (False, True):
        model = Net([nn.ReLU(inplace=inplace)])
        model.layer = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))  # LayerNorm stays in float32 under autocast
        with torch.autocast("cpu", kind, kind is not None), warnings.catch_warnings():
            warnings.simplefilter("error")
            term, _, _ = taken(model)
        found.append(gradients(term, model))
    assert torch.equal(*found)
