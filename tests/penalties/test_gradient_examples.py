"""`GradientPenalty` of a confounder by examples: against plain loops, in a Trainer, and what goes wrong."""

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
from callbacks import boring
from callbacks.boring import Boring, bits, fit, hooks, streams
from callbacks.test_suppress import build, suppress, weights
from lightning.pytorch.callbacks import ModelCheckpoint
from test_suppression import Broken, batches
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_interp import Concept, Confounder, SuppressConfounder, Suppression
from lightning_interp.activations.pooling import Pooling
from lightning_interp.activations.select import find_module
from lightning_interp.batches import Inputs
from lightning_interp.errors import InterpError, InterpWarning, LabelError, LayerError, VariableError
from lightning_interp.passes import Caller, example_direction, read_examples
from lightning_interp.penalties import GradientPenalty, IndependencePenalty, Sum

pytestmark = boring.HOST_WARNINGS

WITH, WITHOUT = boring.with_stripes()["x"], boring.Animals(50, 6).x
SHOWN = ({"x": WITH}, {"x": WITHOUT})


def stripes(examples=SHOWN):
    return Confounder("stripes", examples=examples)


class Net(nn.Module):
    """Batch norm and dropout below the layer, a tanh above it."""

    def __init__(self, p=0.3):
        super().__init__()
        torch.manual_seed(0)
        self.below = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(p))
        self.layer = nn.Linear(8, 8)
        self.above = nn.Sequential(nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x):
        return self.above(self.layer(self.below(x)))


def unlabelled(**options):
    """Batches with nothing but the inputs and the task's label."""
    return ({"x": b["x"], "moo": b["moo"]} for b in batches(**options))


def suppression(model, examples=SHOWN, penalty=None, **options):
    options = {"inputs": "x", "layer": "layer", **options}
    return Suppression(model, stripes(examples), penalty=penalty or GradientPenalty(every_n_steps=3), **options)


class Hand:
    """The penalty as a user would write it."""

    def __init__(self, every, weight):
        self.every, self.weight, self.steps, self.v = every, weight, 0, None

    def read(self, model):
        if self.steps % self.every == 0:
            still = copy.deepcopy(model).eval()
            with torch.no_grad():
                one, other = (still.layer(still.below(x)).double().mean(0) for x in (WITH, WITHOUT))
            self.v = one - other
        self.steps += 1

    def __call__(self, model, h, logits):
        direction = (1 - 2 * (torch.arange(len(h)) % 2).double().unsqueeze(1)) * self.v
        size = 1e-2 * h.detach().norm(dim=1).mean() / direction.norm(dim=1).mean()
        moved = model.above(h + (size * direction).to(h)).double()
        here = logits.double()
        change = (moved[:, 1] - moved[:, 0]) - (here[:, 1] - here[:, 0])
        return self.weight * ((change / size) ** 2).mean()


def train(model, s=None, hand=None, after=None):
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    torch.manual_seed(1)
    for i, batch in enumerate(unlabelled()):
        optimizer.zero_grad()
        if s is not None:
            with s.watching(batch):
                loss = F.cross_entropy(model(batch["x"]), batch["moo"])
            loss = loss + s.penalty(loss)
        elif hand is not None:
            hand.read(model)
            h = model.layer(model.below(batch["x"]))
            logits = model.above(h.clone())
            loss = F.cross_entropy(logits, batch["moo"])
            loss = loss + hand(model, h, logits)
        else:
            loss = F.cross_entropy(model(batch["x"]), batch["moo"])
        loss.backward()
        optimizer.step()
        if after is not None:
            after(i)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3, 100])
def test_weights_are_those_of_a_plain_loop(every):
    model, other = Net(), Net()
    s = suppression(model, penalty=GradientPenalty(every_n_steps=every), weight=0.3)
    found, wanted = train(model, s), train(other, hand=Hand(every, 0.3))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert s.acted == 18
    assert s.skipped == 0
    plain = Net()
    assert float((train(plain) - wanted).abs().max()) > 1e-2
    assert bits(dict(model.named_buffers())) == bits(dict(other.named_buffers()))


