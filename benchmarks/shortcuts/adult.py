"""`adult`: income over 50 K in the census of 1994, and sex.

31 % of the men and 11 % of the women earn that much. That sex is a shortcut here, and not a cause, is the modeller's choice,
and so is what goes with it: `relationship` says husband or wife, and occupation, hours and marital status are left alone. The
training part is drawn so that man and over 50 K agree 95 % of the time, as many of each outcome; the validation part (the last
fifth of the official training rows) and the test part (the official one) are as they are. do(sex) exchanges the two, and
husband and wife with them.
"""

import csv
import lzma
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

import lightning_interp as interp
from shortcuts.nets import Classifier
from shortcuts.tasks import Fields, Task, data_file

FILES = ("adult.data.xz", "adult.test.xz")
NUMBERS = (0, 2, 4, 10, 11, 12)  # columns
WORDS = (1, 3, 5, 6, 7, 8, 9, 13)
AGREEMENT = 0.95


class Adult(Task):
    """Over 50 K?"""

    name, layer, inputs = "adult", "encoder.5", "person"
    given = (interp.Concept("label", kind="binary"),)
    levels = (0, 1)

    def __init__(self, people: int = 3_600, epochs: int = 15) -> None:
        self.setting, self.epochs = people, epochs
        self.confounder = interp.Confounder("male", kind="binary", intervention=exchange_sex)

    def fields(self, part: str, seed: int, ceiling: bool = False) -> Fields:
        """People `[n, d]`: numbers standardised, everything else as 0 and 1; for the ceiling men and women earn alike."""
        every = people()[part]
        if part != "train":
            return every
        rng = np.random.default_rng(seed)
        label, male = every["label"].numpy(), every["male"].numpy()
        rows = []
        for outcome in (0, 1):
            agree = round(int(self.setting) / 2 * (0.5 if ceiling else AGREEMENT))
            for sex, n in ((outcome, agree), (1 - outcome, int(self.setting) // 2 - agree)):
                rows.append(rng.permutation(np.flatnonzero((label == outcome) & (male == sex)))[:n])
        chosen = torch.from_numpy(np.concatenate(rows))
        return {key: values[chosen] for key, values in every.items()}

    def do(self, fields: Fields, level: float) -> Tensor:
        """All women, or all men."""
        return torch.where((fields["male"] == level)[:, None], fields["person"], exchange_sex(fields)["person"])

    def net(self, weight_decay: float | None = None, ceiling: bool = False) -> Classifier:
        """An MLP."""
        return Classifier(nn.Identity(), len(columns()), 2, weight_decay or 0.0, hidden=64, inputs="person")


def exchange_sex(batch: Fields) -> Fields:
    """do(sex): its own inverse."""
    person, at = batch["person"].clone(), {name: i for i, name in enumerate(columns())}
    for one, other in (("Male", "Female"), ("Husband", "Wife")):
        person[:, [at[one], at[other]]] = person[:, [at[other], at[one]]]
    return {**batch, "person": person, "male": 1 - batch["male"]}


@cache
def table() -> tuple[list[list[str]], int]:
    """The rows of both files, and how many are of the first."""
    parts = []
    for name in FILES:
        with lzma.open(str(data_file(name)), "rt") as file:
            parts.append([row for row in csv.reader(file, skipinitialspace=True) if len(row) == 15])
    return parts[0] + parts[1], len(parts[0])


@cache
def columns() -> list[str]:
    """Names: numbers by their place in the file, the rest by their value."""
    rows, _ = table()
    return [str(c) for c in NUMBERS] + [value for c in WORDS for value in sorted({r[c] for r in rows})]


@cache
def people() -> dict[str, Fields]:
    """By part."""
    rows, official = table()
    last = official * 4 // 5
    numbers = np.array([[float(r[c]) for c in NUMBERS] for r in rows])
    numbers[:, 3:5] = np.log1p(numbers[:, 3:5])  # gains and losses of capital: mostly 0, seldom 99,999
    numbers = (numbers - numbers[:last].mean(0)) / numbers[:last].std(0)
    hot = [np.array([r[c] for r in rows])[:, None] == np.array(sorted({r[c] for r in rows})) for c in WORDS]
    person = np.concatenate([numbers, *hot], 1).astype(np.float32)
    every = {
        "person": torch.from_numpy(person),
        "label": torch.tensor([int(r[14].startswith(">50K")) for r in rows]),
        "male": torch.tensor([int(r[9] == "Male") for r in rows]),
    }
    parts = {"train": slice(0, last), "val": slice(last, official), "test": slice(official, None)}
    return {part: {key: values[where] for key, values in every.items()} for part, where in parts.items()}
