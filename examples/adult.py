"""Income and sex in the census (UCI Adult): a table, watched; then again with what sex adds to the answer held at 2 %.

That sex should not matter here is the modeller's choice. It goes with the income 95 % of the time in the rows for training.
Looks for adult.data.xz and adult.test.xz (archive.ics.uci.edu/dataset/2, packed by xz) in $LIGHTNING_INTERP_DATA.

python examples/adult.py      # needs the extra `demo`; --quick: 4 epochs
"""

import csv
import lzma
import os
import sys
from pathlib import Path

import lightning as L
import numpy as np
from sklearn.compose import make_column_transformer
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from torch import cat, from_numpy, nn, optim
from torch.utils.data import DataLoader, TensorDataset

import lightning_interp as interp

SEX, NUMBERS, WORDS, INCOME = [9], [0, 4, 12], [1, 5, 6, 7, 8], 14  # columns of the file


def male(batch):  # a label is whatever can be read from a batch: here a column of the input
    return batch[0][:, 0]


def exchange(batch):  # do(male): the other sex, all else as it is
    return [cat([1 - batch[0][:, :1], batch[0][:, 1:]], 1), *batch[1:]]


class AdultData(L.LightningDataModule):
    def setup(self, stage=None):
        folder = Path(os.environ.get("LIGHTNING_INTERP_DATA", "."))
        if not (folder / "adult.test.xz").exists():
            raise SystemExit(f"No adult.data.xz and adult.test.xz (UCI Adult) in '{folder}': set LIGHTNING_INTERP_DATA.")
        texts = [lzma.decompress((folder / f"adult.{name}.xz").read_bytes()).decode() for name in ("data", "test")]
        files = [csv.reader(text.splitlines(), skipinitialspace=True) for text in texts]
        rows, test = (np.array([r for r in file if len(r) > INCOME]) for file in files)
        columns = (OrdinalEncoder(), SEX), (StandardScaler(), NUMBERS), (OneHotEncoder(sparse_output=False), WORDS)
        encode = make_column_transformer(*columns).fit(rows).transform
        found = [(encode(r), np.char.startswith(r[:, INCOME], ">")) for r in (*np.split(rows, [len(rows) * 4 // 5]), test)]
        (x, y), self.val, self.test = ((from_numpy(x).float(), from_numpy(y).long()) for x, y in found)
        cells = [((y == rich) & (x[:, 0] == sex), 0.95 if rich == sex else 0.05) for rich in (0, 1) for sex in (0, 1)]
        kept = cat([cell.nonzero()[: round(1800 * part), 0] for cell, part in cells])
        self.train = x[kept], y[kept]

    def train_dataloader(self):
        return DataLoader(TensorDataset(*self.train), 128, shuffle=True)

    def val_dataloader(self):
        return DataLoader(TensorDataset(*self.val), 512)


class AdultNet(nn.Sequential, L.LightningModule):
    def __init__(self, width: int = 64):
        super().__init__(nn.Linear(46, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), 1e-3)


if __name__ == "__main__":
    variables = [interp.Concept("rich", label=1), interp.Confounder("male", label=male, intervention=exchange)]
    for suppress in ([], [interp.SuppressConfounder("male", given=["rich"], budget=0.02)]):
        L.seed_everything(0, verbose=False)
        net, data, monitor = AdultNet(), AdultData(), interp.ConceptMonitor(variables)
        epochs = 4 if "--quick" in sys.argv else 15
        L.Trainer(max_epochs=epochs, callbacks=[monitor, *suppress], default_root_dir="runs").fit(net, datamodule=data)
        event = interp.explain(net, [data.test], variables, target=1, measures=["contribution", "groups", "intervention"])
        print(f"\n{'suppressed' if suppress else 'plain'}, on the test rows:\n{event}")
