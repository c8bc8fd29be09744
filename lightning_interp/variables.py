"""Variables: human-named properties of a sample. A `Concept` should matter to the model, a `Confounder` should not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_interp.batches import as_tensor, is_text, load_function, pick, resolve_place, text_key
from lightning_interp.errors import LabelError, VariableError, nearest

Kind = Literal["auto", "binary", "categorical", "continuous"]
RESERVED = ("interactions", "unexplained")
KINDS = ("auto", "binary", "categorical", "continuous")


class Variable(ABC):
    """A property of a sample that a human has a name for; use `Concept` or `Confounder`.

    Args:
        name: what it is called in keys, tables and plots; holds no `/`.
        label: where its value sits in a batch: a key, an index, a dotted path such as `"meta.place"`, a function of the batch,
            or `"pkg.mod:function"`. One value per sample: numbers or strings. None: the name itself is the key.
        kind: "binary", "categorical" or "continuous"; "auto" decides from the values: two of them are binary; strings, and at
            most 32 distinct whole numbers, categorical; everything else continuous.
        intervention: a function of the batch, or `"pkg.mod:function"`, that returns the batch with only this variable changed
            (a binary one flipped); the truth that the estimated effect is checked against.

    Raises:
        VariableError: the name or the kind is not usable.
        InterpError: an import path leads nowhere.
    """

    def __init__(
        self,
        name: str,
        label: str | int | Callable[[Any], Any] | None = None,
        kind: Kind = "auto",
        intervention: str | Callable[[Any], Any] | None = None,
    ) -> None:
        if not isinstance(name, str) or not name.strip():
            raise VariableError(f"`name` expects a non-empty string, got {name!r}.")
        if "/" in name:
            raise VariableError(f"`name={name!r}` holds a '/', which would split the logged key. Use another sign.")
        if name in RESERVED:
            raise VariableError(f"`name={name!r}` is what the library calls a share of its own. Use another.")
        if kind not in KINDS:
            raise VariableError(f"variable '{name}': `kind={kind!r}` is none of {', '.join(KINDS)}.{nearest(kind, KINDS)}")
        self.name = name
        self.kind = kind
        self.label = name if label is None else label
        self.intervention = intervention
        self._place = resolve_place(self.label, f"label of '{name}'")
        self._intervene: Callable[[Any], Any] | None = None
        if isinstance(intervention, str):
            self._intervene = load_function(intervention, f"intervention of '{name}'")
        elif intervention is not None and not callable(intervention):
            raise VariableError(f"variable '{name}': `intervention` expects a function, got {intervention!r}.")
        else:
            self._intervene = intervention

    @property
    @abstractmethod
    def should_matter(self) -> bool:
        """Whether the model is right to use the variable."""

    def read(self, batch: Any) -> tuple[Tensor, dict[float, str]]:
        """The variable's values in a batch.

        Args:
            batch: a batch as the loop has it.

        Returns:
            float64 `[n]`, and {value: name} where the labels are strings.

        Raises:
            LabelError: nothing stands at the label, or it is not one value per sample.
        """
        found = pick(batch, self._place, f"label of '{self.name}'")
        if is_text(found):
            # 2^-12 of a 64-bit hash: exact in float64, and the same on every rank without asking.
            codes = (text_key(found) >> 12).double()
            return codes, dict(zip(codes.tolist(), found))
        values = as_tensor(found, f"label of '{self.name}'")
        if values.ndim == 0 or values.numel() != len(values):
            raise LabelError(
                f"`label of '{self.name}'={self.label!r}` expects one value per sample, got shape {list(values.shape)}."
            )
        return values.reshape(-1).to(torch.float64) + 0.0, {}  # +0.0: −0.0 and 0.0 are one level

    def intervened(self, batch: Any) -> Any:
        """The batch with only this variable changed.

        Raises:
            VariableError: the variable has no intervention.
        """
        if self._intervene is None:
            raise VariableError(f"variable '{self.name}' has no `intervention`; give it a function batch -> batch.")
        return self._intervene(batch)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, label={self.label!r}, kind={self.kind!r})"


class Concept(Variable):
    """A variable that should matter: the cow's horns."""

    @property
    def should_matter(self) -> bool:
        """True: the model is right to use it."""
        return True


class Confounder(Variable):
    """A variable that should not matter: the grass under the cow."""

    @property
    def should_matter(self) -> bool:
        """False: the model leans on a shortcut if it uses it."""
        return False


def check_variables(variables: Sequence[Variable]) -> tuple[Variable, ...]:
    """The variables, checked to be variables with different names.

    Raises:
        VariableError: none was given, something is not a variable, or two share a name.
    """
    if isinstance(variables, Variable):
        variables = [variables]
    if not variables:
        raise VariableError("`variables` expects at least one Concept or Confounder, got none.")
    seen: set[str] = set()
    for v in variables:
        if not isinstance(v, Variable):
            raise VariableError(f"`variables` expects Concept or Confounder objects, got {type(v).__name__} {v!r}.")
        if v.name in seen:
            raise VariableError(f"`variables` has two variables named '{v.name}'; every name must be its own.")
        seen.add(v.name)
    return tuple(variables)
