"""`Suppression`: the loop-agnostic core that adds a penalty on a confounder to a loss."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_interp.activations.pooling import Pooling
from lightning_interp.batches import Inputs, Place, load_function
from lightning_interp.budget import Budget, Reading
from lightning_interp.certificate import certificate
from lightning_interp.errors import InterpError, InterpWarning, NearestArgument, VariableError, alike, described
from lightning_interp.events import Event
from lightning_interp.gradient_cap import GradientCap
from lightning_interp.penalties import BalancedReweighting, ContributionPenalty, Penalty, Step
from lightning_interp.processes import gathered, together, world
from lightning_interp.reading import Reader
from lightning_interp.recent import Recent
from lightning_interp.saved_state import restoring
from lightning_interp.shown_pattern import MOST, ShownPattern
from lightning_interp.steering import Steering
from lightning_interp.step_watcher import StepWatcher, Taken
from lightning_interp.training_design import TrainingDesign
from lightning_interp.training_steps import Losses, TrainingSteps
from lightning_interp.variables import Variable, check_labelled, check_variables

STATE_VERSION = 1
OWN = ("recent", "steps", "skipped", "acted", "penalty", "reference", "held_out", "said")  # as of `erasure.OWN`
IDLE = 100  # batches
ENOUGH = 512  # samples, after which variables that were never told apart are said to be the same


def default_losses(output: Tensor, target: Tensor) -> Tensor:
    """Per-sample task losses `[n]`: cross-entropy, binary cross-entropy for one logit, squared error for other floats."""
    if output.ndim == 2 and output.shape[1] > 1 and not target.is_floating_point():
        return F.cross_entropy(output, target, reduction="none")
    flat, wanted = output.reshape(len(output), -1), target.reshape(len(target), -1).to(output.dtype)
    if bool(((wanted == 0) | (wanted == 1)).all()):
        return F.binary_cross_entropy_with_logits(flat, wanted, reduction="none").mean(1)
    return F.mse_loss(flat, wanted, reduction="none").mean(1)


class Found(NamedTuple):
    """What a step gave.

    Attributes:
        step: the step.
        term: the penalty without its weight.
        extra: what balanced weights add to the task's loss, or None.
    """

    step: Step
    term: Tensor
    extra: Tensor | None


def _task_loss(found: Found, loss: Tensor | None) -> Tensor | None:
    """The task's loss with what balanced weights add to it; None where there is none."""
    if loss is None:
        losses = found.step.losses
        loss = None if losses is None else losses.mean()
    return loss if loss is None or found.extra is None else loss + found.extra


