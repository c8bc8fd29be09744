"""`explain`: one Event with no Trainer at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_interp.batches import Place
from lightning_interp.events import Event
from lightning_interp.loaders import probe_loader
from lightning_interp.monitor import DEFAULT_MEASURES, Monitor
from lightning_interp.progress import bars
from lightning_interp.variables import Variable


def explain(
    model: nn.Module,
    dataloader: Iterable[Any],
    variables: Sequence[Variable],
    layers: Sequence[str] = (),
    output: str | None = None,
    inputs: str | int | Sequence[str] | Callable[..., Any] | None = None,
    target: Place | None = None,
    measures: Sequence[str] = DEFAULT_MEASURES,
    weights: str = "balanced",
    interactions: bool = False,
    pooling: str | Callable[[Tensor], Tensor] = "mean",
    max_samples: int = 4096,
    cluster: Place | None = None,
    sample_id: Place | None = None,
    seed: int = 0,
    step: int = 0,
    epoch: int = 0,
    progress: bool = True,
) -> Event:
    """Measure a model on a probe set, in evaluation mode; the model is left as it was.

    Args:
        model: the network.
        dataloader: batches, a `DataLoader` or a `Dataset`.
        variables: concepts and confounders; at least one with labels.
        layers: names or globs of submodules to read.
        output: the module whose output is explained; None: what the model returns.
        inputs: what the model is given: a key, an index, a list of keys, or a function `(model, batch) -> output`; None: the
            first element of a tuple or list, else the batch itself.
        target: where the task's label sits in a batch.
        measures: of "contribution", "decodability", "groups", "entanglement", "sensitivity", "mediation", "intervention".
        weights: "balanced" or "natural".
        interactions: whether two-way products of variables are split from what is unexplained.
        pooling: how a layer's activation becomes one vector per sample.
        max_samples: rows kept as single samples.
        cluster: where the id of the source sits that several samples share.
        sample_id: where the sample's id sits.
        seed: of the samples' folds and controls.
        step: optimizer steps done, for the Event.
        epoch: for the Event.
        progress: whether what takes over two seconds shows a bar on the terminal.

    Returns:
        The `Event`; `print(event)` is the equation.

    Raises:
        InterpError: an argument, a layer or a label is not there; the message names the nearest that is.

    Example:
        >>> import torch
        >>> from lightning_interp import Concept, Confounder, explain
        >>> x = torch.randn(200, 3)
        >>> batch = {"x": x, "moo": (x[:, 0] > 0).long(), "grass": (x[:, 1] > 0).long()}
        >>> event = explain(torch.nn.Linear(3, 2), [batch], [Concept("moo"), Confounder("grass")], inputs="x")
        >>> event.n
        200
    """
    monitor = Monitor(
        model,
        variables,
        layers,
        output,
        target,
        inputs,
        measures,
        weights,
        interactions,
        pooling,
        max_samples,
        cluster,
        sample_id,
        warn_above=float("inf"),
        seed=seed,
    )
    with bars(progress):
        monitor.run(probe_loader(dataloader))
        return monitor.event(step, epoch)
