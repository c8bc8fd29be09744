"""The table of faults: what goes wrong, in whom, and what is to be said of it."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from faults.scene import (
    ERASURES,
    MEASURING,
    OF_TRAINING,
    PENALTIES,
    TRAIN,
    VAL,
    WATCHERS,
    Fault,
    FullDisk,
    FullWriter,
    Items,
    Net,
    Now,
    Parts,
    called,
    giving,
    key,
    loader,
    raising,
    struck,
    swapped,
)

ANY = tuple(WATCHERS)
SOME = ("monitor", "by steps", "own data", "discovery", "contribution", "budget", "erasure")
OWN = ("all measures", "own data", "invariance", "gradient")  # these run the model themselves
WATCHING = tuple(name for name in MEASURING if name != "own data")
DOING = ("all measures", "invariance")
SMALL = ("monitor", "by steps", "discovery", "contribution", "invariance", "erasure")


def broken() -> RuntimeError:
    return RuntimeError("broken on purpose")


def unreadable() -> OSError:
    """Another text for every batch."""
    return OSError(f"sample {Now.batch}{random.Random(Now.batch).random()}.png is unreadable")


def per_sample(output: Any, target: Any) -> Any:
    return F.cross_entropy(output, target, reduction="none")


# --- the user's functions ---------------------------------------------------------------------------------------------

FUNCTIONS = [
    Fault("a label raises", ANY, lambda: Parts(grass=raising(unreadable, key("grass"))), says="unreadable"),
    Fault("a label ends an iteration", SOME, lambda: Parts(grass=raising(StopIteration, key("grass"))), says="StopIteration"),
    Fault("the target raises", (*MEASURING, *PENALTIES), lambda: Parts(target=raising(broken, key("moo"))), says="on purpose"),
    Fault("do() raises", ("all measures", "invariance"), lambda: Parts(do=raising(broken, swapped)), says="on purpose"),
    Fault(
        "do() gives None",
        ("all measures", "invariance"),
        lambda: Parts(do=giving(lambda b: None, swapped)),
        says="grass|inputs",
    ),
    Fault(
        "do() loses rows",
        ("all measures", "invariance"),
        lambda: Parts(do=giving(lambda b: {k: v[:-1] for k, v in b.items()}, swapped)),
        says="grass|rows",
    ),
    Fault("`inputs` raises", OWN, lambda: Parts(inputs=raising(broken, called)), says="on purpose"),
    Fault(
        "`inputs` gives None",
        ("own data", "invariance"),
        lambda: Parts(inputs=giving(lambda model, batch: None, called)),
        says="output",
    ),
    Fault(
        "pooling raises",
        ("monitor", "all measures", "training window", "by steps", "own data", "budget"),
        lambda: Parts(pooling=raising(broken, torch.clone)),
        says="on purpose|pooling function",  # the latter: measures that no pooling function has
    ),
    Fault(
        "pooling gives a number",
        ("monitor", "by steps"),
        lambda: Parts(pooling=giving(torch.mean, torch.clone)),
        says="expects a function that gives",
    ),
    Fault(
        "pooling gives another width",
        ("monitor", "by steps"),
        lambda: Parts(pooling=giving(lambda a: a[:, :2], torch.clone)),
    ),
    Fault(
        "pooling loses rows",
        ("monitor", "by steps"),
        lambda: Parts(pooling=giving(lambda a: a[:3], torch.clone)),
        says="gives 3 rows",
    ),
    Fault(
        "`loss_fn` raises",
        ("contribution", "invariance", "reweighting", "group DRO", "budget"),
        lambda: Parts(loss_fn=raising(broken, per_sample)),
        says="on purpose",
    ),
    Fault(
        "`loss_fn` gives NaN",
        ("contribution", "reweighting", "group DRO"),
        lambda: Parts(loss_fn=giving(lambda o, t: per_sample(o, t) * torch.nan, per_sample)),
        says="not finite",
    ),
    Fault(
        "`loss_fn` gives one number",
        ("contribution", "reweighting", "group DRO"),
        lambda: Parts(loss_fn=giving(lambda o, t: per_sample(o, t).mean(), per_sample)),
        says="loss_fn",
    ),
]


# --- batches ----------------------------------------------------------------------------------------------------------


def without(name: str) -> Any:
    return lambda batch: {k: v for k, v in batch.items() if k != name}


def other(name: str, change: Any) -> Any:
    return lambda batch: {**batch, name: change(batch[name])}


def rows(count: int) -> Any:
    return lambda batch: {k: v[:count] for k, v in batch.items()}


def bad_batch(name: str, watchers: Any, change: Any, says: str | None = None, **parts: Any) -> Fault:
    """The second batch of epoch 1 is another, in every loader."""

    class Changed(Net):
        def loss(self, batch: Any, batch_idx: int) -> Any:
            logits = self(batch["x"])
            return F.cross_entropy(logits, batch["moo"].long()) if len(logits) > 1 else None

        def forward(self, x: Any) -> Any:
            return self.head(self.frozen(self.encoder(x.float()))) if len(x) > 1 else self.head(torch.zeros(len(x), 8))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if len(batch["x"]) > 1:
                super().validation_step(batch, batch_idx)
            else:
                self(batch["x"])

        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            return batch  # what is on another device stays there

        def train_dataloader(self) -> Any:
            return loader(TRAIN, 1, change)

        def val_dataloader(self) -> Any:
            return loader(VAL, 2, change, 40)

    return Fault(name, watchers, lambda: Parts(own=lambda: loader(VAL, 2, change, 40), **parts), Changed, says=says)


BATCHES = [
    bad_batch("a label is missing", ANY, without("grass"), "grass"),
    bad_batch("labels of another length", ANY, other("grass", lambda v: v[:-3]), "values|rows|agree|labels"),
    bad_batch("labels in two columns", SOME, other("grass", lambda v: torch.stack([v, v], 1)), "shape"),
    bad_batch("a label for the whole batch", SOME, other("grass", lambda v: 1), "shape"),
    bad_batch("labels are objects", SOME, other("grass", lambda v: [object()] * len(v)), "numbers"),
    bad_batch("labels on another device", ANY, other("grass", lambda v: v.to("meta")), "meta"),
    bad_batch("labels are NaN", ANY, other("grass", lambda v: v * torch.nan), None),
    bad_batch(
        "a third value of what is binary",
        (*MEASURING, "contribution", "budget", *ERASURES),
        other("grass", lambda v: torch.where(torch.arange(len(v)) == 3, 7, v)),
        "kind='binary'",
        kind="binary",
    ),
    bad_batch("labels become words", SOME, other("grass", lambda v: [("no", "yes")[int(i)] for i in v]), "gives text"),
    bad_batch("labels need gradients", SMALL, other("grass", lambda v: v.float().requires_grad_())),
    bad_batch("labels in half precision", SMALL, other("grass", lambda v: v.to(torch.bfloat16))),
    bad_batch(
        "the target has another shape",
        (*MEASURING, "contribution", "reweighting", "group DRO"),
        lambda batch: {**batch, "y": torch.stack([batch["moo"]] * 3, 1)},
        "target",
        target=lambda batch: batch.get("y", batch["moo"]),
    ),
    bad_batch(
        "the target has a column",
        (*MEASURING, "contribution", "reweighting"),
        lambda batch: {**batch, "y": batch["moo"].view(-1, 1)},
        None,
        target=lambda batch: batch.get("y", batch["moo"]),
    ),
    bad_batch(
        "the target is on another device",
        (*MEASURING, "contribution", "group DRO"),
        lambda batch: {**batch, "y": batch["moo"].float().to("meta")},
        "meta",
        target=lambda batch: batch.get("y", batch["moo"]),
    ),
    bad_batch("one row", ANY, rows(1)),
    bad_batch("no row", ANY, rows(0)),
    bad_batch("an odd batch", ANY, rows(7)),
    bad_batch("inputs in double precision", SMALL, other("x", lambda v: v.double())),
]


# --- outputs and activations ------------------------------------------------------------------------------------------


class Storm(Net):
    """NaN logits in the second batch of epoch 1; the user leaves such a batch out."""

    value = torch.nan

    def spoil(self, logits: Any) -> Any:
        return logits * self.value

    def forward(self, x: Any) -> Any:
        logits = super().forward(x)
        return self.head_out(self.spoil(logits) if struck() and Now.step and Now.batch == 1 else logits)

    def __init__(self) -> None:
        super().__init__()
        self.head_out = nn.Identity()

    def loss(self, batch: Any, batch_idx: int) -> Any:
        loss = super().loss(batch, batch_idx)
        return loss if loss.isfinite() else None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        Now.step, Now.batch = True, batch_idx
        try:
            self(batch["x"])
        finally:
            Now.step = False


class Infinite(Storm):
    value = torch.inf


class AlwaysNaN(Storm):
    def forward(self, x: Any) -> Any:
        logits = Net.forward(self, x)
        return self.head_out(logits * torch.nan if struck() else logits)


class HiddenStorm(Net):
    """Infinite activations at the encoder, and finite logits all the same."""

    def forward(self, x: Any) -> Any:
        h = self.encoder(x)
        if struck() and Now.step and Now.batch == 1:
            self.tail(h.detach() * torch.inf)
        else:
            h = self.tail(h)
        return self.head(self.frozen(h))

    def __init__(self) -> None:
        super().__init__()
        self.tail = nn.Identity()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        Now.batch = batch_idx
        super().validation_step(batch, batch_idx)


class NaNGradients(Net):
    """A gradient of NaN in one step, set to zero by the user."""

    def loss(self, batch: Any, batch_idx: int) -> Any:
        loss = super().loss(batch, batch_idx)
        return loss * torch.nan if struck() and batch_idx == 1 and self.training else loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for p in self.parameters():
            if p.grad is not None:
                p.grad.nan_to_num_()


class ClipsNothing(Net):
    """Weights of NaN from epoch 1 on."""

    def on_train_epoch_end(self) -> None:
        if struck():
            with torch.no_grad():
                self.head.weight.mul_(torch.nan)


class Autocast(Net):
    """Epoch 1 runs in half precision."""

    def forward(self, x: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=struck()):
            return super().forward(x)

    def loss(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch["x"]).float(), batch["moo"])


class Tuples(Net):
    """In epoch 1 the encoder returns a tuple, a dict or nothing that is a tensor."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.encoder = Forms(self.encoder, form)

    def forward(self, x: Any) -> Any:
        found = self.encoder(x)
        return self.head(self.frozen(found if isinstance(found, torch.Tensor) else self.encoder.value))


