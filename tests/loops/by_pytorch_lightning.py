"""`python -m loops.by_pytorch_lightning folder alone|beside`: watched and penalised by pytorch_lightning's Trainer.

`alone` is a machine on which `lightning` is not installed, `beside` one that has both: the callbacks are then of `lightning`.
"""

import sys
import warnings
from pathlib import Path

if __name__ == "__main__":
    folder, alone = Path(sys.argv[1]), sys.argv[2] == "alone"
    if alone:
        sys.modules["lightning"] = None  # importing it fails
    warnings.simplefilter("ignore")  # the host's own, of a small run
    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader

    import lightning_interp as interp
    from lightning_interp.callbacks.probing import Callback
    from loops.net import EPOCHS, PLACES, WEIGHT, Net, Steps, weights

    class PytorchLightningNet(Steps, Net, pl.LightningModule):
        """The net by its name."""

    def fit(*callbacks: Callback, epochs: int = EPOCHS, path: Path | None = None) -> torch.Tensor:
        pl.seed_everything(0, verbose=False)
        model = PytorchLightningNet()
        quiet = {f"enable_{name}": False for name in ("progress_bar", "model_summary")}
        savers = [c for c in callbacks if isinstance(c, pl.callbacks.ModelCheckpoint)]
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=epochs, logger=False, num_sanity_val_steps=0, callbacks=list(callbacks),
            enable_checkpointing=bool(savers), **quiet,
        )  # fmt: skip
        trainer.fit(model, *(DataLoader(part, batch_size=None) for part in torch.load(folder / "data.pt")), ckpt_path=path)
        return weights(model)

    def watch() -> Callback:
        return interp.ConceptMonitor([moo, grass], layers=["encoder.*"], warn_above=float("inf"), **PLACES)

    def suppress() -> Callback:
        return interp.SuppressConfounder(grass, [moo], weight=WEIGHT, start_epoch=0, ramp_epochs=0, **PLACES)

    moo, grass = interp.Concept("moo"), interp.Confounder("grass")
    monitor = watch()
    found = {"weights": fit(monitor), "penalised": fit(suppress()), "events": [e.to_dict() for e in monitor.history]}
    half = folder / sys.argv[2]
    fit(watch(), suppress(), pl.callbacks.ModelCheckpoint(half, save_last=True), epochs=1)
    again = watch()
    found["resumed"] = fit(again, suppress(), path=half / "last.ckpt")
    found["resumed events"] = [e.to_dict() for e in again.history]
    found["ours"] = [c.__module__.split(".")[0] for c in type(monitor).__mro__ if c.__name__ == "Callback"]
    found["imported"] = sorted({name.split(".")[0] for name, module in sys.modules.items() if module is not None})
    torch.save(found, folder / f"{sys.argv[2]}.pt")
