"""What a run leaves for the tab: all of an event, as JSON that TensorBoard's own reader gives back."""

import json
import math
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from lightning_interp.errors import InterpWarning
from lightning_interp.events import Event
from lightning_interp.results import Effect, Share
from lightning_interp.summaries import EventWriter
from lightning_interp.summaries.event_log import (
    PLUGIN_NAME,
    VERSION,
    EventLogError,
    event_content,
    event_tag,
    features_tag,
    read_json,
    write_json,
)

HARD_NAME = '<script>alert("1")</script> Größe 草'


def event(step=7, value=0.25, low=0.1):
    return Event(
        step, 1, 100, "balanced", "val", "binary", intercept=0.5,
        contribution={HARD_NAME: Share(value, 0.2), "unexplained": Share(1 - value)},
        effect={HARD_NAME: Effect(value, low, 0.4)}, magnitude={HARD_NAME: value}, notes=("few",),
    )  # fmt: skip


def read(path, tag):
    found = EventAccumulator(str(path), size_guidance={"tensors": 0}).Reload()
    metadata = found.summary_metadata[tag]
    assert metadata.plugin_data.plugin_name == PLUGIN_NAME
    assert metadata.data_class == 2  # DATA_CLASS_TENSOR, else no tab sees it
    return [(point.step, point.tensor_proto) for point in found.Tensors(tag)]


def test_all_of_an_event_comes_back(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        log = EventWriter(writer, [HARD_NAME], "run")
        log.write(event(7), 6, ["it leans on it"])
        log.write(event(14), 13)
    first, second = read(tmp_path, "run/interp/event")
    assert (first[0], second[0]) == (6, 13)
    assert list(first[1].tensor_shape.dim) == []
    content = read_json(first[1].string_val[0])
    assert content == {
        "version": 1, "step": 7, "epoch": 1, "number": 1, "records": event(7).records(), "notes": ["few"],
        "alarms": ["it leans on it"], "equation": str(event(7)), "confounders": [], "prefix": "run",
    }  # fmt: skip
    again = read_json(second[1].string_val[0])
    assert (again["number"], again["alarms"], again["step"]) == (2, [], 14)


def test_tags_carry_the_prefix_and_the_layer():
    assert event_tag() == "interp/event"
    assert event_tag("a/b") == "a/b/interp/event"
    assert features_tag("encoder.0") == "interp/features/encoder.0"
    assert features_tag("encoder.0", "a") == "a/interp/features/encoder.0"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_number_that_json_does_not_know_is_written(tmp_path, number):
    with SummaryWriter(tmp_path) as writer:
        write_json(writer, event_tag(), event_content(event(value=number, low=number)), 0)
    (found,) = read(tmp_path, event_tag())
    text = found[1].string_val[0].decode()
    assert not {"NaN", "Infinity"} & set(text.replace(":", ",").replace("-", "").split(","))
    records = json.loads(text)["records"]
    assert [r["low"] for r in records if r["measure"] == "effect"] == [None]
    assert [r["value"] for r in records if r["measure"] == "contribution" and r["by"] is None] == [None, None]


def test_nan_that_another_program_wrote_is_none():
    records = read_json('{"version": 1, "step": 3, "epoch": 0, "records": [{"value": NaN}, {"value": -Infinity}]}')["records"]
    assert records == [{"value": None}, {"value": None}]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"version": 1, "step": 3, "rec', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1, 2]", "expected a JSON object, but got list"),
        ('{"step": 3}', "written in version None"),
        (json.dumps({"version": VERSION + 1, "step": 3, "records": []}), "version 2 .* reads version 1"),
        ('{"version": 1, "step": "3", "records": []}', "`step` should be a whole number"),
        ('{"version": 1, "step": 1e3, "records": []}', "`step` should be a whole number"),
        (f'{{"version": 1, "step": {2**53}, "records": []}}', "`step` should be a whole number"),
        ('{"version": 1, "step": 3}', "`records` should be a list"),
        ('{"version": 1, "step": 3, "records": [1]}', "`records` should be a list of objects"),
        ('{"version": 1, "step": 3, "features": {}}', "`features` should be a list"),
    ],
)
def test_what_cannot_be_read_is_said(text, says):
    with pytest.raises(EventLogError, match=says):
        read_json(text)


def test_without_the_private_name_the_public_one_is_used(tmp_path):
    class Renamed(SummaryWriter):
        _get_file_writer = None

    writer = Renamed.__new__(Renamed)
    with SummaryWriter(tmp_path) as real:
        real.add_scalar("loss", 1.0, 0)
        writer.file_writer = real.file_writer
        write_json(writer, event_tag(), event_content(event()), 3)
    ((step, _),) = read(tmp_path, event_tag())
    assert step == 3


def test_a_writer_without_a_file_is_told_of():
    with pytest.warns(InterpWarning, match="`object` gives no file writer: .* stays empty"):
        write_json(object(), event_tag(), event_content(event()), 3)


def test_reading_needs_no_torch():
    code = "import sys, lightning_interp.summaries.event_log; print({'torch', 'lightning', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
