"""`SuppressConfounder` in a Trainer: the weights are those of the same penalty written into `training_step` by hand."""

import csv
import signal
import sys
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from test_suppression import Hand
from torch.nn import functional as F

from callbacks import boring
from callbacks.boring import BATCH, TRAIN, Boring, BoringData, Memory, fit, hooks, monitor, swap_grass
from lightning_interp import Concept, Confounder, SuppressConfounder
from lightning_interp.errors import InterpError, InterpWarning, LayerError, VariableError
from lightning_interp.penalties import BalancedReweighting, ContributionPenalty, GradientPenalty, GroupDRO, InvariancePenalty

pytestmark = boring.HOST_WARNINGS

STEPS = TRAIN // BATCH  # in an epoch
STRIPES = Confounder("stripes", examples=(boring.with_stripes, boring.without_stripes))
FIXED = partial(Boring, dropout=0.0)


def suppress(confounder=None, given=None, penalty=None, **options):
    """A SuppressConfounder of `Boring` that acts in full from the start."""
    confounder = Confounder("grass", intervention=swap_grass) if confounder is None else confounder
    given = [Concept("moo")] if given is None else given
    options = {"output": "head", "target": "moo", "inputs": "x", "start_epoch": 0, "ramp_epochs": 0, **options}
    return SuppressConfounder(confounder, given, penalty, **options)


class ByHand(Boring):
    """The penalty in `training_step`; its factor grows as the schedule says."""

    def __init__(self, hand=None, start=0, ramp=0, **options):
        super().__init__(**options)
        self.hand, self.start, self.ramp = hand or Hand(), start, ramp
        self.hand.forward = lambda batch: self(batch["x"])

    def factor(self, batch_idx):
        if self.current_epoch < self.start:
            return 0.0
        done = self.current_epoch - self.start + (batch_idx + 1) / STEPS
        return min(1.0, done / self.ramp) if self.ramp else 1.0

    def added(self, logits, batch, loss, batch_idx=0):
        factor = self.factor(batch_idx)
        return factor * self.hand(logits, batch, loss) if factor else 0.0

    def training_step(self, batch, batch_idx):
        logits = self.logits(batch["x"])
        loss = F.cross_entropy(logits, batch["moo"])
        self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=len(batch["x"]))
        return loss + self.added(logits, batch, loss, batch_idx)


class Dict(Boring):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "other": torch.ones(1)}


class Manual(Boring):
    """Manual optimization by one or two optimizers; with two, the second loss is of the encoder alone."""

    def __init__(self, hand=None, optimizers=1, **options):
        super().__init__(**options)
        self.automatic_optimization = False
        self.hand, self.count = hand, optimizers

    def training_step(self, batch, batch_idx):
        found = self.optimizers()
        found = found if isinstance(found, list) else [found]
        logits = self.logits(batch["x"])
        loss = F.cross_entropy(logits, batch["moo"])
        self.log("train_loss", loss)
        for o in found:
            o.zero_grad()
        self.manual_backward(loss if self.hand is None else loss + self.hand(logits, batch, loss))
        found[0].step()
        if len(found) > 1:
            self.manual_backward(sum((p**2).sum() for p in self.encoder.parameters()))
            found[1].step()

    def configure_optimizers(self):
        if self.count == 1:
            return torch.optim.Adam(self.parameters(), 0.01)
        return [torch.optim.Adam(self.head.parameters(), 0.01), torch.optim.Adam(self.encoder.parameters(), 0.01)]


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def buffers(model):
    return boring.bits(dict(model.named_buffers()))


@pytest.fixture(scope="module")
def plain():
    """Weights of the run without a penalty, once per set of options."""
    known = {}

    def find(model=Boring, **options):
        key = repr((model, sorted(options.items())))
        if key not in known:
            known[key] = weights(fit(model=model, **options)[1])
        return known[key]

    return find


