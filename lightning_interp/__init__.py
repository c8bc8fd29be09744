"""Watch, while a model trains, what it uses: how much each concept and each confounder contributes to its output."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lightning_interp import callbacks as callbacks
    from lightning_interp import discovery as discovery
    from lightning_interp import functional as functional
    from lightning_interp import metrics as metrics
    from lightning_interp import penalties as penalties
    from lightning_interp import report as report
    from lightning_interp.activations.capture import capture as capture
    from lightning_interp.callbacks.discover import DiscoverFeatures as DiscoverFeatures
    from lightning_interp.callbacks.erase import EraseConfounder as EraseConfounder
    from lightning_interp.callbacks.monitor import ConceptMonitor as ConceptMonitor
    from lightning_interp.callbacks.suppress import SuppressConfounder as SuppressConfounder
    from lightning_interp.discovery.discovery import Discovery as Discovery
    from lightning_interp.editing.result import Edit as Edit
    from lightning_interp.editing.surgery import edit as edit
    from lightning_interp.editing.surgery import zero_weight as zero_weight
    from lightning_interp.erasure import Erasure as Erasure
    from lightning_interp.events import Event as Event
    from lightning_interp.events import to_records as to_records
    from lightning_interp.explanation import explain as explain
    from lightning_interp.monitor import Monitor as Monitor
    from lightning_interp.report.page import write_report as write_report
    from lightning_interp.suppression import Suppression as Suppression
    from lightning_interp.variables import Concept as Concept
    from lightning_interp.variables import Confounder as Confounder
    from lightning_interp.variables import Variable as Variable

# Imported when first asked for (PEP 562), so that what needs no torch does not wait for it.
_WHERE = {
    "capture": "activations.capture",
    "Concept": "variables",
    "ConceptMonitor": "callbacks.monitor",
    "Confounder": "variables",
    "DiscoverFeatures": "callbacks.discover",
    "Discovery": "discovery.discovery",
    "Edit": "editing.result",
    "edit": "editing.surgery",
    "EraseConfounder": "callbacks.erase",
    "Erasure": "erasure",
    "Event": "events",
    "explain": "explanation",
    "Monitor": "monitor",
    "SuppressConfounder": "callbacks.suppress",
    "Suppression": "suppression",
    "to_records": "events",
    "Variable": "variables",
    "write_report": "report.page",
    "zero_weight": "editing.surgery",
}
_MODULES = ("callbacks", "discovery", "functional", "metrics", "penalties", "report")

__all__ = [*_WHERE, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        # Set here, because importing the submodule `explain` has just put the module in the function's place.
        found = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
        globals()[name] = found
        return found
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    from lightning_interp.errors import nearest

    raise AttributeError(f"module '{__name__}' has no attribute '{name}'.{nearest(name, __all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
