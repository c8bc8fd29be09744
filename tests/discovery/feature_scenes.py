"""Networks that use something nobody has named, and rows of probe sets."""

from __future__ import annotations

from typing import Any

import nets
import torch
from torch import Tensor, nn

from lightning_interp import Concept, Confounder
from lightning_interp.collection import Rows as BatchRows
from lightning_interp.discovery import Discovery
from lightning_interp.discovery.rows import Rows, joined

LAYER = "encoder.1"
MARGIN = [1.0, 0.5, 2.0, 0.3]  # of moo, tail, grass and noise


def model(tanh: bool = False) -> nets.Equation:
    """Two logits whose difference is MARGIN of the input; `tanh` bends what the layer gives."""
    net = nets.Equation([[-c / 2 for c in MARGIN], [c / 2 for c in MARGIN]])
    if tanh:
        net.encoder[1] = nn.Tanh()
    return net


def samples(count: Any = 60, seed: int = 0) -> dict[str, Tensor]:
    """Samples of moo, tail and grass, with a label that moo makes and noise blurs."""
    batch = nets.probe(count, seed)
    drawn = torch.rand(len(batch["x"]), generator=torch.Generator().manual_seed(seed + 1))
    return {**batch, "y": torch.where(drawn < 0.9, batch["moo"], 1 - batch["moo"])}


def discovery(net: nn.Module | None, **options: Any) -> Discovery:
    """Only moo is named."""
    options = {"layer": LAYER, "variables": [Concept("moo")], "target": "y", "inputs": "x", **options}
    return Discovery(net, **options)


def feed(found: Discovery, net: nn.Module, batch: Any, size: int = 37) -> None:
    """What a user's loop does."""
    for part in nets.cut(batch, size):
        with found.watching(part), torch.no_grad():
            net(part["x"])


def looked(net: nn.Module, batch: Any, size: int = 37, **options: Any) -> Discovery:
    """A discovery with one event."""
    found = discovery(net, **options)
    feed(found, net, batch, size)
    found.event(step=1)
    return found


def batch_rows(h: Tensor, output: Tensor, values: Tensor, target: Tensor | None = None, **more: Any) -> BatchRows:
    """Rows of one batch as a Probe takes them; samples are numbered from 0."""
    n = len(h)
    options = {"key": torch.arange(n), "source": None, "keep": torch.ones(n, dtype=torch.bool), **more}
    return BatchRows(
        values=values.double(), output=output, target=target, layers={"layer": h}, finite=torch.tensor(True), **options
    )


def rows(
    h: Tensor, output: Tensor, values: Tensor, target: Tensor | None = None, weights: str = "balanced", **more: Any
) -> Rows:
    """Rows of a probe set with one confounder for each column of `values`."""
    named = [Confounder(f"v{j}") for j in range(values.shape[1])]
    return joined([batch_rows(h, output, values, target, **more)], "layer", named, {}, weights, 0, 0)[0]


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