# --- the same weights as by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("penalty", "hand", "both"),
    [
        (None, {}, {}),
        (None, {}, {"weight": 20.0}),
        (None, {}, {"balance": False, "weight": 0.3}),
        (partial(ContributionPenalty, 16), {"rows": 16}, {}),
        (BalancedReweighting, {"kind": "reweighting"}, {}),
        (partial(GroupDRO, 0.2, 1.0), {"kind": "dro", "eta": 0.2, "adjustment": 1.0}, {}),
        (InvariancePenalty, {"kind": "invariance"}, {"weight": 0.3}),
    ],
    ids=["window", "strong", "no balance", "halves", "reweighting", "dro", "invariance"],
)
def test_weights_are_those_by_hand(plain, penalty, hand, both):
    s = suppress(penalty=penalty and penalty(), **both)
    _, found = fit(s)
    _, wanted = fit(model=lambda: ByHand(Hand(**hand, **both)))
    assert torch.equal(weights(found), weights(wanted))
    assert buffers(found) == buffers(wanted)
    assert len(wanted.hand.terms) > 10
    assert not torch.equal(weights(found), plain())
    assert hooks(found) == 0
    assert "training_step" not in vars(found)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.05},
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-mixed", "accumulate_grad_batches": 2},
        {"precision": "64-true"},
    ],
    ids=str,
)
def test_weights_are_those_by_hand_however_lightning_steps(plain, options):
    # (bf16-mixed: the output is cast to float32 twice, so that its gradient is rounded twice.)
    _, found = fit(suppress(), **options)
    _, wanted = fit(model=ByHand, **options)
    assert torch.equal(weights(found), weights(wanted))
    assert not torch.equal(weights(found), plain(**options))


def test_invariance_under_mixed_precision_is_that_by_hand():
    def forward(model, batch):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return model(batch["x"])

    def by_hand():
        model = ByHand(Hand("invariance", 1.0))
        model.hand.forward = partial(forward, model)
        return model

    _, found = fit(suppress(penalty=InvariancePenalty()), precision="bf16-mixed")
    _, wanted = fit(model=by_hand, precision="bf16-mixed")
    assert torch.equal(weights(found), weights(wanted))


def test_a_step_that_returns_a_dict():
    outputs = []

    class Look(Dict):
        def on_train_batch_end(self, outputs_, batch, batch_idx):
            outputs.append(outputs_)

    _, found = fit(suppress(), model=Look)
    _, wanted = fit(model=ByHand)
    assert torch.equal(weights(found), weights(wanted))
    assert set(outputs[-1]) == {"loss", "other"}


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_that_returns_none_is_left_alone():
    class Skipping(Boring):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx % 2 else loss

    class SkippingByHand(ByHand):
        def training_step(self, batch, batch_idx):
            if batch_idx % 2:
                Boring.training_step(self, batch, batch_idx)
                return None
            return super().training_step(batch, batch_idx)

    _, found = fit(suppress(), model=Skipping)
    _, wanted = fit(model=SkippingByHand)
    assert torch.equal(weights(found), weights(wanted))


@pytest.mark.parametrize("optimizers", [1, 2])
@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}], ids=str)
def test_manual_optimization(optimizers, options):
    s = suppress()
    _, found = fit(s, model=lambda: Manual(None, optimizers), **options)
    _, wanted = fit(model=lambda: Manual(Hand(), optimizers), **options)
    assert torch.equal(weights(found), weights(wanted))
    assert not torch.equal(weights(found), weights(fit(model=lambda: Manual(None, optimizers), **options)[1]))
    assert not {"training_step", "manual_backward"} & set(vars(found))
    assert s.suppression.skipped == 2 * STEPS - len(wanted.hand.terms)


def test_manual_optimization_with_a_second_forward_pass():
    class Twice(Manual):
        def training_step(self, batch, batch_idx):
            for o in self.optimizers():
                o.zero_grad()
                logits = self.logits(batch["x"])
                loss = F.cross_entropy(logits, batch["moo"])
                self.manual_backward(loss if self.hand is None else loss + self.hand(logits, batch, loss))
                o.step()

    _, found = fit(suppress(), model=lambda: Twice(None, 2))
    _, wanted = fit(model=lambda: Twice(Hand(), 2))
    assert torch.equal(weights(found), weights(wanted))


def test_manual_optimization_without_manual_backward_is_said():
    class Past(Manual):
        def training_step(self, batch, batch_idx):
            o = self.optimizers()
            o.zero_grad()
            F.cross_entropy(self.logits(batch["x"]), batch["moo"]).backward()
            o.step()

    with pytest.warns(InterpWarning, match="manual_backward"):
        fit(suppress(), model=Past)


def test_labels_are_those_before_the_step():
    class Changing(Boring):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            batch["grass"].fill_(1)
            del batch["moo"]
            return loss

    _, found = fit(suppress(), model=Changing)
    _, wanted = fit(model=ByHand)
    assert torch.equal(weights(found), weights(wanted))


# --- the training step is given back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [RuntimeError("the user's own"), KeyboardInterrupt()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("model", [Boring, Manual])
def test_the_training_step_is_given_back_after_an_exception(problem, model):
    inside = []

    class Failing(model):
        def logits(self, x):
            inside.append((hooks(self), "training_step" in vars(self)))
            if len(inside) == 20:
                raise problem
            return super().logits(x)

    made = Failing()
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit if isinstance(problem, KeyboardInterrupt) else RuntimeError):
            fit(suppress(), model=made)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves Ctrl-C switched off
    assert inside[0] == (1, True)
    assert hooks(made) == 0
    assert not {"training_step", "manual_backward"} & set(vars(made))