class Suppression(NearestArgument):
    """Adds a penalty on a confounder to the loss of any training loop.

    Args:
        model: the network; None if it comes later, by `bind`.
        confounder: what should not matter. One with `examples` goes with a penalty that needs no labels (`GradientPenalty`).
        given: what should, and goes with it: it is held fixed where the confounder's effect is estimated; none with examples.
        penalty: the term; by default `ContributionPenalty`.
        weight: λ, 0 or more; None: 1, or what the budget asks for.
        output: the module whose output is explained; None: the result of the model's own forward.
        inputs: what a second forward pass gives the model, see `Inputs`.
        target: where the task's label sits in a batch; None: the second element of a tuple or list.
        loss_fn: per-sample task losses `(output, target) -> [n]`, or `"pkg.mod:name"`; None: cross-entropy, or what fits.
        balance: whether the task's loss also gets cell-balanced weights; of a confounder by examples no cell is known, and it
            gets none.
        cap: κ: the term's gradient at the output is held under κ times that of the task, for penalties that are capped.
        layer: the module whose activation a penalty on activations is given.
        pooling: how that becomes one vector per sample, see `Pooling`.
        budget: instead of a weight, the limit that the confounder's part is held under, see `Budget`: 0 to 1.
        budget_on: "share" or "ratio".
        only_above: the term, and `balance` with it, acts only while the confounder's debiased share is over this, 0 to 1;
            before the first measurement it acts.

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
        weight: float | None = None,
        output: str | None = None,
        inputs: str | int | Sequence[str] | Callable[..., Any] | None = None,
        target: Place | None = None,
        loss_fn: str | Losses | None = None,
        balance: bool = True,
        cap: float = 1.0,
        layer: str | None = None,
        pooling: str | Callable[[Tensor], Tensor] = "mean",
        budget: float | None = None,
        budget_on: Literal["share", "ratio"] = "share",
        only_above: float | None = None,
    ) -> None:
        self.variables = check_variables([confounder, *given])
        self.confounder = confounder
        self.term = ContributionPenalty() if penalty is None else penalty
        self._shown = None if self.term.needs_labels or confounder.examples is None else ShownPattern(self.term.every_n_steps)
        if self._shown is None:
            check_labelled(self.variables, f"`penalty={self._kind}`")
        self._steering = Steering(confounder, given, weight, budget, budget_on, only_above, self._announce)
        self._cap = GradientCap(cap, budget is not None, self.say)
        self.layer = layer
        self._check(weight)
        if self._shown is not None:
            self._check_shown()
        self.factor = 1.0  # of the schedule
        self.balance = balance and not self.term.replaces_loss and self._shown is None
        self.output = output
        self.inputs = Inputs(inputs)
        self.pooling = Pooling(pooling)
        if self.term.needs_derivative and not self.pooling.liftable:
            raise InterpError(f"`pooling` expects a name with `penalty={self._kind}`, got a function: it cannot be inverted.")
        labelled = [v for v in self.variables if v.examples is None]
        self._reader = Reader(labelled, self.inputs, target, None, None)
        losses: Losses = load_function(loss_fn, "loss_fn") if isinstance(loss_fn, str) else loss_fn or default_losses
        self.steps = TrainingSteps(labelled, self.term.window_rows, losses)
        self.recent = None if self._steering.reads is None else Recent(self.variables)
        self._reweight = BalancedReweighting()
        self._compared = False
        self._worked = False
        self._has_read = False  # the labels of any batch
        self._unread = False  # those of this one
        self._idle = 0  # batches in a row from which the term could not be had
        self._said: set[str] = set()
        self.skipped = 0
        self.acted = 0
        self.last: dict[str, float | Tensor] = {}
        self._bound: StepWatcher | None = None
        if model is not None:
            self.bind(model)

    def _check(self, weight: float | None) -> None:
        kind = self._kind
        if self.term.replaces_loss and (weight is not None or self.budget is not None):
            what = "weight" if self.budget is None else "budget"
            raise InterpError(f"`{what}` does not go with `penalty={kind}`: it replaces the mean loss, and has no weight.")
        if self.term.needs_intervention and self.confounder.intervention is None:
            raise VariableError(
                f"`penalty={kind}` needs an `intervention` of '{self.confounder.name}', a function batch -> batch."
            )
        if self.term.needs_layer and self.layer is None:
            raise InterpError(f"`penalty={kind}` needs a `layer`: the name of the module whose activation it acts on.")
        if self.layer is not None and not self.term.needs_layer:
            raise InterpError(f"`layer={self.layer!r}` has no meaning with `penalty={kind}`, which acts on the output.")

    def _check_shown(self) -> None:
        name, given = self.confounder.name, self.variables[1:]
        if given:
            raise VariableError(
                f"`given` has no meaning with '{name}', which has `examples`: the sets are compared as they are, with nothing "
                f"held fixed; got {[v.name for v in given]}. What should matter must be alike in both sets."
            )
        if self._steering.reads is not None:
            check_labelled([self.confounder], f"`{self._steering.reads}`")

    @property
    def design(self) -> TrainingDesign:
        """The coding of the variables so far."""
        return self.steps.design

    @property
    def _kind(self) -> str:
        return type(self.term).__name__

    @property
    def weight(self) -> float:
        """λ now: the fixed weight, or the budget's multiplier; 0 while the share is not over `only_above`."""
        return self._steering.weight

    @property
    def budget(self) -> Budget | None:
        """The budget, None where the weight is fixed."""
        return self._steering.budget

    @property
    def before(self) -> Event | None:
        """The last measurement before the penalty was first in force."""
        return self._steering.before

    @property
    def measured(self) -> Event | None:
        """The last measurement."""
        return self._steering.measured

    # --- the model ----------------------------------------------------------------------------------------------------

    def bind(self, model: nn.Module, several: bool = False) -> None:
        """Name the model, before parts of it that are compiled run for the first time.

        Args:
            model: the network.
            several: whether a step may have several losses, so that `depends` will be asked.

        Raises:
            LayerError: the output or the layer is no submodule of it.
        """
        self.release()  # also of what was read from examples: it was another model's
        derivative, reached = self.term.needs_derivative, self.term.capped or several
        self._bound = StepWatcher(model, self.output, self.layer, self.inputs, self.pooling, self._reader, derivative, reached)

    def release(self) -> None:
        """Let go of the model."""
        if self._shown is not None:
            self._shown.forget()
        if self._bound is not None:
            self._bound.release()
        self._bound = None

    @property
    def model(self) -> nn.Module | None:
        """The network, None before `bind`."""
        return None if self._bound is None else self._bound.model

    @property
    def _watcher(self) -> StepWatcher:
        if self._bound is None:
            raise InterpError("the Suppression has no model yet; give `model`, or call `bind(model)`.")
        return self._bound

    # --- a training step ----------------------------------------------------------------------------------------------

    @contextmanager
    def watching(self, batch: Any) -> Iterator[None]:
        """Watch the training step on a batch; nothing is read outside."""
        watcher, self.last = self._watcher, {}
        if self._shown is not None:
            for note in self._shown.step(lambda: watcher.shown(self.confounder, MOST)):
                self.say(note)
        read = None
        try:
            read = watcher.read(batch)
        except Exception as problem:  # a label function is the user's; an error at first, later the batch has no penalty
            if not self._has_read:
                raise
            self._say_bad(problem)
        self._unread = read is None
        self._has_read = self._has_read or read is not None
        with watcher.watching(batch):
            if read is not None:
                watcher.step.values, watcher.step.target = read
            yield

    def depends(self, loss: Tensor) -> bool:
        """Whether a loss depends on the output of the step being watched."""
        return self._watcher.depends(loss)

    def check_used(self) -> None:
        """Say so if the output of the step just watched never met a penalty."""
        if not self._watcher.step.asked:
            why = self._watcher.take()
            unmet = "no loss that depends on the output came through `manual_backward`: the penalty cannot act"
            self._skip(torch.zeros(()), why if isinstance(why, str) else unmet)
        self._watcher.forget()

    def penalty(self, loss: Tensor | None = None) -> Tensor:
        """The weighted term for the step just watched, to be added to the loss.

        Args:
            loss: the task's loss, whose gradient at the output caps that of the term; None: `loss_fn` of output and target.

        Returns:
            A scalar; 0 where the term cannot be had from this batch (counted in `skipped`) or is not finite.
        """
        self.last = {}
        taken = self._watcher.take()
        zero = torch.zeros(()) if loss is None else torch.zeros_like(loss.detach())
        if self.factor == 0:
            return zero
        self._steering.act()
        if not self._on_all(not isinstance(taken, str)) or isinstance(taken, str):
            return self._skip(zero, taken if isinstance(taken, str) and not self._unread else None)
        try:
            with torch.autocast(taken.raw.device.type, enabled=False):
                return self._term(taken, loss, torch.zeros((), device=taken.raw.device))
        except Exception as problem:  # an intervention, `inputs` and `loss_fn` are the user's, and so is the network
            if not self.acted:
                raise
            self._say_bad(problem)
            return self._skip(zero, None)

    def _on_all(self, ready: bool) -> bool:
        """Whether all processes are ready for a pass, or part of one, which a sharded model makes a collective.

        Without one, each process has its own penalty or none.
        """
        return all(gathered(ready)) if self._watcher.spread else ready

    def _term(self, taken: Taken, loss: Tensor | None, zero: Tensor) -> Tensor:
        problem: Exception | None = None
        found: Found | Tensor = zero
        try:
            found = self._found(taken, loss, zero)
        except Exception as own:
            problem = own
        if not self._on_all(isinstance(found, Found)) or not isinstance(found, Found):
            if problem is not None:
                raise problem
            return self._skipped(zero, None, found.extra) if isinstance(found, Found) else found
        term, extra = found.term, found.extra
        weight = self.weight
        scale = torch.ones_like(term)
        if self.term.capped:
            scale = self._cap.scale(taken.raw, weight * term, _task_loss(found, loss))
        # On the device: whoever logs them waits for it, at the steps that are logged.
        self.last = {"penalty": term.detach(), "penalty_weight": weight * self.factor, "penalty_scale": scale.detach()}
        self.acted += 1
        total = scale * weight * term
        return self.factor * (total if extra is None else total + extra)

    def _found(self, taken: Taken, loss: Tensor | None, zero: Tensor) -> Found | Tensor:
        """The term of the step; or, where there is none, what stands in its place."""
        step = self._step(taken)
        if step is None:
            return self._skip(zero, None)
        if not self._losses_fit(step, loss):
            return self._skip(zero, "`loss_fn` gives losses that are not finite; there is no penalty in such steps")
        if self.weight == 0 and self._steering.only_above is not None:
            self.last = {"penalty_weight": 0.0}
            return zero
        extra = self._reweight(step) if self.balance else None
        term = self._called(step)
        self._idle = self._idle + 1 if term is None else 0
        if self._idle == IDLE and self.steps.design.cells:
            self.say(self._why_idle())
        if term is None or not term.requires_grad or not bool(torch.isfinite(term)):
            return self._skipped(zero, None if term is None else self._why_not(term), extra)
        return Found(step, term, extra)

    def _skipped(self, zero: Tensor, why: str | None, extra: Tensor | None) -> Tensor:
        left = self._skip(zero, why)
        return left if extra is None else self.factor * extra

    def _step(self, taken: Taken) -> Step | None:
        watcher, found = self._watcher, None
        if self._shown is not None:
            return self._unlabelled(taken, self._shown.direction)
        try:
            found = self.steps.step(
                taken.exact,
                watcher.step.values.to(taken.raw.device),
                watcher.step.target,
                watcher.hidden(taken),
                (lambda: watcher.intervened(taken, self.confounder.intervened)) if self.term.needs_intervention else None,
                (lambda task, direction: self._along(taken, task, direction)) if self.term.needs_derivative else None,
                self._steering.held_out.aim if self.budget is not None and self.term.needs_aim else None,
            )
        except VariableError as problem:  # an error in the first batches; a corrupt label later must not end the training
            if not self._worked:
                raise
            self._say_bad(problem)
        self._worked = self._worked or found is not None
        if found is not None and self.recent is not None:
            self.recent.add(watcher.step.values, found.output, found.task)
        return found

    def _unlabelled(self, taken: Taken, direction: Tensor | None) -> Step | None:
        if direction is None:
            return None
        self._worked = True
        along = (lambda task, d: self._along(taken, task, d)) if self.term.needs_derivative else None
        return self.steps.unlabelled(taken.exact, self._watcher.step.target, self._watcher.hidden(taken), along, direction)

    def _why_idle(self) -> str:
        rarest = float(self.steps.design.frequency.min())
        return (
            f"`penalty={self._kind}` could not be had from {IDLE} batches in a row: {self.steps.design.cells} cells of the "
            f"variables were seen, the rarest in {100 * rarest:.2g} % of the samples, and a batch with its window must hold "
            "them all. Larger batches, or fewer variables in `given`, make it act; so does a corrupt label that is left out."
        )

    def _why_not(self, term: Tensor) -> str:
        if not term.requires_grad:
            return f"`penalty={self._kind}` carries no gradient: it cannot act"
        return "the penalty is not finite; it is left out of such steps"

    def _called(self, step: Step) -> Tensor | None:
        if step.separable or not self.term.needs_contrast:
            return self.term(step)
        rows = self.steps.design.rows
        if rows >= ENOUGH:  # before, the first counter-example may still come
            name, given = self.confounder.name, ", ".join(f"'{v.name}'" for v in self.variables[1:])
            self.say(
                f"no sample in {rows} tells '{name}' from what is given ({given}): one is a function of the other, and "
                f"`penalty={self._kind}` cannot act. An `intervention` with InvariancePenalty can.",
                key="inseparable",
            )
        return None

    def _along(self, taken: Taken, task: str, direction: Tensor) -> Tensor:
        found = self._watcher.along(taken, task, direction)
        if not bool(found.detach().any()):
            self.say(
                f"the output '{self.output or 'forward'}' does not answer to the layer '{self.layer}': its derivative is 0, "
                "and the penalty has no effect"
            )
        return found

    def _losses_fit(self, step: Step, loss: Tensor | None) -> bool:
        """Whether the losses of the samples can be used, if they are needed; what is odd about them is said."""
        if step.losses is None:
            if self.balance or self.term.needs_target:
                what = f"`penalty={self._kind}`" if self.term.needs_target else "`balance=True`"
                self.say(f"{what} needs the task's label, and there is none in the batch: name its place in `target`")
        elif self.term.replaces_loss and loss is not None and not self._compared:
            self._compared = True
            ours, theirs = float(step.losses.detach().mean()), float(loss.detach())
            if not math.isclose(ours, theirs, rel_tol=0.02, abs_tol=1e-6):
                self.say(
                    f"the mean of `loss_fn` is {ours:.4g}, the loss returned is {theirs:.4g}: "
                    f"`penalty={self._kind}` replaces the first. Give the task's own loss as `loss_fn`."
                )
        needed = self.balance or self.term.needs_target
        return step.losses is None or not needed or bool(torch.isfinite(step.losses).all())

    def _skip(self, zero: Tensor, why: str | None) -> Tensor:
        self.skipped += 1
        if why:
            self.say(why)
        return zero

    def _say_bad(self, problem: Exception) -> None:
        own = isinstance(problem, InterpError)  # the text of others may be another one every time
        self.say(f"a batch has no penalty: {described(problem)}", None if own else f"bad: {type(problem).__name__}")

    def say(self, text: str, key: str | None = None) -> None:
        """Warn, once; numbers in it make no other text."""
        key = key or alike(text)
        if key not in self._said:
            self._said.add(key)
            warnings.warn(text, InterpWarning, stacklevel=5)

    def _announce(self, text: str, key: str | None = None) -> None:
        """Warn of what all processes know, once and from the first."""
        if world()[0] == 0:
            self.say(text, key)

    # --- measurements -------------------------------------------------------------------------------------------------

    def observe(self, event: Event) -> None:
        """Take a measurement in, for `budget`, `only_above` and the certificate: best one of data that is not trained on.

        The multiplier answers to what the penalty did: it stands still while the penalty was not in force.

        Args:
            event: such as a `Monitor` gives, of the same variables; one without the confounder's share (or the ratio, where
                the budget is on that) changes nothing.
        """
        if self._steering.observe(event):
            self._cap.fade()

    def measure(self, step: int = 0, epoch: int = 0) -> None:
        """Where there is no monitor: measure on the latest training batches; with several processes, all must call it."""
        if self.recent is None:
            return
        event = None
        try:
            with together():
                event = self.recent.event(step, epoch)
        except Exception as problem:  # what was measured must not end the training
            text = f"`{self._steering.reads}` finds nothing in the training batches: {described(problem)}"
            self._announce(text, key="nothing")
        if event is not None:
            self.observe(event)

    def reading(self, event: Event) -> Reading:
        """What an event says of the confounder."""
        return self._steering.reading(event)

    def certificate(
        self, kind: str = "Suppression", schedule: Mapping[str, Any] | None = None, notes: Sequence[str] = ()
    ) -> dict[str, Any]:
        """What was done and what was measured before and after.

        Args:
            kind: what it is called.
            schedule: further settings, in plain types.
            notes: what else the reader must know.

        Returns:
            As `certificate.certificate`; `settings["multiplier"]` is the last that was in force.
        """
        settings = {
            "penalty": self._kind, **self._steering.settings(), **(schedule or {}), "only_above": self._steering.only_above,
            "balance": self.balance, "cap": self._cap.cap, "output": self.output, "layer": self.layer,
            "steps_acted": self.acted, "steps_skipped": self.skipped,
        }  # fmt: skip
        shown = [] if self._shown is None else [f"'{self.confounder.name}' has examples: the loss has no balanced weights"]
        after = None if self.measured == self.before else self.measured
        said = [*self._steering.notes(), *shown, *notes]
        return certificate(kind, self.confounder.name, self._steering.concepts, settings, self.before, after, said)

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors only, for a checkpoint."""
        return {
            "version": STATE_VERSION,
            "recent": None if self.recent is None else self.recent.state_dict(),
            "steps": self.steps.state_dict(),
            "skipped": self.skipped,
            "acted": self.acted,
            "penalty": self.term.state_dict(),
            **self._steering.state_dict(),
            "reference": self._cap.reference,
            "shown": None if self._shown is None else self._shown.state_dict(),
            "said": sorted(self._said),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            InterpError: the state is of a later version, or lacks something.
        """
        with restoring("suppression", state, STATE_VERSION):
            self._restore(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        if self.recent is not None and state.get("recent") is not None:
            self.recent.load_state_dict(state["recent"])
        self.steps.load_state_dict(state["steps"])
        self.skipped, self.acted = state["skipped"], state["acted"]
        self._worked = self._has_read = True
        self._said, self._cap.reference = set(state["said"]), state["reference"]
        self._steering.load_state_dict(state)
        if state["penalty"]:
            self.term.load_state_dict(state["penalty"])
        if self._shown is not None and state.get("shown") is not None:
            self._shown.load_state_dict(state["shown"])
