"""`edit` and `zero_weight`: take a variable out of a network by changing its weights, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from lightning_interp.activations.select import find_module, module_names
from lightning_interp.activations.spread import sharded
from lightning_interp.batches import Place
from lightning_interp.certificate import certificate
from lightning_interp.editing.case import Case, Sample, erased
from lightning_interp.editing.collateral import collateral, random_control, refuse_over
from lightning_interp.editing.fitting import Fitted, fit, least_edit, pattern_only
from lightning_interp.editing.new_weights import difference, new_values
from lightning_interp.editing.plan import Fold, Site, plan, reader_of, site_at
from lightning_interp.editing.result import Edit
from lightning_interp.errors import InterpError, LayerError, nearest
from lightning_interp.progress import bars
from lightning_interp.variables import Variable

Inputs = str | int | Sequence[str] | Callable[..., Any] | None


def edit(
    model: nn.Module,
    layer: str,
    variable: Variable,
    data: Any,
    given: Sequence[Variable] = (),
    output: str | None = None,
    inputs: Inputs = None,
    target: Place | None = None,
    max_collateral: float | None = None,
    pooling: str = "mean",
    ridge: float = 1e-2,
    cluster: Place | None = None,
    sample_id: Place | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Edit:
    """Erase a variable at a layer, in the weights: the `state_dict` then loads into the untouched class.

    LEACE (Belrose et al. 2023) is fitted to the pooled activation, every cell of the variable and the given ones weighted
    alike, and h' = h − ((h − mean)·read)·write is folded into the Linear or convolution that makes the layer's output, or,
    where none does (after LayerNorm, a non-linearity, Flatten), into all that read it, if each is one. Batch norms in
    evaluation, Dropout, Flatten and averages may stand between. No hook is left and nothing costs time. Before it is believed,
    the result is compared with the hooked erasure on a batch.

    Over space and over tokens every position is projected. The pooled vector is then erased as well, for pooling is linear and
    its weights sum to one; `EraseConfounder` adds one step at every position instead, which no convolution can take in. What
    reads single positions may still find the variable in them: on the demo, do(grass) fell from 8.5 to 5.0 logits by an edit of
    the last feature map, and to 0.3 by one of the flattened vector.

    **Fit on rows that the model was not trained on.** A net that knows its training labels by heart hides the confounder there:
    on the demo, at the layer that feeds the head, the worst group after fitting to training rows was .49 and .18, to validation
    rows .76 and .69. **Look at the collateral, or set `max_collateral`.** Where nearly all of an activation lies along one
    direction (what feeds the head of a small bag of words: 97 %), the erasure takes what matters with it: film reviews, with
    the genre erased so, fell from .69 to .53.

    In a residual stream (a block's output, made by an addition) what is added is also what goes on, and a norm reads it:
    neither can take the erasure in. Edit a block's own last Linear there, or the layer under the head.

    Args:
        model: the network; run in evaluation mode, and left in the mode that it is in.
        layer: the module whose output is erased; `"encoder.3:hidden"` names the entry of a dict.
        variable: what is taken out.
        data: held-out rows: a `DataLoader`, a `Dataset` or batches, gone through about ten times.
        given: what should be left, and goes with it.
        output: the module whose output is explained; None: what the model returns.
        inputs: what the model is given: a key, an index, a list of keys, or a function `(model, batch) -> output`.
        target: where the task's label sits in a batch.
        max_collateral: largest loss allowed, 0…1: of a given variable's effect, as a fraction of what it was, and of accuracy,
            averaged over the cells. A gain is no loss. None: any.
        pooling: "mean", "first", "last" or "masked_mean".
        ridge: damping of the activation's covariance, in units of its mean eigenvalue; see `functional.erasure.leace`.
        cluster: where the id of the source sits that several samples share; halves follow it.
        sample_id: where the sample's id sits; None: its content is its id.
        seed: of the halves and of the random control.
        progress: whether what takes over two seconds shows a bar on the terminal.

    Returns:
        The `Edit`, with `certificate` and `undo`.

    Raises:
        LayerError: there is no such layer, or its erasure cannot be folded; the message says why, and names the nearest layer
            that works.
        EditRefusedError: the collateral is over `max_collateral`; the weights are as they were.
        VariableError: the given variables leave nothing of the variable.
        InterpError: another argument is not usable.

    Example:
        >>> import torch
        >>> from lightning_interp import Concept, Confounder, edit
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> batch = {"x": torch.randn(400, 3), "moo": torch.arange(400) % 2, "grass": torch.arange(400) // 2 % 2}
        >>> done = edit(net, "0", Confounder("grass"), [batch], [Concept("moo")], inputs="x", target="moo")
        >>> done.modules
        ('0',)
        >>> done.undo()
    """
    _check(model, max_collateral, ridge)
    case = Case(model, variable, given, data, output, inputs, target, pooling, cluster, sample_id, seed)
    found = find_module(model, layer, "layer")
    with bars(progress):
        batch = case.first()
        graph = case.graph(batch)
        site = site_at(graph, found, layer)
        folds = plan(graph, site)
        sample = case.sample(site)
        fitted = fit(sample.quarters, case.variables, least_edit(ridge))
        settings = {"layer": layer, "output": output, "pooling": pooling, "ridge": ridge, "seed": seed}
        return _operate(case, "edit", site, folds, sample, fitted, batch, settings, max_collateral)


def zero_weight(
    model: nn.Module,
    output: str,
    variable: Variable,
    data: Any,
    given: Sequence[Variable] = (),
    inputs: Inputs = None,
    target: Place | None = None,
    max_collateral: float | None = None,
    pooling: str = "mean",
    cluster: Place | None = None,
    sample_id: Place | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Edit:
    """Set a variable's coefficient in the equation to zero, in the last layer: W' = W − W·B'(B·B')⁻¹·B.

    B is the multivariate pattern of the variable at the layer's input (what it adds to the activation, the given ones held
    fixed), so that W'·B' = 0: on these rows the equation's coefficient is zero, and no smaller change of W (in the Frobenius
    norm) makes it so. The bias keeps the mean output as it was. Unlike after `edit`, a linear probe may still read the variable
    from what the layer is given, and from single samples' outputs: its mean effect is gone, not all that goes with it.

    Fit on rows that the model was not trained on, see `edit`.

    Args:
        model: as in `edit`.
        output: the Linear whose output is explained.
        variable: as in `edit`.
        data: as in `edit`.
        given: as in `edit`.
        inputs: as in `edit`.
        target: as in `edit`.
        max_collateral: as in `edit`.
        pooling: as in `edit`, for a layer that reads tokens.
        cluster: as in `edit`.
        sample_id: as in `edit`.
        seed: as in `edit`.
        progress: as in `edit`.

    Returns:
        The `Edit`.

    Raises:
        LayerError: `output` is no Linear, or its weights are shared.
        EditRefusedError: as in `edit`.
        VariableError: as in `edit`.
        InterpError: as in `edit`.
    """
    _check(model, max_collateral, 0.0)
    case = Case(model, variable, given, data, output, inputs, target, pooling, cluster, sample_id, seed)
    found = find_module(model, output, "output")
    if not isinstance(found.module, nn.Linear):
        linear = [name for name, m in module_names(model).items() if isinstance(m, nn.Linear)]
        raise LayerError(f"`output={output!r}` expects a Linear, got {type(found.module).__name__}.{nearest(output, linear)}")
    with bars(progress):
        batch = case.first()
        graph = case.graph(batch)
        folds = [reader_of(graph, found.module, output)]
        site = site_at(graph, found, output, "input")
        sample = case.sample(site)
        fitted = fit(sample.quarters, case.variables, pattern_only)
        settings = {"output": output, "pooling": pooling, "seed": seed}
        return _operate(case, "zero_weight", site, folds, sample, fitted, batch, settings, max_collateral)


def _check(model: nn.Module, max_collateral: float | None, ridge: float) -> None:
    if sharded(model):
        raise InterpError(
            "`model` expects whole weights, and those of this one are shared out over the processes (FSDP): load its full "
            "checkpoint into a model of one process, and edit that."
        )
    if max_collateral is not None and not 0 <= max_collateral < math.inf:
        raise InterpError(f"`max_collateral` expects 0 or more, got {max_collateral!r}.")
    if not 0 <= ridge < math.inf:
        raise InterpError(f"`ridge` expects 0 or more, got {ridge!r}.")


# --- the operation ----------------------------------------------------------------------------------------------------


def _operate(
    case: Case,
    kind: str,
    site: Site,
    folds: Sequence[Fold],
    sample: Sample,
    fitted: Fitted,
    batch: Any,
    settings: dict[str, Any],
    max_collateral: float | None,
) -> Edit:
    measures = ["contribution", "groups", *(["intervention"] if any(v.intervention for v in case.variables) else [])]
    case.weights = fitted.weights
    before = case.event(measures)
    control = random_control(case, site, fitted.eraser, before)
    with erased(site, fitted.eraser):
        hooked = case.raw(batch)
    done = Edit(fitted.eraser, [f.name for f in folds], new_values(folds, fitted.eraser))
    try:
        off = difference(case.raw(batch), hooked, folds)
        after = case.event(measures)
        lost, missing = collateral(case, before, after)
        record = {
            "at": f"{site.side} of {site.name}",
            "folded_into": {f.name: f.side for f in folds},
            "rank": fitted.eraser.rank,
            "directions": {name: part.tolist() for name, part in fitted.eraser._asdict().items()},
            "rows": int(sum(q.rows for q in sample.quarters)),
            "guardedness": fitted.guardedness,
            "collateral": lost,
            "accuracy": {"before": sample.accuracy, "after": case.accuracy()},
            "control": control,
            "largest_difference": off,
        }
        variable, *given = (v.name for v in case.variables)
        settings = {**settings, "weights": fitted.weights, "max_collateral": max_collateral}
        done.certificate = certificate(kind, variable, given, settings, before, after, [*_notes(site, kind), *missing], record)
        refuse_over(max_collateral, done.certificate)
    except BaseException:
        done.undo()
        raise
    return done


def _notes(site: Site, kind: str) -> list[str]:
    out = ["before and after are measured on the rows that the edit was fitted to; guardedness is on held-out ones"]
    if kind == "edit":
        out.append("over space and tokens every position is projected, and the pooled activation with it")
    else:
        out.append("the coefficient is zero; a linear probe may still read the variable from what the layer is given")
    return out