def test_a_training_step_set_on_the_instance_is_given_back():
    made = FIXED()
    own = made.training_step
    made.training_step = own
    fit(suppress(), model=made)
    assert vars(made)["training_step"] is own


def test_two_side_by_side(tmp_path):
    places = Confounder("odd", label=lambda batch: batch["id"] % 3 % 2)
    pair = [suppress(), suppress(places, [], penalty=ContributionPenalty(8), weight=3.0)]
    run, both = fit(*pair)
    _, one = fit(suppress())
    assert not torch.equal(weights(both), weights(one))
    assert {"penalty/grass", "penalty/odd"} <= set(run.callback_metrics)
    assert "training_step" not in vars(both)
    assert hooks(both) == 0


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("penalty", "layer"), [(InvariancePenalty, None), (GradientPenalty, "encoder.4"), (GradientPenalty, "encoder.0")]
)
def test_one_does_not_see_the_passes_of_another(penalty, layer, last):
    """A second pass within the step of the other: of the changed batch, or of a shifted layer."""
    odd = Confounder("odd", label=lambda batch: batch["id"] % 2, intervention=swap_grass)

    def other():
        return suppress(odd, [], penalty(), layer=layer, weight=0.0, balance=False)

    for own, where in ((ContributionPenalty, {}), (GradientPenalty, {"layer": "encoder.4"})):
        pair = [suppress(penalty=own(), **where), other()]
        _, found = fit(*(pair if last else pair[::-1]), model=FIXED)
        _, wanted = fit(suppress(penalty=own(), **where), model=FIXED)
        assert torch.equal(weights(found), weights(wanted))


def test_two_penalties_on_one_confounder_have_keys_of_their_own():
    run, _ = fit(suppress(), suppress(penalty=InvariancePenalty()))
    found = {k for k in run.callback_metrics if k.startswith("penalty/")}
    assert found == {"penalty/grass/ContributionPenalty", "penalty/grass/InvariancePenalty"}


# --- schedule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "ramp"), [(1, 0), (1, 1), (0, 2), (1, 2)])
def test_the_schedule_is_that_by_hand(start, ramp):
    _, found = fit(suppress(start_epoch=start, ramp_epochs=ramp), max_epochs=3)
    _, wanted = fit(model=lambda: ByHand(Hand(), start, ramp), max_epochs=3)
    assert torch.equal(weights(found), weights(wanted))


def test_nothing_happens_before_the_start(plain):
    s = suppress(start_epoch=2, ramp_epochs=1)
    with pytest.warns(InterpWarning, match=r"`start_epoch=2`: this Trainer stops after 2 epochs .* 'grass' never acts\."):
        run, found = fit(s)
    assert torch.equal(weights(found), plain())
    assert not [k for k in run.callback_metrics if k.startswith("penalty")]
    memory = Memory()
    fit(suppress(start_epoch=1, ramp_epochs=2), max_epochs=4, logger=memory)
    factors = [line["penalty_weight/grass"] for _, line in memory.lines if "penalty_weight/grass" in line]
    assert factors[-1] == 1
    assert factors == sorted(factors)
    assert factors[0] <= 3 / STEPS / 2  # the first of all has no window yet
    assert len([f for f in factors if f == 1]) > STEPS / 2


@pytest.mark.parametrize("options", [{"start_epoch": -1}, {"ramp_epochs": -1}])
def test_a_bad_schedule_is_named(options):
    with pytest.raises(InterpError, match="`start_epoch` and `ramp_epochs` expect 0 or more"):
        suppress(**options)


# --- what is logged ---------------------------------------------------------------------------------------------------


def test_the_users_loss_stays_the_tasks_loss(plain):
    memory = Memory()
    fit(suppress(), logger=memory)
    own = Memory()
    _, wanted = fit(model=ByHand, logger=own)
    losses = [line["train_loss_step"] for _, line in memory.lines if "train_loss_step" in line]
    assert losses
    assert losses == [line["train_loss_step"] for _, line in own.lines if "train_loss_step" in line]
    terms = [line["penalty/grass"] for _, line in memory.lines if "penalty/grass" in line]
    assert set(wanted.hand.terms) == set(terms)


