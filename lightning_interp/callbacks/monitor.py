"""`ConceptMonitor`: watches what a model uses while Lightning trains it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_interp.callbacks.probing import ProbingCallback
from lightning_interp.events import Event
from lightning_interp.monitor import DEFAULT_MEASURES, Monitor
from lightning_interp.summaries import EventWriter
from lightning_interp.summaries.table import summary_table
from lightning_interp.variables import Variable

try:
    from lightning.pytorch import LightningModule, Trainer
except ImportError:  # the other name of the same package
    from pytorch_lightning import LightningModule, Trainer  # type: ignore[assignment]


class ConceptMonitor(ProbingCallback[Monitor]):
    """Measures how much each concept and each confounder contributes to the output, while the model trains.

    It never changes the run: with it and without it the weights after training are the same bits. On the validation or training
    loop it reads what the loop already runs; hooks are on the model only while a batch is being read.

    Logged, to `trainer.callback_metrics` and to every logger: `contribution/{variable}` (share of output variance, 0…1),
    `effect/{variable}` (logits), `decodability/{layer}/{variable}`, `selectivity/…`, `decodability_accuracy/…`,
    `decodability_auroc/…`, `drift/…`, `sensitivity/…`, `tcav/…`, `mediation/{layer}/{erased}/{variable}` (fraction of an effect
    that is gone), `entanglement/{layer}` (mean cosine), `intervention/{variable}`, `group/worst_accuracy`, `group/gap`,
    `group/accuracy/{cell}`. TensorBoard also gets the equation as text, a heat map, and one chart of all contributions.

    Args:
        variables: concepts and confounders; at least one with labels. One with `examples` is measured at `layers`, in a pass
            of the library's own over its examples at each event.
        layers: names or globs below the LightningModule (`*` stops at a dot, `**` does not); empty: only the output.
        output: the module whose output is explained; None: the result of the LightningModule's own forward.
        target: where the task's label sits in a batch; None: the second element of a tuple or list, else accuracy by group is
            withheld.
        inputs: what passes of the library's own give the model: a key, an index or a dotted path, a list of keys, or a function
            `(model, batch) -> output`; None: the first element of a tuple or list, else the batch itself.
        data: "val" or "train" reads what the loop runs; a DataLoader or Dataset gets a pass of its own. "train" is the last
            batches before an event; where a run is stopped among them and resumed, those before are not in it, which is said.
        every_n_epochs: epochs between events; None: every epoch, unless steps are given.
        every_n_train_steps: optimizer steps between events.
        measures: of "contribution", "decodability", "groups", "entanglement"; and of "sensitivity", "mediation",
            "intervention", which take passes of their own.
        weights: "balanced": every cell of the variables counts the same, where the cells allow it; or "natural".
        interactions: whether two-way products of variables are split from what is unexplained.
        pooling: how a layer's activation becomes one vector per sample: "mean", "first", "last", "masked_mean", "flatten"
            (tells places apart), or a function.
        max_samples: rows kept as single samples; the length of the training window; inputs kept for own passes.
        dataloader_idx: which validation loader, where there are several.
        cluster: where the id of the source sits that several samples share; intervals then allow for it.
        sample_id: where the sample's id sits; None: its content is its id.
        warn_above: a confounder's debiased share over which one clear warning is given.
        prefix: put before every logged key.
        max_events: events kept; beyond it every other old one is let go.
        seed: of the samples' folds and controls.
        summary: whether a table of the events is printed at the end of `fit`, once.

    Raises:
        InterpError: an argument is not usable; the message names the nearest that is.

    Example:
        >>> from lightning_interp import Concept, Confounder, ConceptMonitor
        >>> monitor = ConceptMonitor([Concept("digit"), Confounder("grass")], layers=["encoder.*"], target="label")
        >>> monitor.latest is None
        True
    """

    def __init__(
        self,
        variables: Sequence[Variable],
        layers: Sequence[str] = (),
        output: str | None = None,
        target: str | int | Callable[[Any], Any] | None = None,
        inputs: str | int | Sequence[str] | Callable[..., Any] | None = None,
        data: Literal["val", "train"] | DataLoader | Dataset = "val",
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        measures: Sequence[str] = DEFAULT_MEASURES,
        weights: Literal["balanced", "natural"] = "balanced",
        interactions: bool = False,
        pooling: str | Callable[[Tensor], Tensor] = "mean",
        max_samples: int = 4096,
        dataloader_idx: int = 0,
        cluster: str | int | Callable[[Any], Any] | None = None,
        sample_id: str | int | Callable[[Any], Any] | None = None,
        warn_above: float = 0.25,
        prefix: str = "",
        max_events: int = 1000,
        seed: int = 0,
        summary: bool = True,
    ) -> None:
        self.monitor = Monitor(
            None,
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
            warn_above,
            max_events,
            seed,
        )
        self.places = {"output": output, "inputs": self.monitor.inputs.place, "target": target}
        super().__init__(self.monitor, data, every_n_epochs, every_n_train_steps, dataloader_idx, prefix)
        self.summary = summary
        self._alarmed: set[str] = set()
        self._writers: dict[int, EventWriter] = {}

    @property
    def latest(self) -> Event | None:
        """The last event, None before the first."""
        return self.monitor.latest

    @property
    def history(self) -> tuple[Event, ...]:
        """All events, also those before a resume."""
        return self.monitor.history

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary, on the first process only."""
        if self.summary and self.history:
            coding = sys.stdout.encoding or "utf-8"  # a terminal that cannot show a name may not end the training
            pl_module.print(summary_table(self.history, self.prefix).encode(coding, "replace").decode(coding))

    def _show(self, writers: Sequence[Any], event: Event, step: int) -> None:
        fresh = [name for name in self.monitor.suspects(event) if name not in self._alarmed]
        self._alarmed |= set(fresh)
        alarms = [self.monitor.alarm(event, name) for name in fresh]
        for writer in writers:
            if id(writer) not in self._writers:
                self._writers[id(writer)] = EventWriter(writer, [v.name for v in self.monitor.labelled], self.prefix)
            self._writers[id(writer)].write(event, step, alarms)

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors, so that checkpoints load with `weights_only=True`."""
        return {**super().state_dict(), "monitor": self.monitor.state_dict(), "alarmed": sorted(self._alarmed)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as if never stopped."""
        super().load_state_dict(state_dict)
        self.monitor.load_state_dict(state_dict["monitor"])
        self._alarmed = set(state_dict["alarmed"])
