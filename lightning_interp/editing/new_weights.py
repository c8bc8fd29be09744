"""New weights for the modules that an erasure is folded into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_interp.editing.plan import Fold
from lightning_interp.errors import LayerError
from lightning_interp.functional.erasure import Eraser
from lightning_interp.functional.folding import read, read_bias, written, written_bias

EXACT = 1e-5  # of the largest output, or of 1: how far folded and hooked may differ
ROUNDINGS = 16  # the same where the weights' own precision is coarser


def new_values(folds: Sequence[Fold], eraser: Eraser) -> list[tuple[nn.Parameter, Tensor]]:
    """New values of parameters, in their own dtype; all worked out before any is written."""
    out: list[tuple[nn.Parameter, Tensor]] = []
    for fold in folds:
        m: Any = fold.module
        here = eraser.to(m.weight)
        for carry in fold.carries:
            here = carry(here)
        weight: Tensor = m.weight.detach()
        bias: Any = None if m.bias is None else m.bias.detach()
        new: list[tuple[nn.Parameter, Tensor]] = []
        if fold.side == "written":
            new.append((m.weight, written(weight, here, _outputs_at(m))))
            if bias is not None:
                new.append((m.bias, written_bias(bias, here, fold.constant)))
        elif fold.side == "read":
            new += [(m.weight, read(weight, here)), (m.bias, read_bias(bias, weight, here))]
        else:
            shift = bias.double() - m.running_mean.double() * weight.double() * (m.running_var.double() + m.eps).rsqrt()
            new.append((m.bias, bias.double() + here.step(shift)))
        out += [(p, value.to(p.dtype)) for p, value in new]
    return out


def _outputs_at(module: nn.Module) -> int:
    return 1 if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)) else 0


def difference(folded: Tensor, hooked: Tensor, folds: Sequence[Fold]) -> float:
    """Largest difference of the outputs on a batch.

    Args:
        folded: with the new weights, `[n, ...]`.
        hooked: with the old ones and the erasure as a hook.
        folds: where it was folded.

    Raises:
        LayerError: it is more than rounding.
    """
    off = float((folded.double() - hooked.double()).abs().max())
    size = max(1.0, float(hooked.double().abs().max()))
    precision = max(torch.finfo(p.dtype).eps for f in folds for p in f.module.parameters(recurse=False))
    allowed = size * max(EXACT, ROUNDINGS * precision)
    if not off <= allowed:
        raise LayerError(
            f"the weights of {', '.join(repr(f.name) for f in folds)} with the erasure folded in do not give what the hooked "
            f"erasure gives: outputs differ by {off:.2g}, rounding allows {allowed:.2g}. Something reads these weights or "
            "this activation in a way that the forward pass does not show. The weights are as they were."
        )
    return off
