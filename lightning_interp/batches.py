"""Where things sit in a batch: a key, an index, a dotted path, or a function of the batch."""

from __future__ import annotations

import hashlib
import importlib
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from lightning_interp.errors import InterpError, LabelError, nearest

Place = str | int | Callable[[Any], Any]


def load_function(path: str, argument: str) -> Callable[..., Any]:
    """Import the function that `"pkg.mod:name"` names.

    Args:
        path: the import path.
        argument: the argument that it was given for, for the error.

    Raises:
        InterpError: there is no such module or function.
    """
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:  # the latter two: a relative or an empty name
        raise InterpError(f"`{argument}={path!r}`: cannot import module '{module_name}' ({error}).") from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise InterpError(f"`{argument}={path!r}`: module '{module_name}' has no '{name}'.{nearest(name, vars(module))}")
        found = getattr(found, part)
    if not callable(found):
        raise InterpError(f"`{argument}={path!r}` expects a function, got {type(found).__name__}.")
    return found


def resolve_place(place: Place, argument: str) -> Place:
    """The place with `"pkg.mod:name"` imported; keys, indices and functions as they are."""
    if isinstance(place, bool) or not (isinstance(place, (str, int)) or callable(place)):
        raise LabelError(f"`{argument}` expects a key, an index, 'a.dotted.path' or a function, got {place!r}.")
    if isinstance(place, str) and ":" in place:
        return load_function(place, argument)
    return place


def pick(batch: Any, place: Place, argument: str) -> Any:
    """What stands at a place of the batch.

    Args:
        batch: a mapping, a sequence, or any object with attributes, nested as it likes.
        place: a key, an index, `"meta.place"`, or a function of the batch.
        argument: the argument that named the place, for the error.

    Raises:
        LabelError: nothing stands there; the error names what does.
    """
    if callable(place):
        return place(batch)
    if isinstance(place, int):
        return _item(batch, place, argument, place)
    if isinstance(batch, Mapping) and place in batch:
        return batch[place]
    found = batch
    for part in place.split("."):
        found = _item(found, int(part) if part.lstrip("-").isdigit() else part, argument, place)
    return found


def _item(holder: Any, part: str | int, argument: str, place: Place) -> Any:
    if isinstance(holder, Mapping):
        if part in holder:
            return holder[part]
        known: list[Any] = list(holder)
    elif isinstance(part, int):
        if isinstance(holder, (Sequence, Tensor)) and not isinstance(holder, str) and -len(holder) <= part < len(holder):
            return holder[part]
        size = len(holder) if hasattr(holder, "__len__") else "no"
        raise LabelError(f"`{argument}={place!r}` is not in the batch, a {type(holder).__name__} of {size} items.")
    else:
        if hasattr(holder, part):
            return getattr(holder, part)
        known = [] if isinstance(holder, (list, tuple, Tensor)) else [k for k in dir(holder) if not k.startswith("_")]
    raise LabelError(
        f"`{argument}={place!r}` is not in the batch, a {type(holder).__name__}: no '{part}'.{nearest(str(part), known)}"
    )


def as_tensor(found: Any, argument: str) -> Tensor:
    """Numbers as a tensor; copies nothing that is one already."""
    if isinstance(found, Tensor):
        if found.is_meta:
            raise LabelError(f"`{argument}` expects numbers, got a tensor on the meta device, which holds none.")
        return found.detach()
    try:
        return torch.as_tensor(np.asarray(found))
    except (TypeError, ValueError) as error:
        raise LabelError(f"`{argument}` expects numbers, got {type(found).__name__}.") from error


def text_key(texts: Sequence[str]) -> Tensor:
    """64-bit hashes of strings, int64 `[n]`: the same in every process without asking the others."""
    digests = (hashlib.blake2b(str(text).encode(), digest_size=8).digest() for text in texts)
    return torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests], dtype=torch.int64)


def is_text(found: Any) -> bool:
    """Whether what was found is a list of strings."""
    return isinstance(found, (list, tuple)) and len(found) > 0 and all(isinstance(v, str) for v in found)


