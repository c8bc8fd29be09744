"""What a penalty is given: one training step, seen through the variables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Step:
    """One training step.

    Attributes:
        output: what the equation explains, `[n, c]`, on the graph: margin, centred logits, or regression outputs.
        z: coded variables `[n, q]`, the confounder's columns first, then those of the given variables.
        width: number of the confounder's columns.
        cell: each sample's cell of the discrete variables, int64 `[n]`.
        cells: number of cells seen so far in training; `cell` counts from 0 to it.
        frequency: share of each cell among all training samples seen so far, `[cells]`.
        window: `(output, z, cell)` of the preceding samples, detached; None before there are any.
        losses: per-sample task losses `[n]`, on the graph; None without a target.
        intervened: gives the output with the confounder changed, `[n, c]`, on the graph; None without an intervention.
        hidden: pooled activation of the layer, `[n, d]`, on the graph; None without a layer.
        along: gives the output's derivative along one direction per sample `[n, d]` at the layer, `[n, c]`, on the graph; None
            without a layer.
        shown: the confounder's direction at the layer by its examples, `[1, d]` in activation per unit of z; None where it
            has labels. With examples nothing is held fixed: z has no columns, and all samples are one cell.
        aim: the confounder's coefficients that are to be reached in training so that those of held-out data are zero,
            `[width, c]`; None: zero.
        task: "binary", "multiclass", "multilabel" or "regression".
        separable: whether the samples seen so far tell the confounder from the given variables.
    """

    output: Tensor
    z: Tensor
    width: int
    cell: Tensor
    cells: int
    frequency: Tensor
    window: tuple[Tensor, Tensor, Tensor] | None
    losses: Tensor | None
    intervened: Callable[[], Tensor] | None
    hidden: Tensor | None = None
    along: Callable[[Tensor], Tensor] | None = None
    shown: Tensor | None = None
    aim: Tensor | None = None
    task: str = "binary"
    separable: bool = True


class Penalty(ABC):
    """A term that is added to the task's loss, times a weight.

    Attributes:
        capped: whether the term's gradient at the output is held under that of the task.
        replaces_loss: whether the term is a difference of losses that replaces the mean loss; its weight is then 1 by nature.
        needs_labels: whether the term wants a value of the confounder for every sample; else examples of it will do.
        needs_intervention: whether the term wants the output with the confounder changed.
        needs_contrast: whether the term wants samples in which the confounder differs while the given variables do not.
        needs_layer: whether the term wants an activation.
        needs_derivative: whether it wants the output's derivative there.
        needs_aim: whether it wants to know what held-out data makes of the confounder.
        needs_target: whether it wants the task's label.
        window_rows: preceding samples that the term wants to see.
        every_n_steps: of a confounder by examples, training steps from one reading of its direction to the next.
    """

    capped = False
    replaces_loss = False
    needs_labels = True
    needs_intervention = False
    needs_contrast = False
    needs_layer = False
    needs_derivative = False
    needs_aim = False
    needs_target = False
    window_rows = 0
    every_n_steps = 1

    @abstractmethod
    def __call__(self, step: Step) -> Tensor | None:
        """The term for one step, a scalar on the graph; None where it cannot be had from this batch."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, plain types and tensors only."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027  # most have nothing to load
        """Continue from `state_dict`."""
