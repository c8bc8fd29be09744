"""One run: train with a method, measure on the validation and the test part."""

import time
import warnings
from contextlib import ExitStack

import lightning as L
import torch
from torch import Tensor, nn

import lightning_interp as interp
from lightning_interp.errors import InterpError, InterpWarning
from shortcuts.methods import KEYS, Method
from shortcuts.tasks import Fields, Task, loader

VERSION = 2  # of a row; others are not read
DO_IMAGES = 2_000  # at most, on which the true effect is measured


def key(task: Task, method: str, value: float, batch_size: int, seed: int) -> dict[str, object]:
    """What a run is known by."""
    names = ("version", "task", "setting", "epochs", "method", "value", "batch", "seed")
    return dict(zip(names, (VERSION, task.name, float(task.setting), task.epochs, method, float(value), batch_size, seed)))


def run(task: Task, method: Method, value: float, batch_size: int, seed: int) -> dict[str, object]:
    """Train once and measure; a method that refuses the task gives its words as `error`."""
    row = key(task, method.name, value, batch_size, seed)
    L.seed_everything(seed, verbose=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", InterpWarning)
        try:
            row |= trained(task, method, value, batch_size, seed)
        except InterpError as problem:
            row["error"] = str(problem)
    said = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, InterpWarning))
    return {**row, "said": list(said)}


def quiet_trainer(epochs: int, callbacks: list[L.Callback]) -> L.Trainer:
    """A Trainer on the CPU that writes nothing."""
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def trained(task: Task, method: Method, value: float, batch_size: int, seed: int) -> dict[str, object]:
    """Seconds, batches that had no penalty, and what was measured."""
    model, callbacks = method.net(task, value), method.callbacks(task, value)
    trainer = quiet_trainer(task.epochs * method.rounds, callbacks)
    data = loader(task.fields("train", seed, method.ceiling), batch_size, shuffle=True)
    start = time.process_time()
    trainer.fit(model, data, loader(task.fields("val", seed), 512) if method.validates else None)
    row: dict[str, object] = {"seconds": time.process_time() - start}
    with ExitStack() as stack:
        for erase in callbacks:
            if isinstance(erase, interp.EraseConfounder):  # without it the model is not erased
                stack.enter_context(erase.erasure.applied())
        for part in ("val", "test"):
            row |= {f"{part}_{name}": found for name, found in measured(task, model, task.fields(part, seed)).items()}
    skipped = [c.suppression.skipped for c in callbacks if isinstance(c, interp.SuppressConfounder)]
    return row | ({"skipped": skipped[0]} if skipped else {})


def measured(task: Task, model: nn.Module, fields: Fields) -> dict[str, float | None]:
    """What a table shows.

    Returns:
        accuracy: as the part is.
        balanced, worst: mean and least accuracy over the cells of the variables.
        share: the confounder's debiased share of the output's variance, by the equation.
        do: true effect of the confounder, set to each of its levels on the same images: twice the standard deviation over
            levels of the mean logits, √(2·Σ of squares) over classes. For two levels and two classes: the change of the
            margin, in logits, without its sign.
        sd: standard deviation of the output, √(2·Σ of variances) over classes: for two, that of the margin.
    """
    variables = [*task.given, task.confounder]
    measures = ["contribution", "groups"]
    event = interp.explain(model, loader(fields, 512), variables, measures=measures, cluster=task.cluster, **KEYS)
    logits = outputs(model, fields["image"])
    some = {name: values[:DO_IMAGES] for name, values in fields.items()}
    levels = torch.stack([outputs(model, task.do(some, level)).mean(0) for level in task.levels])
    return {
        "accuracy": float((logits.argmax(1) == fields["label"]).double().mean()),
        "balanced": sum(event.groups.accuracy.values()) / len(event.groups.accuracy),
        "worst": event.groups.worst_accuracy,
        "share": event.contribution[task.confounder.name].debiased,
        "do": 2 * scale(levels),
        "sd": scale(logits),
    }


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Centred logits `[n, c]`."""
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(part) for part in images.split(512)]).double()
    return logits - logits.mean(1, keepdim=True)


def scale(logits: Tensor) -> float:
    """√(2·Σ of variances) over classes."""
    return float((2 * logits.var(0, unbiased=False).sum()).sqrt())
