"""`Monitor`: the loop-agnostic core. It watches batches go by and measures what the model uses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lightning_interp.activations.select import module_names
from lightning_interp.batches import Inputs, Place
from lightning_interp.collection import Collection, Rows
from lightning_interp.entanglement import entanglements
from lightning_interp.errors import (
    LayerError,
    LostProcessError,
    ProbeSetError,
    VariableError,
    at_least,
    described,
    known_names,
    nearest,
)
from lightning_interp.events import Event
from lightning_interp.footprint import footprint, module_units
from lightning_interp.functional.coding import is_discrete
from lightning_interp.functional.table import Table
from lightning_interp.layers import LayerReader, LayerResult
from lightning_interp.measurement import Equation, by_level_only, contributions, equation, groups
from lightning_interp.passes import OWN_PASS, OwnPasses, Replay, Shown, read_examples
from lightning_interp.probe import Probe, thinned
from lightning_interp.processes import gathered, together
from lightning_interp.reading import Reader
from lightning_interp.results import Score
from lightning_interp.saved_state import restoring
from lightning_interp.variables import EXAMPLE_MEASURES, Variable, check_variables
from lightning_interp.watcher import Watch

MEASURES = ("contribution", "decodability", "groups", "sensitivity", "mediation", "intervention", "entanglement")
DEFAULT_MEASURES = ("contribution", "decodability", "groups")
STATE_VERSION = 1
LEFT_OUT = "batches were left out"
_LOG = logging.getLogger(__name__)


class Monitor(Probe):
    """Watches any training loop: what the model's output is made of, and where its layers hold it.

    Args:
        model: the network; None if it comes later, by `bind`.
        variables: concepts and confounders; at least one with labels. One with `examples` is measured at `layers`, in a pass
            of the library's own over its examples at each event.
        layers: names or globs of submodules to read (`*` stops at a dot, `**` does not); empty: only the output.
        output: the module whose output is explained; None: the result of the model's own forward.
        target: where the task's label sits in a batch; None: the second element of a tuple or list, else what needs it is
            withheld.
        inputs: what passes of the library's own give the model, see `Inputs`.
        measures: of "contribution", "decodability", "groups", "entanglement"; and of "sensitivity", "mediation",
            "intervention", which run the model again.
        weights: "balanced" (every cell of the variables counts the same, where the cells allow it) or "natural".
        interactions: whether two-way products of variables are split from what is unexplained.
        pooling: how a layer's activation becomes one vector per sample, see `Pooling`.
        max_samples: rows kept as single samples, and inputs kept for passes of the library's own.
        cluster: where the id of the source sits that several samples share; intervals then allow for it.
        sample_id: where the sample's id sits; None: its content is its id.
        warn_above: a confounder's debiased share over which one warning is given.
        max_events: events kept; beyond it every other old one is let go.
        seed: of the samples' folds and controls.

    Raises:
        InterpError: an argument is not usable; the message names the nearest that is.

    Example:
        >>> import torch
        >>> from lightning_interp import Concept, Confounder, Monitor
        >>> net = torch.nn.Linear(3, 2)
        >>> monitor = Monitor(net, [Concept("moo"), Confounder("grass")], target="moo", inputs="x")
        >>> batch = {"x": torch.randn(200, 3), "moo": torch.arange(200) % 2, "grass": torch.arange(200) // 2 % 2}
        >>> with monitor.watching(batch):
        ...     _ = net(batch["x"])
        >>> sorted(monitor.event(step=0).contribution)
        ['grass', 'moo', 'unexplained']
    """

    def __init__(
        self,
        model: nn.Module | None,
        variables: Sequence[Variable],
        layers: Sequence[str] = (),
        output: str | None = None,
        target: Place | None = None,
        inputs: str | int | Sequence[str] | Callable[..., Any] | None = None,
        measures: Sequence[str] = DEFAULT_MEASURES,
        weights: str = "balanced",
        interactions: bool = False,
        pooling: str | Callable[[Tensor], Tensor] = "mean",
        max_samples: int = 4096,
        cluster: Place | None = None,
        sample_id: Place | None = None,
        warn_above: float = 0.25,
        max_events: int = 1000,
        seed: int = 0,
    ) -> None:
        self.variables = check_variables(variables)
        self.labelled = tuple(v for v in self.variables if v.examples is None)
        self.by_examples = tuple(v for v in self.variables if v.examples is not None)
        called = Inputs(inputs)
        super().__init__(
            Reader(self.labelled, called, target, cluster, sample_id), called, layers, output, pooling, max_samples
        )
        self.measures = known_names(measures, MEASURES, "measures")
        self.weights = known_names([weights], ("balanced", "natural"), "weights")[0]
        self.interactions = interactions
        self._check_examples()
        self.max_events = at_least(max_events, 2, "max_events")
        self.warn_above = warn_above
        self.seed = seed
        self.history: tuple[Event, ...] = ()
        self._written: dict[int, tuple[Event, dict[str, Any]]] = {}
        self._kinds = [v.kind for v in self.labelled]
        self._directions: dict[str, dict[str, Tensor]] = {}
        self._collection = Collection(self._kinds, [], self.max_samples, seed)
        self._replay = Replay(self.max_samples)
        self._checked: set[str] = set()
        if model is not None:
            self.bind(model)

    def _check_examples(self) -> None:
        for v in self.by_examples:
            if not self.labelled:
                raise VariableError(
                    f"`variables` expects at least one with labels; '{v.name}' has `examples`. The target itself will do: "
                    "declare it as a Concept."
                )
            if not self.patterns:
                raise VariableError(f"`layers` is empty: '{v.name}' has `examples`, which are measured at layers; name some.")
            if not set(EXAMPLE_MEASURES) & set(self.measures):
                raise VariableError(
                    f"`measures={list(self.measures)}`: '{v.name}' has `examples`, and these measures need labels; add one of "
                    f"{', '.join(EXAMPLE_MEASURES)}."
                )

    def bind(self, model: nn.Module) -> None:
        """Name the model to watch, and find its layers.

        Raises:
            LayerError: a layer or the output is no submodule of it.
        """
        super().bind(model)
        self._collection.names = list(self._watcher.layers)
        self._checked = set()
        if self.pooling.liftable:
            known = {name: module_units(layer.module) for name, layer in self._watcher.layers.items() if layer.key is None}
            footprint({n: d for n, d in known.items() if d is not None}, self._kinds, self.max_samples).check()

    @property
    def latest(self) -> Event | None:
        """The last event, None before the first."""
        return self.history[-1] if self.history else None

    def restart(self) -> None:
        """Forget the rows seen since the last event."""
        super().restart()
        self._collection.reset()
        self._replay.clear()

    def _begin(self, batch: Any) -> Watch | None:
        watch = super()._begin(batch)
        for j, names in (watch.labels.level_names if watch else {}).items():
            self._collection.level_names.setdefault(j, {}).update(names)
        return watch

    def _check_memory(self, units: Mapping[str, int]) -> None:
        """Refuse layers whose statistics would take too much, before the training or as soon as a batch tells their units."""
        if set(units) <= self._checked:
            return
        self._checked = set(units)
        found = footprint(units, self._kinds, self.max_samples)
        found.check()
        _LOG.info(str(found))

    def _take(self, watch: Watch, rows: Rows) -> None:
        self._check_memory({name: units for name, units in self._watcher.widths.items() if name})
        self._collection.add(rows, self.window)
        if set(OWN_PASS) & set(self.measures):
            self._replay.max_rows = self._samples_here
            self._replay.add(watch.batch, rows.keep, rows.finite, self.window)

    # --- measuring ----------------------------------------------------------------------------------------------------

    def event(self, step: int, epoch: int = 0) -> Event:
        """Measure everything from the rows seen since the last event; with several processes, all must call it.

        Args:
            step: optimizer steps done.
            epoch: zero-based.

        Returns:
            The `Event`, which is also added to `history`.

        Raises:
            ProbeSetError: no usable row was seen.
            VariableError: a variable cannot be coded, or cannot be told apart from another.
        """
        start = time.perf_counter()
        try:
            with together():
                event = self._measure(step, epoch)
                self._listen()
        finally:
            self.restart()
        event = replace(event, cost_seconds=time.perf_counter() - start)
        self.history = thinned((*self.history, event), self.max_events)
        self._warn(event)
        return event

    def _measure(self, step: int, epoch: int) -> Event:
        rows = self._collection.table()
        skipped = sum(gathered(self._skipped + self._collection.not_finite))
        if rows is None:
            raise ProbeSetError(
                "the probe set is empty: no batch had labels and finite outputs"
                + (f"; {skipped} were left out." if skipped else "."),
                skipped,
            )
        eq = self._equation(rows)
        notes = list(eq.notes)
        if self._collection.not_finite:
            self.say("batches with NaN or infinite outputs or activations are left out")
        if skipped:
            notes.append(f"{skipped} {LEFT_OUT}")
        shown = self._shown(eq, notes)
        results = self._layer_results(eq, notes)
        by_examples: dict[str, dict[str, Tensor]] = {}
        for s in shown:
            for layer, r in s.results.items():
                by_examples.setdefault(layer, {}).update(r.directions)
        for layer, directions in by_examples.items():
            self._directions.setdefault(layer, {}).update(directions)
        fields = contributions(eq)
        accuracy = groups(eq) if "groups" in self.measures else None
        if accuracy is not None and by_level_only(eq):
            notes.append(f"groups are single levels: {len(eq.weights.cells)} cells are too many")
        event = Event(
            step=step,
            epoch=epoch,
            n=eq.n,
            weights=eq.weights.mode,
            mode=self.mode,
            task=eq.task,
            coding=eq.coding(),
            probe=self._collection.probe(),
            confounders=tuple(v.name for v in self.variables if not v.should_matter),
            skipped=skipped,
            groups=accuracy,
            decodability=_scores([results, *(s.results for s in shown)]),
            entanglement=entanglements(results, eq, by_examples) if "entanglement" in self.measures else {},
            **(fields if "contribution" in self.measures else {}),
        )
        for measure in (m for m in OWN_PASS if m in self.measures):
            event, said = self._with_pass(event, measure, eq, results, fields["magnitude"], shown)
            notes += said
        return replace(event, notes=tuple(dict.fromkeys(notes)))

    def _equation(self, rows: Table) -> Equation:
        names: dict[str, dict[float, str]] = {}
        task = self._collection.task
        for known, theirs in gathered((self._collection.level_names, task)):
            task = task or theirs
            for j, levels in known.items():
                names.setdefault(self.labelled[j].name, {}).update(levels)
        return equation(
            rows,
            [v.name for v in self.labelled],
            self._kinds,
            names,
            task or "binary",
            self.weights,
            self.interactions,
            self._reader.cluster is not None,
        )

    def _layer_results(self, eq: Equation, notes: list[str]) -> dict[str, LayerResult]:
        if not self._watcher.layers:
            return {}
        kinds = {f.name: f for f in eq.design.factors}
        discrete = [kinds[v.name].discrete if v.name in kinds else self._guess(j, eq) for j, v in enumerate(self.labelled)]
        summaries, why = self._collection.summaries(discrete)
        if why:
            notes.append(why)
            self.say(why)
            return {}
        self._check_ran(summaries, notes)
        out, reader = {}, LayerReader(eq, discrete)
        for name, summary in summaries.items():
            seen = int(sum(float(m.count[0]) for m in summary.folds))
            if seen != eq.n:
                notes.append(f"layer '{name}' withheld: it ran for {seen} of {eq.n} samples")
                continue
            before = self._directions.get(name, {})
            out[name] = reader.read(summary, "decodability" in self.measures, before)
            self._directions[name] = dict(out[name].directions)
            notes += [f"layer '{name}': {note}" for note in out[name].notes]
        return out

    def _guess(self, j: int, eq: Equation) -> bool:
        # A constant variable is what its one value makes of it, as the collection guessed.
        return is_discrete(self._kinds[j], eq.rows.values[:1, j], j in self._collection.level_names)

    def _check_ran(self, summaries: Mapping[str, Any], notes: list[str]) -> None:
        for name, layer in self._watcher.layers.items():
            if name in summaries:
                continue
            text = f"layer '{name}' never ran in a watched step, or returned no tensor with one row per sample"
            if layer.named and not self.history:
                ran = nearest(name, [n for n in module_names(self._watcher.model) if n and n != name])
                raise LayerError(f"`layers`: {text}.{ran}")
            notes.append(text)

    def _shown(self, eq: Equation, notes: list[str]) -> list[Shown]:
        """What the example sets say; an error at first, later a note."""
        out = []
        for v in self.by_examples:
            notes.append(f"'{v.name}' has examples, no labels: no contribution")
            before = {layer: {n: d for n, d in known.items() if n == v.name} for layer, known in self._directions.items()}
            scored = "decodability" in self.measures
            try:
                found = read_examples(
                    self._caller(), self._watcher.layers, v, eq.task, self.max_samples, self.seed, scored, before
                )
            except VariableError as problem:
                if not any(before.values()):
                    raise
                notes.append(f"'{v.name}' withheld: {problem}")
                continue
            notes += found.notes
            out.append(found)
        return out

    def _with_pass(
        self,
        event: Event,
        measure: str,
        eq: Equation,
        results: Mapping[str, LayerResult],
        size: Mapping[str, float],
        shown: Sequence[Shown],
    ) -> tuple[Event, list[str]]:
        """The event with the numbers of one pass, and notes; an error at first, later they are withheld."""
        try:
            with together():
                return self._own_passes().added(event, [measure], eq, results, size, shown)
        except Exception as problem:
            if not self.history or isinstance(problem, LostProcessError):
                raise
            return event, [f"{measure} withheld: {described(problem)}"]

    def _own_passes(self) -> OwnPasses:
        watcher, caller = self._watcher, self._caller()
        return OwnPasses(caller, watcher.layers, self.labelled, self._reader, self._replay, self.seed)

    def _warn(self, event: Event) -> None:
        for name, why in ((n, e.note) for n, e in event.contribution.items() if e.value is None):
            if why not in event.notes:
                self.say(f"'{name}' withheld: {why}")
        for note in event.notes:
            if not note.endswith(LEFT_OUT):  # why was said already
                self.say(note)
        for name in self.suspects(event):
            self.say(self.alarm(event, name), key=f"over {name}")

    def suspects(self, event: Event) -> list[str]:
        """Confounders whose debiased share is over `warn_above`."""
        out = []
        for v in self.variables:
            share = event.contribution.get(v.name)
            if not v.should_matter and share and share.debiased is not None and share.debiased > self.warn_above:
                out.append(v.name)
        return out

    def alarm(self, event: Event, name: str) -> str:
        """The warning about one confounder."""
        share = event.contribution[name]
        return (
            f"step {event.step}: confounder '{name}' makes {100 * (share.debiased or 0):.0f} % of the output's variance "
            f"(warn_above={self.warn_above:g}). The model leans on it."
        )

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors only, for a checkpoint."""
        return {
            "version": STATE_VERSION,
            "events": [self._plain(event) for event in self.history],
            "directions": {layer: dict(found) for layer, found in self._directions.items()},
            "said": sorted(self._said),
            "task": self._collection.task,
            "committed": self._ever_committed,
        }

    def _plain(self, event: Event) -> dict[str, Any]:
        # Made once: checkpoints may come every epoch, and the history only grows. The event is kept beside: else a new one
        # could have the place in memory, and so the id, of one that was let go.
        if id(event) not in self._written or self._written[id(event)][0] is not event:
            now = {id(e): e for e in self.history}
            kept = {key: found for key, found in self._written.items() if now.get(key) is found[0]}
            self._written = {key: kept.get(key) or (e, e.to_dict()) for key, e in now.items()}
        return self._written[id(event)][1]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            InterpError: the state is of a later version, or lacks something.
        """
        with restoring("monitor", state, STATE_VERSION):
            self._restore(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.history = tuple(Event.from_dict(e) for e in state["events"])
        self._directions = {layer: dict(found) for layer, found in state["directions"].items()}
        self._said = set(state["said"])
        self._collection.task = state["task"]
        self._ever_committed = state["committed"]


def _scores(parts: Sequence[Mapping[str, LayerResult]]) -> dict[str, dict[str, Score]]:
    out: dict[str, dict[str, Score]] = {}
    for results in parts:
        for layer, r in results.items():
            if r.scores:
                out.setdefault(layer, {}).update(r.scores)
    return out
