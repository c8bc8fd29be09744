"""A transformer whose last block reads the background: measured by a class token, then cut out of the weights behind the block.

python examples/edited_transformer.py      # the digits on grass, needs the extra `demo`; --quick: 2 epochs
"""

import sys

import lightning as L
import torch
from torch import nn

import lightning_interp as interp
from lightning_interp.demo import GrassyDigitsData


class Block(nn.Module):
    """Attention and an MLP, each beside a stream that nothing but sums touches."""

    def __init__(self, width: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        a = self.norms[0](x)
        x = x + self.attention(a, a, a, need_weights=False)[0]
        return x + self.mlp(self.norms[1](x))


class ViT(L.LightningModule):
    def __init__(self, width: int = 48, lr: float = 2e-3):
        super().__init__()
        self.lr = lr
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.place = nn.Parameter(0.02 * torch.randn(64, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 2)

    def forward(self, image):
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.place  # [n, 64, width]
        return self.head(self.blocks(tokens).mean(1))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch["image"]), batch["label"])

    def validation_step(self, batch, batch_idx):
        self(batch["image"])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


if __name__ == "__main__":
    L.seed_everything(0, verbose=False)
    digit = interp.Concept("digit")
    grass = interp.Confounder("grass", intervention="lightning_interp.demo:swap_background")
    places = {"output": "head", "inputs": "image", "target": "label"}
    monitor = interp.ConceptMonitor([digit, grass], layers=["blocks.*"], **places)
    model, data = ViT(), GrassyDigitsData()
    L.Trainer(max_epochs=2 if "--quick" in sys.argv else 20, callbacks=[monitor], default_root_dir="runs").fit(
        model, datamodule=data
    )
    data.setup("test")
    measures = ["contribution", "groups", "intervention"]

    def look(when: str) -> None:
        print(f"\n{when}:\n{interp.explain(model, data.test_dataloader(), [digit, grass], measures=measures, **places)}")

    look("as trained")
    cut = interp.edit(model, "blocks.1", grass, data.val_dataloader(), given=[digit], **places)  # rows it was not trained on
    look("the grass cut out of the last block")
    print(f"\nguarded on held-out rows: {cut.certificate['erasure']['guardedness']}")
