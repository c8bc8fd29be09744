"""The certificate of a suppressed run: where it is written, and that its numbers are the monitor's."""

import json
import warnings
from functools import partial

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from callbacks import boring
from callbacks.boring import BATCH, VAL, Animals, Boring, BoringData, Call, Memory, fit, loader, monitor, swap_grass
from lightning_interp import Concept, Confounder, Event, SuppressConfounder
from lightning_interp.errors import InterpWarning
from lightning_interp.penalties import InvariancePenalty

pytestmark = boring.HOST_WARNINGS

FIXED = partial(Boring, dropout=0.0)


def suppress(name="grass", penalty=None, **options):
    options = {"output": "head", "target": "moo", "inputs": "x", "start_epoch": 1, "ramp_epochs": 0, **options}
    label = {"grass": "grass", "odd": lambda batch: batch["id"] % 3 % 2}[name]
    return SuppressConfounder(Confounder(name, label, intervention=swap_grass), [Concept("moo")], penalty, **options)


def read(path):
    def refuse(name):
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*certificate*"))


# --- where it is written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [True, False])
def test_beside_the_last_checkpoint(tmp_path, last):
    s, saver = suppress(), ModelCheckpoint(tmp_path, save_last=last)
    fit(monitor(), s, saver, enable_checkpointing=True, logger=CSVLogger(tmp_path / "logs"))
    saved = saver.last_model_path if last else saver.best_model_path
    assert files(tmp_path) == [f"{saved.removeprefix(f'{tmp_path}/')}.certificate.json"]
    assert read(tmp_path / files(tmp_path)[0]) == [s.certificate]


@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
def test_in_the_loggers_folder_without_checkpoints(tmp_path, logger):
    s = suppress()
    fit(monitor(), s, logger=logger(tmp_path))
    assert files(tmp_path) == ["lightning_logs/version_0/certificate.json"]
    assert read(tmp_path / files(tmp_path)[0]) == [s.certificate]


