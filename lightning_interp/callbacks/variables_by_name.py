"""Variables that a callback was given by name: they are those of a `ConceptMonitor` of the same Trainer."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_interp.callbacks.monitor import ConceptMonitor
from lightning_interp.callbacks.probing import Trainer
from lightning_interp.errors import VariableError, nearest
from lightning_interp.variables import Variable


def monitors_of(trainer: Trainer) -> list[ConceptMonitor]:
    """The monitors of a Trainer, in their order."""
    return [c for c in trainer.callbacks if isinstance(c, ConceptMonitor)]  # type: ignore[attr-defined]


def find_variable(wanted: str | Variable, trainer: Trainer) -> Variable:
    """The variable of that name; a variable is itself. Of several monitors the first that has it.

    Raises:
        VariableError: no monitor has it; the error names the nearest.
    """
    if isinstance(wanted, Variable):
        return wanted
    monitors = monitors_of(trainer)
    known = {v.name: v for m in reversed(monitors) for v in m.monitor.variables}
    if wanted not in known:
        hint = nearest(wanted, known) if monitors else " There is no ConceptMonitor in this Trainer; give a Variable."
        raise VariableError(f"`confounder` or `given`: no ConceptMonitor of this Trainer has a variable '{wanted}'.{hint}")
    return known[wanted]


def measuring(trainer: Trainer, variables: Sequence[Variable], output: str | None) -> ConceptMonitor | None:
    """The monitor whose events speak of the first variable, and of this output; one that has all of the variables goes first.

    Args:
        trainer: whose monitors.
        variables: the confounder first.
        output: the module whose output is meant; None: any.
    """
    wanted, found = {v.name for v in variables}, []
    for m in monitors_of(trainer):
        names, theirs = {v.name for v in m.monitor.labelled}, m.places["output"]
        same = theirs is None or output is None or theirs == output
        if variables[0].name in names and same and "contribution" in m.monitor.measures:
            found.append((not wanted <= names, m))
    return min(found, key=lambda pair: pair[0])[1] if found else None
