"""Where an erasure can go: into the affine maps that make an activation, or into those that read it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_interp.activations.pooling import CHANNELS_FIRST_3D, tensor_of
from lightning_interp.activations.select import Layer
from lightning_interp.editing.graph import Graph, Op, Run
from lightning_interp.editing.operations import (
    CONVOLUTIONS,
    TRANSPOSED,
    dropped_axes,
    is_attention,
    is_average,
    is_norm,
    is_own,
    is_padded,
    is_same,
    is_sum,
    swaps_others,
)
from lightning_interp.errors import LayerError
from lightning_interp.functional.erasure import Eraser
from lightning_interp.functional.folding import scaled, spread

Carry = Callable[[Eraser], Eraser]
_RESHAPED = {"flatten", "view", "reshape"}


class Fold(NamedTuple):
    """One module whose weights take in the erasure.

    Attributes:
        module: Linear, a convolution or a batch norm.
        name: what the user calls it.
        side: "written" where it makes the activation, "read" where it reads it, "shifted" where only its bias takes up what the
            mean adds.
        carries: turn the eraser of the layer into that of what the module makes or reads, one after the other.
        constant: of "written", whether its bias takes up what the mean adds.
    """

    module: nn.Module
    name: str
    side: str
    carries: tuple[Carry, ...] = ()
    constant: bool = True


class Site(NamedTuple):
    """Where an erasure acts.

    Attributes:
        layer: the module, and the part of its output.
        name: what the user calls it.
        side: "output" or "input" of the module.
        axis: of the tensor's axes that of the units.
        shape_from: tells pooling which axes are space: the module that does.
    """

    layer: Layer
    name: str
    side: str
    axis: int
    shape_from: nn.Module | None


class FoldError(LayerError):
    """Why a fold is not possible, in words that fit into a longer sentence."""


def site_at(graph: Graph, layer: Layer, name: str, side: str = "output") -> Site:
    """The place of an activation.

    Raises:
        LayerError: the module did not run just once, or holds no tensor there.
    """
    run = graph.only_run(layer.module, "layer" if side == "output" else "output")
    tensor = tensor_of(run.output, layer.key) if side == "output" else _read_by(graph, layer.module)
    if tensor is None or not tensor.is_floating_point() or tensor.ndim < 2:
        raise LayerError(f"`layer={name!r}` gives no floating tensor [n, ...], got {type(run.output).__name__}.")
    sure = layer.module if isinstance(layer.module, CHANNELS_FIRST_3D) else graph.last_with(tensor)
    last = tensor.ndim == 2 or (tensor.ndim == 3 and not isinstance(sure, CHANNELS_FIRST_3D))
    return Site(layer, name, side, tensor.ndim - 1 if last else 1, sure)


def _read_by(graph: Graph, module: nn.Module) -> Tensor:
    own = [op for op in graph.ops if op.module is module]
    return own[0].inputs[0]


def plan(graph: Graph, site: Site) -> list[Fold]:
    """The modules that an erasure of a layer's output can be folded into.

    Args:
        graph: a forward pass.
        site: the layer.

    Returns:
        What makes the output, where that is affine; else all that reads it.

    Raises:
        LayerError: neither is; the message says why, and names the nearest layer that works.
    """
    run = graph.only_run(site.layer.module, "layer")
    try:
        return _plan(graph, run, site)
    except FoldError as problem:
        near = nearest_layer(graph, run)
        hint = f" The nearest layer that works is '{near}'." if near else " No layer of this network can be edited."
        raise LayerError(f"`layer={site.name!r}` cannot be erased in the weights. {problem}{hint}") from None


def _plan(graph: Graph, run: Run, site: Site) -> list[Fold]:
    tensor = tensor_of(run.output, site.layer.key)
    if tensor is None:
        raise FoldError("It gives no tensor.")
    try:
        return _made_by(graph, tensor, run.at, site.axis, ())
    except FoldError as makers:
        try:
            return _read_from(graph, tensor, run.at, site.axis, ())
        except FoldError as readers:
            raise FoldError(f"Not into what makes it: {makers}. Not into what reads it: {readers}.") from None


def reader_of(graph: Graph, module: nn.Module, name: str) -> Fold:
    """A Linear that takes in an erasure of its own input.

    Raises:
        LayerError: its weights are shared, or have no bias.
    """
    own = [op for op in graph.ops if op.module is module and is_own(op)]
    graph.only_run(module, "output")
    try:
        if not own:
            raise FoldError(f"'{name}' does not use its weight as its class does")
        return _reader(graph, own[0], own[0].inputs[0].ndim - 1, ())
    except FoldError as problem:
        raise LayerError(f"`output={name!r}` cannot be edited: {problem}.") from None


def nearest_layer(graph: Graph, run: Run) -> str | None:
    """The layer nearest to a run, in the order of execution, that can be erased in the weights."""
    for name, other in sorted(graph.layers(), key=lambda found: abs(found[1].at - run.at)):
        if other.module is run.module or len(graph.runs_of(other.module)) != 1:
            continue
        try:
            site = site_at(graph, Layer(other.module, None, True), name)
            _plan(graph, other, site)
        except LayerError:
            continue
        return name
    return None


# --- into what makes it -----------------------------------------------------------------------------------------------


def _made_by(
    graph: Graph, tensor: Tensor, before: int, axis: int, carries: tuple[Carry, ...], constant: bool = True
) -> list[Fold]:
    found = graph.maker(tensor, before)
    if found is None:
        raise FoldError("it is what the network is given")
    place, op = found
    others = [other for i, other in graph.readers(tensor, place + 1) if i < before]
    if others:
        raise FoldError(f"{_words(graph, others[0])} reads it before it is a layer's output")
    if is_own(op):
        return _written(graph, op, tensor, before, axis, carries, constant)
    if is_attention(op):
        return [_projection(graph, op, axis, carries, constant)]
    if is_norm(op) and axis == 1:
        return _below_norm(graph, op, place, carries, constant)
    if is_same(op) or swaps_others(op, axis):
        inner = op.inputs[0]
        if inner is not tensor:
            _alone(graph, inner, place)
        return _made_by(graph, inner, place, axis, carries, constant)
    if is_sum(op, tensor):
        return _below_sum(graph, op, place, axis, carries, constant)
    if isinstance(op.module, (nn.Linear, *CONVOLUTIONS)):
        _free(graph, op.module)
    raise FoldError(f"{_words(graph, op)} makes it, and is no affine map with weights of its own")


def _below_sum(graph: Graph, op: Op, place: int, axis: int, carries: tuple[Carry, ...], constant: bool) -> list[Fold]:
    for part in op.inputs:
        _alone(graph, part, place)
    first, second = op.inputs  # the mean is taken up by one of them
    return [
        *_made_by(graph, first, place, axis, carries, constant),
        *_made_by(graph, second, place, axis, carries, constant=False),
    ]


def _below_norm(graph: Graph, op: Op, place: int, carries: tuple[Carry, ...], constant: bool) -> list[Fold]:
    inner, norm = op.inputs[0], op.module
    _alone(graph, inner, place)
    back = (*carries, _back_through(graph, norm))
    if norm is None or not norm.affine:
        return _made_by(graph, inner, place, 1, back, constant)
    _free(graph, norm)
    below = _made_by(graph, inner, place, 1, back, constant=False)
    return [*below, Fold(norm, graph.name(norm), "shifted", carries)] if constant else below


def _projection(graph: Graph, op: Op, axis: int, carries: tuple[Carry, ...], constant: bool) -> Fold:
    """The Linear that attention ends in, which does not run as a module of its own."""
    attention: Any = op.module
    projection, name = attention.out_proj, graph.name(attention.out_proj)
    if len(graph.runs_of(attention)) != 1:
        raise FoldError(f"'{graph.name(attention)}' is used {len(graph.runs_of(attention))} times in a forward pass")
    _untied(graph, projection)
    if axis != op.outputs[0].ndim - 1:
        raise FoldError(f"'{name}' writes units along another axis")
    if constant and projection.bias is None:
        raise FoldError(f"'{name}' has no bias to take up the mean")
    return Fold(projection, name, "written", carries, constant)


def _written(
    graph: Graph, op: Op, tensor: Tensor, before: int, axis: int, carries: tuple[Carry, ...], constant: bool
) -> list[Fold]:
    module = op.module
    name = graph.name(module)
    _free(graph, module)
    own_axis = tensor.ndim - 1 if isinstance(module, nn.Linear) else 1
    if axis != own_axis:
        raise FoldError(f"'{name}' writes units along another axis")
    here = Fold(module, name, "written", carries, constant)  # type: ignore[arg-type]
    if not constant or module.bias is not None:  # type: ignore[union-attr]
        return [here]
    norm = _only_norm(graph, tensor, before) if not carries else None
    if norm is None:
        raise FoldError(f"'{name}' has no bias to take up the mean")
    forth = (_forth_through(graph, norm),)
    return [here._replace(constant=False), Fold(norm, graph.name(norm), "shifted", forth)]


def _only_norm(graph: Graph, tensor: Tensor, since: int) -> nn.Module | None:
    """The batch norm that alone reads a tensor, if it has a bias."""
    ops = [op for _, op in graph.readers(tensor, since)]
    alone = len(ops) == 1 and id(tensor) not in graph.results and is_norm(ops[0])
    return ops[0].module if alone and ops[0].module.affine and ops[0].inputs[0] is tensor else None  # type: ignore[union-attr]


def _alone(graph: Graph, tensor: Tensor, place: int) -> None:
    found = graph.maker(tensor, place)
    if found is None:
        raise FoldError("it comes from what the network is given")
    others = [op for i, op in graph.readers(tensor, found[0] + 1) if i != place]
    if others:
        raise FoldError(f"{_words(graph, others[0])} reads what it is made of as well")
    if id(tensor) in graph.results:
        raise FoldError("what it is made of is returned as well")


# --- into what reads it -----------------------------------------------------------------------------------------------


def _read_from(graph: Graph, tensor: Tensor, since: int, axis: int, carries: tuple[Carry, ...]) -> list[Fold]:
    if id(tensor) in graph.results:
        raise FoldError("it is what the network returns")
    ops = graph.readers(tensor, since)
    if not ops:
        raise FoldError("nothing reads it")
    out: list[Fold] = []
    for place, op in ops:
        if is_own(op) and op.inputs[0] is tensor:
            out.append(_reader(graph, op, axis, carries))
            continue
        if op.inputs[0] is not tensor or len([t for t in op.inputs if t is tensor]) > 1:
            raise FoldError(f"{_words(graph, op)} reads it and is not an affine map of it alone")
        on, axis_there, carry = _through(graph, op, axis)
        out += _read_from(graph, on, place + 1, axis_there, (*carries, *carry))
        if on is tensor:  # Dropout in evaluation gives what it takes: its readers are the ones that follow
            break
    return out


def _through(graph: Graph, op: Op, axis: int) -> tuple[Tensor, int, tuple[Carry, ...]]:
    """What an operation that keeps the units apart makes of a tensor: the result, its axis of units, the eraser's way."""
    given, made = op.inputs[0], op.outputs[0]
    if is_norm(op) and axis == 1:
        return made, axis, (_forth_through(graph, op.module),)
    if is_same(op) or is_average(op, axis):
        return made, axis, ()
    if op.name in _RESHAPED and made.shape == given.shape:
        return made, axis, ()
    if op.name in _RESHAPED and made.ndim == 2 and len(made) == len(given):
        before, after = math.prod(given.shape[1:axis]), math.prod(given.shape[axis + 1 :])
        return made, 1, (lambda e: spread(e, before, after),)
    gone = dropped_axes(op, given.ndim)
    if gone is not None and axis not in gone:
        keeps = made.ndim == given.ndim
        return made, axis if keeps else axis - sum(d < axis for d in gone), ()
    raise FoldError(f"{_words(graph, op)} stands in between and is not affine, or mixes the units with something else")


