"""The network of the demo, plain and as a LightningModule."""

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional

from lightning_interp.demo.digits import SIZE


class SmallCNN(nn.Module):
    """Four convolutions and a linear head: `encoder.conv1` to `encoder.conv4`, `encoder.flatten` and `head`.

    Normalised by groups and not by batch, so that it computes the same in training and evaluation.

    Args:
        width: Channels after the first convolution, a multiple of 4; the four have 1, 2, 4 and 4 times as many.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        if width < 4 or width % 4:
            raise ValueError(f"`width` must be a positive multiple of 4 channels, but got {width}.")
        channels = ((1, width), (width, 2 * width), (2 * width, 4 * width), (4 * width, 4 * width))
        self.encoder = nn.Sequential()
        for i, (c, d) in enumerate(channels, start=1):
            block = nn.Sequential(nn.Conv2d(c, d, 3, padding=1), nn.GroupNorm(4, d), nn.ReLU(), nn.MaxPool2d(2))
            self.encoder.add_module(f"conv{i}", block)
        self.encoder.add_module("flatten", nn.Flatten())
        self.head = nn.Linear(4 * width * (SIZE // 2**4) ** 2, 2)

    def forward(self, image: Tensor) -> Tensor:
        """Map images `[n, 1, 32, 32]`, 0 to 1, to logits `[n, 2]`."""
        return self.head(self.encoder(2 * image - 1))


class GrassyDigitsModel(SmallCNN, LightningModule):
    """`SmallCNN` that trains itself with AdamW on batches of `GrassyDigits`; its layers are directly below.

    Logs `train_loss`, `val_loss`, `test_loss` (mean cross-entropy, nats), `val_acc` and `test_acc` (fraction, 0 to 1).

    Args:
        width: Of `SmallCNN`, channels.
        lr: Learning rate.
        weight_decay: Decoupled: the weights shrink by `lr` × this at each step.
    """

    def __init__(self, width: int = 16, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__(width)
        self.save_hyperparameters()
        self.lr, self.weight_decay = lr, weight_decay

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        loss = functional.cross_entropy(self(batch["image"]), batch["label"])
        self.log("train_loss", loss, batch_size=len(batch["label"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._evaluate("val", batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._evaluate("test", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW, which without weight decay is Adam."""
        return torch.optim.AdamW(self.parameters(), self.lr, weight_decay=self.weight_decay)

    def _evaluate(self, part: str, batch: dict[str, Tensor]) -> None:
        logits, label = self(batch["image"]), batch["label"]
        accuracy = (logits.argmax(1) == label).float().mean()
        values = {f"{part}_loss": functional.cross_entropy(logits, label), f"{part}_acc": accuracy}
        self.log_dict(values, prog_bar=True, sync_dist=True, batch_size=len(label))
