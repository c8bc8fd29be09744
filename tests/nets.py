"""Small nets and probe sets whose truth is known: outputs are exact sums of what the batch says, in float64."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_interp import Concept, Confounder, Monitor
from lightning_interp.errors import InterpWarning

NAMES = ("moo", "tail", "grass")


class Equation(nn.Module):
    """outputs = x @ coefficients.T + constant, by way of a hidden layer: `encoder.0`, `encoder.1`, then a linear `head`.

    Args:
        coefficients: `[c][k]` of each output for each column of the input.
        constant: added to every output.
        hidden: width of the hidden layer, at least k.
    """

    def __init__(self, coefficients: Sequence[Sequence[float]], constant: float = 0.0, hidden: int = 6) -> None:
        super().__init__()
        wanted = torch.tensor(coefficients, dtype=torch.float64)
        c, k = wanted.shape
        basis = torch.linalg.qr(torch.randn(hidden, k, generator=torch.Generator().manual_seed(7), dtype=torch.float64))[0]
        self.encoder = nn.Sequential(nn.Linear(k, hidden, bias=False), nn.Identity()).double()
        self.head = nn.Linear(hidden, c).double()
        with torch.no_grad():
            self.encoder[0].weight.copy_(basis)
            self.head.weight.copy_(wanted @ basis.T)  # basis' columns are orthonormal: head(encoder(x)) = wanted x
            self.head.bias.fill_(constant)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def net_of_tanh() -> nn.Module:
    """Four columns to two logits by `encoder.0`, linear, `encoder.1`, tanh, and a linear `head`."""
    model = Equation([[1.0, 0.5, -0.4, 0.3], [-1.0, 0.2, 0.8, -0.3]])
    model.encoder[1] = nn.Tanh()
    return model


def probe(counts: Mapping[tuple[int, int, int], int] | int = 20, seed: int = 0, noise: float = 1.0) -> dict[str, Tensor]:
    """Samples of moo, tail and grass in 0/1, with a noise column that sums to zero in every cell.

    Args:
        counts: samples in each cell (moo, tail, grass), or one number for all.
        seed: of the noise.
        noise: its size.

    Returns:
        {"x": `[n, 4]` of the three variables as 0/1 and the noise, and each variable `[n]`}.
    """
    generator = torch.Generator().manual_seed(seed)
    cells = torch.cartesian_prod(*[torch.arange(2)] * 3)
    rows, extra = [], []
    for cell in cells:
        n = counts if isinstance(counts, int) else counts.get(tuple(cell.tolist()), 0)
        if n:
            e = torch.randn(n, generator=generator, dtype=torch.float64) * noise
            rows.append(cell.expand(n, 3))
            extra.append(e - e.mean())
    values = torch.cat(rows)
    x = torch.cat([values.double(), torch.cat(extra)[:, None]], dim=1)
    batch = {"x": x, **{name: values[:, j] for j, name in enumerate(NAMES)}}
    order = torch.randperm(len(x), generator=generator)
    return {k: v[order] for k, v in batch.items()}


UNEVEN = {(a, b, c): 8 + 9 * (a == c) + 5 * b + 3 * a for a in (0, 1) for b in (0, 1) for c in (0, 1)}


def cut(batch: Any, size: int) -> Iterator[Any]:
    """A batch of tensors (or lists) in pieces of `size` samples."""
    n = len(next(iter(batch.values())))
    for start in range(0, n, size):
        yield {k: v[start : start + size] for k, v in batch.items()}


def variables() -> list[Any]:
    """moo and tail should matter, grass should not."""
    return [Concept("moo"), Concept("tail"), Confounder("grass")]


def monitor_of(model: nn.Module | None, which: Sequence[Any] | None = None, **options: Any) -> Monitor:
    """A Monitor that reads `x` and gives no alarm."""
    options = {"inputs": "x", "warn_above": float("inf"), **options}
    return Monitor(model, variables() if which is None else which, **options)


def feed(monitor: Monitor, model: nn.Module, batches: Any) -> None:
    """What a user's loop does."""
    for batch in batches:
        with monitor.watching(batch), torch.no_grad():
            model(batch["x"])


def measured(model: nn.Module, batch: Any, which: Sequence[Any] | None = None, size: int = 37, **options: Any) -> Any:
    """One Event from one probe set."""
    monitor = monitor_of(model, which, **options)
    feed(monitor, model, cut(batch, size))
    return monitor.event(step=1)


@contextmanager
def said(match: str | None = None) -> Iterator[list[str]]:
    """The texts of all warnings given inside, one of which must match; any other kind than InterpWarning is an error."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield texts
        texts += [str(w.message) for w in found]
    assert all(issubclass(w.category, InterpWarning) for w in found), found
    assert match is None or any(re.search(match, text) for text in texts), texts


def hooks(model: nn.Module) -> int:
    """How many forward hooks of either kind are on the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Every bit of the state, and every training flag."""
    state = {k: v.detach().cpu().numpy().tobytes() for k, v in model.state_dict().items()}
    return {**state, "training": [m.training for m in model.modules()]}


def random_streams() -> tuple[Any, ...]:
    """The state of torch's, numpy's and Python's random number generators."""
    import random

    import numpy as np

    found = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), found[1].tobytes(), found[2:], random.getstate()


# --- reached by import path -------------------------------------------------------------------------------------------

NOT_A_FUNCTION = 3


def grass_of(batch: Any) -> Tensor:
    return batch["grass"]


def swap_grass(batch: Any) -> Any:
    """do(grass): only the third column of x changes."""
    x = batch["x"].clone()
    x[:, 2] = 1 - x[:, 2]
    return {**batch, "x": x, "grass": 1 - batch["grass"]}


def first_token(a: Tensor) -> Tensor:
    return a[:, 0]


def call_x(model: nn.Module, batch: Any) -> Any:
    return model(batch["x"])


def with_stripes() -> Any:
    """Inputs that show a fourth column of 2."""
    return {"x": probe(6, seed=3)["x"] + torch.tensor([0.0, 0, 0, 2], dtype=torch.float64)}


def without_stripes() -> Any:
    return {"x": probe(5, seed=4)["x"]}
