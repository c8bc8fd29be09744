"""The rows of a probe set that features are found in and judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_interp.collection import Rows as BatchRows
from lightning_interp.errors import LayerError, ProbeSetError
from lightning_interp.functional.coding import Design, code
from lightning_interp.functional.outputs import Explained, explain_output
from lightning_interp.functional.sampling import uniform
from lightning_interp.functional.weights import Weights, sample_weights
from lightning_interp.processes import gathered
from lightning_interp.variables import Variable


class Rows(NamedTuple):
    """The rows of a probe set, in the order of their keys.

    Attributes:
        h: pooled activations `[n, d]`, float64.
        explained: the output, with whether each sample is right.
        z: coded named variables, `[n, q]`.
        weight: of each row; they sum to 1.
        weights: as used, with the cells.
        design: the coding.
        target: the task's label `[n]`; None where there is none, or several for each sample.
        key: `[n]`, int64.
        fitting: rows that features are found on, bool `[n]`; the others judge.
    """

    h: Tensor
    explained: Explained
    z: Tensor
    weight: Tensor
    weights: Weights
    design: Design
    target: Tensor | None
    key: Tensor
    fitting: Tensor

    def residual(self, x: Tensor, rows: Tensor) -> Tensor:
        """What the named variables leave of columns `x` `[n, m]`, on some of the rows and under their weights, `[k, m]`."""
        z = torch.cat([torch.ones(int(rows.sum()), 1, dtype=torch.float64), self.z[rows]], 1)
        root = self.weight[rows].sqrt().unsqueeze(1)
        x = x[rows].double()
        return x - z @ torch.linalg.lstsq(root * z, root * x, driver="gelsd").solution

    def unexplained(self, output: Tensor, rows: Tensor) -> tuple[float, float]:
        """Variance of an output `[n, c]` on some rows, and that of what the named variables leave of it."""
        share = (self.weight[rows] / self.weight[rows].sum()).unsqueeze(1)
        o = output[rows]
        centred = o - (share * o).sum(0)
        return float((share * centred**2).sum()), float((share * self.residual(output, rows) ** 2).sum())


def joined(
    batches: Sequence[BatchRows],
    layer: str,
    variables: Sequence[Variable],
    level_names: Mapping[int, Mapping[float, str]],
    weights: str,
    seed: int,
    skipped: int,
) -> tuple[Rows, list[str]]:
    """The rows of all processes in the order of their keys, each sample once, and notes: a collective.

    Args:
        batches: what this process saw.
        layer: the layer that is looked at.
        variables: the named ones.
        level_names: {index of a variable: {value: name}} where labels are strings.
        weights: "balanced" or "natural", as asked.
        seed: of the halves.
        skipped: batches that were left out, for the error.

    Raises:
        ProbeSetError: there is no usable row.
        LayerError: the layer never ran.
        VariableError: a variable cannot be coded.
    """
    finite = [r for r in batches if bool(r.finite)]
    usable = [r.kept() for r in finite if layer in r.layers]
    columns = [(r.values, r.output, r.target, r.key, r.source, r.layers[layer]) for r in usable]
    mine = [tuple(None if t is None else t.cpu() for t in column) for column in columns]
    printed: dict[str, dict[float, str]] = {}
    parts: list[Any] = []
    bad = ran = 0
    for theirs, levels, left_out, seen in gathered((mine, level_names, skipped + len(batches) - len(finite), len(finite))):
        parts += theirs
        bad, ran = bad + left_out, ran + seen
        for j, known in levels.items():
            printed.setdefault(variables[j].name, {}).update(known)
    if ran and not parts:
        raise LayerError(f"`layer`: '{layer}' never ran in a watched step, or returned no tensor with one row per sample.")
    if not sum(len(part[3]) for part in parts):
        left = f"; {bad} were left out." if bad else "."
        raise ProbeSetError(f"the probe set is empty: no batch had labels and finite outputs and activations{left}", bad)
    values, raw, target, key, source, h = (_stacked(column) for column in zip(*parts))
    key, first = first_of_each(key)
    target, source = (None if t is None else t[first] for t in (target, source))
    raw = raw[first]
    explained = explain_output(raw.reshape(len(raw), -1), target)
    values, count = values[first].double(), torch.ones(len(first), dtype=torch.float64)
    design = code(values, count, [v.name for v in variables], [v.kind for v in variables], printed)
    weighed = sample_weights(design, values, count, weights)
    fitting = uniform(key if source is None else source, seed, 0) < 0.5
    target = target.flatten() if target is not None and target.numel() == len(key) else None
    found = Rows(h[first].double(), explained, design.encode(values), weighed.row, weighed, design, target, key, fitting)
    counted = f"{bad} batches were left out" if bad else None
    return found, [n for n in (*design.unmeasurable.values(), weighed.note, counted) if n]


def _stacked(column: Sequence[Tensor | None]) -> Any:
    known = [t for t in column if t is not None]
    return torch.cat(known) if len(known) == len(column) else None


def first_of_each(key: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct keys in ascending order, and where each stands first."""
    found, group = torch.unique(key, return_inverse=True)
    first = torch.full((len(found),), len(key)).scatter_reduce_(0, group, torch.arange(len(key)), "amin")
    return found, first
