"""What an operation of a forward pass is: a module's own affine map, or something that an erasure passes through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_interp.editing.graph import Op

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_SAME = {"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "contiguous", "clone", "detach"}
_ADAPTIVE = {"adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"}


def is_own(op: Op) -> bool:
    """Whether it is a Linear or convolution doing what its class does with its own weight."""
    m = op.module
    named = (isinstance(m, nn.Linear) and op.name == "linear") or (isinstance(m, CONVOLUTIONS) and op.name.startswith("conv"))
    return named and any(t is m.weight for t in op.inputs)  # type: ignore[union-attr]


def is_attention(op: Op) -> bool:
    """Whether it is torch's attention, which ends in the Linear `out_proj`."""
    m = op.module
    return (
        op.name == "multi_head_attention_forward"
        and isinstance(m, nn.MultiheadAttention)
        and any(t is m.out_proj.weight for t in op.inputs)
    )


def swaps_others(op: Op, axis: int) -> bool:
    """Whether it swaps two axes that the units are not along."""
    if op.name != "transpose" or len(op.args) != 3:
        return False
    return axis not in {d % op.outputs[0].ndim for d in op.args[1:]}


def is_norm(op: Op) -> bool:
    """Whether it is a batch norm that uses its running statistics: an affine map of every unit."""
    m = op.module
    return op.name == "batch_norm" and isinstance(m, _NORMS) and m.running_mean is not None


def is_same(op: Op) -> bool:
    """Whether it gives what it takes: Dropout in evaluation, a copy, a padding that adds no zeros."""
    if op.name in _SAME:
        return op.kwargs.get("training") is not True and len(op.inputs) == 1 and torch.equal(op.inputs[0], op.outputs[0])
    return op.name == "pad" and isinstance(op.module, CONVOLUTIONS) and op.module.padding_mode != "zeros"


def is_average(op: Op, axis: int) -> bool:
    """Whether it averages over space, with weights that sum to one everywhere."""
    m = op.module
    if axis != 1:
        return False
    if isinstance(m, _AVERAGES) and op.name.startswith("avg_pool"):
        return (not is_padded(m.padding) or not m.count_include_pad) and getattr(m, "divisor_override", None) is None
    return op.name in _ADAPTIVE


def is_sum(op: Op, tensor: Tensor) -> bool:
    """Whether it makes the tensor by adding two others of its shape."""
    plain = op.name in ("add", "add_") and len(op.inputs) == 2 and not op.kwargs
    return plain and op.inputs[0] is not op.inputs[1] and all(t.shape == tensor.shape and t is not tensor for t in op.inputs)


def dropped_axes(op: Op, ndim: int) -> tuple[int, ...] | None:
    """The axes that a mean, or a choice of one place, takes away."""
    if op.name == "mean":
        dims: Any = op.kwargs.get("dim", op.args[1] if len(op.args) > 1 else None)
        dims = (dims,) if isinstance(dims, int) else dims
        return None if dims is None else tuple(d % ndim for d in dims)
    if op.name == "__getitem__" and isinstance(op.args[1], tuple) and len(op.args[1]) == 2:
        first, second = op.args[1]
        return (1,) if isinstance(first, slice) and first == slice(None) and isinstance(second, int) else None
    return None


def is_padded(padding: Any) -> bool:
    """Whether a convolution's or pooling's `padding` adds anything."""
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, (tuple, list)) else bool(padding)
