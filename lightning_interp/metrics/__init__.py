"""torchmetrics shells over the statistics, in float64."""

from lightning_interp.metrics.layer import LayerStatistics as LayerStatistics
from lightning_interp.metrics.layer import LayerSummary as LayerSummary
from lightning_interp.metrics.table import OutputTable as OutputTable

__all__ = [
    "LayerStatistics",
    "LayerSummary",
    "OutputTable",
]
