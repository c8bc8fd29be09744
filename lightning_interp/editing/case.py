"""A model, the rows that an edit is fitted to and judged on, and how one is given to the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_interp.activations.capture import hooked
from lightning_interp.activations.pooling import MODES, Pooling, tensor_of, with_tensor
from lightning_interp.activations.quiet import eager
from lightning_interp.activations.select import device_of, find_module
from lightning_interp.batches import Inputs, Place, moved
from lightning_interp.cell_moments import CellMoments, cell_moments
from lightning_interp.editing.graph import Graph
from lightning_interp.editing.plan import Site
from lightning_interp.errors import LayerError, ProbeSetError
from lightning_interp.events import Event
from lightning_interp.explanation import explain
from lightning_interp.functional.coding import is_discrete
from lightning_interp.functional.erasure import Eraser
from lightning_interp.functional.folding import pointwise
from lightning_interp.functional.outputs import explain_output
from lightning_interp.functional.sampling import uniform
from lightning_interp.loaders import probe_loader
from lightning_interp.passes.replay import Caller, own_pass
from lightning_interp.processes import gathered
from lightning_interp.progress import bar, wanted
from lightning_interp.reading import Reader
from lightning_interp.variables import Variable, check_labelled, check_variables

QUARTERS = 4


class Sample(NamedTuple):
    """What was read of the rows at a site.

    Attributes:
        quarters: their moments, split in four by a hash of the sample's key (of its source where there is one).
        accuracy: see `Case.accuracy`.
    """

    quarters: list[CellMoments]
    accuracy: dict[str, float] | None


class Case:
    """A model and a probe set.

    Args:
        model: the network.
        variable: what is cut out.
        given: what should be left.
        data: batches, a `DataLoader` or a `Dataset`; gone through several times.
        output: the module whose output is explained; None: what the model returns.
        inputs: what the model is given, see `Inputs`.
        target: where the task's label sits.
        pooling: "mean", "first", "last" or "masked_mean".
        cluster: where the id of a shared source sits.
        sample_id: where the sample's id sits.
        seed: of the split and the random control.

    Attributes:
        weights: of the events, "balanced" or "natural": those of the fit, once there is one.
    """

    def __init__(
        self,
        model: nn.Module,
        variable: Variable,
        given: Sequence[Variable],
        data: Any,
        output: str | None,
        inputs: str | int | Sequence[str] | Callable[..., Any] | None,
        target: Place | None,
        pooling: str,
        cluster: Place | None,
        sample_id: Place | None,
        seed: int,
    ) -> None:
        self.model, self.output, self.target = model, output, target
        self.variables = check_variables([variable, *given])
        check_labelled(self.variables, "an edit")
        self.cluster, self.sample_id, self.seed = cluster, sample_id, seed
        self.weights = "balanced"
        self.pooling = Pooling(pooling)
        if self.pooling.mode not in MODES:
            raise LayerError(
                f"`pooling={pooling!r}` expects one of {', '.join(MODES)}: what is pooled otherwise cannot be written back."
            )
        again = isinstance(data, (DataLoader, Dataset, list, tuple))
        self.data = data if again else list(probe_loader(data))
        self.inputs = Inputs(inputs)
        self.reader = Reader(self.variables, self.inputs, target, cluster, sample_id)
        layer = None if output is None else find_module(model, output, "output")
        self.caller = Caller(model, self.inputs, layer, self.pooling, lambda: eager(model))

    def batches(self) -> Iterator[Any]:
        """The batches on the model's device, for passes inside `own_pass`."""
        for batch in probe_loader(self.data):
            yield moved(batch, device_of(self.model))

    def first(self) -> Any:
        """The first batch.

        Raises:
            ProbeSetError: there is none.
        """
        with own_pass(self.model, gradients=False):
            found = next(iter(self.batches()), None)
        if found is None:
            raise ProbeSetError("`data` holds no batch.")
        return found

    def graph(self, batch: Any) -> Graph:
        """What the model does with a batch, in evaluation mode; a layer that runs twice does so here."""
        explained: list[Any] = []

        def call() -> Any:
            with hooked({} if self.caller.output is None else {"": self.caller.output}, lambda *a: explained.append(a[2])):
                return self.inputs.call(self.model, batch), explained

        with own_pass(self.model, gradients=False):
            return Graph(self.model, call)

    def raw(self, batch: Any) -> Tensor:
        """The output for a batch, in evaluation mode."""
        with own_pass(self.model, gradients=False):
            return self.caller.run(batch).clone()

    def event(self, measures: Sequence[str]) -> Event:
        """Measure the model as it is, hooks included."""
        return explain(
            self.model,
            self.data,
            self.variables,
            output=self.output,
            inputs=self.inputs.place,
            target=self.target,
            measures=measures,
            weights=self.weights,
            cluster=self.cluster,
            sample_id=self.sample_id,
            seed=self.seed,
            progress=wanted(),
        )

    def sample(self, site: Site) -> Sample:
        """Read the rows at a site, in one pass.

        Raises:
            LabelError: a label is not there.
            LayerError: the site gives nothing finite with a row for every label.
            ProbeSetError: no row has all labels.
        """
        rows: list[tuple[Tensor, ...]] = []
        named: set[int] = set()
        score = _Score()
        with own_pass(self.model, gradients=False):
            for batch in bar(self.batches(), "reading the layer"):
                labels = self.reader.read(batch)
                named |= set(labels.level_names)
                with _tapped(site) as seen:
                    score.add(self.caller.run(batch), labels.target)
                pooled = [self.pooling.pool(a, site.shape_from, labels.mask) for a in seen]
                if len(pooled) != 1 or len(pooled[0]) != len(labels.values):
                    raise LayerError(f"`layer={site.name!r}` gave no row for each of {len(labels.values)} labels.")
                key = labels.key if labels.source is None else labels.source
                known = torch.isfinite(labels.values.cpu()).all(1)
                rows.append(tuple(t.cpu()[known] for t in (pooled[0], labels.values, key)))
        # Moments on the CPU, in float64: an accelerator may have none.
        if not sum(len(row[0]) for row in rows):
            raise ProbeSetError("`data` holds no row with all labels.")
        h, values, key = (torch.cat(part) for part in zip(*rows))
        return Sample(self._quarters(h, values, key, named), score.accuracy())

    def _quarters(self, h: Tensor, values: Tensor, key: Tensor, named: set[int]) -> list[CellMoments]:
        if not bool(torch.isfinite(h).all()):
            raise LayerError("the layer's activation is not finite.")
        seen = torch.cat(gathered(values))
        discrete = [is_discrete(v.kind, seen[:, j], j in named) for j, v in enumerate(self.variables)]
        quarter = (uniform(key, self.seed, 0) * QUARTERS).long()
        mine = [cell_moments(h[quarter == q], values[quarter == q], discrete) for q in range(QUARTERS)]
        everyones = gathered(mine)
        out = everyones[0]
        for other in everyones[1:]:
            out = [a + b for a, b in zip(out, other)]
        return out

    def accuracy(self) -> dict[str, float] | None:
        """Accuracy of all rows, `"all"`, and of each class; None without a target of classes."""
        score = _Score()
        with own_pass(self.model, gradients=False):
            for batch in bar(self.batches(), "accuracy"):
                score.add(self.caller.run(batch), self.reader.read(batch).target)
        return score.accuracy()


