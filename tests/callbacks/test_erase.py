"""`EraseConfounder` in a Trainer: the weights are those of the same erasure written into the model by hand."""

import json
import logging
import re
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F

from callbacks import boring
from callbacks.boring import BATCH, TRAIN, Boring, BoringData, fit, hooks, loader, monitor
from lightning_interp import Concept, Confounder, EraseConfounder, Erasure, SuppressConfounder, capture
from lightning_interp.errors import InterpError, InterpWarning, LayerError, VariableError
from lightning_interp.penalties import BalancedReweighting, InvariancePenalty

pytestmark = boring.HOST_WARNINGS

STEPS = TRAIN // BATCH  # in an epoch
LAYER = "encoder.4"
OPTIONS = {"start_rows": 64, "every_n_steps": 4, "memory_rows": 512}


def erase(confounder=None, given=None, **options):
    """An EraseConfounder of `Boring` at the layer before the last tanh."""
    confounder = Confounder("grass") if confounder is None else confounder
    given = [Concept("moo")] if given is None else given
    return EraseConfounder(confounder, given=given, **{"layer": LAYER, **OPTIONS, **options})


class ByHand(Boring):
    """The erasure in the model's own steps."""

    def __init__(self, start=0, layer=LAYER, **options):
        super().__init__(**options)
        own = Erasure(None, Confounder("grass"), layer, [Concept("moo")], **OPTIONS)
        own.bind(self)
        self.__dict__["own"], self.start = own, start

    def training_step(self, batch, batch_idx):
        if self.current_epoch < self.start:
            return super().training_step(batch, batch_idx)
        with self.own.watching(batch):
            return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        with self.own.applied():
            return super().validation_step(batch, batch_idx, dataloader_idx)


class Net(LightningModule):
    """Keeps what its steps see at the layer; trains, tests and predicts."""

    def __init__(self, layer=None):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8)) if layer is None else layer
        self.head = nn.Linear(8, 2)
        self.seen = {}

    def forward(self, x):
        h = self.encoder(x)
        return self.head(F.relu(h[0] if isinstance(h, tuple) else h))

    def look(self, stage, batch):
        with capture(self, ["encoder"]) as found:
            logits = self(batch["x"])
        self.seen.setdefault(stage, []).append((batch["x"], found["encoder"]))
        return logits

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.look("train", batch), batch["moo"])

    def validation_step(self, batch, batch_idx):
        self.look("sanity" if self.trainer.sanity_checking else "val", batch)

    def test_step(self, batch, batch_idx):
        self.look("test", batch)

    def predict_step(self, batch, batch_idx):
        return self.look("predict", batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- the same weights as by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}, {"val_check_interval": 0.5}, {"num_sanity_val_steps": 2}],
    ids=str,
)
def test_weights_are_those_by_hand(options):
    e = erase()
    run, found = fit(e, **options)
    theirs, wanted = fit(model=ByHand, **options)
    assert torch.equal(weights(found), weights(wanted))
    assert boring.bits(dict(found.named_buffers())) == boring.bits(dict(wanted.named_buffers()))
    for one, other in zip(e.erasure.eraser, wanted.own.eraser):
        assert torch.equal(one, other)
    keys = {"val_loss", "accuracy", "train_loss"}
    assert {k: float(run.callback_metrics[k]) for k in keys} == {k: float(theirs.callback_metrics[k]) for k in keys}
    assert not torch.equal(weights(found), weights(fit(**options)[1]))
    assert hooks(found) == 0


class ByHandOnValidation(ByHand):
    def training_step(self, batch, batch_idx):
        with self.own.applied():
            return Boring.training_step(self, batch, batch_idx)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        if self.trainer.sanity_checking:
            return Boring.validation_step(self, batch, batch_idx)
        with self.own.learning(batch):
            return Boring.validation_step(self, batch, batch_idx)

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.own.refit()


def test_fitted_to_validation_rows_the_weights_are_those_by_hand():
    e = erase(data="val")
    _, found = fit(e, max_epochs=3, num_sanity_val_steps=2)
    _, wanted = fit(model=ByHandOnValidation, max_epochs=3, num_sanity_val_steps=2)
    assert torch.equal(weights(found), weights(wanted))
    for one, other in zip(e.erasure.eraser, wanted.own.eraser):
        assert torch.equal(one, other)
    assert not torch.equal(weights(found), weights(fit(max_epochs=3)[1]))
    assert hooks(found) == 0


def test_nothing_happens_before_the_start():
    e = erase(start_epoch=1)
    _, found = fit(e)
    _, wanted = fit(model=lambda: ByHand(start=1))
    assert torch.equal(weights(found), weights(wanted))
    with pytest.warns(InterpWarning, match="never erased at layer 'encoder.4': there is no fit, for nothing was learned"):
        _, found = fit(erase(start_epoch=2))
    assert torch.equal(weights(found), weights(fit()[1]))


