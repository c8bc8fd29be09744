"""`InvariancePenalty`: the output must not change when the confounder does."""

from __future__ import annotations

from torch import Tensor

from lightning_interp.penalties.step import Penalty, Step


def invariance_penalty(output: Tensor, intervened: Tensor) -> Tensor:
    """Mean squared change of the output under do(confounder), summed over outputs.

    Args:
        output: f(x), `[n, c]`.
        intervened: f(do(x)), `[n, c]`.
    """
    return ((output - intervened) ** 2).sum(1).mean()


class InvariancePenalty(Penalty):
    """Compares f(x) with f(do(x)), sample by sample.

    *Formula.* E‖f(x) − f(do(x))‖². *When it helps:* wherever the confounder has an `intervention`: it is the strongest of
    all, for it needs no labels to be right and no factor can hide. *When not:* an intervention that changes more than the
    confounder teaches the model to ignore that too; one that changes less leaves what goes with it: on Adult, with the column
    of sex exchanged, the worst group is 0.56, with balanced weights alone 0.73 (white frames of pictures, all of which it
    changes: accuracy with the frames exchanged 0.98, plain 0.69). *Cost:* a second forward and backward pass. *Source:*
    Heinze-Deml & Meinshausen 2021 (conditional variance penalty), with a known counterpart for every sample.
    """

    needs_intervention = True

    def __call__(self, step: Step) -> Tensor | None:
        """The term."""
        return None if step.intervened is None else invariance_penalty(step.output, step.intervened())