def test_a_step_without_a_term_logs_none():
    memory = Memory()
    fit(suppress(penalty=ContributionPenalty(16)), logger=memory)
    _, wanted = fit(model=lambda: ByHand(Hand(rows=16)))
    terms = [line["penalty/grass"] for _, line in memory.lines if "penalty/grass" in line]
    assert len(wanted.hand.terms) < 2 * STEPS
    assert terms == pytest.approx(wanted.hand.terms, rel=1e-9)


@pytest.mark.parametrize(("every", "epochs"), [(1, 2), (5, 2), (10, 2), (30, 6)])
def test_keys_reach_callback_metrics_and_the_csv(tmp_path, every, epochs):
    logger = CSVLogger(tmp_path)
    run, _ = fit(suppress(weight=3.0), logger=logger, log_every_n_steps=every, max_epochs=epochs)
    keys = {"penalty/grass", "penalty_weight/grass", "penalty_scale/grass"}
    assert keys <= set(run.callback_metrics)
    assert float(run.callback_metrics["penalty_weight/grass"]) == 3.0
    assert 0 < float(run.callback_metrics["penalty_scale/grass"]) <= 1
    with open(tmp_path / "lightning_logs" / "version_0" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    own = [int(r["step"]) for r in rows if r.get("train_loss_step")]
    ours = [int(r["step"]) for r in rows if r.get("penalty/grass")]
    assert set(ours) <= set(own)
    assert len(ours) >= max(1, len(own) - 3)  # a few steps have no term
    for key in keys:
        assert len([r for r in rows if r.get(key)]) == len(ours)


def test_a_trainer_that_never_logs():
    run, _ = fit(suppress(), log_every_n_steps=0)
    assert "penalty/grass" in run.callback_metrics


# --- with a monitor ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
def test_names_are_those_of_a_monitor(first):
    s = SuppressConfounder("grass", ["moo"], start_epoch=0, ramp_epochs=0)
    watcher = monitor()
    _, found = fit(*((watcher, s) if first else (s, watcher)))
    _, wanted = fit(suppress())
    assert torch.equal(weights(found), weights(wanted))
    assert len(watcher.history) == 2
    assert s.suppression.variables[0] is watcher.monitor.variables[1]
    assert s.suppression.output == "head"


def test_places_of_a_monitor_are_taken_for_variables_too():
    s = SuppressConfounder(Confounder("grass"), [Concept("moo")], start_epoch=0, ramp_epochs=0)
    _, found = fit(monitor(), s)
    _, wanted = fit(suppress())
    assert s.suppression.output == "head"
    assert torch.equal(weights(found), weights(wanted))


@pytest.mark.parametrize(
    ("penalty", "options"),
    [
        (InvariancePenalty, {}),
        (GradientPenalty, {"layer": "encoder.4"}),
        (GradientPenalty, {"layer": "encoder.4", "confounder": STRIPES, "given": []}),
    ],
)
def test_a_monitor_of_the_training_steps_does_not_see_the_penaltys_own_passes(penalty, options):
    events = []
    for callbacks in ((), (suppress(penalty=penalty(), weight=0.0, balance=False, **options),)):
        watcher = monitor(data="train")
        fit(watcher, *callbacks, model=FIXED)
        events.append([boring.plain(e) for e in watcher.history])
    assert events[0] == events[1]


def test_a_watched_run_with_a_penalty_has_the_same_bits():
    _, found = fit(monitor(data="train", every_n_train_steps=4), suppress())
    _, wanted = fit(suppress())
    assert torch.equal(weights(found), weights(wanted))


@pytest.mark.parametrize(
    ("names", "callbacks", "text"),
    [
        (("gras", ["moo"]), [monitor], "no ConceptMonitor of this Trainer has a variable 'gras'. Did you mean 'grass'?"),
        (("grass", ["mo"]), [monitor], "no ConceptMonitor of this Trainer has a variable 'mo'. Did you mean 'moo'?"),
        (("grass", []), [], "There is no ConceptMonitor in this Trainer; give a Variable."),
    ],
)
def test_a_wrong_name_names_the_nearest(names, callbacks, text):
    made = FIXED()
    with pytest.raises(VariableError) as caught:
        fit(SuppressConfounder(*names), *(make() for make in callbacks), model=made)
    assert text in str(caught.value)
    assert "training_step" not in vars(made)


def test_a_wrong_output_names_the_nearest():
    with pytest.raises(LayerError, match="Did you mean 'head'"):
        fit(suppress(output="haed"))


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [None, partial(ContributionPenalty, 16), partial(GroupDRO, 0.2, 1.0)])
def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path, penalty):
    def go(epochs, **more):
        s = suppress(penalty=penalty and penalty(), start_epoch=1, ramp_epochs=2)
        saver = [ModelCheckpoint(tmp_path, save_last=True)] if epochs == 2 else []
        still = BoringData(shuffle=False)
        return s, fit(s, *saver, model=FIXED, data=still, max_epochs=epochs, enable_checkpointing=epochs == 2, **more)[1]

    whole, model = go(4)
    half, _ = go(2)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["callbacks"][half.state_key]["suppression"]["steps"]["design"]["cells"]
    resumed, again = go(4, ckpt_path=str(tmp_path / "last.ckpt"))
    assert boring.bits(again.state_dict()) == boring.bits(model.state_dict())
    assert resumed.suppression.skipped == whole.suppression.skipped
    assert torch.equal(resumed.suppression.design.frequency, whole.suppression.design.frequency)


