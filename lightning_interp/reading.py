"""What a monitor reads from a batch before the model runs: values, target, keys, sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_interp.batches import Inputs, Place, as_tensor, is_text, pick, resolve_place
from lightning_interp.errors import LabelError
from lightning_interp.functional.sampling import content_key, id_key
from lightning_interp.variables import Variable


class Labels(NamedTuple):
    """What was read from one batch.

    Attributes:
        values: raw values of the variables `[n, p]`.
        level_names: {index of a variable: {value: name}} where labels are strings.
        target: the task's label `[n]` or `[n, c]`, or None.
        key: the samples' keys, int64 `[n]`.
        source: ids of shared sources, int64 `[n]`, or None.
        mask: which tokens count, `[n, t]`, or None.
    """

    values: Tensor
    level_names: Mapping[int, Mapping[float, str]]
    target: Tensor | None
    key: Tensor
    source: Tensor | None
    mask: Tensor | None


class Reader:
    """Reads labels from batches.

    Args:
        variables: concepts and confounders; none: only how many samples there are is read.
        inputs: what the model is given; its first tensor is a sample's id where there is no other.
        target: where the task's label sits; None: the second element of a tuple or list.
        cluster: where the id of a shared source sits.
        sample_id: where the sample's id sits.
    """

    def __init__(
        self,
        variables: Sequence[Variable],
        inputs: Inputs,
        target: Place | None,
        cluster: Place | None,
        sample_id: Place | None,
    ) -> None:
        self.variables = variables
        self._text: dict[int, bool] = {}  # which labels are text, as of the first batch
        self.inputs = inputs
        self.target = None if target is None else resolve_place(target, "target")
        self.cluster = None if cluster is None else resolve_place(cluster, "cluster")
        self.sample_id = None if sample_id is None else resolve_place(sample_id, "sample_id")

    def read(self, batch: Any) -> Labels:
        """Everything that is wanted of a batch.

        Raises:
            LabelError: something is not there, or has not one value per sample.
        """
        values, names = self._columns(batch)
        n = len(values)
        return Labels(values, names, self.read_target(batch, n), self._key(batch, n), self.source(batch, n), token_mask(batch))

    def values(self, batch: Any) -> Tensor:
        """Raw values of the variables, `[n, p]`."""
        return self._columns(batch)[0]

    def source(self, batch: Any, n: int) -> Tensor | None:
        """Ids of shared sources, int64 `[n]`, or None."""
        return None if self.cluster is None else self._ids(batch, self.cluster, "cluster", n)

    def _columns(self, batch: Any) -> tuple[Tensor, dict[int, dict[float, str]]]:
        columns: list[Tensor] = []
        names: dict[int, dict[float, str]] = {}
        for j, v in enumerate(self.variables):
            column, printed = v.read(batch)
            columns.append(column.to(columns[0].device) if columns else column)
            if printed:
                names[j] = printed
            if len(column) and self._text.setdefault(j, bool(printed)) != bool(printed):
                now, before = ("text", "numbers") if printed else ("numbers", "text")
                raise LabelError(f"`label of '{v.name}'` gives {now}, it gave {before} in the batches before.")
            if len(column) != len(columns[0]):
                raise LabelError(
                    f"`label of '{v.name}'` has {len(column)} values, that of '{self.variables[0].name}' {len(columns[0])}: "
                    "expected one per sample."
                )
        return torch.stack(columns, dim=1) if columns else self._no_columns(batch), names

    def _no_columns(self, batch: Any) -> Tensor:
        first = self.inputs.first(batch)  # as many samples as the model is given
        if first is None:
            raise LabelError(f"no tensor stands at `inputs` in a {type(batch).__name__}, so there is no sample to count.")
        return torch.zeros(len(first), 0, dtype=torch.float64, device=first.device)

    def read_target(self, batch: Any, n: int) -> Tensor | None:
        """The task's label of a batch of `n` samples, or None."""
        if self.target is None and not (isinstance(batch, (list, tuple)) and len(batch) > 1):
            return None
        try:
            found = as_tensor(pick(batch, 1 if self.target is None else self.target, "target"), "target")
        except LabelError:
            if self.target is None:  # a second element that is no label: nobody said it was
                return None
            raise
        if found.ndim == 0 or len(found) != n:
            if self.target is None:
                return None
            raise LabelError(f"`target={self.target!r}` has shape {list(found.shape)}, expected one per sample, {n}.")
        return found.clone()

    def _key(self, batch: Any, n: int) -> Tensor:
        if self.sample_id is not None:
            return self._ids(batch, self.sample_id, "sample_id", n)
        first = self.inputs.first(batch)
        if first is None or len(first) != n:
            raise LabelError(
                f"`sample_id`: the batch's first input has {'no rows' if first is None else len(first)}, the labels {n}; "
                "name the samples' ids, or the model's `inputs`."
            )
        return content_key(first)

    def _ids(self, batch: Any, place: Place, argument: str, n: int) -> Tensor:
        found = pick(batch, place, argument)
        ids = id_key(found) if is_text(found) else id_key(as_tensor(found, argument))
        if len(ids) != n:
            raise LabelError(f"`{argument}={place!r}` has {len(ids)} values, expected one per sample, {n}.")
        return ids


def token_mask(batch: Any) -> Tensor | None:
    """The batch's `attention_mask` `[n, t]`, if it has one."""
    found = batch.get("attention_mask") if isinstance(batch, Mapping) else getattr(batch, "attention_mask", None)
    return found if isinstance(found, Tensor) and found.ndim == 2 else None
