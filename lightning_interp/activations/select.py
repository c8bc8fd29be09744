"""Names and globs to submodules, as the user sees them: wrappers of compile, checkpointing and the like are looked through."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_interp.errors import LayerError, nearest

MAX_LAYERS = 64
_WRAPPERS = {"_orig_mod", "_forward_module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


class Layer(NamedTuple):
    """A submodule to read.

    Attributes:
        module: the submodule.
        key: which part of a dict output to read, None for the first tensor.
        named: whether the user wrote this name in full; a layer that a glob found may well never run.
    """

    module: nn.Module
    key: str | None
    named: bool

    def now(self, model: nn.Module, name: str) -> Layer:
        """The layer with the module that stands at its name by now; where none does, it stays as it was, and runs no more."""
        found = module_at(model, name.partition(":")[0])
        return self if found is None or found is self.module else self._replace(module=found)


def module_at(model: nn.Module, path: str) -> nn.Module | None:
    """The module of a dotted name as `module_names` has it, without looking at all the others; None if there is none."""
    found = _innermost(model)
    for part in path.split("."):
        child = found._modules.get(part)
        if child is None:
            return None
        found = _innermost(child)
    return found


def _innermost(module: nn.Module) -> nn.Module:
    if isinstance(module, DistributedDataParallel):
        return _innermost(module.module)
    inside = next((name for name in _WRAPPERS if name in module._modules), None)
    child = None if inside is None else module._modules[inside]
    return module if child is None else _innermost(child)


def module_names(model: nn.Module) -> dict[str, nn.Module]:
    """{dotted name without wrappers: innermost module}; the model itself is ""."""
    inner = model._modules.get("_original_module")
    if inner is not None:  # of Fabric, which holds the user's module beside the wrapped one
        return {**module_names(inner), "": model}
    if isinstance(model, DistributedDataParallel):
        return {**module_names(model.module), "": model}
    out: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        parts = [p for p in name.split(".") if p not in _WRAPPERS]
        out[".".join(parts)] = module
    return out


def select(model: nn.Module, patterns: Sequence[str]) -> dict[str, Layer]:
    """The layers that names or globs pick, in the order of the model.

    `*` stops at a dot, `**` does not. `"encoder.3:hidden"` reads the entry `hidden` of a layer that returns a dict.

    Args:
        model: the module below which the names stand.
        patterns: names or globs.

    Returns:
        {name: Layer}.

    Raises:
        LayerError: a pattern matches nothing, or more than 64 layers match in all.
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    names = module_names(model)
    found: dict[str, Layer] = {}
    for pattern in patterns:
        path, _, key = pattern.partition(":")
        literal = "*" not in path
        hits = [path] if literal and path in names and path else []
        if not literal:
            regex = re.compile(_regex(path))
            hits = [n for n, m in names.items() if n and regex.fullmatch(n) and not isinstance(m, _CONTAINERS)]
        if not hits:
            hint = nearest(path, [n for n in names if n])
            raise LayerError(f"`layers`: '{pattern}' matches no submodule of {type(model).__name__}.{hint}")
        for name in hits:
            found[f"{name}:{key}" if key else name] = Layer(names[name], key or None, literal)
    if len(found) > MAX_LAYERS:
        raise LayerError(
            f"`layers` matches {len(found)} submodules of {type(model).__name__}, at most {MAX_LAYERS} are read. "
            "Name fewer, or use a glob that stops at a dot ('encoder.*')."
        )
    return found


def outermost(model: nn.Module, layer: nn.Module) -> list[nn.Module]:
    """The modules that a model is made of, whole but for those that hold the layer, and the layer: each once.

    Lists and dicts of modules, which are never called, count as their members.

    Args:
        model: the network.
        layer: one of its submodules.
    """
    holds: dict[nn.Module, bool] = {}

    def held(module: nn.Module) -> bool:
        if module not in holds:
            holds[module] = module is layer or any(held(child) for child in module.children())
        return holds[module]

    def parts(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if child is layer or not (held(child) or isinstance(child, _CONTAINERS)):
                yield child
            else:
                yield from parts(child)

    return list(dict.fromkeys(parts(model)))


def device_of(model: nn.Module) -> torch.device:
    """Where the model lives: the device of its first parameter, the CPU if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def find_module(model: nn.Module, name: str, argument: str) -> Layer:
    """One module by its dotted name.

    Raises:
        LayerError: there is none; the error names the nearest.
    """
    path, _, key = name.partition(":")
    names = module_names(model)
    if path not in names:
        hint = nearest(path, [n for n in names if n])
        raise LayerError(f"`{argument}={name!r}` is no submodule of {type(model).__name__}.{hint}")
    return Layer(names[path], key or None, True)


def _regex(glob: str) -> str:
    parts = re.split(r"(\*\*|\*)", glob)
    return "".join({"**": r".*", "*": r"[^.]*"}.get(p, re.escape(p)) for p in parts)