def test_the_module_itself_has_no_trace_of_it():
    before = set(vars(Boring()))
    _, found = fit(erase())
    assert set(vars(found)) - before <= set(vars(fit()[1]))


def test_a_compiled_encoder_is_erased():
    e = erase()
    _, found = fit(e, model=lambda: Boring(dropout=0.0, compiled="eager"))
    _, wanted = fit(erase(), model=lambda: Boring(dropout=0.0))
    assert e.erasure.skipped == 0
    torch.testing.assert_close(weights(found), weights(wanted))


# --- every loop of the Trainer ----------------------------------------------------------------------------------------


def erased_as(eraser, model, pairs):
    with torch.no_grad():
        return [torch.allclose(eraser(model.encoder(x)), h, atol=1e-6) for x, h in pairs]


def test_validation_test_and_prediction_use_the_last_fit(tmp_path):
    e = erase(layer="encoder")
    run, model = fit(e, ModelCheckpoint(tmp_path, save_last=True), model=Net, enable_checkpointing=True, max_epochs=2)
    data = boring.probe_loader(48)
    model.seen.clear()
    run.validate(model, data, verbose=False)
    run.test(model, data, verbose=False)
    found = run.predict(model, data)
    assert hooks(model) == 0
    for stage in ("val", "test", "predict"):
        assert erased_as(e.erasure.eraser, model, model.seen[stage]) == [True] * 3, stage
    with torch.no_grad():
        assert not torch.allclose(found[0], model(model.seen["predict"][0][0]))
    # Another Trainer, from the checkpoint.
    last, fresh, other = str(tmp_path / "last.ckpt"), erase(layer="encoder"), Net()
    boring.trainer(fresh).test(other, data, ckpt_path=last, verbose=False)
    assert erased_as(e.erasure.eraser, other, other.seen["test"]) == [True] * 3
    # And the sanity check of a resumed run.
    again, before = Net(), Net()
    run = boring.trainer(erase(layer="encoder"), num_sanity_val_steps=2, max_epochs=3)
    run.fit(again, datamodule=BoringData(), ckpt_path=last)
    before.load_state_dict(torch.load(last, weights_only=True)["state_dict"])
    assert erased_as(e.erasure.eraser, before, again.seen["sanity"]) == [True] * 2


def test_a_trainer_without_a_fit_says_so():
    model = Net()
    run = boring.trainer(erase(layer="encoder"))
    with pytest.warns(InterpWarning, match="layer 'encoder' is not erased: there is no fit"):
        run.validate(model, boring.probe_loader(16), verbose=False)
    assert hooks(model) == 0


def test_no_validation_rows_to_fit_to_is_said_at_the_start():
    with pytest.warns(InterpWarning) as said:
        fit(erase(layer="encoder", data="val"), model=Net, limit_val_batches=0)
    first, last = (str(w.message) for w in said if issubclass(w.category, InterpWarning))
    assert "`data='val'`: this Trainer runs no validation loop" in first
    assert "was never erased at layer 'encoder'" in last


def test_where_it_lives_is_said_once(caplog):
    e = erase()
    with caplog.at_level(logging.INFO, logger="lightning_interp"):
        run, model = fit(e)
        run.fit_loop.max_epochs = 3
        run.fit(model, datamodule=BoringData())
    said = [r.getMessage() for r in caplog.records if r.name.startswith("lightning_interp")]
    assert len(said) == 1
    assert "without the callback the model is not erased" in said[0]


# --- with a monitor ---------------------------------------------------------------------------------------------------


class Still(Boring):
    """A learning rate of 0: the activations do not move."""

    def __init__(self):
        super().__init__(dropout=0.0, lr=0.0)
        self.encoder[1].momentum = 0.0  # batch norm too
        self.encoder[1].eval()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("data", ["val", "train", "probe"])
def test_a_monitor_sees_what_is_left(first, data):
    options = {"ridge": 0.0, "every_n_steps": STEPS, "memory_rows": 10**6, "layer": "encoder.0"}
    e = erase(**options)
    watched = boring.probe_loader() if data == "probe" else data
    watcher = monitor(layers=["encoder.0"], data=watched, max_samples=TRAIN)
    still = BoringData(shuffle=False)
    fit(*((watcher, e) if first else (e, watcher)), model=Still, data=still, max_epochs=3)
    alone = monitor(layers=["encoder.0"], data=watched, max_samples=TRAIN)
    fit(alone, model=Still, data=still, max_epochs=3)
    before, after = (w.latest.decodability["encoder.0"]["grass"].value for w in (alone, watcher))
    assert before > 0.9
    assert after < 0.35  # natural weights: what the given variable says of it stays in
    assert watcher.latest.decodability["encoder.0"]["moo"].value > 0.3


