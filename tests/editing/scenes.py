"""Rows in which grass goes with moo, and small nets of every kind that read them."""

from __future__ import annotations

import torch
from torch import nn

from lightning_interp import Concept, Confounder

GRASS, MOO = Confounder("grass"), Concept("moo")
OPTIONS = {"inputs": "x", "target": "moo"}


def rows(*shape, n=240, seed=0, dtype=torch.float32, agree=0.75):
    """{"x": `[n, *shape]`, "moo", "grass"}: the first unit along the first axis carries moo, the second grass."""
    generator = torch.Generator().manual_seed(seed)
    moo = torch.arange(n) % 2
    grass = torch.where(torch.rand(n, generator=generator) < agree, moo, 1 - moo)
    x = torch.randn(n, *shape, generator=generator)
    x[:, 0] += (2.0 * moo - 1).view(-1, *[1] * (len(shape) - 1))
    x[:, 1] += (2.0 * grass - 1).view(-1, *[1] * (len(shape) - 1))
    return {"x": x.to(dtype), "moo": moo, "grass": grass}


def cut(batch, size=80):
    return [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, len(batch["x"]), size)]


class Net(nn.Module):
    """A body, and a head if one is given, that start from the same seed in every instance of the same kind."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(3)
        body, head = KINDS[kind][1]()
        self.body = body
        self.head = head
        for m in self.modules():
            if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2)
                if m.affine:
                    m.weight.data.normal_()
                    m.bias.data.normal_()

    def forward(self, x):
        return self.head(self.body(x))


class Block(nn.Module):
    """x + f(x), as a residual stream."""

    def __init__(self, d, norm=True):
        super().__init__()
        self.norm = nn.LayerNorm(d) if norm else nn.Identity()
        self.fc1, self.fc2 = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x):
        return x + self.fc2(torch.relu(self.fc1(self.norm(x))))


class Two(nn.Module):
    """Two branches that are added, as where a shortcut has a convolution of its own."""

    def __init__(self, c, d):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(c, d, 3, bias=False), nn.BatchNorm2d(d))
        self.b = nn.Conv2d(c, d, 3)

    def forward(self, x):
        return self.a(x) + self.b(x)


class Tokens(nn.Module):
    """Transformer encoder layers and the choice of a token."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.blocks = nn.Sequential(*[nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)])
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(self.blocks(self.embed(x.transpose(1, 2))))[:, 0]


class Mean(nn.Module):
    """Averages by a function, not a module."""

    def __init__(self, *dims):
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return x.mean(self.dims)


def seq(*modules):
    return nn.Sequential(*modules)


def conv2d():
    body = seq(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(4, 5, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
    )  # fmt: skip
    return body, nn.Linear(5, 3)


def circular():
    wrapped = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    return seq(nn.Conv2d(2, 4, 3), nn.ReLU(), wrapped, nn.ReLU(), Mean(2, 3)), nn.Linear(4, 3)


def normed(bias, affine):
    body = seq(nn.Conv2d(2, 4, 3, bias=bias), nn.BatchNorm2d(4, affine=affine), nn.ReLU(), nn.Flatten())
    return body, nn.Linear(36, 3)


def conv1d():
    return seq(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.Flatten()), nn.Linear(20, 3)


def conv3d():
    return seq(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()), nn.Linear(4, 3)


def transposed():
    return seq(nn.ConvTranspose2d(2, 4, 3), nn.ReLU(), Mean(2, 3)), nn.Linear(4, 3)


def residual(*last):
    return seq(nn.Linear(6, 8), Block(8), Block(8), *last), nn.Linear(8, 3)


# {kind: (shape of an input, () -> (body, head))}
KINDS = {
    "linear": ((6,), lambda: (seq(nn.Linear(6, 8), nn.ReLU(), nn.Dropout()), nn.Linear(8, 3))),
    "conv1d": ((2, 9), conv1d),
    "conv2d": ((2, 7, 7), conv2d),
    "conv3d": ((2, 4, 4, 4), conv3d),
    "transposed": ((2, 5, 5), transposed),
    "circular": ((2, 5, 5), circular),
    "layer norm": ((6,), lambda: (seq(nn.Linear(6, 8), nn.LayerNorm(8)), nn.Linear(8, 3))),
    "batch norm": ((6,), lambda: (seq(nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Dropout()), nn.Linear(8, 3))),
    "conv, norm": ((2, 5, 5), lambda: normed(bias=False, affine=True)),
    "plain norm": ((2, 5, 5), lambda: normed(bias=True, affine=False)),
    "residual": ((6,), residual),
    "residual, norm": ((6,), lambda: residual(nn.LayerNorm(8))),
    "branches": ((2, 6, 6), lambda: (seq(Two(2, 4), nn.ReLU(), nn.Flatten()), nn.Linear(64, 3))),
    "tokens": ((6, 5), lambda: (Tokens(), nn.Linear(8, 3))),
}
