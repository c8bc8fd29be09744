"""`Monitor`: the loop-agnostic core. It watches batches go by and measures what the model uses."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_interp.activations.capture import RootCalls, hooked
from lightning_interp.activations.pooling import Pooling, tensor_of
from lightning_interp.activations.quiet import eager
from lightning_interp.activations.select import Layer, find_module, module_names, select
from lightning_interp.batches import Inputs, Place, as_tensor, is_text, moved, pick, resolve_place
from lightning_interp.collection import Collection, Rows, all_finite
from lightning_interp.errors import InterpError, InterpWarning, LabelError, LayerError, ProbeSetError, nearest
from lightning_interp.events import Event, magnitude_of
from lightning_interp.functional.contribution import Table
from lightning_interp.functional.sampling import content_key, id_key
from lightning_interp.layers import LayerReader, LayerResult
from lightning_interp.measurement import Equation, contributions, equation, groups
from lightning_interp.passes import Caller, Replay, interventions, own_pass, sensitivities, token_mask
from lightning_interp.processes import gathered, world
from lightning_interp.variables import Variable, check_variables

MEASURES = ("contribution", "decodability", "groups", "sensitivity", "intervention")
DEFAULT_MEASURES = ("contribution", "decodability", "groups")
OWN_PASS = {"sensitivity", "intervention"}
STATE_VERSION = 1


@dataclass
class Watch:
    """One batch being watched."""

    batch: Any
    values: Tensor
    target: Tensor | None
    key: Tensor
    source: Tensor | None
    mask: Tensor | None
    outputs: list[Tensor] = field(default_factory=list)
    layers: dict[str, list[Tensor]] = field(default_factory=dict)
    problem: InterpError | None = None


class Monitor:
    """Watches any training loop: what the model's output is made of, and where its layers hold it.

    Args:
        model: the network; None if it comes later, by `bind`.
        variables: concepts and confounders.
        layers: names or globs of submodules to read (`*` stops at a dot, `**` does not); empty: only the output.
        output: the module whose output is explained; None: the result of the model's own forward.
        target: where the task's label sits in a batch; None: the second element of a tuple or list, else what needs it is
            withheld.
        inputs: what passes of the library's own give the model, see `Inputs`.
        measures: of "contribution", "decodability", "groups", "sensitivity", "intervention"; the last two run the model again.
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
        self.patterns = [layers] if isinstance(layers, str) else list(layers)
        self.output = output
        self.measures = _known(measures, MEASURES, "measures")
        self.weights = _known([weights], ("balanced", "natural"), "weights")[0]
        self.interactions = interactions
        self.pooling = Pooling(pooling)
        self.max_samples = _at_least(max_samples, 2, "max_samples")
        self.max_events = _at_least(max_events, 2, "max_events")
        self.warn_above = warn_above
        self.seed = seed
        self.inputs = Inputs(inputs)
        self._target = None if target is None else resolve_place(target, "target")
        self._cluster = None if cluster is None else resolve_place(cluster, "cluster")
        self._sample_id = None if sample_id is None else resolve_place(sample_id, "sample_id")
        self.mode = "probe"
        self.window: int | None = None
        self.context: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.history: tuple[Event, ...] = ()
        self._kinds = [v.kind for v in self.variables]
        self._directions: dict[str, dict[str, Tensor]] = {}
        self._said: set[str] = set()
        self._ever_committed = False
        self._skipped = 0
        self._root = RootCalls()
        self._collection = Collection(self._kinds, [], self.max_samples, seed)
        self._replay = Replay(self.max_samples)
        self.model: nn.Module | None = None
        if model is not None:
            self.bind(model)

    # --- the model ----------------------------------------------------------------------------------------------------

    def bind(self, model: nn.Module) -> None:
        """Name the model to watch, and find its layers.

        Raises:
            LayerError: a layer or the output is no submodule of it.
        """
        self.model = model
        self._layers = select(model, self.patterns)
        self._output = None if self.output is None else find_module(model, self.output, "output")
        self._collection.names = list(self._layers)

    @property
    def latest(self) -> Event | None:
        """The last event, None before the first."""
        return self.history[-1] if self.history else None

    # --- watching -----------------------------------------------------------------------------------------------------

    @contextmanager
    def watching(self, batch: Any, limit: int | None = None) -> Iterator[None]:
        """Watch the model run on a batch; hooks exist only inside, and an exception inside discards the batch.

        Args:
            batch: what the labels are read from, on any device.
            limit: count only so many of its first samples (the rest is a sampler's padding).
        """
        watch = self._begin(batch)
        if watch is None:
            yield
            return
        with ExitStack() as stack:
            if self._output is None:
                stack.enter_context(self._root.watching(self._bound()))
            self._hook(stack, watch, root=self._output is None)
            yield
        self._commit(watch, limit)

    def run(self, batches: Iterable[Any]) -> None:
        """Run the model on batches of the library's own, quietly, and watch it."""
        model = self._bound()
        with own_pass(model, gradients=False):
            for batch in batches:
                placed = moved(batch, self._device())
                watch = self._begin(placed)
                if watch is None:
                    continue
                with ExitStack() as stack:
                    self._hook(stack, watch, root=False)
                    stack.enter_context(self.context())
                    result = self.inputs.call(model, placed)
                if self._output is None:
                    self._read_output(watch, result, None)
                self._commit(watch, None)

    def restart(self) -> None:
        """Forget the rows seen since the last event."""
        self._collection.reset()
        self._replay.clear()
        self._skipped = 0

    def _bound(self) -> nn.Module:
        if self.model is None:
            raise InterpError("the Monitor has no model yet; give `model`, or call `bind(model)`.")
        return self.model

    def _device(self) -> torch.device:
        return next((p.device for p in self._bound().parameters()), torch.device("cpu"))

    def _begin(self, batch: Any) -> Watch | None:
        try:
            return self._read(batch)
        except Exception as problem:  # a label function is the user's: it may raise anything
            self._bad(problem)
            return None

    def _read(self, batch: Any) -> Watch:
        columns = []
        for j, v in enumerate(self.variables):
            column, names = v.read(batch)
            columns.append(column)
            if names:
                self._collection.level_names.setdefault(j, {}).update(names)
            if len(column) != len(columns[0]):
                raise LabelError(
                    f"`label of '{v.name}'` has {len(column)} values, that of '{self.variables[0].name}' {len(columns[0])}: "
                    "expected one per sample."
                )
        values = torch.stack([c.to(columns[0].device) for c in columns], dim=1)
        n = len(values)
        target = self._read_target(batch, n)
        return Watch(
            batch, values, target, self._read_key(batch, n), self._read_source(batch, n), token_mask(batch)
        )  # fmt: skip

    def _read_target(self, batch: Any, n: int) -> Tensor | None:
        if self._target is None and not (isinstance(batch, (list, tuple)) and len(batch) > 1):
            return None
        found = as_tensor(pick(batch, 1 if self._target is None else self._target, "target"), "target")
        if found.ndim == 0 or len(found) != n:
            if self._target is None:
                return None
            raise LabelError(f"`target={self._target!r}` has shape {list(found.shape)}, expected one per sample, {n}.")
        return found.clone()

    def _read_key(self, batch: Any, n: int) -> Tensor:
        if self._sample_id is not None:
            return self._ids(batch, self._sample_id, "sample_id", n)
        first = self.inputs.first(batch)
        if first is None or len(first) != n:
            raise LabelError(
                f"`sample_id`: the batch's first input has {'no rows' if first is None else len(first)}, the labels {n}; "
                "name the samples' ids, or the model's `inputs`."
            )
        return content_key(first)

    def _read_source(self, batch: Any, n: int) -> Tensor | None:
        return None if self._cluster is None else self._ids(batch, self._cluster, "cluster", n)

    def _ids(self, batch: Any, place: Place, argument: str, n: int) -> Tensor:
        found = pick(batch, place, argument)
        ids = id_key(found) if is_text(found) else id_key(as_tensor(found, argument))
        if len(ids) != n:
            raise LabelError(f"`{argument}={place!r}` has {len(ids)} values, expected one per sample, {n}.")
        return ids

    def _hook(self, stack: ExitStack, watch: Watch, root: bool) -> None:
        model = self._bound()
        stack.enter_context(eager(model))

        def read_layer(name: str, layer: Layer, output: Any) -> None:
            a = tensor_of(output, layer.key)
            if a is None:
                return
            try:
                pooled = self.pooling.pool(a.detach(), layer.module, watch.mask)
                watch.layers.setdefault(name, []).append(pooled)
            except LayerError as problem:
                watch.problem = LayerError(f"layer '{name}': {problem}")

        def read_output(name: str, layer: Layer, output: Any) -> None:
            if not self._root.wrapping:
                self._read_output(watch, output, layer.key)

        stack.enter_context(hooked(self._layers, read_layer))
        if root:
            stack.enter_context(hooked({"": Layer(model, None, True)}, read_output))
        elif self._output is not None:
            stack.enter_context(hooked({self.output or "": self._output}, read_output))

    @staticmethod
    def _read_output(watch: Watch, output: Any, key: str | None) -> None:
        found = tensor_of(output, key or ("logits" if isinstance(output, Mapping) and "logits" in output else None))
        if found is not None:
            watch.outputs.append(found.detach().clone())

    def _commit(self, watch: Watch, limit: int | None) -> None:
        try:
            rows = self._rows(watch, limit)
        except InterpError as problem:
            self._bad(problem)
            return
        self._ever_committed = True
        self._collection.add(rows, self.window)
        if OWN_PASS & set(self.measures):
            self._replay.max_rows = -(-self.max_samples // world()[1])
            self._replay.add(watch.batch, len(rows.values), self.window)

    def _rows(self, watch: Watch, limit: int | None) -> Rows:
        if watch.problem is not None:
            raise watch.problem
        n = len(watch.values)
        output = self._last(watch.outputs, n, self.output or "the model's forward", named=True)
        if output is None:
            raise self._no_output()
        layers = {}
        for name, calls in watch.layers.items():
            found = self._last(calls, n, name, self._layers[name].named)
            if found is not None:
                layers[name] = found
        if output.ndim > 2 or not output.is_floating_point():
            raise LayerError(
                f"`output={self.output!r}` gives {output.dtype} of shape {list(output.shape)}, expected floating [n] or [n, c]."
                + self._likely_outputs()
            )
        keep = torch.isfinite(watch.values).all(1)
        if limit is not None:
            keep[limit:] = False
        finite = all_finite(output, layers)
        return Rows(watch.values, output, watch.target, watch.key, watch.source, layers, keep, finite)

    def _last(self, calls: list[Tensor], n: int, name: str, named: bool) -> Tensor | None:
        fitting = [c for c in calls if c.ndim and len(c) == n]
        if len(fitting) > 1:
            self.say(f"'{name}' ran {len(fitting)} times in one step: its last call counts")
        if calls and not fitting and named:
            raise LayerError(f"'{name}' gives {len(calls[-1]) if calls[-1].ndim else 'no'} rows, the labels have {n}.")
        return fitting[-1] if fitting else None

    def _no_output(self) -> LayerError:
        if self.output is None:
            return LayerError(
                "`output=None` explains the result of the model's own forward, which did not run in the step."
                + self._likely_outputs()
            )
        return LayerError(f"`output={self.output!r}` did not run in the step.{self._likely_outputs()}")

    def _likely_outputs(self) -> str:
        likely = [name for name, m in module_names(self._bound()).items() if name and isinstance(m, nn.Linear)]
        return f" Likely modules: {', '.join(repr(name) for name in likely[-3:])}." if likely else ""

    def _bad(self, problem: Exception) -> None:
        """A batch that cannot be used: an error while nothing ever worked, later it is left out, counted, and said once."""
        if not self._ever_committed:
            raise problem
        self._skipped += 1
        self.say(f"a batch was left out: {problem}")

    def say(self, text: str) -> None:
        """Warn of something, once in a run and from one process."""
        if text not in self._said:
            self._said.add(text)
            if world()[0] == 0:
                warnings.warn(text, InterpWarning, stacklevel=4)

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
            event = self._measure(step, epoch)
        finally:
            self.restart()
        event = replace(event, cost_seconds=time.perf_counter() - start)
        self.history = _thinned((*self.history, event), self.max_events)
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
            notes.append(f"{skipped} batches were left out")
        results = self._layer_results(eq, notes)
        fields = contributions(eq)
        event = Event(
            step=step,
            epoch=epoch,
            n=eq.n,
            weights=eq.weights.mode,
            mode=self.mode,
            task=eq.task,
            coding=eq.coding(),
            skipped=skipped,
            groups=groups(eq) if "groups" in self.measures else None,
            decodability={name: r.scores for name, r in results.items() if r.scores},
            **(fields if "contribution" in self.measures else {}),
        )
        event = self._own_passes(event, eq, results, notes, fields["magnitude"])
        return replace(event, notes=tuple(dict.fromkeys(notes)))

    def _equation(self, rows: Table) -> Equation:
        names: dict[str, dict[float, str]] = {}
        task = self._collection.task
        for known, theirs in gathered((self._collection.level_names, task)):
            task = task or theirs
            for j, levels in known.items():
                names.setdefault(self.variables[j].name, {}).update(levels)
        return equation(
            rows,
            [v.name for v in self.variables],
            self._kinds,
            names,
            task or "binary",
            self.weights,
            self.interactions,
            self._cluster is not None,
        )

    def _layer_results(self, eq: Equation, notes: list[str]) -> dict[str, LayerResult]:
        if not self._layers:
            return {}
        kinds = {f.name: f for f in eq.design.factors}
        discrete = [v.name not in kinds or kinds[v.name].discrete for v in self.variables]
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
        return out

    def _check_ran(self, summaries: Mapping[str, Any], notes: list[str]) -> None:
        for name, layer in self._layers.items():
            if name in summaries:
                continue
            text = f"layer '{name}' never ran in a watched step, or returned no tensor with one row per sample"
            if layer.named and not self.history:
                ran = nearest(name, [n for n in module_names(self._bound()) if n and n != name])
                raise LayerError(f"`layers`: {text}.{ran}")
            notes.append(text)

    def _own_passes(
        self,
        event: Event,
        eq: Equation,
        results: Mapping[str, LayerResult],
        notes: list[str],
        size: Mapping[str, float],
    ) -> Event:
        if not OWN_PASS & set(self.measures):
            return event
        notes += [n for n in (self._replay.note(),) if n]
        caller = Caller(self._bound(), self.inputs, self._output, self.pooling, "attention_mask", self.context)
        if "sensitivity" in self.measures:
            found = sensitivities(caller, self._layers, results, eq, self._replay)
            event = replace(event, sensitivity=found)
            if results and not self.pooling.liftable:
                notes.append("sensitivity withheld: it is not defined for a pooling function")
        if "intervention" in self.measures:
            effect, said = interventions(
                caller,
                self.variables,
                lambda batch: torch.stack([v.read(batch)[0] for v in self.variables], 1),
                lambda batch, n: self._read_source(batch, n),
                eq,
                self._replay,
            )
            notes += said
            event = replace(event, intervention=effect, intervention_gap=_gaps(effect, size))
        return event

    def _warn(self, event: Event) -> None:
        for name, why in ((n, e.note) for n, e in event.contribution.items() if e.value is None):
            self.say(f"'{name}' withheld: {why}")
        for note in event.notes:
            self.say(note)
        for name in self.suspects(event):
            key = f"over {name}"
            if key not in self._said:
                self._said.add(key)
                if world()[0] == 0:
                    warnings.warn(self.alarm(event, name), InterpWarning, stacklevel=4)

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
            "events": [event.to_dict() for event in self.history],
            "directions": {layer: dict(found) for layer, found in self._directions.items()},
            "said": sorted(self._said),
            "task": self._collection.task,
            "committed": self._ever_committed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            InterpError: the state is of a later version.
        """
        if state.get("version", 0) > STATE_VERSION:
            raise InterpError(
                f"the checkpoint's monitor state has version {state['version']}, this library reads up to {STATE_VERSION}; "
                "update lightning-interp."
            )
        self.history = tuple(Event.from_dict(e) for e in state["events"])
        self._directions = {layer: dict(found) for layer, found in state["directions"].items()}
        self._said = set(state["said"])
        self._collection.task = state["task"]
        self._ever_committed = state["committed"]


def _known(given: Sequence[str], known: Sequence[str], argument: str) -> tuple[str, ...]:
    given = (given,) if isinstance(given, str) else tuple(given)
    for name in given:
        if name not in known:
            raise InterpError(f"`{argument}`: {name!r} is none of {', '.join(known)}.{nearest(name, known)}")
    return given


def _at_least(value: int, least: int, argument: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InterpError(f"`{argument}` expects a whole number of {least} or more, got {value!r}.")
    return value


def _thinned(history: tuple[Event, ...], most: int) -> tuple[Event, ...]:
    # Down-sampled, not cut off: the first and the latest stay, every other one between them goes.
    return history if len(history) <= most else (*history[:-1:2], history[-1])


def _gaps(effect: Mapping[str, Any], size: Mapping[str, float]) -> dict[str, float]:
    out = {}
    for name, found in effect.items():
        true = magnitude_of(found)
        if true is not None and name in size:
            out[name] = size[name] - true
    return out
