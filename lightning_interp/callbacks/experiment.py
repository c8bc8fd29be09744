"""An experiment from the YAML that LightningCLI wrote, with the weights of a checkpoint: what does it use?"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_interp.callbacks.erase import EraseConfounder
from lightning_interp.callbacks.monitor import ConceptMonitor
from lightning_interp.callbacks.parser import NearestNameParser
from lightning_interp.callbacks.probing import LightningModule
from lightning_interp.errors import InterpError
from lightning_interp.events import Event

try:
    from lightning.pytorch.cli import LightningCLI
except ImportError:  # the other name of the same package
    from pytorch_lightning.cli import LightningCLI  # type: ignore[assignment]

KEPT = (ConceptMonitor, EraseConfounder)  # what watches, and what belongs to the forward pass
# One process, nothing written: an event is wanted, not a run.
QUIET: dict[str, Any] = {
    "callbacks": None, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "devices": 1, "num_nodes": 1, "strategy": "auto",
}  # fmt: skip


def explain_checkpoint(checkpoint: str | Path, config: str | Path) -> dict[str, Event]:
    """Run the monitors of an experiment once over its validation data, with a checkpoint's weights.

    Model, data and monitors are built from the YAML as LightningCLI builds them: what it names is imported and run, as in a
    `fit`. Of the callbacks only `ConceptMonitor` and `EraseConfounder` take part, the latter with its state in the checkpoint.

    Args:
        checkpoint: of Lightning's, with `state_dict`; loaded with `weights_only=True`.
        config: the YAML that LightningCLI wrote beside it, with a `class_path` for the model and the data.

    Returns:
        {prefix of the monitor: its Event}, with the checkpoint's step and epoch.

    Raises:
        InterpError: one of the files is not what it should be, or no monitor reads the validation data.
    """
    saved = _saved(Path(checkpoint))
    made = _built(_config(Path(config)))
    _load(made.model, saved)
    monitors = [c for c in made.trainer.callbacks if isinstance(c, ConceptMonitor)]
    for one in made.trainer.callbacks:
        if isinstance(one, EraseConfounder) and one.state_key in saved.get("callbacks", {}):
            one.load_state_dict(saved["callbacks"][one.state_key])
    if not any(m.data == "val" for m in monitors):
        raise InterpError(f"'{config}' has no ConceptMonitor with data='val'; add one to `trainer.callbacks`.")
    made.trainer.validate(made.model, datamodule=made.datamodule, verbose=False)
    step, epoch = int(saved.get("global_step", 0)), int(saved.get("epoch", 0))
    return {m.prefix: replace(m.latest, step=step, epoch=epoch) for m in monitors if m.latest is not None}


def _saved(path: Path) -> Mapping[str, Any]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as problem:  # whatever the file holds
        raise InterpError(f"'{path}' is no checkpoint that loads with `weights_only=True`: {problem}") from problem
    if not isinstance(found, Mapping) or "state_dict" not in found:
        raise InterpError(f"'{path}' has no `state_dict`: it is no checkpoint of Lightning's.")
    return found


def _config(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise InterpError(f"'{path}' is no YAML: {problem}") from problem
    for part in ("model", "data"):
        if not isinstance(found, dict) or "class_path" not in (found.get(part) or {}):
            raise InterpError(
                f"'{path}' names no `class_path` under `{part}`. It is what `LightningCLI()` writes, called without classes; "
                "with `LightningCLI(Mine, ...)` say `class_path: my.module.Mine` and `init_args:` there yourself."
            )
    trainer = found.get("trainer") or {}
    callbacks = [c for c in trainer.get("callbacks") or [] if _takes_part(c)]
    return {"model": found["model"], "data": found["data"], "trainer": {**trainer, **QUIET, "callbacks": callbacks}}


def _takes_part(callback: Mapping[str, Any]) -> bool:
    where, _, name = str(callback.get("class_path", "")).rpartition(".")
    try:
        found = getattr(importlib.import_module(where or "lightning_interp"), name, None)
    except ImportError:  # of a callback that is not needed here
        return False
    return isinstance(found, type) and issubclass(found, KEPT)


def _built(config: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # it is the caller that has no command line
        return LightningCLI(
            run=False, save_config_callback=None, seed_everything_default=0, parser_class=NearestNameParser, args=config
        )


def _load(model: LightningModule, saved: Mapping[str, Any]) -> None:
    try:
        model.load_state_dict(saved["state_dict"])
    except RuntimeError as problem:
        raise InterpError(f"the checkpoint's weights are not those of {type(model).__name__}: {problem}") from problem
