"""A log directory alone: written as a training writes it, read without torch."""

import warnings

import pytest
from histories import EVIL, discovered, event, history
from torch.utils.tensorboard import SummaryWriter

from lightning_interp.errors import InterpError, InterpWarning
from lightning_interp.report import read_log_directory
from lightning_interp.summaries import EventWriter
from lightning_interp.summaries.event_log import features_tag, write_json


def write(folder, events, prefix="", scalars=None, alarms=(), suffix=""):
    """A run as `ConceptMonitor` and a penalty log it."""
    with SummaryWriter(folder, filename_suffix=suffix) as writer:
        log = EventWriter(writer, ["digit", "grass"], prefix)
        for e in events:
            log.write(e, e.step - 1, alarms)
        for tag, value in (scalars or {}).items():
            for step in (1, 2):
                writer.add_scalar(tag, value / step, step)
    return folder


def files(folder):
    return sorted(folder.rglob("*tfevents*"))


def test_everything_of_a_run_comes_back(tmp_path):
    events = history(0.6, None, 0.3)
    write(tmp_path / "a", events, scalars={"penalty/grass": 4.0, "val_loss": 1.0}, alarms=["it leans"])
    with SummaryWriter(tmp_path / "a", filename_suffix=".later") as writer:
        write_json(writer, features_tag("enc/0"), discovered(30, "enc/0"), 29)
    ((name, run),) = read_log_directory(tmp_path).items()
    assert name == "a"
    assert run.records == [r for e in events for r in e.records()]
    assert run.equations == {e.step: str(e) for e in events}
    assert run.notes[10] == ["a note on grass"]
    assert run.alarms == {10: ["it leans"], 20: ["it leans"], 30: ["it leans"]}
    assert run.confounders == ["grass"]
    assert run.scalars == {"penalty/grass": [(1, 4.0), (2, 2.0)]}
    assert run.features == [discovered(30, "enc/0")]


def test_runs_are_called_by_what_tells_them_apart(tmp_path):
    for name in ("plain", "cut"):
        write(tmp_path / "logs" / name / "version_0", history(0.5))
    assert list(read_log_directory(tmp_path)) == ["cut", "plain"]
    write(tmp_path / "logs" / "cut" / "version_1", history(0.5))
    assert list(read_log_directory(tmp_path)) == ["cut/version_0", "cut/version_1", "plain/version_0"]
    assert list(read_log_directory(tmp_path / "logs" / "plain" / "version_0")) == ["version_0"]


def test_two_monitors_of_a_run_are_two(tmp_path):
    write(tmp_path / "a", history(0.6), scalars={"train/penalty/grass": 1.0})
    write(tmp_path / "a", history(0.2), prefix="train", suffix=".2")
    found = read_log_directory(tmp_path)
    assert list(found) == ["a", "a (train)"]
    assert [r.line("contribution", "grass")[0]["value"] for r in found.values()] == [0.6, 0.2]
    assert [list(r.scalars) for r in found.values()] == [[], ["train/penalty/grass"]]


def test_a_resumed_run_goes_on_and_the_later_event_counts(tmp_path):
    write(tmp_path / "a", [event(10, 0.6), event(20, 0.5)])
    write(tmp_path / "a", [event(20, 0.4), event(30, 0.3)], suffix=".resumed")
    (run,) = read_log_directory(tmp_path).values()
    assert [(r["step"], r["value"]) for r in run.line("contribution", "grass")] == [(10, 0.6), (20, 0.4), (30, 0.3)]


@pytest.mark.parametrize("cut", [1, 7, 200])
def test_a_half_written_last_record_ends_the_file(tmp_path, cut):
    write(tmp_path / "a", history(0.6, 0.5, 0.4))
    (file,) = files(tmp_path)
    with file.open("rb") as whole:
        content = whole.read()
    file.write_bytes(content[:-cut])
    (run,) = read_log_directory(tmp_path).values()
    assert [r["value"] for r in run.line("contribution", "grass")][:2] == [0.6, 0.5]


def test_an_empty_file_is_no_hindrance(tmp_path):
    write(tmp_path / "a", history(0.6))
    (tmp_path / "a" / "events.out.tfevents.0.empty").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "events.out.tfevents.0.empty").touch()
    assert list(read_log_directory(tmp_path)) == ["a"]


def test_what_cannot_be_read_is_said_once_and_left_out(tmp_path):
    write(tmp_path / "a", history(0.6))
    with SummaryWriter(tmp_path / "a", filename_suffix=".odd") as writer:
        for step in (1, 2):
            write_json(writer, "interp/event", {"version": 99, "step": step, "epoch": 0, "records": []}, step)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        (run,) = read_log_directory(tmp_path).values()
    assert run.steps() == [10]
    (one,) = (w for w in said if w.category is InterpWarning)
    assert "'interp/event' at step 1" in str(one.message)
    assert "(2 in all)" in str(one.message)


def test_a_broken_record_ends_its_file(tmp_path):
    write(tmp_path / "a", history(0.6, 0.5))
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(bytes(content))
    (run,) = read_log_directory(tmp_path).values()
    assert run.steps() == [10]  # up to the record that is broken


def test_names_that_are_html_come_back(tmp_path):
    write(tmp_path / "a", history(0.6, names=("digit", EVIL)))
    (run,) = read_log_directory(tmp_path).values()
    assert run.variables == ["digit", EVIL]


def test_what_is_missing_is_named_with_what_to_add(tmp_path):
    with pytest.raises(InterpError, match=r"`logdir='.*nowhere'` is not there"):
        read_log_directory(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InterpError, match="is a file: expected a directory"):
        read_log_directory(tmp_path / "file")
    with pytest.raises(InterpError, match=r"holds no TensorBoard event file\. Add `interp\.ConceptMonitor"):
        read_log_directory(tmp_path)
    with SummaryWriter(tmp_path / "other") as writer:
        writer.add_scalar("loss", 1.0, 1)
    with pytest.raises(InterpError, match=r"holds 1 event file\(s\), but no events of lightning_interp\. Add `interp"):
        read_log_directory(tmp_path)
