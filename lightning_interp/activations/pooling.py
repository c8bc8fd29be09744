"""From a layer's activation to one vector per sample, `[n, d]`, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_interp.batches import load_function
from lightning_interp.errors import LayerError, nearest

MODES = ("mean", "first", "last", "masked_mean")  # the same at every place: what they find can be written into weights
POOLINGS = (*MODES, "flatten")
CHANNELS_FIRST_3D = (
    nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d,
    nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d,
)  # fmt: skip


def tensor_of(output: Any, key: str | None = None) -> Tensor | None:
    """The tensor that a module returned: itself, a dict's or ModelOutput's entry, or the first tensor of a tuple.

    Args:
        output: what the module returned.
        key: which entry of a dict.

    Returns:
        The tensor; None if there is none.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        if key is not None:
            return tensor_of(output.get(key))
        return next((t for t in map(tensor_of, output.values()) if t is not None), None)
    if isinstance(output, (list, tuple)):
        if key is not None and key.isdigit():
            return tensor_of(output[int(key)]) if int(key) < len(output) else None
        return next((t for t in map(tensor_of, output) if t is not None), None)
    return None


def output_of(result: Any, key: str | None = None) -> Tensor | None:
    """The output that a module's result holds: the entry `key`, else `logits`, else the first tensor."""
    return tensor_of(result, key or ("logits" if isinstance(result, Mapping) and "logits" in result else None))


def with_tensor(output: Any, old: Tensor, new: Tensor) -> Any:
    """What a module returned with one of its tensors replaced wherever it stands; containers keep their type.

    Args:
        output: what the module returned; left as it is.
        old: the tensor that `tensor_of` found in it.
        new: what takes its place.
    """
    if output is old:
        return new
    if isinstance(output, Mapping):
        items = {key: with_tensor(value, old, new) for key, value in output.items()}
        if not isinstance(output, MutableMapping):
            return type(output)(items)  # type: ignore[call-arg]
        made = copy.copy(output)  # a ModelOutput, or a dict with attributes of its own
        for key, value in items.items():
            made[key] = value
        return made
    if isinstance(output, (list, tuple)):
        parts = [with_tensor(part, old, new) for part in output]
        return output._make(parts) if hasattr(output, "_make") else type(output)(parts)
    return output


class Pooling:
    """Pools activations: space is averaged, tokens by `mode`.

    `[n, d]` stays; `[n, t, d]` is averaged over t, or its first or last token taken; `[n, c, h, w]` and `[n, c, l, h, w]` are
    averaged over space, as is the `[n, c, l]` of a one-dimensional convolution.

    Args:
        mode: "mean", "first", "last", "masked_mean" (over the tokens that the batch's `attention_mask` keeps), "flatten" (every
            place and channel a unit of its own, for measuring: a mean over space cannot tell what is always at one place from
            the same thing elsewhere), a function `activation -> [n, d]`, or `"pkg.mod:function"`.

    Raises:
        LayerError: the mode is none of these.
    """

    def __init__(self, mode: str | Callable[[Tensor], Tensor] = "mean") -> None:
        self.mode = mode
        self._function: Callable[[Tensor], Tensor] | None = None
        if callable(mode):
            self._function = mode
        elif ":" in mode:
            self._function = load_function(mode, "pooling")
        elif mode not in POOLINGS:
            known = ", ".join(POOLINGS)
            raise LayerError(f"`pooling={mode!r}` is none of {known} or 'pkg.mod:function'.{nearest(mode, POOLINGS)}")

    @property
    def liftable(self) -> bool:
        """Whether `lift` is defined: not for a function of the user's."""
        return self._function is None

    def pool(self, a: Tensor, module: nn.Module | None = None, mask: Tensor | None = None) -> Tensor:
        """One vector per sample.

        Args:
            a: the activation, `[n, ...]`.
            module: the module that made it, which tells `[n, c, l]` from `[n, t, d]`.
            mask: `[n, t]`, which tokens count.

        Returns:
            `[n, d]`; never a view of `a`, which a following in-place layer may overwrite.

        Raises:
            LayerError: the activation has no shape that can be pooled.
        """
        if self._function is not None:
            return self._called(a)
        if a.ndim == 2:
            return a.clone()
        if self.mode == "flatten" and a.ndim > 2:
            return _wide(a).flatten(1).clone()
        if a.ndim == 3 and not isinstance(module, CHANNELS_FIRST_3D):
            if self.mode == "mean":
                return _wide(a).mean(1)
            return torch.einsum("ntd,nt->nd", _wide(a), self._token_weights(_wide(a), mask))
        if a.ndim in (3, 4, 5):
            return _wide(a).flatten(2).mean(2)
        raise LayerError(f"an activation of shape {list(a.shape)} cannot be pooled to [n, d]; give `pooling` a function.")

    def lift(self, e: Tensor, a: Tensor, module: nn.Module | None = None, mask: Tensor | None = None) -> Tensor:
        """A step of the pooled vector, spread over the activation so that pooling it gives the step back.

        Args:
            e: `[n, d]`.
            a: the activation whose shape is wanted.
            module: as in `pool`.
            mask: as in `pool`.
        """
        e = e.to(a.dtype)
        if a.ndim == 2:
            return e
        if self.mode == "flatten":
            return e.reshape(a.shape)
        if a.ndim == 3 and not isinstance(module, CHANNELS_FIRST_3D):
            here = (self._token_weights(a, mask) > 0).to(a.dtype)
            return e.unsqueeze(1) * here.unsqueeze(2)
        return e.reshape(*e.shape, *[1] * (a.ndim - 2)).expand_as(a)

    def _called(self, a: Tensor) -> Tensor:
        try:
            pooled = self._function(a)  # type: ignore[misc]
        except Exception as problem:  # the user's function: it may raise anything
            raise LayerError(f"`pooling` failed: {type(problem).__name__}: {problem}") from problem
        if not isinstance(pooled, Tensor) or pooled.ndim != 2:
            got = f"shape {list(pooled.shape)}" if isinstance(pooled, Tensor) else type(pooled).__name__
            raise LayerError(f"`pooling` expects a function that gives [n, d], got {got}.")
        return pooled.clone()

    def _token_weights(self, a: Tensor, mask: Tensor | None) -> Tensor:
        n, t = a.shape[:2]
        keep = a.new_ones(n, t) if mask is None else mask.to(a)
        if keep.shape != (n, t):
            keep = a.new_ones(n, t)  # another length than the tokens': patches, or a prefix added
        if self.mode in ("first", "last"):
            place = torch.arange(t, device=a.device).expand(n, t)
            found = place.masked_fill(keep == 0, t).amin(1) if self.mode == "first" else (place * keep.long()).amax(1)
            return (place == found.unsqueeze(1)).to(a.dtype)
        if self.mode == "mean":
            return a.new_full((n, t), 1.0 / t)
        return keep / keep.sum(1, keepdim=True).clamp_min(1)


def _wide(a: Tensor) -> Tensor:
    return a.float() if a.dtype in (torch.float16, torch.bfloat16) else a
