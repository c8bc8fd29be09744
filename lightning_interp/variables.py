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
EXAMPLE_MEASURES = ("decodability", "sensitivity", "entanglement")  # those that need no label of a sample


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
        examples: instead of labels two sets of inputs, (with, without), as in TCAV (Kim et al. 2018): inputs that show the
            variable, and inputs that do not but are like them in all else: whatever else the sets differ in is taken for the
            variable. Each is a batch like the user's own (of which the model is given what `inputs` says), a `DataLoader` or a
            `Dataset` of such batches, or a function without arguments, or `"pkg.mod:function"`, that returns one of these and
            is called once. It is measured at layers, by decodability (with drift), sensitivity and entanglement, its direction
            being the difference of the sets' mean activations (FastCAV, Schmalwasser et al. 2025), and `GradientPenalty` acts
            along it; what needs a value for every sample (contribution, effect, groups, mediation, intervention, the other
            penalties, erasure, edits) is not to be had.

    Raises:
        VariableError: the name or the kind is not usable, or `examples` are not two sets, or stand beside what needs labels.
        InterpError: an import path leads nowhere.
    """

    def __init__(
        self,
        name: str,
        label: str | int | Callable[[Any], Any] | None = None,
        kind: Kind = "auto",
        intervention: str | Callable[[Any], Any] | None = None,
        examples: Sequence[Any] | None = None,
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
        self.examples = examples
        self._examples: list[Any] | None = None
        if examples is not None:
            given = {"label": label is not None, "kind": kind != "auto", "intervention": intervention is not None}
            self._examples = _two_sets(name, examples, [argument for argument, was in given.items() if was])
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
            VariableError: the variable has examples, no labels.
        """
        check_labelled([self], "a batch's labels")
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

    def example_sets(self) -> tuple[Any, Any]:
        """The two sets, with the variable and without, each a batch, a `DataLoader` or a `Dataset`; functions are called once.

        Raises:
            VariableError: the variable has no examples, or a function returned none.
        """
        if self._examples is None:
            raise VariableError(f"variable '{self.name}' has no `examples`; give it two sets, (with, without).")
        for i, found in enumerate(self._examples):
            if callable(found):
                self._examples[i] = found = found()
            if found is None or callable(found) or isinstance(found, (str, int, float)):
                raise VariableError(
                    f"`examples` of '{self.name}' expects a batch, a DataLoader, a Dataset, or a function that returns one of "
                    f"these, got {found!r}."
                )
        one, other = self._examples
        return one, other

    def intervened(self, batch: Any) -> Any:
        """The batch with only this variable changed.

        Raises:
            VariableError: the variable has no intervention.
        """
        if self._intervene is None:
            raise VariableError(f"variable '{self.name}' has no `intervention`; give it a function batch -> batch.")
        return self._intervene(batch)

    def __repr__(self) -> str:
        if self.examples is not None:
            return f"{type(self).__name__}({self.name!r}, examples=…)"
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


def concept_names(given: Sequence[Variable]) -> list[str]:
    """Names of the given variables that should matter; of all of them where none should."""
    return [v.name for v in given if v.should_matter] or [v.name for v in given]


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


def check_labelled(variables: Sequence[Variable], wanted_by: str) -> None:
    """Check that every variable has a value for every sample.

    Args:
        variables: to be checked.
        wanted_by: what needs the values, for the error.

    Raises:
        VariableError: one has examples instead; the error says what they can be used for.
    """
    for v in variables:
        if v.examples is not None:
            raise VariableError(
                f"{wanted_by} needs a value of '{v.name}' for every sample; it has `examples`, no labels. Give it a `label`; "
                f"examples serve `GradientPenalty`, and these measures of a monitor, at its `layers`: "
                f"{', '.join(EXAMPLE_MEASURES)}."
            )


def _two_sets(name: str, examples: Any, beside: Sequence[str]) -> list[Any]:
    """The two sets, import paths loaded."""
    if beside:
        raise VariableError(
            f"variable '{name}': `examples` and `{beside[0]}` were both given; a variable has labels or examples, and only "
            "labels have a kind and an intervention to be checked against."
        )
    if not isinstance(examples, (list, tuple)) or len(examples) != 2:
        got = f"{len(examples)}" if isinstance(examples, (list, tuple)) else f"{type(examples).__name__}"
        raise VariableError(f"`examples` of '{name}' expects two sets, (with, without), got {got}.")
    for found in examples:
        if isinstance(found, str) and ":" not in found:
            raise VariableError(f"`examples` of '{name}' expects 'pkg.mod:function', got {found!r}.")
    return [load_function(s, f"examples of '{name}'") if isinstance(s, str) else s for s in examples]