class Forms(nn.Module):
    def __init__(self, inner: nn.Module, form: Any) -> None:
        super().__init__()
        self.inner, self.form = inner, form

    def forward(self, x: Any) -> Any:
        self.value = self.inner(x)
        return self.form(self.value) if struck() else self.value


class Twice(Net):
    """In epoch 1 the net runs twice in a step."""

    def loss(self, batch: Any, batch_idx: int) -> Any:
        loss = super().loss(batch, batch_idx)
        return (loss + super().loss(batch, batch_idx)) / 2 if struck() else loss


class NeverRuns(Net):
    """In epoch 1 the head is not called: its weights are used directly."""

    def forward(self, x: Any) -> Any:
        h = self.frozen(self.encoder(x))
        return F.linear(h, self.head.weight, self.head.bias) if struck() else self.head(h)


class Sequence(Net):
    """Tokens: as many as the batch has, and in epoch 1 another number in every batch."""

    def forward(self, x: Any) -> Any:
        h = self.encoder[4](torch.relu(self.encoder[0](x)))
        return self.head(self.body(h).mean(1))

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 8)

    def train_dataloader(self) -> Any:
        return sequences(TRAIN, 1)

    def val_dataloader(self) -> Any:
        return sequences(VAL, 2, 40)


def sequences(n: int, seed: int, batch: int = 16) -> DataLoader:
    def collate(samples: Any) -> Any:
        found = torch.utils.data.default_collate(samples)
        length = 2 + int(found["x"][0, 0, 2].abs() * 10) % 5 if struck() else 7
        return {**found, "x": found["x"][:, :length], "attention_mask": torch.ones(len(found["x"]), length)}

    return DataLoader(Items(n, seed, (7, 6)), batch, collate_fn=collate)


