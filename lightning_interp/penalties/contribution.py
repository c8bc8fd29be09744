"""`ContributionPenalty`: the squared coefficient of the confounder in the equation, estimated without bias."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_interp.functional.direction import told_apart
from lightning_interp.penalties.step import Penalty, Step

RIDGE = 2.5e-4


def coefficients(output: Tensor, z: Tensor, width: int, ridge: float = RIDGE) -> Tensor:
    """The confounder's coefficients in the equation, differentiable in the output.

    Args:
        output: `[n, c]`.
        z: coded variables `[n, q]`, the confounder's columns first.
        width: number of the confounder's columns.
        ridge: ρ; n·ρ is added to the diagonal of Z'Z.

    Returns:
        `[width, c]`.
    """
    x = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
    gram = x.T @ x + len(x) * ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(gram, x.T @ output)[:width]


def halves(cell: Tensor) -> Tensor:
    """Split samples in two, every other one of each cell, bool `[n]`: both halves hold every cell that has two samples."""
    order = cell.argsort(stable=True)
    ranked = cell[order]
    start = torch.searchsorted(ranked, ranked)  # where the sample's cell begins
    place = torch.arange(len(cell), device=cell.device) - start
    second = torch.empty_like(cell, dtype=torch.bool)
    second[order] = (place + ranked) % 2 == 1  # + cell: odd cells give their odd sample to the other half
    return second


def contribution_penalty(output: Tensor, z: Tensor, width: int, second: Tensor, ridge: float = RIDGE) -> Tensor:
    """Σ Ĉ_a·Ĉ_b over outputs and the confounder's columns, Ĉ_a and Ĉ_b from two disjoint halves of the batch.

    The product of two independent estimates is an unbiased estimate of the squared coefficient; it may be negative on a batch.

    Args:
        output: `[n, c]`, on the graph.
        z: coded variables `[n, q]`, the confounder's columns first.
        width: number of the confounder's columns.
        second: which samples make the second half, bool `[n]`.
        ridge: ρ.
    """
    a = coefficients(output[~second], z[~second], width, ridge)
    b = coefficients(output[second], z[second], width, ridge)
    return (a * b).sum()


def windowed_penalty(
    output: Tensor, z: Tensor, width: int, past_output: Tensor, past_z: Tensor, ridge: float = RIDGE
) -> Tensor:
    """The same for small batches: the batch's coefficient times that of the preceding samples, which carry no gradient.

    The gradient is doubled, so that it is that of the squared coefficient, as it is where both factors carry one.
    """
    now = coefficients(output, z, width, ridge)
    return crossed_penalty(now, coefficients(past_output, past_z, width, ridge).detach())


def crossed_penalty(now: Tensor, other: Tensor) -> Tensor:
    """Coefficients of the batch `[width, c]`, on the graph, times others that carry no gradient; the gradient is doubled."""
    value = (now * other).sum()
    return 2 * value - value.detach()


class ContributionPenalty(Penalty):
    """Pushes the confounder's coefficient in the equation to zero.

    *Formula.* P = Σ_k Ĉ_a,k·Ĉ_b,k over outputs and the confounder's columns, Ĉ_h the confounder's rows of
    (Z'Z + n_h ρ I)⁻¹Z'o on half h of the batch; on batches of fewer than `window_rows` samples Ĉ_b is that of the preceding
    samples. Under a budget Ĉ_h is less by an aim, the training coefficient at which that of held-out data would be zero:
    memorised counter-examples make a gap between the two. *When it helps:* labels of the confounder and of what should
    matter, no intervention. Best together with balanced weights of the task loss (`balance=True`), and with a budget where
    held-out labels are to be had. *When not:* a hidden factor that goes with the confounder is not seen. *Cost:* two q × q
    solves. *Measured:* see docs/measured.md; with a fixed weight the share of grass falls from 0.60 to 0.10–0.16 and not to
    zero, whatever the weight, for the counter-examples of training are known by heart. On shortcuts that nobody built: on
    Adult a fixed weight does no better than balanced weights alone (worst group 0.73), a budget a little (0.76); a hospital
    taken out so does not help in another; and of a categorical confounder with a cell of one sample in a thousand the term
    cannot be had, for no batch holds it (declared continuous, it can).

    Args:
        window_rows: samples that the two estimates rest on together; smaller batches borrow from the preceding ones.
        ridge: ρ.
    """

    capped = True
    needs_contrast = True
    needs_aim = True

    def __init__(self, window_rows: int = 256, ridge: float = RIDGE) -> None:
        if window_rows < 2:
            raise ValueError(f"`window_rows` expects 2 or more, got {window_rows}.")
        self.window_rows = window_rows
        self.ridge = ridge

    def __call__(self, step: Step) -> Tensor | None:
        """The term; None where a cell is missing from one of the two sets of samples.

        With an aim it is enough that both sets tell the confounder from the given variables.
        """
        aim = torch.zeros(step.width, step.output.shape[1]).to(step.output) if step.aim is None else step.aim.to(step.output)
        # The coefficients of o − z·aim are those of o less the aim.
        output = step.output - step.z[:, : step.width] @ aim
        if len(output) >= self.window_rows:
            second = halves(step.cell)
            if not all(_usable(step, step.z[rows], step.cell[rows]) for rows in (second, ~second)):
                return None
            return contribution_penalty(output, step.z, step.width, second, self.ridge)
        if step.window is None:
            return None
        past, z, cell = step.window
        if not (_usable(step, step.z, step.cell) and _usable(step, z, cell)):
            return None
        return windowed_penalty(output, step.z, step.width, past - z[:, : step.width] @ aim, z, self.ridge)


def _usable(step: Step, z: Tensor, cell: Tensor) -> bool:
    if step.aim is None:
        return bool((torch.bincount(cell, minlength=step.cells) > 0).all())
    # What is aimed at is known from elsewhere: it is enough that the rows tell the confounder from the rest. Where a handful
    # of counter-examples is all there is, few batches have one in every cell.
    x = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
    return told_apart(x.T @ x / len(x), step.width)
