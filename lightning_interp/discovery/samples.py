"""Samples to look at: pictures on one sheet, texts, or rows of numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lightning_interp.batches import Inputs
from lightning_interp.errors import InterpError
from lightning_interp.passes import Replay
from lightning_interp.processes import gathered
from lightning_interp.reading import Reader

TILE = 64  # pixels of the longer side of a small picture on the sheet
LARGE = 128  # pixels of the longer side over which a picture is made smaller: a sheet is written at every event
CHANNELS = (1, 2, 3, 4)  # last, where there are more rows than that
GAP = 2
MOST_COLUMNS = 12  # of rows of numbers: those in which strongest and weakest differ most
MOST_TOKENS = 64


def find_samples(replay: Replay, reader: Reader, inputs: Inputs, wanted: Tensor) -> dict[int, Tensor]:
    """The first inputs of samples, looked up by their keys in the kept batches of all processes: a collective.

    Args:
        replay: the kept batches.
        reader: reads the samples' keys.
        inputs: says which is the first input.
        wanted: keys, int64.

    Returns:
        {key: the sample's input, on the CPU}; those that were not kept are missing.
    """
    mine: dict[int, Tensor] = {}
    for batch, keep in replay.usable():
        key = reader.read(batch).key.cpu()
        first = inputs.first(batch)
        if first is None:
            continue
        for i in (torch.isin(key, wanted) & keep).nonzero().flatten().tolist():
            mine.setdefault(int(key[i]), first[i].detach().cpu().clone())
    found: dict[int, Tensor] = {}
    for theirs in gathered(mine):
        found = {**theirs, **found}
    return found


def shown(
    strongest: Sequence[Tensor], weakest: Sequence[Tensor], decode: Callable[[Tensor], str] | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Both ends of a feature, in the form that a page can show.

    Args:
        strongest: inputs with the largest codes.
        weakest: inputs with the smallest.
        decode: turns the ids of one sample's tokens into text.

    Returns:
        For each `{"kind": "image", "png": base64, "count": n}`, `{"kind": "text", "texts": [...]}` or `{"kind": "rows",
        "columns": [...], "rows": [[...]]}`, pictures and rows of those that are shaped like the first;
        None where there is none.

    Raises:
        InterpError: `decode` failed.
    """
    if not strongest and not weakest:
        return None, None
    one = (*strongest, *weakest)[0]
    if decode is not None or (one.ndim == 1 and not one.is_floating_point()):
        return _texts(strongest, decode), _texts(weakest, decode)
    strongest, weakest = ([s for s in side if s.shape == one.shape] for side in (strongest, weakest))
    if one.ndim in (2, 3) and min(_channels_first(one).shape[1:]) > 1:
        pictures = [_picture(s) for s in (*strongest, *weakest)]
        low, high = min(float(p.min()) for p in pictures), max(float(p.max()) for p in pictures)
        if low < 0 or high > 1:  # normalised inputs: all are stretched as one, so that both ends can be compared
            pictures = [(p - low) / max(high - low, 1e-12) for p in pictures]
        return _sheet(pictures[: len(strongest)]), _sheet(pictures[len(strongest) :])
    return _rows(strongest, weakest)


def _texts(samples: Sequence[Tensor], decode: Callable[[Tensor], str] | None) -> dict[str, Any] | None:
    if not samples:
        return None
    if decode is None:
        return {"kind": "text", "texts": [" ".join(map(str, s.flatten()[:MOST_TOKENS].tolist())) for s in samples]}
    try:
        return {"kind": "text", "texts": [str(decode(s)) for s in samples]}
    except Exception as problem:  # the user's function: it may raise anything
        raise InterpError(f"`decode` failed: {type(problem).__name__}: {problem}") from problem


def _rows(strongest: Sequence[Tensor], weakest: Sequence[Tensor]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    sides = [torch.stack([s.double().flatten() for s in side]) if side else None for side in (strongest, weakest)]
    both = torch.cat([s for s in sides if s is not None])
    spread = both.std(0, unbiased=False).clamp_min(1e-300)
    means = [s.mean(0) for s in sides if s is not None]
    differ = ((means[0] - means[-1]) / spread).abs() if len(means) > 1 else spread
    columns = differ.argsort(descending=True, stable=True)[:MOST_COLUMNS].sort().values
    names = [f"input {j}" for j in columns.tolist()]
    tables = [None if s is None else {"kind": "rows", "columns": names, "rows": s[:, columns].tolist()} for s in sides]
    return tables[0], tables[1]


def _sheet(tiles: Sequence[np.ndarray]) -> dict[str, Any] | None:
    if not tiles:
        return None
    from PIL import Image

    h, w = tiles[0].shape[:2]
    zoom = max(1, TILE // max(h, w))
    across = min(4, len(tiles))
    down = -(-len(tiles) // across)
    size = (down * (h * zoom + GAP) - GAP, across * (w * zoom + GAP) - GAP, 3)
    sheet = np.full(size, 255, dtype=np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // across * (h * zoom + GAP), i % across * (w * zoom + GAP)
        large = (255 * tile).round().astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
        sheet[top : top + h * zoom, left : left + w * zoom] = large
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "PNG")
    return {"kind": "image", "png": base64.b64encode(file.getvalue()).decode(), "count": len(tiles)}


def _channels_first(sample: Tensor) -> Tensor:
    """An input `[h, w]`, `[c, h, w]` or `[h, w, c]` as `[c, h, w]`."""
    if sample.ndim == 2:
        return sample.unsqueeze(0)
    return sample.movedim(-1, 0) if sample.shape[0] not in CHANNELS and sample.shape[-1] in CHANNELS else sample


def _picture(sample: Tensor) -> np.ndarray:
    """An input as `[h, w, 3]`; two channels become red and green, more than four their mean."""
    x = sample.double() / (255 if sample.dtype == torch.uint8 else 1)
    x = _channels_first(torch.nan_to_num(x, posinf=0.0, neginf=0.0))
    shrink = LARGE / max(x.shape[1:])
    if shrink < 1:
        h, w = (max(1, round(side * shrink)) for side in x.shape[1:])
        x = functional.adaptive_avg_pool2d(x, (h, w))
    if x.shape[0] == 2:
        x = torch.cat([x, torch.zeros_like(x[:1])])
    elif x.shape[0] != 3:
        x = x[:3] if x.shape[0] == 4 else x.mean(0, keepdim=True).expand(3, -1, -1)
    return x.movedim(0, -1).numpy()