def test_the_penalty_of_a_linear_head_is_its_weights_along_the_direction():
    model = Net()
    s = suppression(model, layer="above.0", weight=1.0)
    batch, still = next(unlabelled()), copy.deepcopy(model).eval()  # before batch norm sees the batch
    with s.watching(batch):
        model(batch["x"])
    penalty = s.penalty()
    one, other = (still.above[0](still.layer(still.below(x))).mean(0).detach() for x in (WITH, WITHOUT))
    v, w = one - other, still.above[1].weight.detach()[1] - still.above[1].weight.detach()[0]
    assert float(penalty.detach()) == pytest.approx(float((w @ v) ** 2), rel=1e-3)
    (g,) = torch.autograd.grad(penalty, model.above[1].weight)
    torch.testing.assert_close(g[1], 2 * (w @ v) * v, rtol=2e-3, atol=1e-6)


def test_the_direction_is_that_of_decodability_and_sensitivity():
    model = Net().eval()
    caller = Caller(model, Inputs("x"), None, Pooling("mean"), torch.no_grad)
    layer = find_module(model, "below", "layer")
    for examples in (SHOWN, (DataLoader(boring.Animals(40, 5), 16, shuffle=True), boring.Animals(30, 6))):
        for most in (4096, 20):
            v = stripes(examples)
            found, notes = example_direction(caller, "below", layer, v, most)
            wanted = read_examples(caller, {"below": layer}, v, "binary", most, 0, False, {})
            torch.testing.assert_close(found, wanted.results["below"].directions["stripes"], rtol=0, atol=1e-12)
            assert (
                notes == wanted.notes == (() if most == 4096 else ("'stripes': only the first 20 examples of a set are used",))
            )


def test_it_is_read_every_so_many_steps_under_the_present_weights():
    model, seen = Net(), []
    s = suppression(model, penalty=GradientPenalty(every_n_steps=4))
    train(model, s, after=lambda i: seen.append(s._shown.direction.clone()))
    assert [torch.equal(*pair) for pair in pairwise(seen)] == [(i + 1) % 4 != 0 for i in range(17)]


def test_it_takes_the_direction_out():
    """After training the head answers less to the stripes, of which the loop is told by examples only."""

    def answer(model):
        model.eval()
        with torch.no_grad():
            shift = torch.zeros(6)
            shift[5] = 1
            o = model(WITHOUT + shift) - model(WITHOUT)
        return float((o[:, 1] - o[:, 0]).abs().mean())

    def trained(weight):
        model = Net(p=0.0)
        s = suppression(model, weight=weight)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for batch in batches(epochs=20):
            x = batch["x"].clone()
            x[:, 5] += batch["moo"]  # the stripes tell the label
            batch = {"x": x, "moo": batch["moo"]}
            optimizer.zero_grad()
            with s.watching(batch):
                loss = F.cross_entropy(model(x), batch["moo"])
            (loss + s.penalty(loss)).backward()
            optimizer.step()
        return answer(model)

    assert trained(3.0) < 0.5 * trained(0.0)


# --- it leaves no trace -----------------------------------------------------------------------------------------------


def test_weight_zero_is_the_plain_run_to_the_last_bit():
    model, other = Net(), Net()
    loader = DataLoader(boring.Animals(50, 6, augment=True), 16, shuffle=True)
    found = train(model, suppression(model, ({"x": WITH}, loader), weight=0.0))
    after = streams()
    assert torch.equal(found, train(other))
    assert streams() == after
    assert bits(model.state_dict()) == bits(other.state_dict())
    assert hooks(model) == 0


def test_under_autocast_what_is_cast_for_the_examples_does_not_serve_the_step():
    found = []
    for weight in (None, 0.0):
        model = Net(p=0.0)
        s = None if weight is None else suppression(model, weight=weight)
        with torch.autocast("cpu", torch.bfloat16):  # with its cache
            found.append(train(model, s))
    assert torch.equal(*found)