def _reader(graph: Graph, op: Op, axis: int, carries: tuple[Carry, ...]) -> Fold:
    module, given = op.module, op.inputs[0]
    name = graph.name(module)
    _free(graph, module)
    if axis != (given.ndim - 1 if isinstance(module, nn.Linear) else 1):
        raise FoldError(f"'{name}' reads another axis than that of the units")
    if isinstance(module, TRANSPOSED):
        raise FoldError(f"'{name}' is a transposed convolution, in which what the mean adds is not the same at every place")
    if isinstance(module, CONVOLUTIONS) and module.padding_mode == "zeros" and is_padded(module.padding):
        raise FoldError(f"'{name}' pads with zeros, so that what the mean adds is not the same at every place")
    if module.bias is None:  # type: ignore[union-attr]
        raise FoldError(f"'{name}' has no bias to take up the mean")
    return Fold(module, name, "read", carries)  # type: ignore[arg-type]


# --- modules ----------------------------------------------------------------------------------------------------------


def _free(graph: Graph, module: nn.Module | None) -> None:
    """Whether the weights of a module are its own, and do their work once.

    Raises:
        FoldError: they are not.
    """
    name = graph.name(module)
    if module is None or len(graph.runs_of(module)) != 1:
        raise FoldError(f"'{name}' is used {0 if module is None else len(graph.runs_of(module))} times in a forward pass")
    _untied(graph, module)
    if isinstance(module, CONVOLUTIONS) and module.groups > 1:
        raise FoldError(f"'{name}' is a convolution in {module.groups} groups, which keeps units of different groups apart")


