"""`Suppression`: the loop-agnostic core that adds a penalty on a confounder to a loss."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_interp.activations.capture import Read, RootCalls, hooked
from lightning_interp.activations.pooling import output_of
from lightning_interp.activations.select import Layer, find_module
from lightning_interp.batches import Inputs, Place, load_function
from lightning_interp.errors import InterpError, InterpWarning, VariableError
from lightning_interp.functional.outputs import explain_output
from lightning_interp.penalties import BalancedReweighting, ContributionPenalty, Penalty, Step
from lightning_interp.reading import Reader
from lightning_interp.training_design import TrainingDesign
from lightning_interp.variables import Variable, check_variables

LossFn = Callable[[Tensor, Tensor], Tensor]


def default_losses(output: Tensor, target: Tensor) -> Tensor:
    """Per-sample task losses `[n]`: cross-entropy, binary cross-entropy for one logit, squared error for other floats."""
    if output.ndim == 2 and output.shape[1] > 1 and not target.is_floating_point():
        return F.cross_entropy(output, target, reduction="none")
    flat, wanted = output.reshape(len(output), -1), target.reshape(len(target), -1).to(output.dtype)
    if bool(((wanted == 0) | (wanted == 1)).all()):
        return F.binary_cross_entropy_with_logits(flat, wanted, reduction="none").mean(1)
    return F.mse_loss(flat, wanted, reduction="none").mean(1)


class Suppression:
    """Adds a penalty on a confounder to the loss of any training loop.

    Args:
        model: the network; None if it comes later, by `bind`.
        confounder: what should not matter.
        given: what should, and goes with it: it is held fixed where the confounder's effect is estimated.
        penalty: the term; by default `ContributionPenalty`.
        weight: λ, 0 or more.
        output: the module whose output is explained; None: the result of the model's own forward.
        inputs: what a second forward pass gives the model, see `Inputs`.
        target: where the task's label sits in a batch; None: the second element of a tuple or list.
        loss_fn: per-sample task losses `(output, target) -> [n]`, or `"pkg.mod:name"`; None: cross-entropy, or what fits.
        balance: whether the task's loss also gets cell-balanced weights.
        cap: κ: the term's gradient at the output is held under κ times that of the task, for penalties that are capped.

    Raises:
        InterpError: an argument is not usable.

    Example:
        >>> import torch
        >>> from lightning_interp import Concept, Confounder, Suppression
        >>> net = torch.nn.Linear(3, 2)
        >>> s = Suppression(net, Confounder("grass"), [Concept("moo")], target="moo")
        >>> batch = {"x": torch.randn(300, 3), "moo": torch.arange(300) % 2, "grass": torch.arange(300) // 2 % 2}
        >>> with s.watching(batch):
        ...     loss = torch.nn.functional.cross_entropy(net(batch["x"]), batch["moo"])
        >>> (loss + s.penalty(loss)).backward()
    """

    def __init__(
        self,
        model: nn.Module | None,
        confounder: Variable,
        given: Sequence[Variable] = (),
        penalty: Penalty | None = None,
        weight: float = 1.0,
        output: str | None = None,
        inputs: str | int | Sequence[str] | Callable[..., Any] | None = None,
        target: Place | None = None,
        loss_fn: str | LossFn | None = None,
        balance: bool = True,
        cap: float = 1.0,
    ) -> None:
        self.variables = check_variables([confounder, *given])
        self.confounder = confounder
        self.term = ContributionPenalty() if penalty is None else penalty
        if not weight >= 0:
            raise InterpError(f"`weight` expects 0 or more, got {weight!r}.")
        if not cap > 0:
            raise InterpError(f"`cap` expects over 0, got {cap!r}.")
        if self.term.needs_intervention and confounder.intervention is None:
            raise VariableError(
                f"`penalty={type(self.term).__name__}` needs an `intervention` of '{confounder.name}', "
                "a function batch -> batch."
            )
        self.weight = weight
        self.factor = 1.0  # of the schedule
        self.cap = cap
        self.balance = balance and not self.term.replaces_loss
        self.output = output
        self.inputs = Inputs(inputs)
        self._reader = Reader(self.variables, self.inputs, target, None, None)
        self._losses: LossFn = load_function(loss_fn, "loss_fn") if isinstance(loss_fn, str) else loss_fn or default_losses
        self.design = TrainingDesign(self.variables)
        self._reweight = BalancedReweighting()
        self._root = RootCalls()
        self._window: list[tuple[Tensor, Tensor]] = []
        self._raws: list[Tensor] = []
        self._batch: Any = None
        self._values = torch.zeros(0, 0)
        self._target: Tensor | None = None
        self._asked = False
        self._compared = False
        self._worked = False
        self._said: set[str] = set()
        self.skipped = 0
        self.last: dict[str, float] = {}
        self.model: nn.Module | None = None
        if model is not None:
            self.bind(model)

    def bind(self, model: nn.Module) -> None:
        """Name the model.

        Raises:
            LayerError: the output is no submodule of it.
        """
        self.model = model
        self._layer = Layer(model, None, True) if self.output is None else find_module(model, self.output, "output")

    @contextmanager
    def watching(self, batch: Any) -> Iterator[None]:
        """Watch the training step on a batch; the hook exists only inside."""
        if self.model is None:
            raise InterpError("the Suppression has no model yet; give `model`, or call `bind(model)`.")
        self._raws, self._batch, self._asked, self.last = [], batch, False, {}
        self._values, self._target = torch.zeros(0, 0), None
        try:  # before the step, which may change the batch
            self._values = self._reader.values(batch)
            self._target = self._reader.read_target(batch, len(self._values))
        except Exception as problem:  # a label function is the user's; an error at first, later the batch has no penalty
            if not self._worked:
                raise
            self._say(f"a batch has no penalty: {problem}")
        with ExitStack() as stack:
            stack.enter_context(hooked({"output": self._layer}, self._into(self._raws)))
            if self.output is None:
                stack.enter_context(self._root.watching(self.model))
            yield

    def _into(self, raws: list[Tensor]) -> Read:
        def read(name: str, layer: Layer, output: Any) -> Any:
            found = None if self._root.wrapping else output_of(output, layer.key)
            if found is None:
                return None
            raws.append(found)
            # The network goes on with a copy: what a later in-place layer does to it is not done to ours.
            return found.clone() if output is found else None

        return read

    def depends(self, loss: Tensor) -> bool:
        """Whether a loss depends on the output of the batch being watched."""
        return any(
            torch.autograd.grad(loss, raw, retain_graph=True, allow_unused=True)[0] is not None
            for raw in self._raws
            if raw.requires_grad and loss.requires_grad
        )

    def check_used(self) -> None:
        """Say so if the output of the step just watched never met a penalty."""
        if not self._asked and any(raw.requires_grad for raw in self._raws):
            self._say("no loss that depends on the output came through `manual_backward`: the penalty cannot act")
        self._raws.clear()
        self._batch = None

    def penalty(self, loss: Tensor | None = None) -> Tensor:
        """The weighted term for the batch just watched, to be added to the loss.

        Args:
            loss: the task's loss, whose gradient at the output caps that of the term; None: `loss_fn` of output and target.

        Returns:
            A scalar; 0 where the term cannot be had from this batch (counted in `skipped`) or is not finite.
        """
        # The batch stays until the next: a step of several forward passes may come back.
        raws, batch = self._raws.copy(), self._batch
        self._raws.clear()  # the hook goes on filling it
        self._asked, self.last = True, {}
        zero = torch.zeros((), device=raws[-1].device if raws else None)
        if self.factor == 0:
            return zero
        if not raws:
            return self._skip(zero, f"the output '{self.output or 'forward'}' did not run in the step: the penalty cannot act")
        values = self._values
        fitting = [r for r in raws if len(r) == len(values)]
        if not fitting or not bool(torch.isfinite(values).all()):
            return self._skip(zero, "a batch whose labels and outputs do not agree has no penalty")
        raw = fitting[-1]
        if not raw.requires_grad:
            return self._skip(zero, f"the output '{self.output or 'forward'}' carries no gradient: the penalty cannot act")
        kind = raw.device.type
        now = (torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        if not bool(torch.isfinite(raw).all()):
            return self._skip(zero, "the output is not finite; there is no penalty in such steps")
        with torch.autocast(kind, enabled=False):
            return self._term(raw, values.to(raw.device), batch, loss, zero, lambda: torch.autocast(kind, *now, False))

    def _term(
        self, raw: Tensor, values: Tensor, batch: Any, loss: Tensor | None, zero: Tensor, outside: Callable[[], torch.autocast]
    ) -> Tensor:
        step = self._step(raw, values, batch, outside)
        if step is None:
            return self._skip(zero, None)
        self._check_losses(step, loss)
        extra = self._reweight(step) if self.balance else None
        term = self.term(step)
        if term is None or not bool(torch.isfinite(term)):
            why = None if term is None else "the penalty is not finite; it is left out of such steps"
            left = self._skip(zero, why)
            return left if extra is None else self.factor * extra
        weight = 1.0 if self.term.replaces_loss else self.weight
        scale = self._scale(raw, weight * term, loss, extra, step) if self.term.capped else 1.0
        self.last = {"penalty": float(term.detach()), "penalty_weight": weight * self.factor, "penalty_scale": float(scale)}
        total = scale * weight * term
        return self.factor * (total if extra is None else total + extra)

    def _check_losses(self, step: Step, loss: Tensor | None) -> None:
        if step.losses is None:
            if self.balance or self.term.needs_target:
                what = f"`penalty={type(self.term).__name__}`" if self.term.needs_target else "`balance=True`"
                self._say(f"{what} needs the task's label, and there is none in the batch: name its place in `target`")
        elif self.term.replaces_loss and loss is not None and not self._compared:
            self._compared = True
            ours, theirs = float(step.losses.detach().mean()), float(loss.detach())
            if not math.isclose(ours, theirs, rel_tol=0.02, abs_tol=1e-6):
                self._say(
                    f"the mean of `loss_fn` is {ours:.4g}, the loss returned is {theirs:.4g}: "
                    f"`penalty={type(self.term).__name__}` replaces the first. Give the task's own loss as `loss_fn`."
                )

    def _step(self, raw: Tensor, values: Tensor, batch: Any, outside: Callable[[], torch.autocast]) -> Step | None:
        labels_target = self._target
        exact = raw if raw.dtype == torch.float64 else raw.float()
        explained = explain_output(exact, labels_target)
        self.design.observe(values)
        try:
            factors = self.design.factors()
        except VariableError as problem:  # an error in the first batches; a corrupt label later must not end the training
            if not self._worked:
                raise
            self._say(str(problem))
            return None
        self._worked = self._worked or factors is not None
        past, rows = list(self._window), self.term.window_rows
        if len(raw) < rows:
            self._window.append((values, explained.output.detach()))
            while sum(len(v) for v, _ in self._window[1:]) >= rows - len(raw) and len(self._window) > 1:
                self._window.pop(0)
        if factors is None:
            return None
        coded = self.design.encode(values, factors)
        window = None
        if past:
            before = self.design.encode(torch.cat([v for v, _ in past]).to(raw.device), factors)
            window = (torch.cat([o for _, o in past]).to(raw.device), before.z, before.cell)
        losses = None if labels_target is None else self._losses(exact, labels_target)
        return Step(
            explained.output,
            coded.z,
            coded.width,
            coded.cell,
            self.design.cells,
            self.design.frequency.to(raw.device),
            window,
            losses,
            (lambda: self._intervened(batch, explained.task, len(raw), outside)) if self.term.needs_intervention else None,
        )

    def _intervened(self, batch: Any, task: str, rows: int, outside: Callable[[], torch.autocast]) -> Tensor:
        if self.model is None:
            raise InterpError("the Suppression has no model yet; call `bind(model)`.")
        raws: list[Tensor] = []

        with outside(), hooked({"output": self._layer}, self._into(raws)):
            self.inputs.call(self.model, self.confounder.intervened(batch))
        fitting = [r for r in raws if len(r) == rows]
        if not fitting:
            raise InterpError(
                f"the output '{self.output or 'forward'}' did not run on {rows} rows in the pass on the intervened batch: "
                "`inputs` expects what makes the model run it."
            )
        return explain_output(fitting[-1] if fitting[-1].dtype == torch.float64 else fitting[-1].float(), None, task).output

    def _scale(self, raw: Tensor, term: Tensor, loss: Tensor | None, extra: Tensor | None, step: Step) -> Tensor:
        task = loss if loss is not None else None if step.losses is None else step.losses.mean()
        if task is None:
            return torch.ones((), device=raw.device)
        task = task if extra is None else task + extra
        own = torch.autograd.grad(task, raw, retain_graph=True, allow_unused=True)[0] if task.requires_grad else None
        (ours,) = torch.autograd.grad(term, raw, retain_graph=True)
        if own is None:
            self._say("the loss does not depend on the output: the penalty is not capped")
            return torch.ones((), device=raw.device)
        return (self.cap * own.norm() / ours.norm().clamp_min(1e-30)).clamp(max=1.0).to(term.dtype)

    def _skip(self, zero: Tensor, why: str | None) -> Tensor:
        self.skipped += 1
        if why:
            self._say(why)
        return zero

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            warnings.warn(text, InterpWarning, stacklevel=5)

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors only, for a checkpoint."""
        return {
            "design": self.design.state_dict(),
            "skipped": self.skipped,
            "window": [list(pair) for pair in self._window],
            "penalty": self.term.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.design.load_state_dict(state["design"])
        self.skipped = state["skipped"]
        self._worked = True
        if state.get("penalty"):
            self.term.load_state_dict(state["penalty"])
        self._window = [(values, output) for values, output in state["window"]]
