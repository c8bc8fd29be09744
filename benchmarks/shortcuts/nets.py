"""The multi-layer perceptron that is trained on the MNIST tasks."""

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN = 256  # units of each of the two hidden layers


class Classifier(L.LightningModule):
    """A multi-layer perceptron that trains itself with AdamW on mean cross-entropy: `encoder` and `head`."""

    def __init__(self, first: nn.Module, features: int, classes: int, weight_decay: float = 0.0) -> None:
        super().__init__()
        hidden = (nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
        self.encoder = nn.Sequential(first, nn.Flatten(), *hidden)
        self.head = nn.Linear(HIDDEN, classes)
        self.weight_decay = weight_decay

    def forward(self, image: Tensor) -> Tensor:
        """Logits `[n, classes]`."""
        return self.head(self.encoder(image))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self(batch["image"]), batch["label"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Run, for whoever watches."""
        self(batch["image"])

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW, which without weight decay is Adam; the learning rate falls to zero, or the last steps' noise is measured."""
        optimizer = torch.optim.AdamW(self.parameters(), 1e-3, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Grey(nn.Module):
    """Adds the channels up."""

    def forward(self, image: Tensor) -> Tensor:
        """`[n, 14, 14]` from `[n, 2, 14, 14]`."""
        return image.sum(1)