class _Score:
    """Right answers by class."""

    def __init__(self) -> None:
        self.rows: list[tuple[Tensor, Tensor]] = []

    def add(self, raw: Tensor, target: Tensor | None) -> None:
        if target is None or target.ndim != 1 or raw.ndim > 2:
            return
        correct = explain_output(raw, target).correct
        if correct is not None:
            self.rows.append((correct.cpu(), target.cpu().double()))

    def accuracy(self) -> dict[str, float] | None:
        parts = [row for part in gathered(self.rows) for row in part]
        if not parts:
            return None
        correct, target = (torch.cat(column) for column in zip(*parts))
        out = {"all": float(correct.mean())}
        return {**out, **{f"{c:g}": float(correct[target == c].mean()) for c in torch.unique(target).tolist()}}


@contextmanager
def _tapped(site: Site) -> Iterator[list[Tensor]]:
    """Collect copies of what stands at the site."""
    seen: list[Tensor] = []

    def keep(a: Tensor) -> None:
        seen.append(a.detach().clone())

    with _changed(site, keep):
        yield seen


@contextmanager
def erased(site: Site, eraser: Eraser) -> Iterator[None]:
    """The pointwise erasure as a hook: every position of the activation is projected."""
    with _changed(site, lambda a: pointwise(a, eraser.to(a), site.axis)):
        yield


@contextmanager
def _changed(site: Site, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    module, key = site.layer.module, site.layer.key
    if site.side == "input":

        def before(m: nn.Module, args: tuple[Any, ...]) -> Any:
            new = change(args[0])
            return None if new is None else (new, *args[1:])

        handle = module.register_forward_pre_hook(before)
    else:

        def after(m: nn.Module, args: Any, output: Any) -> Any:
            a = tensor_of(output, key)
            if a is None:
                raise LayerError(f"`layer={site.name!r}` gave no tensor.")
            new = change(a)
            return None if new is None else with_tensor(output, a, new)

        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
