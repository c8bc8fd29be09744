"""The cores in a plain PyTorch loop, in Fabric, and in the Trainer of the other name."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from callbacks import boring
from lightning.fabric import Fabric
from lightning.pytorch import LightningModule, seed_everything
from test_monitor import assert_close
from test_suppression import Hand

from lightning_interp import ConceptMonitor, Monitor, SuppressConfounder, Suppression
from lightning_interp.monitor import DEFAULT_MEASURES
from loops.net import EPOCHS, PLACES, WEIGHT, Net, Steps, optimizer_of, task, weights
from loops.scenes import GRASS, MOO, WATCH, everything, train_data, val_data

pytestmark = boring.HOST_WARNINGS
ROOT = Path(__file__).parent.parent.parent


class LightningNet(Steps, Net, LightningModule):
    """The net as Lightning trains it."""


def suppress():
    return SuppressConfounder(GRASS, [MOO], weight=WEIGHT, start_epoch=0, ramp_epochs=0, **PLACES)


def by_lightning(*callbacks):
    seed_everything(0, verbose=False)
    model = LightningNet()
    boring.trainer(*callbacks, max_epochs=EPOCHS).fit(model, train_data(), val_data())
    return weights(model)


def lightning_events(*more, **options):
    monitor = ConceptMonitor([MOO, GRASS], **{**WATCH, **options})
    by_lightning(monitor, *more)
    return monitor.history


@pytest.fixture(scope="module")
def reference():
    """What Lightning gives: events of the watched run, weights of the plain and of the penalised one, and its events."""
    events, after = lightning_events(), lightning_events(suppress())
    return {"events": events, "after": after, "weights": by_lightning(), "penalised": by_lightning(suppress())}


def assert_same(one, other):
    """Events of a loop of one's own, and of Lightning's validation: only `mode` says which."""
    assert_close([boring.plain(event, "mode") for event in one], [boring.plain(event, "mode") for event in other])


def plainly(model, optimizer, monitor=None, suppression=None, hand=None, shuffle=False, backward=torch.Tensor.backward):
    """The loop as users write it; Fabric's differs in the backward call."""
    step = 0
    validation = val_data()
    for epoch in range(EPOCHS):
        model.train()
        for batch in train_data(shuffle):
            if suppression is None:
                logits = model(batch["x"])
                loss = task(logits, batch)
                total = loss if hand is None else loss + hand(logits, batch, loss)
            else:
                with suppression.watching(batch):
                    loss = task(model(batch["x"]), batch)
                total = loss + suppression.penalty(loss)
            optimizer.zero_grad()
            backward(total)
            optimizer.step()
            step += 1
        model.eval()
        with torch.no_grad():
            for batch in validation:
                if monitor is None:
                    model(batch["x"])
                    continue
                with monitor.watching(batch):
                    model(batch["x"])
        if monitor is not None:
            monitor.event(step, epoch)
    return weights(model)


def setup(kind, **options):
    """Net, optimizer, backward call, and the module that the cores are given."""
    seed_everything(0, verbose=False)
    net = Net(**options)
    optimizer = optimizer_of(net)
    if kind == "plain":
        return net, optimizer, torch.Tensor.backward
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(net, optimizer)
    return model, optimizer, fabric.backward


LOOPS = ["plain", "fabric"]


@pytest.mark.parametrize("kind", LOOPS)
def test_events_are_those_of_a_lightning_run(reference, kind):
    model, optimizer, backward = setup(kind)
    monitor = Monitor(model, [MOO, GRASS], **WATCH)
    found = plainly(model, optimizer, monitor, backward=backward)
    assert torch.equal(found, reference["weights"])
    assert_same(monitor.history, reference["events"])
    assert len(monitor.history) == EPOCHS