def test_names_are_those_of_a_monitor():
    e = erase("grass", ["moo"])
    watcher = monitor()
    _, found = fit(e, watcher)
    _, wanted = fit(erase())
    assert e.erasure.variables[0] is watcher.monitor.variables[1]
    assert torch.equal(weights(found), weights(wanted))


def test_a_watched_run_with_an_erasure_has_the_same_bits():
    steps = monitor(data=boring.probe_loader(), every_n_train_steps=3, measures=boring.ALL)
    _, wanted = fit(erase())
    for pair in ((steps, erase()), (erase(), monitor(data="train", every_n_train_steps=3))):
        assert torch.equal(weights(fit(*pair)[1]), weights(wanted))


@pytest.mark.parametrize("penalty", [BalancedReweighting, InvariancePenalty])
def test_with_a_penalty_whose_own_pass_is_not_learned_from(penalty):
    grass = Confounder("grass", intervention=boring.swap_grass)
    e = erase(given=[])
    told = {"output": "head", "target": "moo", "inputs": "x", "start_epoch": 0, "ramp_epochs": 0}
    told |= {} if penalty.replaces_loss else {"weight": 1e-12}
    fit(e, SuppressConfounder(grass, [Concept("moo")], penalty(), balance=False, **told), model=Still)
    plain = erase(given=[])
    fit(plain, model=Still)
    for one, other in zip(e.erasure.eraser, plain.erasure.eraser):
        assert torch.equal(one, other)


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [RuntimeError("the user's own"), KeyboardInterrupt()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("stage", ["train", "val"])
def test_the_hook_is_gone_after_an_exception(problem, stage):
    class Failing(Net):
        def look(self, now, batch):
            self.inside = hooks(self)
            if now == stage and self.global_step >= 5:
                raise problem
            return super().look(now, batch)

    made = Failing()
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit if isinstance(problem, KeyboardInterrupt) else RuntimeError):
            fit(erase(layer="encoder"), model=made)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves Ctrl-C switched off
    assert made.inside == 1  # of ours
    assert hooks(made) == 0


def test_the_rest_of_an_epoch_left_out_is_no_batch():
    class Leaving(Net):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx >= 5 else None

    e = erase(every_n_steps=1, layer="encoder")
    _, model = fit(e, model=Leaving)
    assert e.erasure.state_dict()["steps"] == 10
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"layer": "encoder.9"}, LayerError, "`layer='encoder.9'` is no submodule of Boring. Did you mean 'encoder."),
        ({"confounder": "gras"}, VariableError, "has a variable 'gras'. Did you mean 'grass'?"),
        ({"given": ["mo"]}, VariableError, "has a variable 'mo'. Did you mean 'moo'?"),
    ],
    ids=str,
)
def test_a_wrong_name_names_the_nearest(options, kind, text):
    made = Boring()
    with pytest.raises(kind) as caught:
        fit(erase(**options), monitor(), model=made)
    assert text in str(caught.value)
    assert hooks(made) == 0


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"pooling": "callbacks.boring:first_column"}, LayerError, "cannot be written back"),
        ({"data": "vla"}, InterpError, "`data='vla'` is none of 'train' and 'val'. Did you mean 'val'?"),
        ({"start_epoch": -1}, InterpError, "`start_epoch` expects 0 or more, got -1"),
        ({"given": [Concept("grass")]}, VariableError, "two variables named 'grass'"),
    ],
    ids=str,
)
def test_a_bad_argument_is_an_error_at_once(options, kind, text):
    with pytest.raises(kind, match=text):
        erase(**options)


def test_names_need_a_monitor():
    with pytest.raises(VariableError, match="There is no ConceptMonitor in this Trainer"):
        fit(erase("grass", []))


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["train", "val"])
def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path, rows):
    still = BoringData(shuffle=False)
    options = {"model": lambda: Boring(dropout=0.0), "data": still}

    def go(epochs, folder=None, **more):
        e = erase(every_n_steps=5, data=rows)  # not a part of the epoch's twelve
        saver = [] if folder is None else [ModelCheckpoint(folder, save_last=True)]
        return e, fit(e, *saver, max_epochs=epochs, enable_checkpointing=folder is not None, **options, **more)[1]

    whole, model = go(4)
    go(2, tmp_path)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    assert saved[whole.state_key]["erasure"]["eraser"]
    resumed, again = go(4, ckpt_path=str(tmp_path / "last.ckpt"))
    assert boring.bits(again.state_dict()) == boring.bits(model.state_dict())
    assert boring.bits(resumed.state_dict()) == boring.bits(whole.state_dict())


