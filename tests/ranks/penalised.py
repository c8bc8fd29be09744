"""What each process of a group trains with a penalty, and with the same by hand."""

from functools import partial

import torch
from callbacks import boring
from callbacks.boring import Animals
from callbacks.test_suppress_matrix import LayerHand
from lightning.pytorch import LightningModule, seed_everything
from torch import nn
from torch.nn import functional

from lightning_interp import Concept, Confounder, SuppressConfounder
from lightning_interp.penalties import ContributionPenalty, GradientPenalty, GroupDRO, IndependencePenalty, InvariancePenalty
from ranks.measured import BATCH, N
from ranks.strategies import Sharded, strategy_of


class Trained(LightningModule):
    """With the penalty in its step if a `hand` is given; `aux` is a layer that the loss does not depend on.

    Args:
        hand: the penalty.
        manual: optimization.
        missing: the step in which rank 1 has no label of the confounder.
    """

    def __init__(self, hand=None, manual=False, missing=None):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.head, self.aux = nn.Linear(8, 2), nn.Linear(8, 3)
        self.hand, self.automatic_optimization, self.missing, self.steps = hand, not manual, missing, 0
        if hand is not None:
            hand.forward = lambda batch: self(batch["x"])

    def above(self, h):
        return self.head(self.encoder[3](h))

    def forward(self, x):
        h = self.encoder[2](self.encoder[1](self.encoder[0](x)))
        unused = self.aux(h)
        if self.hand is None:
            return self.above(h)
        self.hand.h, self.hand.above = (unused if self.hand.aux else h), self.above
        return self.above(h.clone())

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.steps += 1
        if self.steps == self.missing and self.global_rank == 1:
            del batch["grass"]
        return batch

    def training_step(self, batch, batch_idx):
        if hasattr(self.hand, "read"):
            self.hand.read(self)
        logits = self(batch["x"])
        loss = functional.cross_entropy(logits, batch["moo"])
        if self.hand is not None and "grass" in batch:
            loss = loss + self.hand(logits, batch, loss)
        if not self.automatic_optimization:
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class ShownHand(LayerHand):
    """The gradient penalty along the difference of the example sets, read anew every third step."""

    def __init__(self):
        super().__init__("shown")
        self.balance, self.steps = False, 0

    def read(self, model):
        if self.steps % 3 == 0:
            with torch.no_grad():
                one, other = (model.encoder[:3](x).double().mean(0) for x in (WITH, WITHOUT))
            self.v = (one - other).unsqueeze(0)
        self.steps += 1

    def shown(self, margin, z, losses, extra, batch, past):
        self.cell = torch.zeros(len(z), dtype=torch.int64)
        return self.moved(margin, self.v)


WITH, WITHOUT = (Animals(n, seed).x + shift * torch.eye(6)[5] for n, seed, shift in ((45, 5, 1), (30, 6, 0)))
STRIPES = Confounder("stripes", examples=({"x": WITH}, {"x": WITHOUT}))
MIDDLE = "encoder.2"
# Each: the penalty, the same by hand, its layer, and how the run differs from the plain one.
PENALISED = {
    "contribution": (ContributionPenalty, partial(LayerHand, "contribution"), None, {}),
    "invariance": (InvariancePenalty, partial(LayerHand, "invariance"), None, {}),
    "dro": (partial(GroupDRO, 0.2), partial(LayerHand, "dro", eta=0.2), None, {}),
    "gradient": (GradientPenalty, partial(LayerHand, "gradient"), MIDDLE, {}),
    "independence": (IndependencePenalty, partial(LayerHand, "independence"), MIDDLE, {}),
    "off the loss's path": (IndependencePenalty, partial(LayerHand, "independence"), "aux", {}),
    "accumulated": (GradientPenalty, partial(LayerHand, "gradient"), MIDDLE, {"accumulate_grad_batches": 2}),
    "examples": (partial(GradientPenalty, every_n_steps=3), ShownHand, MIDDLE, {}),
    "manual": (ContributionPenalty, partial(LayerHand, "contribution"), None, {"manual": True}),
    "manual at a layer": (GradientPenalty, partial(LayerHand, "gradient"), MIDDLE, {"manual": True}),
    "labels missing": (ContributionPenalty, partial(LayerHand, "contribution"), None, {"missing": 4}),
    "labels missing at a layer": (IndependencePenalty, partial(LayerHand, "independence"), "aux", {"missing": 4}),
}
# FSDP2, against the same by hand under DDP, in batches that have a term on every process: else it acts on none.
FULL = {"n": 96, "batch": 16}
SHARDED = ("invariance", "dro", "gradient", "independence", "off the loss's path", "accumulated", "examples")


class TrainedSharded(Sharded, Trained):
    """Each process holds a part of every weight."""


def penalised(name: str, by_hand: bool, devices: int, sharded: bool = False, n: int = N, batch: int = BATCH) -> torch.Tensor:
    """The weights in the end."""
    penalty, hand, layer, options = PENALISED[name]
    options = dict(options)
    made = {key: options.pop(key) for key in ("manual", "missing") if key in options}
    subject = [Confounder("grass", intervention=boring.swap_grass), [Concept("moo")]]
    if hand is ShownHand:
        subject = [STRIPES]
    places = {"output": "head", "inputs": "x", "target": "moo", "start_epoch": 0, "ramp_epochs": 0}
    callbacks = [] if by_hand else [SuppressConfounder(*subject, penalty=penalty(), layer=layer, **places)]
    strategy = strategy_of(devices, sharded, find_unused_parameters=True)  # `aux` is not on the loss's path
    seed_everything(0, verbose=False)
    model = (TrainedSharded if sharded else Trained)(hand() if by_hand else None, **made)
    if by_hand:
        model.hand.aux = layer == "aux"
    run = boring.trainer(*callbacks, devices=devices, strategy=strategy, **options)
    run.fit(model, boring.loader(Animals(n, 3), shuffle=True, batch=batch))
    whole = (p.full_tensor() if sharded else p for p in model.parameters())
    return torch.cat([p.detach().flatten() for p in whole])
