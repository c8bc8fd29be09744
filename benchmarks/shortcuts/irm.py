"""Invariant risk minimisation by hand (Arjovsky et al. 2019, IRMv1): the row to compare with on coloured MNIST."""

import torch
from torch import Tensor
from torch.nn import functional as F

from shortcuts.nets import Classifier


def irm_penalty(logits: Tensor, label: Tensor) -> Tensor:
    """The squared gradient of the loss in a scale of the logits at 1; the two factors from every other sample each.

    The product over two halves is the unbiased estimate of their appendix, for batches that are not the whole environment.
    """
    scale = torch.ones((), requires_grad=True)
    halves = [F.cross_entropy(scale * logits[i::2], label[i::2]) for i in (0, 1)]
    first, second = (torch.autograd.grad(loss, scale, create_graph=True)[0] for loss in halves)
    return first * second


class InvariantRisk(Classifier):
    """`Classifier` with the mean penalty over environments added; divided by the weight once that acts, as they do.

    Args:
        weight: of the penalty, after `anneal` steps.
        anneal: steps in which the weight is 1.
    """

    def __init__(self, *args: object, weight: float, anneal: int) -> None:
        super().__init__(*args)
        self.weight, self.anneal = weight, anneal

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy + weight · penalty."""
        logits, label, environment = self(batch["image"]), batch["label"], batch["environment"]
        penalty = torch.stack([irm_penalty(logits[environment == e], label[environment == e]) for e in (0, 1)]).mean()
        weight = self.weight if self.global_step >= self.anneal else 1.0
        return (F.cross_entropy(logits, label) + weight * penalty) / max(weight, 1.0)
