"""Whole events as JSON within a run's event files, so that the tab in TensorBoard has every record, interval and note.

Each is a scalar string tensor, UTF-8 JSON, of the plugin `lightning_interp`. Neither torch nor lightning is imported, for
TensorBoard reads what is written here.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_interp.errors import InterpError, InterpWarning
from lightning_interp.events import Event

PLUGIN_NAME = "lightning_interp"
VERSION = 1
EVENT_TAG = "interp/event"
FEATURES_TAG = "interp/features"


class EventLogError(InterpError):
    """A text of the event log that cannot be read: not JSON, not of a known version, or not whole."""


def event_tag(prefix: str = "") -> str:
    """The tag of a monitor's events: `{prefix/}interp/event`."""
    return f"{prefix}/{EVENT_TAG}" if prefix else EVENT_TAG


def features_tag(layer: str, prefix: str = "") -> str:
    """The tag of what was discovered at a layer: `{prefix/}interp/features/{layer}`."""
    return f"{prefix}/{FEATURES_TAG}/{layer}" if prefix else f"{FEATURES_TAG}/{layer}"


def event_content(event: Event, alarms: Sequence[str] = (), prefix: str = "", number: int = 1) -> dict[str, Any]:
    """What is written of an event.

    Args:
        event: what was measured.
        alarms: warnings given at this event.
        prefix: that of the logged keys.
        number: how many events the writer has written with this one: a reader that is shown a sample knows of how many.
    """
    return {
        "version": VERSION,
        "step": event.step,
        "epoch": event.epoch,
        "number": number,
        "records": event.records(),
        "notes": list(event.notes),
        "alarms": list(alarms),
        "equation": str(event),
        "confounders": list(event.confounders),
        "prefix": prefix,
    }


def write_json(writer: Any, tag: str, content: Mapping[str, Any], step: int) -> None:
    """Write a value as JSON into the file of a `SummaryWriter`; numbers that are not finite become null.

    Args:
        writer: the `SummaryWriter` of a logger. A second file writer in the same directory would hide the first in a live run.
        tag: see `event_tag` and `features_tag`.
        content: plain dicts, lists, strings and numbers.
        step: where on the x-axis.
    """
    from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    try:
        text = _compact(content)
    except ValueError:  # a number that is not finite: rare, and looking for it takes as long as writing
        text = _compact(without_nan(content))
    # without the data class, TensorBoard does not show the tag to anyone
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME), data_class=DATA_CLASS_TENSOR)
    # a lone half of a surrogate pair, which a name may hold, has no UTF-8
    value = TensorProto(dtype=DT_STRING, string_val=[text.encode("utf-8", "replace")], tensor_shape=TensorShapeProto())
    _add_summary(writer, Summary(value=[Summary.Value(tag=tag, tensor=value, metadata=metadata)]), step)


def _compact(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def read_json(text: str | bytes) -> dict[str, Any]:
    """What `write_json` wrote, with numbers that are not finite as None.

    Args:
        text: of one tensor.

    Returns:
        An event, or the features of a layer, as written by this version.

    Raises:
        EventLogError: the text is no JSON object, of another version, or lacks its step or its rows.
    """
    try:
        content = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as problem:
        raise EventLogError(f"not JSON: {problem}") from problem
    if not isinstance(content, dict):
        raise EventLogError(f"expected a JSON object, but got {type(content).__name__}")
    version = content.get("version")
    if version != VERSION:
        raise EventLogError(f"written in version {version!r} of the event log; this lightning_interp reads version {VERSION}")
    if not isinstance(content.get("step"), int) or abs(content["step"]) >= 2**53:
        raise EventLogError(f"`step` should be a whole number, but is {content.get('step')!r}")
    if not isinstance(content.get("epoch"), int):
        content["epoch"] = None
    rows = "features" if "features" in content else "records"
    if not _are_rows(content.get(rows)):
        raise EventLogError(f"`{rows}` should be a list of objects, but is {type(content.get(rows)).__name__}")
    return content


def _are_rows(rows: object) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def without_nan(value: Any) -> Any:
    """Plain dicts, lists, strings and numbers, with None for every number that is not finite: JSON knows no other."""
    if isinstance(value, Mapping):
        return {str(k): without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _add_summary(writer: Any, summary: Any, step: int) -> None:
    """The file writer behind a `SummaryWriter` has a private name; its public one is empty until something was written."""
    private = getattr(writer, "_get_file_writer", None)
    file_writer = private() if callable(private) else getattr(writer, "file_writer", None)
    if file_writer is None:
        warnings.warn(
            f"`{type(writer).__name__}` gives no file writer: TensorBoard's tab of lightning_interp stays empty for this run.",
            InterpWarning,
            stacklevel=2,
        )
        return
    file_writer.add_summary(summary, step)
