"""`Erasure`: the loop-agnostic core that erases a confounder from a layer's activation, in the forward pass."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from itertools import zip_longest
from operator import add
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_interp.activations.capture import hooked, in_backward
from lightning_interp.activations.pooling import MODES, Pooling, tensor_of, with_tensor
from lightning_interp.activations.quiet import eager
from lightning_interp.activations.select import Layer, find_module
from lightning_interp.batches import Inputs
from lightning_interp.cell_moments import CellMoments, cell_moments, from_state
from lightning_interp.certificate import certificate
from lightning_interp.errors import InterpError, InterpWarning, LayerError, NearestArgument, VariableError, alike, described
from lightning_interp.events import Event
from lightning_interp.functional.coding import code
from lightning_interp.functional.erasure import Eraser, Second, erased, net, second, weighted_leace
from lightning_interp.functional.moments import Cross, Moments
from lightning_interp.functional.probe import held_out_r2, ridge_probe
from lightning_interp.functional.unique import unique_rows
from lightning_interp.functional.weights import MIN_PER_CELL, sample_weights
from lightning_interp.penalties.contribution import halves
from lightning_interp.processes import gathered, world
from lightning_interp.reading import Reader, token_mask
from lightning_interp.saved_state import restoring
from lightning_interp.training_design import TrainingDesign
from lightning_interp.variables import Variable, check_labelled, check_variables, concept_names

STATE_VERSION = 1
OWN = ("design", "fresh", "skipped", "worked", "process")  # what several processes do not have in common, in the state


class Coding(NamedTuple):
    """How the variables are coded at one fit.

    Attributes:
        keys: the cells.
        codes: z of the discrete variables in each cell, `[cells, q]`.
        confounder: places of the confounder's columns in z.
        weights: "balanced" where every cell counts the same; else "natural", the given variables held fixed.
    """

    keys: tuple[tuple[float, ...], ...]
    codes: Tensor
    confounder: tuple[int, ...]
    weights: str

    def second(self, m: CellMoments) -> Second | None:
        """The second moments under these weights; None where the cells are not those of the coding, or too small."""
        found = m.aligned(self.keys)
        if not set(m.keys) <= set(self.keys) or (self.weights == "balanced" and not bool((found.count >= MIN_PER_CELL).all())):
            return None
        return second(found, self.codes.to(found.count.device), self.weights)


def coding_of(variables: Sequence[Variable], m: CellMoments) -> Coding:
    """How to code variables, the confounder first, from the cells that were seen.

    Raises:
        VariableError: the confounder is constant.
    """
    named = [v for v, discrete in zip(variables, m.discrete) if discrete]
    keys = torch.tensor(m.keys, dtype=torch.float64).reshape(len(m.keys), len(named))
    count = m.moments.count[1:].cpu()
    kinds = [_kind(v, keys[:, j]) for j, v in enumerate(named)]
    design = code(keys, count, [v.name for v in named], kinds)
    continuous = m.discrete.count(False)
    if variables[0].name in design.unmeasurable:
        raise VariableError("the confounder is constant so far")
    if not m.discrete[0]:
        confounder: tuple[int, ...] = (design.width,)
    else:
        confounder = tuple(range(design.factors[0].width))
    weights = sample_weights(design, keys, count, "natural" if continuous else "balanced").mode
    return Coding(m.keys, design.encode(keys), confounder, weights)


def fit_eraser(m: CellMoments, coding: Coding, ridge: float) -> Eraser:
    """LEACE under the weights of the coding.

    Raises:
        VariableError: the given variables leave nothing of the confounder.
    """
    codes = coding.codes.to(m.moments.gram.device)
    return weighted_leace(m.moments, codes, coding.confounder, coding.weights, ridge)


def readable(coding: Coding, halves: Sequence[CellMoments]) -> float | None:
    """R² with which a linear probe reads the confounder, the given variables held fixed, cross-fitted over two halves.

    None where a half has too few rows.

    Raises:
        VariableError: in so few rows it goes with the given ones.
    """
    sides = []
    for half in halves:
        s = coding.second(half)
        if s is None:
            return None
        variance, covariance = net(s, coding.confounder)
        zero = torch.zeros_like(variance)
        one = Moments(zero.new_ones(1), s.h.new_zeros(1, len(s.h)), s.h.new_zeros(1, 0, len(s.h)), s.hh)
        sides.append((one, Cross(zero, variance, covariance)))
    block = [slice(0, len(coding.confounder))]
    (a, x), (b, y) = sides
    r2 = (held_out_r2(ridge_probe(a, x), b, y, block) + held_out_r2(ridge_probe(b, y), a, x, block)) / 2
    return float(r2) if bool(torch.isfinite(r2).all()) else None


class Erasure(NearestArgument):
    """Erases a confounder from a layer's activation in any training loop.

    After every `every_n_steps` training steps the eraser (LEACE: the smallest affine edit after which no linear function of
    the pooled activation tells the confounder) is fitted anew to the activations of the last so many rows, the cells of the
    confounder and the given variables weighted alike. The gradient goes straight through, as if nothing were done. The weights
    of the model are not edited: **without the hook the model is not erased**. Parts that are compiled run eagerly inside.

    Args:
        model: the network; None if it comes later, by `bind`.
        confounder: what should not matter.
        layer: the module whose output is edited; `"encoder.3:hidden"` names the entry of a dict.
        given: what should, and goes with it: it is left in.
        pooling: "mean", "first", "last" or "masked_mean"; the same step is added at every place that the pooling reads, so
            that the pooled vector is erased exactly.
        start_rows: rows before the first fit.
        memory_rows: how fast the past fades, in rows of all processes: after so many, by a factor of e.
        every_n_steps: training steps between two fits; more where the layer is wide, or the processes are many.
        ridge: damping of the activation's covariance, in units of its mean eigenvalue; see `leace`.

    Attributes:
        eraser: the last fit; None before the first, `obstacle` then says why.
        weights: "balanced" or "natural" (an empty or small cell, a continuous variable), as in the last fit.
        remaining: R² with which a linear probe, cross-fitted under these weights, still reads the confounder from what was
            passed on in the last `memory_rows` rows, the given variables held fixed; each row came after the fit that
            erased it. None before it can be measured.
        skipped: batches that nothing could be learned from.

    Raises:
        InterpError: an argument is not usable.

    Example:
        >>> import torch
        >>> from lightning_interp import Concept, Confounder, Erasure
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        >>> erasure = Erasure(net, Confounder("grass"), "0", [Concept("moo")], every_n_steps=1)
        >>> batch = {"x": torch.randn(300, 3), "moo": torch.arange(300) % 2, "grass": torch.arange(300) // 2 % 2}
        >>> with erasure.watching(batch):
        ...     torch.nn.functional.cross_entropy(net(batch["x"]), batch["moo"]).backward()
        >>> with erasure.applied():
        ...     logits = net(batch["x"])
        >>> erasure.eraser.rank
        1
    """

    def __init__(
        self,
        model: nn.Module | None,
        confounder: Variable,
        layer: str,
        given: Sequence[Variable] = (),
        pooling: str = "mean",
        start_rows: int = 256,
        memory_rows: int = 1024,
        every_n_steps: int = 5,
        ridge: float = 1e-2,
    ) -> None:
        self.variables = check_variables([confounder, *given])
        check_labelled(self.variables, "an erasure")
        self.confounder = confounder
        if min(start_rows, memory_rows, every_n_steps) < 1:
            raise InterpError(
                "`start_rows`, `memory_rows` and `every_n_steps` expect 1 or more, "
                f"got {start_rows}, {memory_rows} and {every_n_steps}."
            )
        if not 0 <= ridge < math.inf:
            raise InterpError(f"`ridge` expects 0 or more, got {ridge!r}.")
        self._pooling = Pooling(pooling)
        if not self._pooling.liftable:
            raise LayerError(
                f"`pooling={pooling!r}` expects one of {', '.join(MODES)}: what a function has pooled cannot be written back."
            )
        self.layer = layer
        self.start_rows, self.memory_rows, self.every_n_steps, self.ridge = start_rows, memory_rows, every_n_steps, ridge
        self.design = TrainingDesign(self.variables)
        self.eraser: Eraser | None = None
        self.weights: str | None = None
        self.remaining: float | None = None
        self.obstacle = "nothing was learned from"
        self.skipped = 0
        self._reader = Reader(self.variables, Inputs(None), None, None, None)
        self._past: CellMoments | None = None  # the same in all processes
        self._fresh: list[CellMoments | None] = [None, None]  # rows since the last fit, in two halves
        self._left: list[CellMoments] = []  # what the fits in force made of the rows that came after them, in two halves
        self._steps = self._rows = 0
        self._worked = False
        self._standing = 0
        self._hook = ExitStack()
        self._own: Any = None  # the hook itself
        self._calls: list[Tensor] | None = None
        self._mask: Tensor | None = None
        self._mode = True
        self._said: set[str] = set()
        self.model: nn.Module | None = None
        if model is not None:
            self.bind(model)

    def bind(self, model: nn.Module) -> None:
        """Name the model.

        Raises:
            LayerError: the layer is no submodule of it.
        """
        self._layer = find_module(model, self.layer, "layer")
        self.model = model

    # --- the forward pass ---------------------------------------------------------------------------------------------

    @contextmanager
    def applied(self, batch: Any = None) -> Iterator[None]:
        """Erase by the last fit, and learn nothing; the hook exists only inside.

        Args:
            batch: where the `attention_mask` is read from, for a pooling that needs one.
        """
        if self.model is None:
            raise InterpError("the Erasure has no model yet; give `model`, or call `bind(model)`.")
        before, self._mask = self._mask, None if batch is None else token_mask(batch)
        with ExitStack() as stack:
            stack.callback(setattr, self, "_mask", before)
            if not self._standing:  # one hook, however many are inside each other
                stack.enter_context(eager(self.model))
                stack.callback(self._hook.close)
            self._stand()
            self._standing += 1
            stack.callback(self._leave)
            yield

    def _stand(self) -> None:
        """Hook the layer, unless it is; pruning and adapters put other modules in its place, and some take away all hooks."""
        layer = self._layer.now(self.model, self.layer) if self.model is not None else self._layer
        if layer.module is self._layer.module and any(hook is self._own for hook in layer.module._forward_hooks.values()):
            return
        self._layer = layer
        self._hook.close()
        self._own = self._hook.enter_context(hooked({self.layer: layer}, self._edit, recomputed=True))[self.layer]

    def _leave(self) -> None:
        self._standing -= 1

    @contextmanager
    def watching(self, batch: Any) -> Iterator[None]:
        """Erase by the last fit in a training step, and learn from it; at the end, every so many steps, fit anew.

        Where activations are recomputed in the backward pass (checkpointing), that pass belongs inside.
        """
        with self.learning(batch):
            yield
        if self._steps % self.every_n_steps == 0:
            self.refit()

    @contextmanager
    def learning(self, batch: Any) -> Iterator[None]:
        """Erase by the last fit, and learn from the batch; when to `refit` is the caller's business.

        Rows that are not trained on tell more of a net that knows its training labels by heart. Of a layer that runs several
        times the first run with as many rows as labels counts.
        """
        values = self._values(batch)
        with self.applied(batch):
            calls: list[Tensor] = []
            self._calls, self._mode = calls, bool(self.model and self.model.training)
            try:
                yield
            finally:
                self._calls = None
        if values is None or not self._learned(values, calls):
            self.skipped += 1
        self._steps += 1

    def _learned(self, values: Tensor, calls: list[Tensor]) -> bool:
        try:
            return self._take(values, calls)
        except Exception as problem:  # what a batch holds is the user's: an error at first, later nothing is learned
            if not self._worked:
                raise
            self._say_bad(problem)
            return False

    def _say_bad(self, problem: Exception) -> None:
        own = isinstance(problem, InterpError)  # the text of others may be another one every time
        text = f"a batch without usable labels: nothing is learned from it: {described(problem)}"
        self.say(text, None if own else f"bad: {type(problem).__name__}")

    def _values(self, batch: Any) -> Tensor | None:
        try:  # before the step, which may change the batch
            return self._reader.values(batch).clone()
        except Exception as problem:  # a label function is the user's; an error at first, later nothing is learned
            if not self._worked:
                raise
            self._say_bad(problem)
            return None

    def _edit(self, name: str, layer: Layer, output: Any) -> Any:
        # A pass of somebody else's within the step, a monitor's, is in evaluation mode.
        watched = self._calls is not None and not in_backward() and self.model is not None and self.model.training == self._mode
        if self.eraser is None and not watched:
            return None
        a = tensor_of(output, layer.key)
        try:
            if a is None or not a.is_floating_point():
                raise LayerError(f"the output holds no floating-point tensor, got {type(output).__name__}.")
            pooled = self._pooling.pool(a.detach(), layer.module, self._mask)
            if self.eraser is not None and pooled.shape[1] != len(self.eraser.mean):
                raise LayerError(f"an activation of width {pooled.shape[1]}, it was {len(self.eraser.mean)} before.")
        except Exception as problem:  # what a layer gives is the user's
            if not self._worked:
                raise LayerError(f"`layer={self.layer!r}`: {described(problem)}") from problem
            self.say(f"layer '{self.layer}' is left as it is in such runs: {described(problem)}")
            return None
        if watched and self._calls is not None:
            self._calls.append(pooled)
        if self.eraser is None:
            return None
        if self.eraser.mean.device != a.device:
            self.eraser = self.eraser.to(a)
        with torch.no_grad(), torch.autocast(a.device.type, enabled=False):
            step = self._pooling.lift(self.eraser.step(pooled.double()), a, layer.module, self._mask)
        return with_tensor(output, a, a + step)

    # --- learning -----------------------------------------------------------------------------------------------------

    def _take(self, values: Tensor, calls: list[Tensor]) -> bool:
        fitting = [h for h in calls if len(h) == len(values)]
        if not fitting:
            ran = f"gave {len(calls[0])} rows for {len(values)} labels" if calls else "did not run"
            self.say(f"layer '{self.layer}' {ran} in a step: nothing is learned from it")
            return False
        h = fitting[0]
        if not bool(torch.isfinite(h).all()):
            self.say(f"layer '{self.layer}' is not finite in a step: nothing is learned from it")
            return False
        values = values.to(h.device)
        known = torch.isfinite(values).all(1)
        h, values = h[known], values[known]
        if len(h) == 0:
            self.say("a batch in which no sample has all labels: nothing is learned from it")
            return False
        self.design.observe(values)
        self._worked = True
        discrete = self.design.discrete
        _, cell = unique_rows(values[:, torch.tensor(discrete, device=values.device)].contiguous())
        second = halves(cell) ^ bool(self._steps % 2)  # a cell's only sample goes to either half in turn
        for i, half in enumerate((~second, second)):
            new = cell_moments(h[half], values[half], discrete)
            self._fresh[i] = _merged(self._fresh[i], new, 1.0)
        return True

    def refit(self) -> None:
        """Fit the eraser to what was learned; a collective: all processes must call it at the same step."""
        alone = world()[1] == 1
        parts = gathered((self.design.discrete, [f if f is None or alone else f.to("cpu") for f in self._fresh]))
        flags = [discrete for discrete, _ in parts if discrete]
        if not flags:
            return
        discrete = tuple(all(column) for column in zip(*flags))
        self.design.settle(discrete)
        folds = [[f for _, fresh in parts if (f := fresh[i]) is not None and f.discrete == discrete] for i in (0, 1)]
        self._fresh = [None, None]
        if not (folds[0] and folds[1]):
            return
        halves_now = [reduce(add, fold) for fold in folds]
        total = halves_now[0] + halves_now[1]
        self._rows += round(total.rows)
        fade = math.exp(-total.rows / self.memory_rows)
        if self.eraser is not None:
            eraser = self.eraser.to(total.moments.gram)
            left = [half._replace(moments=erased(half.moments, eraser)) for half in halves_now]
            self._left = [_merged(old, new, fade) for old, new in zip_longest(self._left, left)]
            self._measure()
        self._past = total = _merged(self._past, total, fade)
        found = gathered(self._fit(total))[0]  # the first process's, so that all apply the same bits
        if found is not None:
            self.eraser = found

    def _fit(self, total: CellMoments) -> Eraser | None:
        if self._rows < self.start_rows:
            self.obstacle = f"{self._rows} rows so far, `start_rows={self.start_rows}`"
            return None
        try:
            coding = coding_of(self.variables, total)
            found = fit_eraser(total, coding, self.ridge)
        except (VariableError, RuntimeError) as problem:  # of torch.linalg, where something is not finite
            self.obstacle = f"'{self.confounder.name}' given {[v.name for v in self.variables[1:]]}: {problem}"
            self.say(f"no fit of the eraser at layer '{self.layer}': {self.obstacle}")
            return None
        self.weights = coding.weights
        return found

    def _measure(self) -> None:
        """How well a linear probe reads the confounder from what was passed on, cross-fitted over the two halves."""
        try:
            found = readable(coding_of(self.variables, self._left[0] + self._left[1]), self._left)
        except (VariableError, RuntimeError):  # in so few rows it goes with the given ones
            return
        if found is not None:
            self.remaining = found

    def say(self, text: str, key: str | None = None) -> None:
        """Warn, once; numbers in it make no other text."""
        key = key or alike(text)
        if key not in self._said:
            self._said.add(key)
            warnings.warn(text, InterpWarning, stacklevel=4)

    def certificate(
        self, kind: str, settings: Mapping[str, Any], before: Event | None, after: Event | None, notes: Sequence[str]
    ) -> dict[str, Any]:
        """What was done and what was measured before and after, see `certificate.certificate`.

        Args:
            kind: what it is called.
            settings: further ones, in plain types.
            before: the last event before the first fit, or None.
            after: the last event after it, or None.
            notes: what else the reader must know.
        """
        eraser = self.eraser
        how = {"layer": self.layer, **settings, "pooling": self._pooling.mode, "ridge": self.ridge, "weights": self.weights}
        record = None if eraser is None else {
            "rank": eraser.rank,
            "directions": {name: part.tolist() for name, part in eraser._asdict().items()},
            "remaining_r2": self.remaining,
        }  # fmt: skip
        said = ["the erasure lives in the callback: without it the model is not erased", *notes]
        if eraser is None:
            said.insert(0, f"never erased: there is no fit, for {self.obstacle}")
        return certificate(kind, self.confounder.name, concept_names(self.variables[1:]), how, before, after, said, record)

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors only, for a checkpoint."""
        past, fresh = self._past, self._fresh
        return {
            "version": STATE_VERSION,
            "design": self.design.state_dict(),
            "eraser": None if self.eraser is None else list(self.eraser),
            "weights": self.weights,
            "remaining": self.remaining,
            "past": None if past is None else past.state_dict(),
            "fresh": [None if f is None else f.state_dict() for f in fresh],
            "left": [m.state_dict() for m in self._left],
            "steps": self._steps,
            "rows": self._rows,
            "skipped": self.skipped,
            "worked": self._worked,
            "process": world()[0],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; rows since the last fit that another process saw are not taken in.

        Raises:
            InterpError: the state is of a later version, or lacks something.
        """
        with restoring("erasure", state, STATE_VERSION):
            self._restore(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.design.load_state_dict(state["design"])
        self.eraser = None if state["eraser"] is None else Eraser(*state["eraser"])
        self.weights, self.remaining = state["weights"], state["remaining"]
        self._past = None if state["past"] is None else from_state(state["past"])
        self._left = [from_state(m) for m in state["left"]]
        own = state.get("process", 0) == world()[0]
        self._fresh = [from_state(f) if own and f is not None else None for f in state["fresh"]]
        self._steps, self._rows = state["steps"], state["rows"]
        self.skipped, self._worked = state["skipped"], state["worked"]


def _merged(old: CellMoments | None, new: CellMoments, fade: float) -> CellMoments:
    if old is None or old.discrete != new.discrete or old.moments.gram.shape != new.moments.gram.shape:
        return new
    return old.to(new.moments.gram.device).faded(fade) + new


def _kind(v: Variable, levels: Tensor) -> str:
    if v.kind == "binary":
        return v.kind  # more than two levels are an error
    return "binary" if len(torch.unique(levels)) == 2 else "categorical"