def test_two_of_them_keep_states_of_their_own():
    odd = Confounder("odd", label=lambda batch: batch["id"] % 3 % 2)
    both = [erase(), erase(layer="encoder.0"), erase(odd, [])]
    assert len({e.state_key for e in both}) == 3
    _, model = fit(*both)
    assert all(e.erasure.eraser.rank == 1 for e in both)
    assert hooks(model) == 0


# --- other nets -------------------------------------------------------------------------------------------------------


class Convolution(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 8, 2))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 8)

    def forward(self, x):
        return self.inner(x), None


class Convolutional(Net):
    def __init__(self):
        super().__init__(Convolution())

    def forward(self, x):
        return self.head(F.relu(self.encoder(x)).mean((2, 3)))


@pytest.mark.parametrize("model", [Convolutional, lambda: Net(Pair())], ids=["conv", "tuple"])
def test_other_layers(model):
    layer = "encoder"
    e = erase(layer=layer)
    _, found = fit(e, model=model)
    assert e.erasure.eraser.rank == 1
    assert e.erasure.skipped == 0
    batch = next(iter(loader(boring.Animals(64, 5), batch=64)))
    with e.erasure.applied(), capture(found, [layer]) as after, torch.no_grad():
        found(batch["x"])
    with capture(found, [layer]) as before, torch.no_grad():
        found(batch["x"])
    pooled = [a[layer].flatten(2).mean(2) if a[layer].ndim == 4 else a[layer] for a in (before, after)]
    torch.testing.assert_close(e.erasure.eraser(pooled[0]), pooled[1])


# --- YAML -------------------------------------------------------------------------------------------------------------

YAML = (
    "seed_everything: 0"
    + boring.trainer_yaml(epochs=2)
    + """
    - class_path: lightning_interp.EraseConfounder
      init_args:
        confounder:
          class_path: lightning_interp.Confounder
          init_args: {name: grass}
        given:
          - class_path: lightning_interp.Concept
            init_args: {name: moo}
        layer: encoder.4
        start_rows: 64
        every_n_steps: 4
        memory_rows: 512
"""
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning 2.6 with jsonargparse 4.53
def test_from_yaml(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse")
    cli = pytest.importorskip("lightning.pytorch.cli")
    monkeypatch.setattr(sys, "argv", ["fit"])
    (tmp_path / "run.yaml").write_text(YAML)
    made = cli.LightningCLI(Boring, BoringData, args=["fit", "--config", str(tmp_path / "run.yaml")], save_config_callback=None)
    e = next(c for c in made.trainer.callbacks if isinstance(c, EraseConfounder))
    assert [type(v) for v in e.erasure.variables] == [Confounder, Concept]
    _, wanted = fit(erase())
    assert torch.equal(weights(made.model), weights(wanted))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert e.erasure.eraser.rank == 1


# --- the certificate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["monitor first", "monitor last"])
@pytest.mark.parametrize("data", ["train", "val"])
def test_the_certificate_holds_what_was_erased_and_measured_before_and_after(tmp_path, data, order):
    watch, e = monitor(layers=[LAYER]), erase(data=data, start_epoch=2)
    keep = ModelCheckpoint(tmp_path)
    fit(*[watch, e][order], keep, max_epochs=4, enable_checkpointing=True)
    (written,) = json.loads(Path(f"{keep.best_model_path}.certificate.json").read_text())
    assert written == json.loads(json.dumps(e.certificate))
    ends = {"train": (1, 3), "val": (2, 3)}[data]  # with "val" the first fit follows the event of its epoch
    assert (written["before"]["epoch"], written["after"]["epoch"]) == ends
    settings, erasure = written["settings"], written["erasure"]
    assert (settings["layer"], settings["data"], erasure["rank"]) == (LAYER, data, 1)
    assert erasure["remaining_r2"] == e.erasure.remaining
    assert torch.equal(torch.tensor(erasure["directions"]["mean"], dtype=torch.float64), e.erasure.eraser.mean.double())
    assert written["notes"][0] == "the erasure lives in the callback: without it the model is not erased"


def test_the_certificate_of_an_erasure_that_never_came_says_why(tmp_path):
    e = erase(start_rows=10**6)
    with pytest.warns(InterpWarning, match="was never erased"):
        fit(e)
    assert e.certificate["erasure"] is None
    assert re.match(r"never erased: there is no fit, for \d+ rows so far", e.certificate["notes"][0])
    assert "nothing was measured: no ConceptMonitor gave an event with the confounder's contribution" in e.certificate["notes"]
