"""One run: train with a method, measure on the validation and the test part."""

import time
import warnings
from contextlib import ExitStack
from functools import lru_cache

import lightning as L
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import lightning_interp as interp
from lightning_interp.errors import InterpError, InterpWarning
from shortcuts.jtt import repeated
from shortcuts.methods import Method, decayed
from shortcuts.tasks import Fields, Task, loader

VERSION = 2  # of a row; others are not read
DO_IMAGES = 2_000  # at most, on which the true effect is measured
LEAST = 10  # samples of a cell that can be the worst


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
    callbacks = method.callbacks(task, value)
    start = time.process_time()
    if method.after is None:
        model, before = fitted(task, method, value, batch_size, seed, callbacks), 0.0
    else:
        state, before = plain_weights(task, value if method.net is decayed else None, batch_size, seed)
        model = method.net(task, value)
        model.load_state_dict(state)
        L.seed_everything(seed, verbose=False)
        start = time.process_time()
        method.after(task, model, value, seed)
    row: dict[str, object] = {"seconds": time.process_time() - start + before}
    with ExitStack() as stack:
        for erase in callbacks:
            if isinstance(erase, interp.EraseConfounder):  # without it the model is not erased
                stack.enter_context(erase.erasure.applied())
        for part in ("val", "test"):
            row |= {f"{part}_{name}": found for name, found in measured(task, model, task.fields(part, seed), part).items()}
        row |= {f"also_{part}": accuracy(task, model, task.fields(part, seed)) for part in task.also}
    skipped = [c.suppression.skipped for c in callbacks if isinstance(c, interp.SuppressConfounder)]
    return row | ({"skipped": skipped[0]} if skipped else {})


def fitted(
    task: Task, method: Method, value: float, batch_size: int, seed: int, callbacks: list[L.Callback]
) -> L.LightningModule:
    """The net, trained with a method's callbacks."""
    fields = task.fields("train", seed, method.ceiling)
    if method.errors is not None:
        first = task.net()
        quiet_trainer(max(1, task.epochs // 5), []).fit(first, loader(fields, batch_size, shuffle=True))
        fields = repeated(task, first, fields, method.errors(value))
        L.seed_everything(seed, verbose=False)
    model = method.net(task, value)
    trainer = quiet_trainer(task.epochs * method.rounds, callbacks)
    held_out = loader(task.fields("val", seed), 512) if method.validates else None
    trainer.fit(model, loader(fields, batch_size, shuffle=True), held_out)
    return model


@lru_cache(maxsize=64)
def plain_weights(task: Task, decay: float | None, batch_size: int, seed: int) -> tuple[dict[str, Tensor], float]:
    """Weights of a plain net, trained once for all that is done to it afterwards, and the seconds it took."""
    start = time.process_time()
    model = task.net(weight_decay=decay)
    quiet_trainer(task.epochs, []).fit(model, loader(task.fields("train", seed), batch_size, shuffle=True))
    return model.state_dict(), time.process_time() - start


def measured(task: Task, model: nn.Module, fields: Fields, part: str = "test") -> dict[str, float | None]:
    """What a table shows.

    Returns:
        accuracy: as the part is.
        balanced, worst: mean and least accuracy over the cells of the variables; the least of those with ten samples.
        auc: area under the curve, of two classes.
        share: the confounder's debiased share of the output's variance, by the equation.
        do: true effect of the confounder, set to each of its levels on the same images: twice the standard deviation over
            levels of the mean logits, √(2·Σ of squares) over classes. For two levels and two classes: the change of the
            margin, in logits, without its sign.
        sd: standard deviation of the output, √(2·Σ of variances) over classes: for two, that of the margin.
    """
    measures = ["contribution", "groups"]
    variables = task.variables(part)
    event = interp.explain(model, loader(fields, 512), variables, measures=measures, cluster=task.cluster, **task.places)
    logits = outputs(model, fields[task.inputs])
    some = {name: values[:DO_IMAGES] for name, values in fields.items()}
    levels = [outputs(model, task.do(some, level)).mean(0) for level in task.levels]
    enough = [event.groups.accuracy[cell] for cell, n in event.groups.count.items() if n >= LEAST]
    confounder = event.contribution.get(task.confounder.name)
    return {
        "accuracy": float((logits.argmax(1) == fields["label"]).double().mean()),
        "balanced": sum(event.groups.accuracy.values()) / len(event.groups.accuracy),
        "worst": min(enough, default=None),
        "auc": roc_auc_score(fields["label"], logits[:, 1]) if logits.shape[1] == 2 else None,
        "share": None if confounder is None else confounder.debiased,
        "do": 2 * scale(torch.stack(levels)) if levels else None,
        "sd": scale(logits),
    }


def accuracy(task: Task, model: nn.Module, fields: Fields) -> float:
    """Of a part."""
    return float((outputs(model, fields[task.inputs]).argmax(1) == fields["label"]).double().mean())


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Centred logits `[n, c]`."""
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(part) for part in images.split(512)]).double()
    return logits - logits.mean(1, keepdim=True)


def scale(logits: Tensor) -> float:
    """√(2·Σ of variances) over classes."""
    return float((2 * logits.var(0, unbiased=False).sum()).sqrt())