def _untied(graph: Graph, module: nn.Module) -> None:
    name = graph.name(module)
    if parametrize.is_parametrized(module) or "weight" not in module._parameters:
        raise FoldError(f"the weight of '{name}' is computed from other parameters")
    mine = {_storage(p) for p in module.parameters(recurse=False)}
    for other in graph.model.modules():
        if other is not module and any(_storage(p) in mine for p in other.parameters(recurse=False)):
            raise FoldError(f"the weights of '{name}' are tied to those of '{graph.name(other)}'")


def _storage(p: Tensor) -> int:
    return p.untyped_storage().data_ptr()


def _map_of(graph: Graph, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in evaluation, float64."""
    m: Any = norm
    scale = (m.running_var.double() + m.eps).rsqrt()
    shift = -m.running_mean.double() * scale
    if m.affine:
        scale, shift = scale * m.weight.detach().double(), shift * m.weight.detach().double() + m.bias.detach().double()
    if not bool((scale != 0).all()):
        raise FoldError(f"'{graph.name(norm)}' has units of weight zero")
    return scale, shift


def _forth_through(graph: Graph, norm: nn.Module | None) -> Carry:
    _map_of(graph, norm)
    return lambda e: scaled(e, *(t.to(e.mean.device) for t in _map_of(graph, norm)))


def _back_through(graph: Graph, norm: nn.Module | None) -> Carry:
    def back(e: Eraser) -> Eraser:
        scale, shift = (t.to(e.mean.device) for t in _map_of(graph, norm))
        return scaled(e, 1 / scale, -shift / scale)

    _map_of(graph, norm)
    return back


def _words(graph: Graph, op: Op) -> str:
    name, leaf = graph.name(op.module), op.module is not None and not any(op.module.children())
    if leaf:
        return f"'{name}' ({type(op.module).__name__})"
    what = {"add": "an addition", "add_": "an addition"}.get(op.name, f"`{op.name}`")
    return f"{what} in '{name}'"
