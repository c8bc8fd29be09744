"""Ten concepts of which all is known: marks on the demo's digits, each there or not by a coin, and nets that use them."""

from collections import OrderedDict
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_interp.demo import SmallCNN, composite, originals
from lightning_interp.demo.digits import DIGITS, SIZE

MARKS = 10
USE = np.array([2.0, -2.0, 1.5, -1.5, 1.0, -1.0, 0.7, -0.7, 0.5, -0.5])  # of a mark for the label, in logits
PLACES = [(r, c) for r in (0, 14, 28) for c in (0, 9, 19, 28) if r != 14 or c in (0, 28)]  # upper left corners, 4 × 4 pixels
LAYERS = {"cnn": [f"encoder.conv{i}" for i in range(1, 5)], "mlp": [f"encoder.hidden{i}" for i in range(1, 5)]}


class MLP(nn.Module):
    """`encoder.hidden1` to `encoder.hidden4`, 256 units each, and `head`."""

    def __init__(self) -> None:
        super().__init__()
        widths = [SIZE**2, 256, 256, 256, 256]
        blocks = [nn.Sequential(nn.Linear(c, d), nn.ReLU()) for c, d in pairwise(widths)]
        named = OrderedDict((f"hidden{i}", block) for i, block in enumerate(blocks, start=1))
        self.encoder = nn.Sequential(OrderedDict(flatten=nn.Flatten(), **named))
        self.head = nn.Linear(256, 2)

    def forward(self, image: Tensor) -> Tensor:
        """Logits `[n, 2]`."""
        return self.head(self.encoder(2 * image - 1))


def images(n: int, part: str, seed: int) -> dict[str, Tensor]:
    """`image` `[n, 1, 32, 32]`, `label`, and `mark0` to `mark9`, each 0 or 1."""
    ink, _, _ = originals()
    rng = np.random.default_rng([seed, list(DIGITS).index(part)])
    source = np.random.default_rng(0).permutation(len(ink))[DIGITS[part]][rng.integers(300, size=n)]
    marks = rng.integers(2, size=(n, MARKS))
    label = rng.random(n) < 1 / (1 + np.exp(-2 * (marks - 0.5) @ USE))
    image = composite(ink[source], torch.full((n, SIZE, SIZE), 0.3))
    for j, (r, c) in enumerate(PLACES):
        image[torch.from_numpy(marks[:, j] == 1), r : r + 4, c : c + 4] = 0.9
    fields = {"image": image.unsqueeze(1), "label": torch.from_numpy(label).long()}
    return fields | {f"mark{j}": torch.from_numpy(marks[:, j]) for j in range(MARKS)}


def without_mark(fields: dict[str, Tensor], j: int, there: bool) -> Tensor:
    """All images with a mark, or with none in its place."""
    r, c = PLACES[j]
    out = fields["image"].clone()
    bare = fields["image"][fields[f"mark{j}"] == 0]
    out[:, :, r : r + 4, c : c + 4] = 0.9 if there else bare[0, 0, r : r + 4, c : c + 4]
    return out


def trained(kind: str, steps: int = 300) -> nn.Module:
    """A net that uses the marks."""
    torch.manual_seed(0)
    net = SmallCNN() if kind == "cnn" else MLP()
    fields = images(steps * 64, "train", 0)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for image, label in zip(fields["image"].split(64), fields["label"].split(64)):
        optimizer.zero_grad()
        F.cross_entropy(net(image), label).backward()
        optimizer.step()
    return net.eval()
