"""TensorBoard's custom-scalars layout: what belongs together, in one chart."""

from __future__ import annotations

import re
from collections.abc import Sequence


def layout(variables: Sequence[str], prefix: str = "") -> dict[str, dict[str, list[object]]]:
    """The layout for `SummaryWriter.add_custom_scalars`.

    Args:
        variables: their names.
        prefix: that of the logged keys.

    Returns:
        {category: {chart: [kind, tag patterns]}}: all contributions in one chart, all effects in another, accuracy by group.
    """
    start = "^" + re.escape(f"{prefix}/" if prefix else "")
    names = "|".join(re.escape(v) for v in variables)
    charts: dict[str, list[object]] = {
        "contribution (share of output variance)": [
            "Multiline",
            [f"{start}contribution/({names}|interactions|unexplained)$"],
        ],
        "effect (logits)": ["Multiline", [f"{start}(effect|intervention)/({names})$"]],
        "accuracy by group": ["Multiline", [f"{start}group/(accuracy/.*|worst_accuracy)$"]],
    }
    return {f"lightning_interp {prefix}".strip(): charts}