def test_two_of_them_keep_states_of_their_own(tmp_path):
    odd = Confounder("odd", label=lambda batch: batch["id"] % 2)
    pair = [suppress(), suppress(odd, []), suppress(penalty=BalancedReweighting())]
    assert len({s.state_key for s in pair}) == 3
    fit(*pair, ModelCheckpoint(tmp_path, save_last=True), enable_checkpointing=True, max_epochs=1)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    assert {s.state_key for s in pair} <= set(saved)


# --- YAML -------------------------------------------------------------------------------------------------------------

YAML = (
    "seed_everything: 0"
    + boring.trainer_yaml(epochs=2)
    + """
    - class_path: lightning_interp.SuppressConfounder
      init_args:
        confounder:
          class_path: lightning_interp.Confounder
          init_args: {name: grass, intervention: "callbacks.boring:swap_grass"}
        given:
          - class_path: lightning_interp.Concept
            init_args: {name: moo}
        output: head
        target: moo
        inputs: x
        start_epoch: 0
        ramp_epochs: 0
        weight: 0.5
        penalty:
          class_path: PENALTY
"""
)
NAMED = """
    - class_path: lightning_interp.SuppressConfounder
      init_args: {confounder: grass, given: [moo], start_epoch: 0}
    - class_path: lightning_interp.ConceptMonitor
      init_args:
        variables:
          - class_path: lightning_interp.Confounder
            init_args: {name: grass}
          - class_path: lightning_interp.Concept
            init_args: {name: moo}
        output: head
        target: moo
        inputs: x
        warn_above: 1.0
"""


def build(text, folder, monkeypatch):
    pytest.importorskip("jsonargparse")
    cli = pytest.importorskip("lightning.pytorch.cli")
    monkeypatch.setattr(sys, "argv", ["fit"])
    (folder / "run.yaml").write_text(text)
    made = cli.LightningCLI(Boring, BoringData, args=["fit", "--config", str(folder / "run.yaml")], save_config_callback=None)
    return made, next(c for c in made.trainer.callbacks if isinstance(c, SuppressConfounder))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning 2.6 with jsonargparse 4.53
@pytest.mark.parametrize(
    ("path", "kind", "options"),
    [
        ("lightning_interp.penalties.ContributionPenalty", ContributionPenalty, "{window_rows: 99}"),
        ("lightning_interp.penalties.GroupDRO", GroupDRO, "{step_size: 0.5, adjustment: 1.0}"),
        ("lightning_interp.penalties.InvariancePenalty", InvariancePenalty, None),
        ("BalancedReweighting", BalancedReweighting, None),
    ],
)
def test_from_yaml(tmp_path, monkeypatch, path, kind, options):
    text = YAML.replace("PENALTY", path) + (f"          init_args: {options}\n" if options else "")
    if kind.replaces_loss:  # it has no weight
        text = text.replace("        weight: 0.5\n", "")
    made, s = build(text, tmp_path, monkeypatch)
    assert type(s.suppression.term) is kind
    assert [type(v) for v in s.suppression.variables] == [Confounder, Concept]
    assert s.suppression.weight == (1.0 if kind.replaces_loss else 0.5)
    assert s.suppression.output == "head"
    if kind is ContributionPenalty:
        assert s.suppression.term.window_rows == 99
    if kind is GroupDRO:
        assert (s.suppression.term.step_size, s.suppression.term.adjustment) == (0.5, 1.0)
    assert "penalty/grass" in made.trainer.callback_metrics


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning 2.6 with jsonargparse 4.53
def test_names_from_yaml(tmp_path, monkeypatch):
    made, s = build(YAML[: YAML.index("    - class_path: lightning_interp.Supp")].rstrip() + NAMED, tmp_path, monkeypatch)
    assert s.suppression.output == "head"
    assert {"penalty/grass", "contribution/grass"} <= set(made.trainer.callback_metrics)
