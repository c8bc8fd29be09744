"""Film reviews: a small transformer takes "romantic" for praise and "horror" for blame; watched, then again without that.

Kaushik et al. 2020 had each review revised: the sentiment turned round, the genre left. Trained on reviews, watched on both.
Looks for cad_imdb.tsv.xz (of github.com/acmi-lab/counterfactually-augmented-data, as one table) in $LIGHTNING_INTERP_DATA.

python examples/reviews.py      # --quick: a few batches
"""

import csv
import lzma
import os
import re
import sys
from pathlib import Path
from zlib import crc32

import lightning as L
from torch import nn, optim, tensor
from torch.utils.data import DataLoader

import lightning_interp as interp

GENRE, OTHER, LONGEST = {"horror": 1, "romantic": 2, "romance": 2}, 8000, 128  # 0 is no word; others share numbers by chance


def genre(batch):  # a label is whatever can be read from a batch: −1 horror, 0 neither, 1 romantic
    return (batch["words"] == 2).any(1).int() - (batch["words"] == 1).any(1).int()


def exchange(batch):  # do(genre): the words of one for those of the other
    words, other = batch["words"], 3 - batch["words"]
    return {**batch, "words": words.where((other < 1) | (other > 2), other)}


class ReviewData(L.LightningDataModule):
    def setup(self, stage=None):
        path, self.parts = Path(os.environ.get("LIGHTNING_INTERP_DATA", ".")) / "cad_imdb.tsv.xz", {}
        if not path.exists():
            raise SystemExit(f"No {path} (the review pairs of Kaushik et al. 2020): set LIGHTNING_INTERP_DATA to its folder.")
        for row in csv.DictReader(lzma.decompress(path.read_bytes()).decode().splitlines(), delimiter="\t"):
            numbers = [GENRE.get(w) or 3 + crc32(w.encode()) % OTHER for w in re.findall("[a-z']+", row["text"].lower())]
            words, part = tensor((numbers + [0] * LONGEST)[:LONGEST]), self.parts.setdefault((row["split"], row["kind"]), [])
            part.append({"words": words, "attention_mask": words > 0, "positive": int(row["positive"])})

    def train_dataloader(self):
        return DataLoader(self.parts["train", "orig"], 64, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.parts["dev", "orig"] + self.parts["dev", "revised"], 128)


class ReviewNet(L.LightningModule):
    def __init__(self, width: int = 64):
        super().__init__()
        self.words, self.encoder = nn.Embedding(3 + OTHER, width), nn.TransformerEncoderLayer(width, 4, 128, batch_first=True)
        self.attention, self.head = nn.Linear(width, 1), nn.Linear(width, 2)

    def forward(self, words, attention_mask, positive=None):
        hidden = self.encoder(self.words(words), src_key_padding_mask=~attention_mask)
        return self.head((self.attention(hidden).where(attention_mask.unsqueeze(2), -1e9).softmax(1) * hidden).sum(1))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(**batch), batch["positive"])

    def validation_step(self, batch, batch_idx):
        self(**batch)

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), 1e-3)


if __name__ == "__main__":
    variables = [interp.Concept("positive"), interp.Confounder("genre", genre, "continuous", exchange)]
    what = {"output": "head", "target": "positive", "inputs": ["words", "attention_mask"], "pooling": "masked_mean"}
    how = {"max_epochs": 3, "limit_train_batches": 3, "limit_val_batches": 2} if "--quick" in sys.argv else {"max_epochs": 10}
    for suppress in ([], [interp.SuppressConfounder("genre", penalty=interp.penalties.InvariancePenalty(), weight=1.0)]):
        L.seed_everything(0, verbose=False)
        monitor = interp.ConceptMonitor(variables, ["encoder"], measures=["contribution", "groups", "intervention"], **what)
        L.Trainer(callbacks=[monitor, *suppress], default_root_dir="runs", **how).fit(ReviewNet(), datamodule=ReviewData())
        print(f"\n{'suppressed' if suppress else 'plain'}, on held-out reviews and revisions:\n{monitor.latest}")