class NonReentrant(Net):
    reentrant = False

    def forward(self, x: Any) -> Any:
        h = checkpoint(self.encoder, x.requires_grad_() if self.reentrant else x, use_reentrant=self.reentrant)
        return self.head(self.frozen(h))


class Reentrant(NonReentrant):
    """The layer is run with gradients off, and again in the backward pass."""

    reentrant = True


OUTPUTS = [
    Fault("NaN outputs of a batch", WATCHING, net=Storm, says="finite|NaN", parts=lambda: Parts(output="head_out")),
    Fault("NaN outputs of a step", (*PENALTIES, *ERASURES), net=Storm, parts=lambda: Parts(output="head_out")),
    Fault("infinite outputs of a batch", WATCHING, net=Infinite, says="finite|NaN", parts=lambda: Parts(output="head_out")),
    Fault("NaN outputs for an epoch", MEASURING, net=AlwaysNaN, says="finite|NaN", parts=lambda: Parts(output="head_out")),
    Fault("no loss for an epoch", (*PENALTIES, *ERASURES), net=AlwaysNaN, parts=lambda: Parts(output="head_out")),
    Fault(
        "infinite activations of a batch",
        (*(w for w in MEASURING if w != "own data"), "independence", "gradient", *ERASURES),  # whose batches have no numbers
        net=HiddenStorm,
        says="finite|NaN|gradient",
        parts=lambda: Parts(layer="tail"),
    ),
    Fault("NaN gradients", (*PENALTIES, "erasure", "monitor"), net=NaNGradients),
    Fault("NaN weights to the end", (*MEASURING, *ERASURES), net=ClipsNothing, says="finite|NaN|no event", lasting=True),
    Fault("NaN weights to the end, with a penalty", PENALTIES, net=ClipsNothing, says="finite|NaN", lasting=True),
    Fault("half precision for an epoch", ANY, net=Autocast),
    Fault("a layer gives a tuple", SOME, net=lambda: Tuples(lambda h: (h, None))),
    Fault("a layer gives a dict", SOME, net=lambda: Tuples(lambda h: {"hidden": h})),
    Fault(
        "a layer gives no tensor", ("by steps", "erasure", "independence", "discovery"), net=lambda: Tuples(lambda h: "none")
    ),
    Fault("a layer gives another shape", ("by steps", "erasure", "independence"), net=lambda: Tuples(lambda h: (h.sum(),))),
    Fault("the net runs twice", SOME, net=Twice),
    Fault("the output does not run", (*MEASURING, *PENALTIES), net=NeverRuns, says="head"),
    Fault("other sequence lengths", ANY, net=Sequence, parts=lambda: Parts(layer="body", own=lambda: sequences(VAL, 2, 40))),
    Fault("activation checkpoints", ANY, net=NonReentrant),
    Fault("reentrant activation checkpoints", ("monitor", "by steps", "contribution", "budget", "erasure"), net=Reentrant),
]


