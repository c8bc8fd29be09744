"""Stopped at any batch and resumed from the checkpoint, a run goes on as if it had never stopped."""

import functools
import os
import signal

import pytest
import torch
from callbacks import boring
from callbacks.boring import Call, bits, plain
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from faults.scene import EPOCHS, TRAIN, VAL, WATCHERS, Net, Now, Parts, loader, monitor, suppress
from lightning_interp import ConceptMonitor, DiscoverFeatures, SuppressConfounder
from lightning_interp.errors import InterpError, InterpWarning

pytestmark = [
    *boring.HOST_WARNINGS,
    pytest.mark.filterwarnings("ignore:`budget` reads the training batches"),
    pytest.mark.filterwarnings("ignore:'grass' was never erased"),  # before the stop
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]


class GoesOn:
    """A loader that goes on after a resume where it stopped, as those with a state do."""

    def __init__(self, inner):
        self.inner, self.done, self.start = inner, 0, 0

    def __len__(self):
        return len(self.inner)

    def __iter__(self):
        start, self.start = self.start, 0
        for i, batch in enumerate(self.inner, 1):
            if i > start:
                self.done = i
                yield batch
        self.done = 0

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.start = state["done"] % len(self.inner)


class Still(Net):
    """Without dropout: the generators are not in a checkpoint."""

    def __init__(self):
        super().__init__()
        self.encoder[3] = nn.Identity()

    def train_dataloader(self):
        return GoesOn(loader(TRAIN, 1))

    def val_dataloader(self):
        return loader(VAL, 2, batch=40)


def stops(kind, step):
    """What stops a run after so many steps: options of the Trainer, and callbacks."""

    def at_step(trainer, model):
        if trainer.global_step == (step - 1 if kind == "SIGTERM" else step):  # a signal is answered after the batch
            if kind == "exception":
                raise RuntimeError("the user's own")
            if kind == "SIGTERM":
                os.kill(os.getpid(), signal.SIGTERM)

    return ({"max_steps": step} if kind == "max_steps" else {}), [Call(on_train_batch_start=at_step)]


def go(watcher, *callbacks, ckpt_path=None, model=None, **options):
    Now.epoch = -1
    seed_everything(0, verbose=False)
    ours = WATCHERS[watcher](Parts()) if isinstance(watcher, str) else watcher
    model = Still()
    settings = {
        "accelerator": "cpu",
        "max_epochs": EPOCHS,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "num_sanity_val_steps": 0,
        **options,
    }
    before = signal.getsignal(signal.SIGTERM)
    try:
        Trainer(callbacks=[*ours, *callbacks], **settings).fit(model, ckpt_path=ckpt_path)
    except (RuntimeError, SystemExit) as problem:
        if type(problem).__name__ not in ("SIGTERMException",) and "the user's own" not in str(problem):
            raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return ours, bits(model.state_dict())


@functools.cache
def uninterrupted(watcher):
    return go(watcher)


def what(callback):
    """All that a callback knows."""
    if isinstance(callback, ConceptMonitor):
        return [plain(event) for event in callback.history]
    if isinstance(callback, DiscoverFeatures):
        return [{k: v for k, v in event.to_dict().items() if k != "cost_seconds"} for event in callback.history]
    core = callback.suppression if isinstance(callback, SuppressConfounder) else callback.erasure
    return without_clock(bits(core.state_dict())), {k: v for k, v in callback.certificate.items() if k != "version"}


def without_clock(found):
    if isinstance(found, dict):
        return {k: without_clock(v) for k, v in found.items() if k != "cost_seconds"}
    return [without_clock(v) for v in found] if isinstance(found, list) else found


RESUMED = (
    "monitor", "own data", "discovery", "contribution", "gradient", "group DRO", "budget", "budget alone", "erasure",
    "erasure, val",
)  # fmt: skip


KINDS = ("max_steps", "exception", "SIGTERM")


def stopped_runs():
    """Every watcher stopped in every way, one way by default."""
    return [
        pytest.param(watcher, kind, (3, 6, 7)[i % 3], marks=[] if i % 3 == j else [pytest.mark.slow])
        for i, watcher in enumerate(RESUMED)
        for j, kind in enumerate(KINDS)
    ]


@pytest.mark.parametrize(("watcher", "kind", "step"), stopped_runs())
def test_stopped_at_any_batch_it_goes_on(tmp_path, watcher, kind, step):
    whole, weights = uninterrupted(watcher)
    options, callbacks = stops(kind, step)
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=0, save_last=True)
    go(watcher, saver, *callbacks, **options)
    path = tmp_path / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] == step
    ours, again = go(watcher, ckpt_path=str(path))
    assert again == weights
    assert [what(c) for c in ours] == [what(c) for c in whole]