def in_trainer(weight=1.0):
    return suppress(stripes(), [], GradientPenalty(every_n_steps=5), layer="encoder.4", weight=weight, target=None)


def test_in_a_trainer_weight_zero_is_the_plain_run():
    s, seen = in_trainer(0.0), []
    for callbacks in ((), (s,)):
        trainer, model = fit(*callbacks)
        seen.append((bits(model.state_dict()), streams(), trainer.callback_metrics["seen"]))
    assert seen[0] == seen[1]
    assert s.suppression.acted == 24
    assert hooks(model) == 0


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}], ids=str)
def test_in_a_trainer_it_acts_and_is_logged(options):
    s = in_trainer(3.0)
    trainer, model = fit(s, **options)
    assert s.suppression.acted == 24
    assert {"penalty/stripes", "penalty_weight/stripes"} <= set(trainer.callback_metrics)
    assert not torch.equal(weights(model), weights(fit(**options)[1]))
    assert s.certificate["settings"]["balance"] is False
    assert "'stripes' has examples: the loss has no balanced weights" in s.certificate["notes"]


def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path):
    def go(epochs, **more):
        s = in_trainer()
        saver = [ModelCheckpoint(tmp_path, save_last=True)] if epochs == 1 else []
        still = boring.BoringData(shuffle=False)
        model = partial(Boring, dropout=0.0)
        return s, fit(s, *saver, model=model, data=still, max_epochs=epochs, enable_checkpointing=epochs == 1, **more)[1]

    _, whole = go(2)
    half, _ = go(1)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"][half.state_key]["suppression"]["shown"]
    assert saved["steps"] == 12  # no multiple of 5: the direction in force is older than the weights
    _, again = go(2, ckpt_path=str(tmp_path / "last.ckpt"))
    assert bits(again.state_dict()) == bits(whole.state_dict())


def test_another_model_has_a_direction_of_its_own():
    model = Net()
    s = suppression(model, penalty=GradientPenalty(every_n_steps=100))
    train(model, s)
    old = s._shown.direction
    other = Net()
    nn.init.normal_(other.layer.weight)
    s.bind(other)
    assert s._shown.direction is None
    with s.watching({"x": WITHOUT}):
        other(WITHOUT)
    assert not torch.equal(s._shown.direction, old)
    s.release()
    assert s._shown.direction is None


YAML = (
    "seed_everything: 0"
    + boring.trainer_yaml(epochs=1)
    + """
    - class_path: lightning_interp.SuppressConfounder
      init_args:
        confounder:
          class_path: lightning_interp.Confounder
          init_args: {name: stripes, examples: ["callbacks.boring:with_stripes", "callbacks.boring:without_stripes"]}
        output: head
        inputs: x
        layer: encoder.4
        start_epoch: 0
        ramp_epochs: 0
        weight: 0.5
        penalty:
          class_path: lightning_interp.penalties.GradientPenalty
          init_args: {every_n_steps: 7}
"""
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning 2.6 with jsonargparse 4.53
def test_from_yaml(tmp_path, monkeypatch):
    made, s = build(YAML, tmp_path, monkeypatch)
    assert s.suppression.term.every_n_steps == 7
    assert s.suppression.acted == 12
    assert "penalty/stripes" in made.trainer.callback_metrics


def test_by_the_name_of_one_in_a_monitor():
    monitor = boring.monitor([Concept("moo"), stripes()], layers=["encoder.4"])
    s = SuppressConfounder("stripes", penalty=GradientPenalty(), layer="encoder.4", start_epoch=0, ramp_epochs=0)
    with pytest.warns(InterpWarning, match="'stripes' has examples, no labels: no contribution"):
        fit(monitor, s, max_epochs=1)
    assert s.suppression.acted == 12
    assert s.suppression.output == "head"


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem", "text"),
    [
        (
            {"given": [Concept("moo")]},
            VariableError,
            r"`given` has no meaning with 'stripes', which has `examples`: .*\['moo'\]",
        ),
        ({"budget": 0.1}, VariableError, "`budget` needs a value of 'stripes' for every sample; it has `examples`"),
        ({"only_above": 0.1}, VariableError, "`only_above` needs a value of 'stripes' for every sample"),
        ({"layer": None}, InterpError, "`penalty=GradientPenalty` needs a `layer`"),
        ({"layer": "layers"}, LayerError, "Did you mean 'layer'"),
        (
            {"penalty": IndependencePenalty()},
            VariableError,
            "`penalty=IndependencePenalty` needs a value .*serve `GradientPenalty`",
        ),
        ({"penalty": Broken()}, VariableError, "`penalty=Broken` needs a value of 'stripes'"),
        (
            {"penalty": Sum([GradientPenalty(), IndependencePenalty()])},
            VariableError,
            "`penalty=Sum` needs a value of 'stripes'",
        ),
    ],
)
def test_what_needs_labels_is_refused(options, problem, text):
    with pytest.raises(problem, match=text):
        suppression(Net(), **options)


