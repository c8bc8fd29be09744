"""Figures from records, and the report that holds them: one source for notebooks, the TensorBoard tab and a file to hand on.

Needs no torch, no Trainer, and plotly only where a figure is shown. Every figure takes events (`monitor.history`), records
(`to_records`) or a `Run`, or a mapping of names to these, which it draws side by side.
"""

from lightning_interp.report.contributions import contributions as contributions
from lightning_interp.report.effects import effects as effects
from lightning_interp.report.equation import equation as equation
from lightning_interp.report.features import features as features
from lightning_interp.report.figure import Figure as Figure
from lightning_interp.report.groups import groups as groups
from lightning_interp.report.heatmap import heatmap as heatmap
from lightning_interp.report.log_directory import read_log_directory as read_log_directory
from lightning_interp.report.page import write_report as write_report
from lightning_interp.report.penalties import penalties as penalties
from lightning_interp.report.run import Run as Run
from lightning_interp.report.verdict import verdict as verdict

__all__ = [
    "Figure",
    "Run",
    "contributions",
    "effects",
    "equation",
    "features",
    "groups",
    "heatmap",
    "penalties",
    "read_log_directory",
    "verdict",
    "write_report",
]