def size(batch: Any) -> int:
    """Number of samples: rows of the first tensor or list in the batch; 0 if it has none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    if isinstance(batch, Mapping):
        children: Sequence[Any] = list(batch.values())
    elif isinstance(batch, (list, tuple)):
        if is_text(batch):
            return len(batch)
        children = batch
    else:
        children = list(vars(batch).values()) if hasattr(batch, "__dict__") else []
    if isinstance(batch, list) and batch and all(isinstance(v, (bool, int, float)) for v in batch):
        return len(batch)
    return next((n for n in map(size, children) if n), 0)


class _Movable(ABC):  # noqa: B024  # only for isinstance
    """Tensors, and batch objects that move themselves."""

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        return callable(getattr(other, "to", None))


def moved(batch: Any, device: torch.device | str) -> Any:
    """The batch with its tensors on `device`, containers rebuilt, as Lightning's own transfer does."""
    from lightning_utilities.core.apply_func import apply_to_collection

    return apply_to_collection(batch, _Movable, lambda t: (t.detach() if isinstance(t, Tensor) else t).to(device))


def nbytes(batch: Any) -> int:
    """Bytes that the batch's tensors take."""
    return _nbytes(batch, set())


def _nbytes(batch: Any, seen: set[int]) -> int:
    if isinstance(batch, Tensor):
        return batch.numel() * batch.element_size()
    if id(batch) in seen:  # it refers to itself
        return 0
    inside = seen | {id(batch)}
    if isinstance(batch, Mapping):
        children: Sequence[Any] = list(batch.values())
    elif isinstance(batch, (list, tuple)):
        children = batch
    else:
        children = list(vars(batch).values()) if hasattr(batch, "__dict__") else []
    return sum(_nbytes(child, inside) for child in children)


class Inputs:
    """How a pass of the library's own calls the model.

    Args:
        place: a key, an index or a dotted path gives one positional argument, a list of keys keyword arguments, a function
            `(model, batch) -> output` does as it likes; None takes the first element of a tuple or list, else the batch itself.
    """

    def __init__(self, place: str | int | Sequence[str] | Callable[..., Any] | None = None) -> None:
        if isinstance(place, str) and ":" in place:
            place = load_function(place, "inputs")
        if isinstance(place, bool) or not (
            place is None or isinstance(place, (str, int)) or callable(place) or _is_names(place)
        ):
            raise LabelError(f"`inputs` expects a key, an index, a list of keys or a function, got {place!r}.")
        self.place = list(place) if _is_names(place) else place

    def call(self, model: Callable[..., Any], batch: Any) -> Any:
        """Run the model on what `place` picks from the batch."""
        place = self.place
        if place is None:
            return model(batch[0] if isinstance(batch, (list, tuple)) else batch)
        if isinstance(place, (str, int)):
            return model(pick(batch, place, "inputs"))
        if callable(place):
            return place(model, batch)
        return model(**{name: pick(batch, name, "inputs") for name in place})

    def first(self, batch: Any) -> Tensor | None:
        """The first input tensor of the batch, for the samples' content keys; None if there is none."""
        place = self.place
        if isinstance(place, (str, int)):
            batch = pick(batch, place, "inputs")
        elif _is_names(place):
            batch = pick(batch, place[0], "inputs")
        return _first_tensor(batch)


def _is_names(place: Any) -> TypeGuard[Sequence[str]]:
    several = isinstance(place, Sequence) and not isinstance(place, str)  # Hydra's lists are no list
    return several and len(place) > 0 and all(isinstance(p, str) for p in place)


def _first_tensor(batch: Any) -> Tensor | None:
    if isinstance(batch, Tensor):
        return batch if batch.ndim else None
    if isinstance(batch, Mapping):
        children: Sequence[Any] = list(batch.values())
    elif isinstance(batch, (list, tuple)):
        children = batch
    else:
        children = list(vars(batch).values()) if hasattr(batch, "__dict__") else []
    found = (t for t in map(_first_tensor, children) if t is not None)
    return next(found, None)