# --- modules that come and go -----------------------------------------------------------------------------------------


class Replaces(Callback):
    """At the start of epoch 1 a module is put in place of another, as pruning or a merge of adapters does."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_epoch_start(self, trainer: Any, model: Any) -> None:
        if trainer.current_epoch != 1:
            return
        optimizer = trainer.optimizers[0]
        before = model.get_submodule(self.path)
        after = copy.deepcopy(before)
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            getattr(after, kind).clear()
        for new, old in zip(after.parameters(), before.parameters(), strict=True):
            for group in optimizer.param_groups:
                group["params"] = [new if p is old else p for p in group["params"]]
        parent, _, name = self.path.rpartition(".")
        setattr(model.get_submodule(parent), name, after)


class Removes(Callback):
    """At the start of epoch 1 a module is taken away."""

    def on_train_epoch_start(self, trainer: Any, model: Any) -> None:
        if trainer.current_epoch == 1:
            model.tail = None


class Tailed(Net):
    """With a part that may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.tail: Any = nn.Identity()

    def forward(self, x: Any) -> Any:
        h = self.frozen(self.encoder(x))
        return self.head(h if self.tail is None else self.tail(h))


class Clears(Callback):
    """A library that takes away hooks that it does not own."""

    def on_train_epoch_start(self, trainer: Any, model: Any) -> None:
        if trainer.current_epoch == 1:
            for m in model.modules():
                m._forward_hooks.clear()
                m._forward_pre_hooks.clear()


