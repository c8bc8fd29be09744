"""Variables that a callback was given by name: they are those of a `ConceptMonitor` of the same Trainer."""

from __future__ import annotations

from lightning_interp.callbacks.monitor import ConceptMonitor, Trainer
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
