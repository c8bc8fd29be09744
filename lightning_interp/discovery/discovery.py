"""`Discovery`: the loop-agnostic core. It looks for what the model uses and nobody has named."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_interp.activations.quiet import random_state
from lightning_interp.activations.select import find_module
from lightning_interp.batches import Inputs, Place, load_function
from lightning_interp.collection import Rows as BatchRows
from lightning_interp.discovery.assessment import (
    by_cell,
    contributions,
    flips,
    obstacle,
    relation,
    sides,
    useful_directions,
)
from lightning_interp.discovery.deletion import deletions, eraser
from lightning_interp.discovery.dictionary import Code, Dictionary, SplitDictionary, code_of, code_state
from lightning_interp.discovery.features import Feature, FeatureEvent
from lightning_interp.discovery.identity import Identities, Match
from lightning_interp.discovery.promotion import FeatureLabel
from lightning_interp.discovery.rows import Rows, joined
from lightning_interp.discovery.samples import find_samples, shown
from lightning_interp.errors import InterpError, LayerError, VariableError, at_least, known_names, nearest
from lightning_interp.functional.shares import MAX_LMG
from lightning_interp.functional.splits import clarity
from lightning_interp.passes import Replay
from lightning_interp.probe import Probe, thinned
from lightning_interp.processes import gathered, together
from lightning_interp.reading import Reader
from lightning_interp.saved_state import restoring
from lightning_interp.variables import Confounder, Variable, check_labelled, check_variables
from lightning_interp.watcher import Watch

STATE_VERSION = 1
SAME_WEIGHTS = 1e-9  # change of their sum over the sum of their sizes: rounding on another device
CHECKED = 3  # features that are deleted from the layer to see what goes: each costs one run of what stands above it


class Found(NamedTuple):
    """The code of the last event, which of its columns is which feature, and of which weights it is."""

    code: Code
    names: tuple[str, ...]
    reversed: tuple[bool, ...]
    weights: tuple[float, float]


class Discovery(Probe):
    """Watches any training loop, and looks at a layer for features that nobody has named.

    At an event, features are found on half of the samples (by a hash of each, or of its source), and judged on the other
    half: how much of the output that the named variables leave unexplained goes with them, whether their relation to the label
    turns round on samples that the model gets wrong, how early they came, and, for the three most suspicious, how much of what
    is unexplained goes when they are deleted from the layer. Nothing is trained with the model, and nothing is changed in it.

    A feature is what the layer shows, not what the world holds: look at its strongest and weakest samples before naming it. A
    hidden factor that travels with a feature is credited to it, as in every regression.

    Args:
        model: the network; None if it comes later, by `bind`.
        layer: the submodule to look at, by its full name.
        variables: the named ones, concepts and confounders with labels; none at all is allowed.
        output: the module whose output is to be explained; None: the result of the model's own forward.
        target: where the task's label sits in a batch; None: the second element of a tuple or list.
        inputs: what passes of the library's own give the model, see `Inputs`.
        dictionary: how features are found; `SplitDictionary()` by default.
        features: how many are reported, 10 at most (the LMG shares are exact).
        weights: of the equation on the named variables, "balanced" or "natural".
        pooling: how the activation becomes one vector per sample.
        max_samples: samples that count at an event, and inputs kept to be looked at.
        show: strongest and weakest samples kept of each feature; 0: none.
        decode: turns one sample's input (token ids) into text, or `"pkg.mod:function"`.
        cluster: where the id of the source sits that several samples share: they are kept in one half.
        sample_id: where the sample's id sits; None: its content is its id.
        max_events: events kept; beyond it every other old one is let go.
        seed: of the halves and of the dictionary's random starts.

    Raises:
        InterpError: an argument is not usable; the message names the nearest that is.
    """

    def __init__(
        self,
        model: nn.Module | None,
        layer: str,
        variables: Sequence[Variable] = (),
        output: str | None = None,
        target: Place | None = None,
        inputs: str | int | Sequence[str] | Callable[..., Any] | None = None,
        dictionary: Dictionary | None = None,
        features: int = 10,
        weights: str = "balanced",
        pooling: str | Callable[[Tensor], Tensor] = "mean",
        max_samples: int = 4096,
        show: int = 8,
        decode: str | Callable[[Tensor], str] | None = None,
        cluster: Place | None = None,
        sample_id: Place | None = None,
        max_events: int = 1000,
        seed: int = 0,
    ) -> None:
        if not isinstance(layer, str):
            raise LayerError(f"`layer` expects the name of one submodule, got {layer!r}.")
        self.variables = check_variables(variables) if variables else ()
        check_labelled(self.variables, "a discovery")
        called = Inputs(inputs)
        super().__init__(
            Reader(self.variables, called, target, cluster, sample_id), called, [layer], output, pooling, max_samples
        )
        if not self.pooling.liftable:
            raise LayerError("`pooling` expects one of the library's own: what a function has pooled cannot be written back.")
        if at_least(features, 1, "features") > MAX_LMG:
            raise InterpError(f"`features` expects {MAX_LMG} at most, got {features}: their shares are exact up to there.")
        self.layer = layer
        self.dictionary = SplitDictionary() if dictionary is None else dictionary
        self.features = features
        self.weights = known_names([weights], ("balanced", "natural"), "weights")[0]
        self.show = at_least(show, 0, "show")
        self.decode = load_function(decode, "decode") if isinstance(decode, str) else decode
        self.max_events = at_least(max_events, 2, "max_events")
        self.seed = seed
        self.history: tuple[FeatureEvent, ...] = ()
        self.promoted: dict[str, str] = {}
        self._identities = Identities()
        self._found: Found | None = None
        self._rows: list[BatchRows] = []
        self._beyond = 0
        self._level_names: dict[int, dict[float, str]] = {}
        self._replay = Replay(self.max_samples)
        if model is not None:
            self.bind(model)

    def bind(self, model: nn.Module) -> None:
        """Name the model to watch, and find its layer.

        Raises:
            LayerError: the layer or the output is no one submodule of it.
        """
        if "*" not in self.layer:
            find_module(model, self.layer, "layer")
        super().bind(model)
        if len(self._watcher.layers) != 1:
            found = ", ".join(list(self._watcher.layers)[:4])
            raise LayerError(
                f"`layer={self.layer!r}` expects one submodule, but it stands for {len(self._watcher.layers)} ({found}, …)."
            )

    @property
    def latest(self) -> FeatureEvent | None:
        """The last event, with its samples; None before the first."""
        return self.history[-1] if self.history else None

    def restart(self) -> None:
        """Forget the rows seen since the last event."""
        super().restart()
        self._rows = []
        self._beyond = 0
        self._replay.clear()

    def _take(self, watch: Watch, rows: BatchRows) -> None:
        for j, printed in watch.labels.level_names.items():
            self._level_names.setdefault(j, {}).update(printed)
        most = self._samples_here
        self._replay.max_rows = most
        if self.window is not None:
            self._rows = self._rows[-(self.window - 1) :] if self.window > 1 else []
        elif sum(len(r.keep) for r in self._rows) >= most:
            self._beyond += len(rows.keep)
            return
        self._rows.append(rows)
        self._replay.add(watch.batch, rows.keep, rows.finite, self.window)

    # --- an event -----------------------------------------------------------------------------------------------------

    def event(self, step: int, epoch: int = 0) -> FeatureEvent:
        """Look for features in the rows seen since the last event; with several processes, all must call it.

        Args:
            step: optimizer steps done.
            epoch: zero-based.

        Raises:
            ProbeSetError: no usable row was seen.
        """
        start = time.perf_counter()
        try:
            with together(), torch.inference_mode(False), torch.no_grad(), random_state():
                event = self._look(step, epoch)
                self._listen()
        finally:
            self.restart()
        event = replace(event, cost_seconds=time.perf_counter() - start)
        older = tuple(e.without_samples() for e in self.history[-1:])
        history = (*self.history[:-1], *older, event)
        self.history = thinned(history, self.max_events)
        for note in event.notes:
            self.say(note)
        return event

    def _look(self, step: int, epoch: int) -> FeatureEvent:
        rows, notes = joined(
            self._rows, self.layer_name, self.variables, self._level_names, self.weights, self.seed, self._skipped
        )
        notes += [n for n in (self._replay.note(), self._cut_off()) if n]
        event = FeatureEvent(step, epoch, self.layer_name, len(rows.key), rows.weights.mode, None, None)
        why = obstacle(rows)
        if why:
            return replace(event, notes=(*notes, f"discovery withheld: {why}"))
        total, left = rows.unexplained(rows.explained.output, ~rows.fitting)
        unexplained = left / total
        half = rows.fitting
        code = self.dictionary.fit(rows.h[half], useful_directions(rows), rows.z[half], self.seed)
        event = replace(event, unexplained=unexplained, unnamed=unexplained)
        if not len(code.threshold):
            self._found = Found(code, (), (), _fingerprint(self._watcher.model))
            self._identities.remember(rows.key, {}, {})
            return replace(event, notes=(*notes, f"no feature found at '{self.layer_name}'"))
        chosen, shares = contributions(rows, code.codes(rows.h), self.features)
        code = code.select(torch.tensor(chosen))
        codes = code.codes(rows.h)
        clear = clarity(codes[~rows.fitting], code.threshold)
        has = codes > code.threshold
        if not self._identities.comparable(rows.key):
            notes.append(
                "features are named anew: the samples are not those of the last event; `sample_id` says which they are"
            )
        matches = self._identities.match(rows.key, has)
        turned = torch.tensor([m.reversed for m in matches])
        codes, has = torch.where(turned, 1 - codes, codes), has ^ turned
        found = [
            replace(f, early=self._identities.early(f.name, f.contribution))
            for f in self._features(rows, codes, has, matches, shares, clear)
        ]
        found = [replace(f, suspicion=_suspicion(f)) for f in found]
        order = sorted(range(len(found)), key=lambda j: -found[j].suspicion)
        gone = self._deleted(rows, has, order[:CHECKED])
        pictures = self._pictures(self._extremes(rows, codes, found))
        ranked = tuple(replace(found[j], causal=gone.get(j), **pictures.get(found[j].name, {})) for j in order)
        now = _fingerprint(self._watcher.model)
        self._found = Found(code, tuple(f.name for f in found), tuple(turned.tolist()), now)
        self._identities.remember(
            rows.key, {f.name: has[:, j] for j, f in enumerate(found)}, {f.name: f.contribution for f in found}
        )
        return replace(event, unnamed=max(0.0, unexplained - sum(shares)), features=ranked, notes=tuple(notes))

    def _cut_off(self) -> str | None:
        beyond = sum(gathered(self._beyond))
        if not beyond:
            return None
        first = f"only the first {self.max_samples} samples count, {beyond} came after them"
        return f"{first}: shuffle the data, or raise `max_samples`"

    @property
    def layer_name(self) -> str:
        """The layer as the model names it."""
        return next(iter(self._watcher.layers))

    def _features(
        self, rows: Rows, codes: Tensor, has: Tensor, matches: Sequence[Match], shares: Sequence[float], clear: Tensor
    ) -> list[Feature]:
        judged = ~rows.fitting
        label = flip = None
        if rows.target is not None:
            y, right = sides(rows.target, rows.explained)
            label = relation(codes[judged], rows.target[judged], rows.explained.task == "regression")
            flip = None if right is None else flips(codes[judged], y[judged], right[judged])
        cells = by_cell(rows, has)
        return [
            Feature(
                name=m.name,
                contribution=shares[j],
                suspicion=0.0,
                clarity=float(clear[j]),
                prevalence=float(has[:, j].double().mean()),
                target=None if label is None else float(label[j]),
                flip=None if flip is None else float(flip[j]),
                stability=m.stability,
                groups={cell: found[j] for cell, found in cells.items()},
                promoted=self.promoted.get(m.name),
            )
            for j, m in enumerate(matches)
        ]

    def _deleted(self, rows: Rows, has: Tensor, which: Sequence[int]) -> dict[int, float | None]:
        model, name = self._watcher.model, self.layer_name
        layer, task = self._watcher.layers[name], rows.explained.task
        erasers = [eraser(rows, has[:, j]) for j in which]
        try:
            found = deletions(self._caller(), name, layer, erasers, task, self._reader, self._replay, rows)
        except InterpError:
            raise
        except Exception as problem:  # the user's network, called by us: it may raise anything
            raise InterpError(
                f"`inputs` expects what the model is called with in a pass of its own; {type(model).__name__} could not be "
                f"called with what was picked from the batch: {type(problem).__name__}: {problem}"
            ) from problem
        return dict(zip(which, found))

    def _extremes(self, rows: Rows, codes: Tensor, found: Sequence[Feature]) -> dict[str, tuple[Tensor, Tensor]]:
        """Keys of the strongest and the weakest samples of each feature."""
        most = min(self.show, len(rows.key) // 2)
        if not most:
            return {}
        order = codes.argsort(dim=0, descending=True, stable=True)
        return {f.name: (rows.key[order[:most, j]], rows.key[order[-most:, j].flip(0)]) for j, f in enumerate(found)}

    def _pictures(self, extremes: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, dict[str, Any]]:
        if not extremes:
            return {}
        wanted = torch.cat([key for pair in extremes.values() for key in pair])
        known = find_samples(self._replay, self._reader, self.inputs, wanted)
        out = {}
        for name, pair in extremes.items():
            sides = [[known[k] for k in keys.tolist() if k in known] for keys in pair]
            strongest, weakest = shown(sides[0], sides[1], self.decode)
            out[name] = {"strongest": strongest, "weakest": weakest}
        return out

    # --- giving a feature a name --------------------------------------------------------------------------------------

    def promote(self, feature: str, name: str, kind: str = "binary") -> Confounder:
        """Make a feature a named confounder, which needs no label: a frozen copy of the network reads it from a sample.

        The confounder is a measurement of the input, by the network as it stands now: it does not change while another network
        (or this one) learns to do without it. It serves wherever one with labels does: a monitor, `SuppressConfounder`,
        `EraseConfounder`, `edit`. Reading it costs one forward pass of the copy, without gradients, for every batch.

        Args:
            feature: its name in the last event, such as "feature 3".
            name: what to call it; look at its strongest and weakest samples first.
            kind: "binary": who has it; "continuous": the code itself, 0 where a sample has it not and 1 where it has.

        Raises:
            InterpError: there was no event yet, the feature is not in the last one, or the kind is none of the two.
        """
        if self._found is None:
            raise InterpError("`promote`: there was no event with features yet; train, or call `event` first.")
        if feature not in self._found.names:
            raise VariableError(
                f"`feature={feature!r}` is not in the last event, which has {', '.join(self._found.names) or 'none'}."
                f"{nearest(feature, self._found.names)}"
            )
        if kind not in ("binary", "continuous"):
            raise VariableError(f"`kind={kind!r}` is none of binary, continuous.{nearest(kind, ['binary', 'continuous'])}")
        model = self._watcher.model
        (before, size), (now, _) = self._found.weights, _fingerprint(model)
        if abs(now - before) > SAME_WEIGHTS * size:
            self.say(
                f"the network was trained on since '{feature}' was found at step {self.history[-1].step}: it may be read less "
                "well now; promote right after an event."
            )
        j = self._found.names.index(feature)
        code = self._found.code.select(torch.tensor([j]))
        label = FeatureLabel(model, self.layer_name, code, self.inputs, self.pooling, self._found.reversed[j], kind == "binary")
        confounder = Confounder(name, label=label, kind="binary" if kind == "binary" else "continuous")
        self.promoted[feature] = name
        if self.history:
            last = self.history[-1]
            marked = tuple(replace(f, promoted=self.promoted.get(f.name)) for f in last.features)
            self.history = (*self.history[:-1], replace(last, features=marked))
        return confounder

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors only, for a checkpoint."""
        found = self._found
        return {
            "version": STATE_VERSION,
            "events": [e.to_dict() for e in self.history],
            "dictionary": self.dictionary.state_dict(),
            "identities": self._identities.state_dict(),
            "promoted": dict(self.promoted),
            "found": None
            if found is None
            else {
                "code": code_state(found.code),
                "names": list(found.names),
                "reversed": list(found.reversed),
                "weights": list(found.weights),
            },
            "said": sorted(self._said),
            "committed": self._ever_committed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            InterpError: the state is of a later version, or lacks something.
        """
        with restoring("discovery", state, STATE_VERSION):
            self._restore(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.history = tuple(FeatureEvent.from_dict(e) for e in state["events"])
        self.dictionary.load_state_dict(state["dictionary"])
        self._identities.load_state_dict(state["identities"])
        self.promoted = dict(state["promoted"])
        self._said = set(state["said"])
        self._ever_committed = state["committed"]
        found = state["found"]
        if found is not None:
            names, turned = tuple(found["names"]), tuple(found["reversed"])
            self._found = Found(code_of(found["code"]), names, turned, tuple(found["weights"]))


def _fingerprint(model: nn.Module) -> tuple[float, float]:
    """Sum of the weights, and of their sizes: another one after any step of training."""
    found = [p.detach() for p in model.parameters() if p.is_floating_point()]
    found = [p.cpu() if p.device.type == "mps" else p for p in found]  # which has no float64
    sums = [(p.sum(dtype=torch.float64), torch.linalg.vector_norm(p, 1, dtype=torch.float64)) for p in found]
    return float(sum(float(s) for s, _ in sums)), float(sum(float(size) for _, size in sums))


def _suspicion(f: Feature) -> float:
    return f.contribution * (1 + (f.flip or 0.0) + (f.early or 0.0)) / 3
