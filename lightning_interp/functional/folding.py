"""An erasure folded into the weights beside it.

h' = h − ((h − mean)·read)·write is affine. So an affine map that makes h, or one that reads h, takes it in: the bias and the
weight change, nothing is added. What stands between, if it is affine and keeps the units apart, carries the eraser along.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_interp.functional.erasure import Eraser


def written(weight: Tensor, eraser: Eraser, axis: int = 0) -> Tensor:
    """The weight of the map that makes h, so that it makes h': (I − write'·read')·W, in float64.

    Args:
        weight: `[d, ...]`, its outputs at `axis`.
        eraser: of h.
        axis: where the outputs are.
    """
    w = weight.double().movedim(axis, -1)
    return (w - (w @ eraser.read) @ eraser.write).movedim(-1, axis)


def written_bias(bias: Tensor, eraser: Eraser, constant: bool = True) -> Tensor:
    """The bias of the map that makes h, so that it makes h', in float64.

    Args:
        bias: `[d]`.
        eraser: of h.
        constant: whether it takes up what the mean adds; not if something else does.
    """
    bias = bias.double()
    return bias + eraser.step(bias) if constant else bias - (bias @ eraser.read) @ eraser.write


def read(weight: Tensor, eraser: Eraser, axis: int = 1) -> Tensor:
    """The weight of the map that reads h, so that it does as if it read h': W·(I − write'·read'), in float64.

    Args:
        weight: `[c, d, ...]`, its inputs at `axis`.
        eraser: of h.
        axis: where the inputs are.
    """
    w = weight.double().movedim(axis, -1)
    return (w - (w @ eraser.write.T) @ eraser.read.T).movedim(-1, axis)


def read_bias(bias: Tensor, weight: Tensor, eraser: Eraser) -> Tensor:
    """The bias that goes with `read`, in float64.

    Args:
        bias: `[c]`.
        weight: the weight before, `[c, d, ...]`; what it reads must be the same constant at every place of the kernel.
        eraser: of h.
    """
    w = weight.double().flatten(2).sum(2) if weight.ndim > 2 else weight.double()
    return bias.double() + w @ ((eraser.mean @ eraser.read) @ eraser.write)


def scaled(eraser: Eraser, scale: Tensor, shift: Tensor) -> Eraser:
    """The eraser of scale·h + shift that does the same as that of h.

    Args:
        eraser: of h.
        scale: of each unit, `[d]`, none zero.
        shift: `[d]`.
    """
    return Eraser(eraser.mean * scale + shift, eraser.read / scale.unsqueeze(1), eraser.write * scale)


def spread(eraser: Eraser, before: int, after: int) -> Eraser:
    """The eraser of flattened activations `[n, before·d·after]` that erases h at every place.

    Args:
        eraser: of h, `[d]`.
        before: places in the axes before that of the units.
        after: places in those after it.
    """

    def everywhere(m: Tensor) -> Tensor:
        left, right = (torch.eye(k, dtype=m.dtype, device=m.device) for k in (before, after))
        return torch.kron(torch.kron(left, m.contiguous()), right)

    mean = eraser.mean.view(1, -1, 1).expand(before, -1, after).flatten()
    return Eraser(mean, everywhere(eraser.read), everywhere(eraser.write))


def pointwise(a: Tensor, eraser: Eraser, axis: int) -> Tensor:
    """An activation with every place erased, in its own dtype; worked out in float64.

    Args:
        a: `[n, ...]`.
        eraser: of its units.
        axis: where the units are.
    """
    return eraser(a.movedim(axis, -1)).movedim(-1, axis)
