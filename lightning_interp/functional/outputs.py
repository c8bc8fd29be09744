"""What is explained: the logit margin, the centred logits, or a regression output, `[n, c]`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_interp.errors import LabelError, LayerError


class Explained(NamedTuple):
    """The output in the form that the equation explains.

    Attributes:
        task: "binary", "multiclass", "multilabel" or "regression".
        output: `[n, c]`: one margin, centred logits, or the outputs themselves.
        correct: whether each sample is predicted right, 0…1, `[n]`; None without a target or in a regression.
    """

    task: str
    output: Tensor
    correct: Tensor | None


def explain_output(raw: Tensor, target: Tensor | None, task: str | None = None) -> Explained:
    """Turn a module's output into what the equation explains.

    `[n, 2]` becomes the margin logit₁ − logit₀, `[n]` and `[n, 1]` stay one logit, `[n, c]` becomes centred logits. A floating
    target that holds more than 0 and 1 makes it a regression; a target of the output's own shape makes it multi-label.

    Args:
        raw: the output, `[n]` or `[n, c]`.
        target: the task's label, `[n]` or `[n, c]`, or None: then classification is assumed.
        task: the task where it is known already, so that one odd batch cannot change it.

    Returns:
        `Explained`, the output in float64, differentiable where `raw` is.

    Raises:
        LayerError: the output has another shape.
        LabelError: the target does.
    """
    if raw.ndim not in (1, 2) or not raw.is_floating_point() or raw.shape[1:] == (0,):
        raise LayerError(
            f"`output` expects a floating tensor [n] or [n, c], got {raw.dtype} {list(raw.shape)}. "
            "Name the module that makes the logits, such as output='head'."
        )
    o = (raw if raw.ndim == 2 else raw.unsqueeze(1)).double()
    task = task or _task(o, target)
    if task == "regression":
        return Explained(task, o, None)
    hard = None if target is None else target.to(o.device)
    if task == "multilabel":
        if hard is not None and hard.numel() != o.numel():
            raise LabelError(f"`target` expects a label for each output, {list(o.shape)}, got shape {list(hard.shape)}.")
        return Explained(task, o, None if hard is None else ((o > 0) == (hard.reshape(o.shape) > 0.5)).double().mean(1))
    if hard is not None and hard.numel() != len(o):
        raise LabelError(f"`target` expects one class per sample, {len(o)}, got shape {list(hard.shape)}.")
    if o.shape[1] == 1:
        return Explained(task, o, None if hard is None else ((o[:, 0] > 0) == (hard.reshape(-1) > 0.5)).double())
    right = None if hard is None else (o.argmax(1) == hard.reshape(-1)).double()
    return Explained(task, o[:, 1:] - o[:, :1] if task == "binary" else o - o.mean(1, keepdim=True), right)


def _task(o: Tensor, target: Tensor | None) -> str:
    if target is not None and _is_regression(target):
        return "regression"
    if target is not None and target.ndim == 2 and target.shape == o.shape and o.shape[1] > 1:
        return "multilabel"
    return "binary" if o.shape[1] <= 2 else "multiclass"


def _is_regression(target: Tensor) -> bool:
    return target.is_floating_point() and not bool(((target == 0) | (target == 1)).all())


def magnitude(effect: Tensor, task: str) -> float:
    """One number for effects on several outputs.

    √(2·Σβ²) for centred logits, which at two classes is |margin effect|; √Σβ² for regression and multi-label outputs; the
    signed effect itself where there is one output.

    Args:
        effect: `[c]`.
        task: as in `Explained`.
    """
    if len(effect) == 1:
        return float(effect[0])
    return float(((2.0 if task == "multiclass" else 1.0) * (effect**2).sum()).sqrt())


def level_spread(effect: Tensor) -> Tensor:
    """2·sd over levels of a categorical variable's effects, `[levels, c]` to `[c]`; at two levels |difference|."""
    return 2 * effect.std(0, unbiased=False) if len(effect) > 1 else effect[0]
