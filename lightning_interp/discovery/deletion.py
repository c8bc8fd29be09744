"""The causal check: delete a feature from the layer, run what stands above it, and see what is left to explain."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_interp.activations.select import Layer, device_of
from lightning_interp.discovery.rows import Rows
from lightning_interp.functional.erasure import Eraser, leace
from lightning_interp.functional.outputs import explain_output
from lightning_interp.passes import Caller, Replay, own_pass
from lightning_interp.passes.above import Above, with_siblings
from lightning_interp.passes.mediation import erase
from lightning_interp.passes.replay import placed
from lightning_interp.processes import gathered
from lightning_interp.reading import Reader, token_mask

RIDGE = 1e-2  # of the layer's covariance, in units of its mean eigenvalue


def deletions(
    caller: Caller, name: str, layer: Layer, erasers: Sequence[Eraser], task: str, reader: Reader, replay: Replay, rows: Rows
) -> list[float | None]:
    """How much of the unexplained variance goes when each feature is deleted: 1 all of it, under 0 it grew.

    Args:
        caller: how the model is called.
        name: of the layer.
        layer: where.
        erasers: one per feature.
        task: as in `Explained`.
        reader: reads the samples' keys.
        replay: the batches to run.
        rows: the probe set; the samples kept for passes of the library's own are found in it by their keys.

    Returns:
        One per feature; None where the output cannot be reached from the layer, or does not vary.
    """
    mine: dict[int, list[Tensor]] = {i: [] for i in range(-1, len(erasers))}
    keys: list[Tensor] = []
    above = Above(caller, with_siblings(caller.model, name, layer))
    with own_pass(caller.model, gradients=False):
        for kept, keep in replay.usable():
            batch = placed(kept, device_of(caller.model))
            mask = token_mask(batch)
            plain = above.run(batch)
            keys.append(reader.read(batch).key.cpu()[keep])
            for i in mine:
                raw = plain if i < 0 else above.edited(batch, name, partial(erase, caller, erasers[i], mask))
                if raw is not None:
                    mine[i].append(explain_output(raw, None, task).output.cpu()[keep])
    everyone = gathered((keys, mine))
    key = torch.cat([k for part, _ in everyone for k in part]) if any(part for part, _ in everyone) else torch.zeros(0).long()
    left = [_left(rows, key, [o for _, outputs in everyone for o in outputs[i]]) for i in mine]
    before = left[0]
    return [None if before is None or now is None or before <= 0 else 1 - now / before for now in left[1:]]


def _left(rows: Rows, key: Tensor, outputs: Sequence[Tensor]) -> float | None:
    """Variance of what the named variables leave of outputs, on the samples that were run."""
    if not outputs or sum(map(len, outputs)) != len(key):
        return None
    found = torch.cat(list(outputs))
    order = key.argsort(stable=True)
    key, found = key[order], found[order]
    at = torch.searchsorted(rows.key, key).clamp_max(len(rows.key) - 1)
    known = rows.key[at] == key
    if int(known.sum()) < 2:
        return None
    whole = rows.explained.output.new_zeros(len(rows.key), found.shape[1])
    whole[at[known]] = found[known]
    ran = torch.zeros(len(rows.key), dtype=torch.bool)
    ran[at[known]] = True
    return rows.unexplained(whole, ran)[1]


def eraser(rows: Rows, has: Tensor) -> Eraser:
    """Partial LEACE (Belrose et al. 2023) of who has a feature: what it adds to the layer, the named variables held fixed.

    Args:
        rows: the probe set.
        has: bool `[n]`.
    """
    every = torch.ones(len(rows.key), dtype=torch.bool)
    share = (rows.weight / rows.weight.sum()).unsqueeze(1)
    s = rows.residual(has.double().unsqueeze(1), every)
    h = rows.residual(rows.h, every)
    hz = h.T @ (share * s)
    left = h - s @ (hz.T / (share * s**2).sum().clamp_min(1e-300))
    return leace(left.T @ (share * left), hz, (share * rows.h).sum(0), RIDGE)