@pytest.mark.parametrize("options", [{}, {"fast_dev_run": 10}, {"logger": Memory()}], ids=["neither", "dry", "no folder"])
def test_nowhere_else(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    s = suppress()
    logger = options.get("logger", CSVLogger(tmp_path / "logs") if "fast_dev_run" in options else False)
    fit(monitor(), s, **{**options, "logger": logger}, default_root_dir=tmp_path)
    assert files(tmp_path) == []
    assert s.certificate["confounder"] == "grass"


def test_a_checkpoint_that_is_not_here(tmp_path, monkeypatch):
    saver = ModelCheckpoint(tmp_path)
    monkeypatch.setattr(ModelCheckpoint, "last_model_path", "s3://bucket/last.ckpt", raising=False)
    saver.__dict__.pop("last_model_path", None)
    saver.last_model_path = "s3://bucket/last.ckpt"
    monkeypatch.chdir(tmp_path)
    fit(monitor(), suppress(), saver, enable_checkpointing=True, logger=CSVLogger(tmp_path))
    assert files(tmp_path) == ["lightning_logs/version_0/certificate.json"]


@pytest.mark.parametrize("other", ["odd", "grass"], ids=["two confounders", "two penalties"])
def test_two_of_them_share_one_file(tmp_path, other):
    pair = [suppress(), suppress(other, InvariancePenalty())]
    everything = monitor([Concept("moo"), Confounder("grass"), Confounder("odd", lambda batch: batch["id"] % 3 % 2)])
    fit(everything, *pair, ModelCheckpoint(tmp_path, save_last=True), enable_checkpointing=True)
    found = read(tmp_path / "last.ckpt.certificate.json")
    assert sorted(found, key=str) == sorted((s.certificate for s in pair), key=str)
    assert len(found) == 2


def test_not_after_an_exception(tmp_path):
    def stop(run, model):
        if run.current_epoch == 1:
            raise RuntimeError("the user's own")

    s = suppress()
    callbacks = [monitor(), s, Call(on_train_epoch_start=stop), ModelCheckpoint(tmp_path, save_last=True)]
    with pytest.raises(RuntimeError, match="the user's own"):
        fit(*callbacks, enable_checkpointing=True)
    assert (tmp_path / "last.ckpt").exists()
    assert files(tmp_path) == []
    assert s.certificate is None


def test_a_file_that_cannot_be_written_ends_no_training(tmp_path):
    (tmp_path / "last.ckpt.certificate.json").write_text("not ours")
    s = suppress()
    with pytest.warns(InterpWarning, match=r"no certificate at .*last\.ckpt\.certificate\.json.*callback's `certificate`"):
        fit(monitor(), s, ModelCheckpoint(tmp_path, save_last=True), enable_checkpointing=True)
    assert (tmp_path / "last.ckpt.certificate.json").read_text() == "not ours"
    assert s.certificate["after"]


def test_a_resumed_run_writes_the_same(tmp_path):
    def go(folder, epochs, **more):
        saver = ModelCheckpoint(folder, save_last=True)
        still = BoringData(shuffle=False)
        callbacks = [monitor(), suppress(), saver]
        fit(*callbacks, model=FIXED, data=still, max_epochs=epochs, enable_checkpointing=True, **more)
        return read(folder / f"{saver.last_model_path}.certificate.json")

    whole = go(tmp_path / "whole", 3)
    go(tmp_path / "half", 2)
    assert go(tmp_path / "half", 3, ckpt_path=str(tmp_path / "half" / "last.ckpt")) == whole
    assert whole[0]["before"]["epoch"] == 0


# --- what it says -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [None, 0.1])
def test_the_numbers_are_the_monitors(budget):
    watcher, s = monitor(), suppress(start_epoch=2, budget=budget)
    run, _ = fit(watcher, s, max_epochs=4)
    found = s.certificate
    ends = [watcher.history[1], watcher.history[3]]
    for part, event in zip(("before", "after"), ends):
        assert boring.plain(Event.from_dict(found[part])) == boring.plain(event)
    assert found["change"]["grass"]["share"] == [e.contribution["grass"].debiased for e in ends]
    assert found["change"]["moo"]["effect"] == [e.magnitude["moo"] for e in ends]
    assert found["change"]["worst_group"] == [e.groups.worst_accuracy for e in ends]
    assert found["change"]["grass"]["effect"][1] == pytest.approx(float(run.callback_metrics["effect/grass"]), rel=1e-6)
    assert found["measured_on"] == {"mode": "val", "n": VAL, "weights": "balanced", "probe": ends[1].probe}
    assert found["kind"] == "SuppressConfounder"
    how = found["settings"]
    assert (how["penalty"], how["start_epoch"], how["ramp_epochs"]) == ("ContributionPenalty", 2, 0)
    assert (how["steps_acted"], how["steps_skipped"]) == (s.suppression.acted, s.suppression.skipped)
    assert how["steps_acted"] > 10
    if budget is None:
        assert how["weight"] == 1.0
        assert "budget" not in how
    else:
        assert (how["budget"], how["budget_on"]) == (0.1, "share")
        assert how["held"] == (found["change"]["grass"]["share"][1] <= 0.1)
        assert how["multiplier"] == pytest.approx(float(run.callback_metrics["penalty_weight/grass"]), rel=1e-6)


def test_a_penalty_from_the_first_step_has_no_before():
    s = suppress(start_epoch=0)
    fit(monitor(), s)
    assert (s.certificate["before"], s.certificate["change"]) == (None, None)
    assert s.certificate["after"]["epoch"] == 1
    assert "nothing was measured before it acted" in s.certificate["notes"]


def test_a_penalty_that_never_acted_has_no_after():
    s = suppress(start_epoch=5)
    with pytest.warns(InterpWarning, match="never acts"):
        fit(monitor(), s)
    assert s.certificate["after"] is None
    assert s.certificate["before"]["epoch"] == 1
    assert s.certificate["notes"][:2] == ["the penalty never acted", "nothing was measured after it acted"]


def test_without_a_monitor_it_says_so():
    s = suppress()
    fit(s)
    assert (s.certificate["before"], s.certificate["after"], s.certificate["measured_on"]) == (None, None, None)
    assert s.certificate["notes"] == [
        "nothing was measured: no ConceptMonitor gave an event with the confounder's contribution"
    ]


def test_training_batches_are_never_the_same_samples():
    s = suppress(budget=0.1, start_epoch=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpWarning)
        fit(s)
    assert s.certificate["measured_on"] == {"mode": "train", "n": boring.TRAIN, "weights": "balanced", "probe": None}


def test_a_checkpoint_that_is_the_best_is_said(tmp_path):
    s = suppress()
    fit(monitor(), s, ModelCheckpoint(tmp_path, monitor="contribution/grass"), enable_checkpointing=True)
    text = "the checkpoint is the best by 'contribution/grass', which may be of an earlier step than the last event"
    assert text in s.certificate["notes"]
    s = suppress()
    fit(monitor(), s, ModelCheckpoint(tmp_path / "b", monitor="contribution/grass", save_last=True), enable_checkpointing=True)
    assert text not in s.certificate["notes"]


def test_a_budget_that_cannot_be_held_is_in_the_notes():
    def stand_still(run, model):  # once it has learnt the grass
        run.optimizers[0].param_groups[0]["lr"] = 0.0 if run.current_epoch > 3 else 0.01

    s = suppress(budget=0.001, start_epoch=4)
    with pytest.warns(InterpWarning, match="the budget cannot be held: share of 'grass' is"):
        fit(monitor(), s, Call(on_train_epoch_start=stand_still), max_epochs=20, limit_train_batches=4)
    assert any(note.startswith("the budget cannot be held: share of 'grass' is") for note in s.certificate["notes"])
    assert s.certificate["settings"]["held"] is False


# --- the hash of the probe set ----------------------------------------------------------------------------------------


def test_the_hash_is_that_of_the_samples():
    hashes = set()
    for batch, turned in ((BATCH, False), (7, False), (VAL, True)):
        items = Animals(VAL, 2)
        if turned:
            for name in ("x", "moo", "grass", "id"):
                setattr(items, name, getattr(items, name).flip(0))
        watcher = monitor(data=loader(items, batch=batch), measures=["contribution"])
        fit(watcher, max_epochs=1, limit_train_batches=1)
        hashes.add(watcher.latest.probe)
    watcher = monitor()
    fit(watcher, max_epochs=1, limit_train_batches=2)
    assert hashes == {watcher.latest.probe}
