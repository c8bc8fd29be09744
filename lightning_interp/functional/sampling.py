"""Random numbers that belong to a sample, not to a moment: the same on any number of ranks and in any order.

Folds, kept rows and control columns are drawn by a counter-based generator keyed by (seed, stream, sample). The mixing
function is the finaliser of SplitMix64 (Steele, Lea & Flood 2014), on wrapping int64 arithmetic: exact on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lightning_interp.batches import text_key

_DENSE, _STRIDE = 1024, 64  # which elements of a sample its content key looks at: places that do not depend on its length
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _signed(x: int) -> int:
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >= 1 << 63 else x


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_M1 = _signed(0xBF58476D1CE4E5B9)
_M2 = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical shift: torch's is arithmetic


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of int64 that scatters every bit.

    Args:
        x: int64, any shape.
    """
    x = (x ^ _shift(x, 30)) * _M1
    x = (x ^ _shift(x, 27)) * _M2
    return x ^ _shift(x, 31)


def content_key(x: Tensor) -> Tensor:
    """A key made of a sample's own bits, for samples that have no id.

    The first 1,024 elements are read, then every 64th; zeros add nothing, so that padding with zeros does not change the key.

    Args:
        x: one input per sample, `[n, ...]`, any dtype.

    Returns:
        int64 `[n]`.
    """
    flat = x.detach().reshape(len(x), math.prod(x.shape[1:]))
    if flat.shape[1] > _DENSE:
        flat = torch.cat([flat[:, :_DENSE], flat[:, _DENSE::_STRIDE]], dim=1)
    flat = flat.contiguous()
    if flat.is_complex():
        flat = torch.view_as_real(flat).flatten(1)
    bits = flat.view(_BITS[flat.element_size()]) if flat.is_floating_point() else flat
    bits = bits.long()
    if flat.element_size() == 8:
        bits = bits ^ _shift(bits, 32)  # whole numbers as doubles end in up to 52 zero bits, which a product would keep
    return mix((bits * _places(bits.shape[1], x.device)).sum(1))


@lru_cache(maxsize=16)
def _places(length: int, device: torch.device) -> Tensor:
    return mix(torch.arange(1, length + 1, device=device) * _GOLDEN) | 1  # odd, so that no bit of a sample is lost


def id_key(ids: Tensor | Sequence[str]) -> Tensor:
    """A key from the user's own sample ids.

    Args:
        ids: integers `[n]` or `n` strings.

    Returns:
        int64 `[n]`.
    """
    if isinstance(ids, Tensor):
        return content_key(ids)
    return text_key(ids)


def digest(key: Tensor, values: Tensor) -> Tensor:
    """A hash of samples and their variables' values that does not depend on their order; those of parts add up.

    Args:
        key: int64 `[n]`.
        values: `[n, p]`.

    Returns:
        An int64 scalar.
    """
    for column in values.double().unbind(1):
        key = mix(key * _GOLDEN ^ column.contiguous().view(torch.int64))
    return mix(key).sum()


def uniform(key: Tensor, seed: int, stream: int) -> Tensor:
    """One uniform number in [0, 1) per sample.

    Args:
        key: int64 `[n]`.
        seed: the user's seed.
        stream: which of the sample's numbers (0: fold, 1: kept rows, 2…: controls).

    Returns:
        float64 `[n]`.
    """
    salt = torch.tensor([_signed(seed * 0x632BE59BD9B4E019 + (stream + 1) * 0x9E3779B97F4A7C15)], device=key.device)
    return _shift(mix(key ^ mix(salt)), 11).double() * 2.0**-53
