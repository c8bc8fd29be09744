"""Where the certificate of a run is kept."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_interp.callbacks.probing import Trainer
from lightning_interp.certificate import write_certificate
from lightning_interp.errors import InterpWarning, described


def certificate_path(trainer: Trainer) -> tuple[Path | None, list[str]]:
    """Beside the last checkpoint, else in the logger's folder; None for a run that writes neither here. And what to note."""
    try:
        return _place(trainer)
    except Exception as problem:  # a logger is the user's
        return None, [f"no place for a certificate: {described(problem)}"]


def _place(trainer: Trainer) -> tuple[Path | None, list[str]]:
    checkpoint = trainer.checkpoint_callback
    last, best = (getattr(checkpoint, name, "") for name in ("last_model_path", "best_model_path"))
    saved = last or best
    if saved and "://" not in saved:
        by = None if last else getattr(checkpoint, "monitor", None)
        note = f"the checkpoint is the best by '{by}', which may be of an earlier step than the last event"
        return Path(f"{saved}.certificate.json"), [note] if by else []
    folder = trainer.log_dir if trainer.loggers and not getattr(trainer, "fast_dev_run", False) else None
    return None if folder is None or "://" in folder else Path(folder) / "certificate.json", []


def keep_certificate(trainer: Trainer, path: Path | None, entry: Mapping[str, Any]) -> None:
    """Write it, from one process; what goes wrong is said, for the training is done and nothing may take it away now."""
    if path is None or not trainer.is_global_zero:
        return
    try:
        write_certificate(path, entry)
    except Exception as problem:
        text = f"no certificate at {path}: {described(problem)}. It stands in the callback's `certificate`."
        warnings.warn(text, InterpWarning, stacklevel=3)