@pytest.mark.parametrize(("watcher", "step", "lost"), [("by steps", 3, 1), ("training window", 6, 2)])
def test_a_window_that_is_cut_is_said_and_ends_nothing(tmp_path, watcher, step, lost):
    whole, weights = uninterrupted(watcher)
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=0, save_last=True)
    go(watcher, saver, max_steps=step)
    with pytest.warns(InterpWarning, match=f"stopped within the window of the next event: the first {lost} batches"):
        (ours,), again = go(watcher, ckpt_path=str(tmp_path / "last.ckpt"))
    assert again == weights
    full, found = ([(e.step, e.n) for e in c.history] for c in (whole[0], ours))
    assert [s for s, _ in found] == [s for s, _ in full]
    cut = [a - b for (_, a), (_, b) in zip(full, found, strict=True)]
    assert sorted(cut)[-1] == 16 * lost
    assert sum(c > 0 for c in cut) == 1


# --- states of other versions and settings ----------------------------------------------------------------------------


def changed(path, change):
    saved = torch.load(path, weights_only=True)
    change(saved["callbacks"])
    torch.save(saved, path)


CORES = {"monitor": "monitor", "discovery": "discovery", "contribution": "suppression", "erasure": "erasure"}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """{watcher: its checkpoint}."""
    out = {}
    for watcher in CORES:
        folder = tmp_path_factory.mktemp(watcher)
        go(watcher, ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=0, save_last=True), max_steps=6)
        out[watcher] = folder / "last.ckpt"
    return out


def state_of(callbacks, watcher):
    return next(state[CORES[watcher]] for state in callbacks.values() if CORES[watcher] in state)


@pytest.mark.parametrize("watcher", CORES)
def test_a_later_version_says_what_to_do(stopped, tmp_path, watcher):
    path = tmp_path / "later.ckpt"
    path.write_bytes(stopped[watcher].read_bytes())
    changed(path, lambda callbacks: state_of(callbacks, watcher).update(version=99))
    with pytest.raises(InterpError, match=f"the checkpoint's {CORES[watcher]} state has version 99.*update lightning-interp"):
        go(watcher, ckpt_path=str(path))


@pytest.mark.parametrize("watcher", CORES)
def test_a_state_that_lacks_something_says_what_to_do(stopped, tmp_path, watcher):
    path = tmp_path / "other.ckpt"
    path.write_bytes(stopped[watcher].read_bytes())
    lost = {"monitor": "directions", "discovery": "identities", "contribution": "steps", "erasure": "past"}[watcher]
    changed(path, lambda callbacks: state_of(callbacks, watcher).pop(lost))
    with pytest.raises(InterpError, match=rf"state cannot be read: it has no '{lost}'.*checkpoint\['callbacks'\]"):
        go(watcher, ckpt_path=str(path))
    changed(path, lambda callbacks: callbacks.clear())  # as the error says
    ours, _ = go(watcher, ckpt_path=str(path))
    assert not isinstance(ours[0], ConceptMonitor) or len(ours[0].history) == 2


@pytest.mark.parametrize("watcher", ["contribution", "erasure"])
def test_a_state_of_before_versions_is_read(stopped, tmp_path, watcher):
    path = tmp_path / "older.ckpt"
    path.write_bytes(stopped[watcher].read_bytes())
    changed(path, lambda callbacks: [state_of(callbacks, watcher).pop(name, None) for name in ("version", "recent")])
    assert go(watcher, ckpt_path=str(path))[1] == uninterrupted(watcher)[1]


def test_a_state_of_other_variables_says_so(stopped):
    s = suppress(Parts(), None)
    alone = SuppressConfounder(s.suppression.confounder, [], s.suppression.term, output="head", target="moo", inputs="x")
    with pytest.raises(InterpError, match="suppression state cannot be read: it is of 2 variables, 1 are given now"):
        go([alone], ckpt_path=str(stopped["contribution"]))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_callbacks_may_come_and_go_and_be_renamed(stopped):
    before = uninterrupted("monitor")[1]
    added = [monitor(Parts()), monitor(Parts(), prefix="other")]
    _, weights = go(added, ckpt_path=str(stopped["monitor"]))
    assert weights == before
    assert [[e.epoch for e in c.history] for c in added] == [[0, 1, 2], [1, 2]]
    _, weights = go([], ckpt_path=str(stopped["monitor"]))
    assert weights == before
    (renamed,), weights = go([monitor(Parts(), prefix="renamed")], ckpt_path=str(stopped["monitor"]))
    assert weights == before
    assert [e.epoch for e in renamed.history] == [1, 2]