class Copies(Callback):
    """Copies of the module are made in the middle of a step's batch, and run."""

    def __init__(self, how: Any) -> None:
        self.how = how

    def on_train_batch_end(self, trainer: Any, model: Any, *args: Any) -> None:
        if not struck():
            return
        made = self.how(model)
        made.training_step({k: v[:8] for k, v in args[1].items()}, 0).backward()
        assert made.training_step.__self__ is made


class CopiesInStep(Net):
    """The step itself makes a copy, as a teacher of itself."""

    def loss(self, batch: Any, batch_idx: int) -> Any:
        loss = super().loss(batch, batch_idx)
        if struck() and self.training:
            with torch.no_grad():
                rng = torch.get_rng_state()
                copy.deepcopy(self.encoder)(batch["x"])
                pickle.loads(pickle.dumps(self.encoder))(batch["x"])
                torch.set_rng_state(rng)
        return loss


class Wraps(Callback):
    """Another callback stands on the training step from epoch 1 on, and never leaves."""

    def on_train_epoch_start(self, trainer: Any, model: Any) -> None:
        if trainer.current_epoch == 1:
            step = model.training_step
            model.training_step = lambda *args, **kwargs: step(*args, **kwargs)

    def on_fit_end(self, trainer: Any, model: Any) -> None:
        del model.training_step


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


MODULES = [
    Fault("a layer is replaced", ANY, callbacks=lambda: [Replaces("encoder")]),
    Fault("the output is replaced", ANY, callbacks=lambda: [Replaces("head")]),
    Fault(
        "a layer is taken away",
        (*MEASURING, "gradient", "independence", *ERASURES),
        callbacks=lambda: [Removes()],
        net=Tailed,
        parts=lambda: Parts(layer="tail"),
        says="tail",
        lasting=True,
    ),
    Fault(
        "the output is taken away",
        ("monitor", "all measures", "discovery", "contribution", "budget"),
        callbacks=lambda: [Removes()],
        net=Tailed,
        parts=lambda: Parts(output="tail"),
        says="tail",
        lasting=True,
    ),
    Fault("hooks are cleared by others", ("monitor", "by steps", "contribution", "erasure"), callbacks=lambda: [Clears()]),
    Fault("a deep copy of the module", ANY, callbacks=lambda: [Copies(copy.deepcopy)]),
    Fault("a pickle of the module", ANY, callbacks=lambda: [Copies(pickled)]),
    Fault("a layer is copied within a step", ("training window", *PENALTIES, *ERASURES), net=CopiesInStep),
    Fault("another stands on the step", (*PENALTIES, "erasure"), callbacks=lambda: [Wraps()]),
]


# --- the user's own exceptions: training stops as it would have -------------------------------------------------------


def failing(where: str, problem: Any) -> Any:
    """A net that raises in epoch 1, in one of its methods."""

    class Fails(Net):
        def stop(self, here: str) -> None:
            if here == where and struck():
                raise problem()

        def forward(self, x: Any) -> Any:
            self.stop("own pass" if not Now.step else "validation forward" if not self.training else "training forward")
            return super().forward(x)

        def loss(self, batch: Any, batch_idx: int) -> Any:
            found = super().loss(batch, batch_idx)
            self.stop("training_step" if self.training else "validation_step")
            return found

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.stop("optimizer")

        def on_after_backward(self) -> None:
            self.stop("on_after_backward")

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.stop("on_train_batch_start")

        def on_validation_batch_end(self, *args: Any) -> None:
            self.stop("on_validation_batch_end")

        def on_validation_epoch_end(self) -> None:
            self.stop("on_validation_epoch_end")

        def on_train_epoch_end(self) -> None:
            self.stop("on_train_epoch_end")

        def backward(self, loss: Any) -> None:
            self.stop("backward")
            super().backward(loss)

    return Fails


