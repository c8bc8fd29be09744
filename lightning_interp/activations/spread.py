"""Models that several processes train together, in a pass that one of them may run alone: DDP and FSDP2 (`fully_shard`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_interp.errors import InterpError
from lightning_interp.processes import gathered


def sharded(model: nn.Module) -> bool:
    """Whether some part of the model is sharded, so that each of its passes is a collective of all processes."""
    return bool(_parts(model, "FSDPModule") or _parts(model, "FullyShardedDataParallel"))


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """The weights whole on every process while inside, so that passes are no collectives: a collective at the start only.

    In an own pass one process may have a batch more than another, or leave one out: gathering weights as they are needed, it
    would wait for the other for ever. It takes the memory of the whole model, and the weights must not be changed inside.

    Args:
        model: the model; one that is not sharded is left alone.

    Raises:
        InterpError: it is sharded by FSDP1, whose weights cannot be gathered ahead of a pass.
    """
    if _parts(model, "FullyShardedDataParallel"):
        raise InterpError(
            "`FullyShardedDataParallel` does not allow a pass of the library's own: watch the loop's batches, with `measures` "
            "of 'contribution', 'decodability', 'groups' and 'entanglement', or shard with `fully_shard` "
            "(in Lightning: `ModelParallelStrategy`)."
        )
    parts = _parts(model, "FSDPModule")
    if not parts:
        yield
        return
    gathered(None)  # one that failed before is heard here, not where the weights are gathered
    groups = [group for part in parts for group in _groups(part)]
    before = [(g, g.is_unsharded, g.post_forward_mesh_info, g.reshard_after_backward) for g in groups]
    try:
        for part in parts:
            part.unshard()
        for group in groups:  # private: the public setters cannot say what to put back
            group.post_forward_mesh_info, group.reshard_after_backward = None, False
        yield
    finally:
        for group, was_whole, forward, backward in before:
            group.post_forward_mesh_info, group.reshard_after_backward = forward, backward
            if not was_whole:
                group.reshard()


def _parts(model: nn.Module, name: str) -> list[Any]:
    fsdp = sys.modules.get("torch.distributed.fsdp")  # nobody shards without it; its import takes a second
    kind = getattr(fsdp, name, None)
    return [] if kind is None else [m for m in model.modules() if isinstance(m, kind)]


def _groups(part: Any) -> list[Any]:
    state = part._get_fsdp_state()
    found = getattr(state, "_fsdp_param_groups", None)  # there are several in later versions of torch
    return [g for g in ([state._fsdp_param_group] if found is None else found) if g is not None]


@contextmanager
def unwrapped(model: nn.Module) -> Iterator[None]:
    """DDP's wrappers call what they wrap and do nothing else while inside.

    Else a pass would share out the buffers, which is a collective, and make ready for a backward pass that does not come.
    """
    with ExitStack() as stack:
        for module in [m for m in model.modules() if isinstance(m, DistributedDataParallel)]:
            stack.callback(_put_back, module, vars(module).get("forward"))
            object.__setattr__(module, "forward", module.module)
        yield


def _put_back(module: nn.Module, forward: Any) -> None:
    object.__delattr__(module, "forward")
    if forward is not None:
        object.__setattr__(module, "forward", forward)