@pytest.mark.parametrize("every", [0, -1, 2.5, True, "5"])
def test_a_bad_schedule_is_named(every):
    with pytest.raises(ValueError, match="`every_n_steps` expects a whole number of 1 or more, got"):
        GradientPenalty(every_n_steps=every)


def test_a_sum_reads_as_often_as_the_member_that_reads_most():
    both = Sum([GradientPenalty(every_n_steps=7), GradientPenalty(every_n_steps=3)])
    assert (both.needs_labels, both.every_n_steps) == (False, 3)
    model = Net()
    s = suppression(model, penalty=both)
    train(model, s)
    assert s.acted == 18


@pytest.mark.parametrize(
    ("examples", "text"),
    [
        (({"x": WITH[:4]}, {"x": WITHOUT}), "at least 5 finite examples in each set, got 4 with it and 50 without"),
        (({"x": WITH}, {"x": WITHOUT * torch.nan}), "at least 5 finite examples in each set, got 40 with it and 0 without"),
        (({"x": WITH}, {"y": WITHOUT}), "`examples` of 'stripes': LabelError: `inputs='x'` is not in the batch"),
        ((lambda: None, {"x": WITHOUT}), "expects a batch, .* got None"),
    ],
)
def test_examples_that_cannot_be_read_are_an_error_at_the_first_step(examples, text):
    model = Net()
    with pytest.raises(VariableError, match=text):
        train(model, suppression(model, examples))
    assert hooks(model) == 0
    assert model.training


def test_examples_that_fail_later_cost_the_steps_until_they_can_be_read_again():
    model, batch = Net(), {"x": WITH.clone()}
    s = suppression(model, (batch, SHOWN[1]))

    def hurt(i):
        if i == 4:
            batch["x"] *= torch.nan
        if i == 7:
            batch["x"] = WITH

    with pytest.warns(InterpWarning, match="there is no penalty until the examples can be read again: `examples` of 'stripes'"):
        train(model, s, after=hurt)
    assert (s.acted, s.skipped) == (15, 3)


def test_a_layer_that_some_examples_do_not_run_is_named():
    class Branching(Net):
        def forward(self, x):
            h = self.below(x)
            return self.above(h if len(x) == 50 else self.layer(h))

    model = Branching()
    with pytest.raises(VariableError, match="layer 'layer' did not run for all of the `examples` of 'stripes'"):
        train(model, suppression(model))


def test_more_examples_than_are_read_are_said():
    many = torch.randn(600, 6)
    model = Net()
    with pytest.warns(InterpWarning, match="'stripes': only the first 512 examples of a set are used"):
        train(model, suppression(model, ({"x": many}, {"x": WITHOUT})))


def test_a_batch_without_inputs_is_named():
    s = suppression(Net())
    with pytest.raises(LabelError, match="`inputs='x'` is not in the batch"), s.watching({"y": WITH}):
        pass
    s = suppression(Net(), (WITH, WITHOUT), inputs=None)
    with pytest.raises(LabelError, match="no tensor stands at `inputs` in a list"), s.watching(["a", "b"]):
        pass
