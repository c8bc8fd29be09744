"""What features do: their share of the output, their relation to the label, and where it turns round."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_interp.discovery.rows import Rows
from lightning_interp.functional.direction import ridge_filter
from lightning_interp.functional.outputs import Explained
from lightning_interp.functional.shares import MAX_LMG, Spread, lmg
from lightning_interp.functional.splits import LEFT

MIN_SAMPLES = 60  # on either half; fewer say nothing about a feature
STILL = 1e-20  # variance over mean square, under which something is constant but for rounding
MIN_WRONG = 5  # samples of a class that the model gets wrong, and as many right


def obstacle(rows: Rows) -> str | None:
    """Why nothing can be found in a probe set, or None."""
    least = min(int(rows.fitting.sum()), int((~rows.fitting).sum()))
    if least < MIN_SAMPLES:
        return f"{least} distinct samples in a half, {MIN_SAMPLES} are needed"
    for what, x in (("output", rows.explained.output[~rows.fitting]), ("activation", rows.h[rows.fitting])):
        if float(x.var(0, unbiased=False).sum()) <= STILL * float((x**2).mean(0).sum()):
            return f"the {what} does not vary over the probe set"
    return None


def contributions(rows: Rows, codes: Tensor, most: int) -> tuple[list[int], list[float]]:
    """The features that contribute most, and their shares of the output's variance.

    Chosen on the rows that the features were found on, by R² with what the named variables leave of the output; shared out on
    the other rows by LMG among those chosen, each code less what is linear in the named variables.

    Args:
        rows: the probe set.
        codes: `[n, m]`.
        most: features to choose, 10 at most.
    """
    marginal = _spread(rows, codes, rows.fitting)
    r2 = (marginal.zo**2).sum(1)  # the codes are in units of their own spread
    chosen = sorted(r2.argsort(descending=True, stable=True)[: min(most, MAX_LMG)].tolist())
    s = _spread(rows, codes[:, chosen], ~rows.fitting)
    return chosen, [max(0.0, share) for share in lmg(s, [slice(i, i + 1) for i in range(len(chosen))])]


def _spread(rows: Rows, codes: Tensor, where: Tensor) -> Spread:
    """Second moments of residual codes, in units of their spread, and residual outputs, over the whole output's variance."""
    share = (rows.weight[where] / rows.weight[where].sum()).unsqueeze(1)
    u, o = rows.residual(codes, where), rows.residual(rows.explained.output, where)
    spread, whole = (share * u**2).sum(0).sqrt(), codes[where].std(0, unbiased=False)
    rounding = STILL**0.5 * (codes[where] ** 2).mean(0).sqrt()
    u = torch.where(spread > torch.maximum(LEFT * whole, rounding), u / spread, 0)
    total, _ = rows.unexplained(rows.explained.output, where)
    return Spread(u.T @ (share * u), u.T @ (share * o), total)


def useful_directions(rows: Rows) -> Tensor:
    """Where a search may begin: directions that read what is unexplained of the outputs, and who is right, `[d, s]`."""
    h = rows.residual(rows.h, rows.fitting)
    columns = [rows.explained.output[:, :MAX_LMG]]
    if rows.explained.correct is not None:
        columns.append(rows.explained.correct.double().unsqueeze(1))
    wanted = rows.residual(torch.cat(columns, 1), rows.fitting)
    return ridge_filter(h.T @ h / len(h), wanted.T @ h / len(h)).T


def sides(target: Tensor, explained: Explained) -> tuple[Tensor, Tensor | None]:
    """The label as classes, and who is predicted right; in a regression: over the median, and nearer than the median error.

    Args:
        target: `[n]`.
        explained: the output.

    Returns:
        `[n]`, and bool `[n]` or None where there is no right and wrong.
    """
    if explained.task == "regression" and explained.output.shape[1] == 1:
        error = (explained.output[:, 0] - target).abs()
        return (target > target.median()).long(), error <= error.median()
    if explained.correct is None or explained.task == "multilabel":
        return target, None
    return target, explained.correct > 0.5


def relation(codes: Tensor, target: Tensor, numeric: bool) -> Tensor:
    """How codes go with the label: correlation where it is a number or has two classes, else the correlation ratio, `[m]`.

    Args:
        codes: `[n, m]`.
        target: `[n]`.
        numeric: whether it is a quantity and not a class.
    """
    y = target.double()
    a = codes - codes.mean(0)
    size = (a**2).sum(0).clamp_min(1e-300)
    classes = torch.unique(y)
    if numeric or len(classes) <= 2:
        b = (y - y.mean()).unsqueeze(1)
        return (a * b).sum(0) / (size * (b**2).sum().clamp_min(1e-300)).sqrt()
    between = torch.stack([(y == c).sum() * a[y == c].mean(0) ** 2 for c in classes]).sum(0)
    return (between / size).clamp(0, 1).sqrt()


def flips(codes: Tensor, target: Tensor, right: Tensor) -> Tensor | None:
    """How far the relation of codes to the label turns round between samples that the model gets right and wrong.

    With e and w the classes' mean codes among the right and the wrong ones, each less its mean: −⟨e, w⟩/(‖e‖·max(‖e‖, ‖w‖)),
    at least 0. A cause of the label keeps its sign; a shortcut has the wrong one exactly where it leads astray.

    Args:
        codes: `[n, m]`.
        target: class `[n]`.
        right: whether each sample is predicted right, bool `[n]`.

    Returns:
        `[m]` in 0…1; None where fewer than two classes have `MIN_WRONG` samples right and as many wrong.
    """
    sides: list[list[Tensor]] = [[], []]
    for c in torch.unique(target):
        of_class = [codes[(target == c) & (right == side)] for side in (True, False)]
        if min(map(len, of_class)) >= MIN_WRONG:
            for side, found in zip(sides, of_class):
                side.append(found.mean(0))
    if len(sides[0]) < 2:
        return None
    e, w = (torch.stack(side) - torch.stack(side).mean(0) for side in sides)
    size = e.norm(dim=0)
    return (-(e * w).sum(0) / (size * torch.maximum(size, w.norm(dim=0))).clamp_min(1e-300)).clamp(0, 1)


def by_cell(rows: Rows, has: Tensor) -> dict[str, list[float]]:
    """Share of each cell's samples that have the features, {cell: `[m]`}; nothing where no named variable is discrete."""
    if not rows.design.discrete:
        return {}
    names = rows.design.cell_names(rows.weights.cells)
    return {name: has[rows.weights.cell == i].double().mean(0).tolist() for i, name in enumerate(names)}