@pytest.mark.parametrize("output", ["head", None])
@pytest.mark.parametrize("kind", LOOPS)
def test_weights_are_those_of_the_penalty_by_hand(reference, kind, output):
    model, optimizer, backward = setup(kind)
    suppression = Suppression(model, GRASS, [MOO], weight=WEIGHT, **{**PLACES, "output": output})
    found = plainly(model, optimizer, suppression=suppression, backward=backward)
    other, optimizer, backward = setup(kind)
    hand = Hand(weight=WEIGHT, forward=lambda batch: other(batch["x"]))
    assert torch.equal(found, plainly(other, optimizer, hand=hand, backward=backward))
    assert torch.equal(found, reference["penalised"])
    assert not torch.equal(found, reference["weights"])
    assert boring.hooks(model) == 0


def test_both_together_find_what_lightning_finds(reference):
    model, optimizer, _ = setup("plain")
    monitor = Monitor(model, [MOO, GRASS], **WATCH)
    plainly(model, optimizer, monitor, Suppression(model, GRASS, [MOO], weight=WEIGHT, **PLACES))
    assert_same(monitor.history, reference["after"])


@pytest.mark.parametrize("kind", LOOPS)
def test_watching_changes_no_bit(kind):
    def run(watched):
        model, optimizer, backward = setup(kind, dropout=0.2)
        monitor = Monitor(model, [MOO, GRASS], **WATCH) if watched else None
        plainly(model, optimizer, monitor, shuffle=True, backward=backward)
        return everything(model, optimizer)

    assert run(True) == run(False)


def test_globs_find_a_fabric_modules_layers_once():
    model, *_ = setup("fabric")
    monitor = Monitor(model, [MOO, GRASS], **{**WATCH, "layers": ["**"]})
    assert list(monitor._watcher.layers) == ["encoder", "encoder.0", "encoder.1", "encoder.2", "head"]


@pytest.mark.parametrize("kind", LOOPS)
def test_a_resumed_loop_ends_as_one_that_never_stopped(kind):
    def cores(model):
        return Monitor(model, [MOO, GRASS], **WATCH), Suppression(model, GRASS, [MOO], weight=WEIGHT, **PLACES)

    model, optimizer, backward = setup(kind)
    whole = cores(model)
    plainly(model, optimizer, *whole, backward=backward)
    plainly(model, optimizer, *whole, backward=backward)
    resumed, again, backward = setup(kind)
    first = cores(resumed)
    plainly(resumed, again, *first, backward=backward)
    saved = {"model": resumed.state_dict(), "optimizer": again.state_dict(), "cores": [core.state_dict() for core in first]}
    resumed, again, backward = setup(kind)
    second = cores(resumed)
    saved = through_a_file(saved)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    for core, state in zip(second, saved["cores"], strict=True):
        core.load_state_dict(state)
    plainly(resumed, again, *second, backward=backward)
    assert torch.equal(weights(resumed), weights(model))
    assert [boring.plain(e) for e in second[0].history] == [boring.plain(e) for e in whole[0].history]


def through_a_file(state):
    """A checkpoint of plain types and tensors."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# --- the Trainer of the other name ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "base"), [("alone", "pytorch_lightning"), pytest.param("beside", "lightning", marks=pytest.mark.slow)]
)
def test_pytorch_lightning_finds_what_lightning_finds(reference, tmp_path, how, base):
    data = [[{k: v for k, v in batch.items() if k != "place"} for batch in part] for part in (train_data(), val_data())]
    torch.save(data, tmp_path / "data.pt")
    command = [sys.executable, "-m", "loops.by_pytorch_lightning", str(tmp_path), how]
    path = os.pathsep.join(map(str, (ROOT / "tests", ROOT, *filter(None, [os.environ.get("PYTHONPATH")]))))
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, timeout=120, check=True)
    found = torch.load(tmp_path / f"{how}.pt")
    assert found["ours"] == [base]
    assert ("lightning" in found["imported"]) == (how == "beside")
    assert torch.equal(found["weights"], reference["weights"])
    assert torch.equal(found["penalised"], reference["penalised"])
    assert torch.equal(found["resumed"], found["penalised"])
    for name, more in (("events", ()), ("resumed events", (suppress(),))):
        events = [boring.plain(event) for event in lightning_events(*more, measures=DEFAULT_MEASURES)]
        for event in found[name]:
            del event["cost_seconds"]
        assert_close(found[name], events)