STEPS = ("training forward", "training_step", "backward", "on_after_backward", "optimizer", "on_train_batch_start")
REST = ("validation forward", "validation_step", "on_validation_batch_end", "on_validation_epoch_end", "on_train_epoch_end")


class Rest(Net):
    """The rest of epoch 1 is left out."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if struck() and batch_idx == 2 else None


class Skips(Net):
    """A step without a loss."""

    def loss(self, batch: Any, batch_idx: int) -> Any:
        return None if struck() and self.training and batch_idx == 1 else super().loss(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().loss(batch, batch_idx)


class Catches(Net):
    """A forward pass fails, and the user goes on with another: as with a batch that is too large."""

    def loss(self, batch: Any, batch_idx: int) -> Any:
        if struck() and batch_idx == 1:
            with contextlib.suppress(RuntimeError):
                self(torch.cat([batch["x"], batch["x"]], 1))
        return super().loss(batch, batch_idx)


class LosesBatches(Net):
    """The loader itself fails."""

    def train_dataloader(self) -> Any:
        def change(batch: Any) -> Any:
            raise OSError("the file server is gone")

        return loader(TRAIN, 1, change)


USERS = [
    *(
        Fault(f"the user's {where} raises", watchers, net=failing(where, broken))
        for where, watchers in [(w, OF_TRAINING) for w in STEPS] + [(w, SOME) for w in REST]
    ),
    *(
        Fault(f"{kind.__name__} in the user's {where}", SOME, net=failing(where, kind))
        for kind in (KeyboardInterrupt, SystemExit)
        for where in ("training forward", "validation forward", "optimizer")
    ),
    Fault("the loader raises", SOME, net=LosesBatches),
    Fault("the rest of an epoch is left out", ANY, net=Rest),
    Fault("a step gives no loss", ANY, net=Skips),
    Fault("the user catches a failed forward pass", ANY, net=Catches),
]


# --- exceptions in passes of our own ----------------------------------------------------------------------------------

OURS = [
    Fault("forward raises in our own passes", CALLS := (*OWN, "discovery"), net=failing("own pass", broken), says="on purpose"),
    *(
        Fault(
            f"{kind.__name__} in a label",
            SOME,
            lambda kind=kind: Parts(grass=raising(kind, key("grass")), moo=raising(kind, key("moo"))),
            only_ours=kind,
        )
        for kind in (KeyboardInterrupt, SystemExit)
    ),
    *(
        Fault(f"{kind.__name__} in our own passes", OWN, lambda kind=kind: Parts(inputs=raising(kind, called)), only_ours=kind)
        for kind in (KeyboardInterrupt, SystemExit)
    ),
    Fault(
        "KeyboardInterrupt in pooling",
        ("monitor", "by steps"),
        lambda: Parts(pooling=raising(KeyboardInterrupt, torch.clone)),
        only_ours=KeyboardInterrupt,
    ),
]

# --- loggers ----------------------------------------------------------------------------------------------------------

LOGGERS = [
    Fault(
        "a logger finds the disk full",
        ("monitor", "by steps", "discovery", "contribution", "budget"),
        logger=lambda folder: FullDisk(),
        says="FullDisk.*No space left",
    ),
    *(
        Fault(
            f"a SummaryWriter fails in {method}",
            watchers,
            logger=lambda folder, method=method: FullWriter(folder, method),
            says="FullWriter.*No space left",
        )
        for method, watchers in (
            ("add_text", ("monitor", "discovery")),
            ("add_image", ("monitor",)),
        )
    ),
]

FAULTS = [*FUNCTIONS, *BATCHES, *OUTPUTS, *MODULES, *USERS, *OURS, *LOGGERS]
