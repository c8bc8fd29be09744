"""Discovered features for TensorBoard: as JSON for the library's own tab, their samples as pictures or text for the others."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_interp.summaries.event_log import VERSION, features_tag, write_json
from lightning_interp.summaries.markdown import block, cell

SHOWN = 3  # features whose samples are written as pictures: a page of TensorBoard is no place for more


def write_features(writer: Any, content: Mapping[str, Any], step: int, prefix: str = "") -> None:
    """Write what was found at a layer.

    Args:
        writer: a `SummaryWriter`.
        content: a `FeatureEvent` as plain types.
        step: where on the x-axis.
        prefix: that of the logged keys.
    """
    layer = content["layer"]
    write_json(writer, features_tag(layer, prefix), {"version": VERSION, **content}, step)
    start = f"{prefix}/" if prefix else ""
    for feature in content["features"][:SHOWN]:
        for side in ("strongest", "weakest"):
            _write_samples(writer, f"{start}discovery/{layer}/{feature['name']}/{side}", feature.get(side), step)


def _write_samples(writer: Any, tag: str, samples: Mapping[str, Any] | None, step: int) -> None:
    if samples is None:
        return
    if samples["kind"] == "image":
        from PIL import Image

        sheet = Image.open(io.BytesIO(base64.b64decode(samples["png"])))
        writer.add_image(tag, np.asarray(sheet), step, dataformats="HWC")
    elif samples["kind"] == "text":
        writer.add_text(tag, "\n\n".join(map(block, samples["texts"])), step)
    else:
        head = f"| {' | '.join(map(cell, samples['columns']))} |\n|{'---|' * len(samples['columns'])}\n"
        writer.add_text(tag, head + "\n".join(f"| {' | '.join(f'{x:.4g}' for x in row)} |" for row in samples["rows"]), step)
