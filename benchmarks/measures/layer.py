"""A stage of a net by plain hooks: its activations, the margin's gradients there, and the net run with others put in."""

import torch
from torch import Tensor

from measures.nets import DEPTHS, Staged


def margin(net: Staged, images: Tensor) -> Tensor:
    """logit₁ − logit₀, float64 `[n]`."""
    with torch.no_grad():
        logits = torch.cat([net(part) for part in images.split(512)]).double()
    return logits[:, 1] - logits[:, 0]


def activations(net: Staged, images: Tensor) -> dict[str, Tensor]:
    """Flattened activations at every stage, {depth: `[n, d]`}."""
    with torch.no_grad():
        out, h = {}, images
        for depth, stage in zip(DEPTHS, net.encoder):
            h = stage(h)
            out[depth] = h.flatten(1)
    return out


def gradients(net: Staged, images: Tensor) -> dict[str, Tensor]:
    """Gradient of each sample's margin at every stage, {depth: `[n, d]`}."""
    found, h = [], images
    for stage in net.encoder:
        h = stage(h).requires_grad_()
        found.append(h)
    logits = net.head(h)
    back = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), found)
    return {depth: g.flatten(1) for depth, g in zip(DEPTHS, back)}


def logits_from(net: Staged, depth: str, h: Tensor, images: Tensor) -> Tensor:
    """Logits of the net with flattened activations put in at a stage."""
    place = DEPTHS.index(depth)
    with torch.no_grad():
        shape = net.encoder[: place + 1](images[:1]).shape[1:]
        return net.head(net.encoder[place + 1 :](h.view(len(h), *shape)))
