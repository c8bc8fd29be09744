"""A callback lives inside other people's jobs: whatever goes wrong, training ends as it would have without it."""

import errno
import functools
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from callbacks import boring
from lightning.pytorch.loggers import CSVLogger

from faults.scene import EPOCHS, MEASURING, WATCHERS, Fault, Outcome, Parts, check_no_trace, run
from faults.table import FAULTS
from lightning_interp.errors import alike

pytestmark = boring.HOST_WARNINGS


def cases():
    """Every fault in every watcher; by default each in one of them, another from fault to fault."""
    for i, fault in enumerate(FAULTS):
        n = len(fault.watchers)
        by_default = {fault.watchers[i % n], *(fault.watchers[:1] if n == len(WATCHERS) and i % 2 else ())}
        for watcher in fault.watchers:
            marks = [] if watcher in by_default else [pytest.mark.slow]
            yield pytest.param(fault, watcher, id=f"{fault.name}-{watcher}", marks=marks)


ALONE: dict[str, Outcome] = {}


def alone(fault: Fault, folder: Path) -> Outcome:
    """The same run without callbacks of ours."""
    if fault.name not in ALONE:
        ALONE[fault.name] = run(fault, None, folder)
    return ALONE[fault.name]


@functools.cache
def usual(watcher: str) -> Outcome:
    """A run in which nothing goes wrong."""
    return run(Fault("none", [watcher]), watcher, Path())


@pytest.mark.parametrize(("fault", "watcher"), list(cases()))
def test_training_ends_as_it_would_have_without_it(fault, watcher, tmp_path):
    without, with_it = alone(fault, tmp_path), run(fault, watcher, tmp_path)
    check_no_trace(with_it.model)
    if fault.only_ours is not None:
        assert isinstance(with_it.problem, (fault.only_ours, SystemExit))
        return
    assert type(with_it.problem) is type(without.problem), repr(with_it.problem)
    assert str(with_it.problem) == str(without.problem)
    assert with_it.modes == without.modes
    if watcher in MEASURING:
        assert with_it.weights == without.weights
        assert with_it.random == without.random
    assert set(with_it.other) <= set(without.other) | set(usual(watcher).other)
    check_said(fault, watcher, with_it.said)
    if without.problem is None and not fault.lasting:
        assert with_it.model.current_epoch == EPOCHS
        assert with_it.last == usual(watcher).last  # all is as before when the fault is over
    if fault.check is not None:
        fault.check(with_it.callbacks, with_it.model, tmp_path)


def check_said(fault, watcher, found):
    """What was said names the thing, and nothing is said twice."""
    said = [text for text in found if text not in usual(watcher).said]
    assert max(Counter(map(alike, said)).values(), default=0) <= len(WATCHERS[watcher](Parts())), said  # once by each
    about = [text for text in said if not text.startswith("no event") and not text.endswith("were left out")]
    if fault.says is None:
        return
    assert said, "nothing was said"
    assert all(re.search(fault.says, text) for text in about), said
    assert len(about) <= 3, said


# --- the certificate: nothing half written, and no training lost ------------------------------------------------------


def disk_fills(monkeypatch, path):
    write = Path.write_text

    def half(self, text, *args, **options):
        write(self, text[: len(text) // 2], *args, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)


def cannot_be_put_there(monkeypatch, path):
    def denied(self, target):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", denied)


def is_a_folder(monkeypatch, path):
    path.mkdir(parents=True)


def holds_half_a_file(monkeypatch, path):
    path.parent.mkdir(parents=True)
    path.write_text('[{"format": 1, "ki')


def holds_something_else(monkeypatch, path):
    path.parent.mkdir(parents=True)
    path.write_text('{"mine": [1, 2, 3]}')


def csv(folder):
    return CSVLogger(folder, version=0)


DISKS = [disk_fills, cannot_be_put_there, is_a_folder, holds_half_a_file, holds_something_else]


@pytest.mark.parametrize("watcher", ["contribution", "erasure"])
@pytest.mark.parametrize("disk", DISKS, ids=lambda disk: disk.__name__)
def test_a_certificate_is_whole_or_not_there(monkeypatch, tmp_path, watcher, disk):
    path = tmp_path / "lightning_logs" / "version_0" / "certificate.json"
    disk(monkeypatch, path)
    before = path.read_text() if path.is_file() else None
    with_it = run(Fault(disk.__name__, [watcher], logger=csv), watcher, tmp_path)
    monkeypatch.undo()
    assert with_it.problem is None
    assert [text for text in with_it.said if "no certificate at" in text]
    assert with_it.callbacks[0].certificate["kind"]
    assert before is None or path.read_text() == before
    assert before is not None or not path.is_file()
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("watcher", ["contribution", "erasure"])
def test_a_certificate_that_can_be_written_is(tmp_path, watcher):
    with_it = run(Fault("none", [watcher], logger=csv), watcher, tmp_path)
    found = json.loads((tmp_path / "lightning_logs" / "version_0" / "certificate.json").read_text())
    assert found[0]["kind"] == with_it.callbacks[0].certificate["kind"]


def test_faults_are_many():
    injected = sum(len(fault.watchers) for fault in FAULTS) + 2 * len(DISKS)
    by_default = sum(not case.marks for case in cases()) + 2 * len(DISKS)
    print(f"{len(FAULTS) + len(DISKS)} faults, {injected} injections, {by_default} by default")
    assert by_default >= 100
    assert {fault.name for fault in FAULTS} == {case.values[0].name for case in cases() if not case.marks}
    assert {case.values[1] for case in cases() if not case.marks} == set(WATCHERS)
