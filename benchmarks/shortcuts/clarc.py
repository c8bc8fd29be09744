"""Right-Reason ClArC by hand (Dreyer et al. 2024): a trained net, tuned so that its gradient has nothing of the confounder.

What stands below a layer is frozen; what stands above is trained on with cross-entropy + λ·E(∇ₐ(m·f)·v)², by a double backward
pass. v is the layer's pattern of the confounder (a CAV of unit length, from training rows), m random signs of the logits: one
draw per sample. Over space and tokens the gradient of every position counts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shortcuts.tasks import Fields, Task, loader


def gradient_along(output: Tensor, hidden: Tensor, signs: Tensor, direction: Tensor) -> Tensor:
    """Mean squared derivative of m·f along a direction, on the graph.

    Args:
        output: logits `[n, c]`.
        hidden: the activation that they were computed from, `[n, d, ...]`.
        signs: m, `[n, c]`.
        direction: v, `[d]`.
    """
    found = torch.autograd.grad((output * signs).sum(), hidden, create_graph=True)[0]
    return (found.flatten(2) if found.ndim > 2 else found.unsqueeze(2)).mul(direction[:, None]).sum(1).square().mean()


def pattern(hidden: Tensor, value: Tensor) -> Tensor:
    """The covariance of the pooled activation `[n, d]` with a column `[n]`, of unit length."""
    found = ((value - value.mean())[:, None] * (hidden - hidden.mean(0))).sum(0)
    return found / found.norm().clamp_min(1e-12)


def columns(values: Tensor) -> list[Tensor]:
    """A binary confounder as it is; of more levels, one column for each."""
    levels = values.unique()
    return [values.float()] if len(levels) == 2 else [(values == level).float() for level in levels]


class Tuned:
    """The passes through a net whose layer's activation is cut off from what stands below."""

    def __init__(self, net: nn.Module, layer: str) -> None:
        self.net, self.hidden = net, torch.empty(0)
        self._handle = net.get_submodule(layer).register_forward_hook(self._cut)

    def _cut(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        self.hidden = output.detach().requires_grad_()
        return self.hidden.clone()

    def close(self) -> None:
        """Take the hook away."""
        self._handle.remove()


def tune(task: Task, net: nn.Module, weight: float, seed: int, epochs: int, batch_size: int) -> None:
    """Train a net on, in place.

    Args:
        task: of the net.
        net: trained.
        weight: λ.
        seed: of the training part.
        epochs: of tuning.
        batch_size: samples.
    """
    data = task.fields("train", seed)
    cut = Tuned(net, task.bent)
    net.train()
    directions = _directions(task, cut, data)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)  # below the layer there are no gradients
    for _ in range(epochs):
        for batch in loader(data, batch_size, shuffle=True):
            logits = net(batch[task.inputs])
            signs = torch.randint(0, 2, logits.shape).to(logits) * 2 - 1
            penalty = sum(gradient_along(logits, cut.hidden, signs, v) for v in directions)
            optimizer.zero_grad()
            (F.cross_entropy(logits, batch["label"]) + weight * penalty).backward()
            optimizer.step()
    cut.close()


def _directions(task: Task, cut: Tuned, data: Fields) -> Sequence[Tensor]:
    pooled = []
    with torch.no_grad():
        for part in data[task.inputs].split(512):
            cut.net(part)
            pooled.append(cut.hidden.flatten(2).mean(2) if cut.hidden.ndim > 2 else cut.hidden)
    hidden = torch.cat(pooled).detach()
    return [pattern(hidden, column) for column in columns(data[task.confounder.name])]
