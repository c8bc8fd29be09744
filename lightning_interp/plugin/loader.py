"""What TensorBoard's entry point finds."""

from __future__ import annotations

import logging
from argparse import Namespace
from typing import Any

from tensorboard.plugins.base_plugin import TBLoader

from lightning_interp.summaries.event_log import PLUGIN_NAME

SAMPLES = 500  # events of a run that TensorBoard keeps for the tab unless told otherwise; its own default is 10 or 100


class TabLoader(TBLoader):
    """Makes the tab when TensorBoard starts, and has it keep enough events."""

    def fix_flags(self, flags: Namespace) -> None:
        """Ask for `SAMPLES` events per run where the user's `--samples_per_plugin` names no number."""
        samples = getattr(flags, "samples_per_plugin", None)
        if isinstance(samples, dict):
            samples.setdefault(PLUGIN_NAME, SAMPLES)

    def load(self, context: Any) -> Any:
        """The tab; None, which TensorBoard leaves out, if it cannot be made: nobody's TensorBoard should stop for it."""
        try:
            from lightning_interp.plugin.tab import Tab

            return Tab(context)
        except Exception:
            logging.getLogger(__name__).warning("The tab of lightning_interp is not shown.", exc_info=True)
            return None
