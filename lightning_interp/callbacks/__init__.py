"""Lightning callbacks: the only place that knows the Trainer."""

from lightning_interp.callbacks.discover import DiscoverFeatures as DiscoverFeatures
from lightning_interp.callbacks.erase import EraseConfounder as EraseConfounder
from lightning_interp.callbacks.monitor import ConceptMonitor as ConceptMonitor
from lightning_interp.callbacks.suppress import SuppressConfounder as SuppressConfounder

__all__ = [
    "ConceptMonitor",
    "DiscoverFeatures",
    "EraseConfounder",
    "SuppressConfounder",
]
