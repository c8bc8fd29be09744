"""`heart`: heart disease in four hospitals, each left out in turn, and what gives the hospital away.

The rate of disease is .46, .36, .93 and .74 (Cleveland, Hungary, Switzerland, VA), and what a hospital did not measure is
missing: flags of missing values, and a cholesterol of 0, tell which it is nine times in ten. That is of no use in a hospital
that was not seen. Training and validation hold the three others (validation: a fifth of every hospital and outcome); the test
part is the fourth, whole. There is no do(site): another pattern of missing values is not another hospital.
"""

import csv
import lzma
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

import lightning_interp as interp
from shortcuts.nets import Classifier, Without
from shortcuts.tasks import Fields, Task, data_file

FILE = "heart_disease_4sites.csv.xz"
SITES = ("cleveland", "hungarian", "switzerland", "va")
NUMBERS = ("age", "trestbps", "chol", "thalach", "oldpeak", "ca")
LEVELS = {"sex": 2, "cp": 4, "fbs": 2, "restecg": 3, "exang": 2, "slope": 3, "thal": 3}  # how many
HELD_OUT = 0.2


class Heart(Task):
    """Is there a narrowing of the vessels? One hospital is left out."""

    name, layer, inputs = "heart", "encoder.5", "patient"
    given = (interp.Concept("label", kind="binary"),)
    levels = ()

    def __init__(self, left_out: int, epochs: int = 30) -> None:
        self.setting, self.epochs = left_out, epochs
        self.confounder = interp.Confounder("site", kind="categorical")

    def variables(self, part: str) -> list[interp.variables.Variable]:
        """In the test part there is one hospital."""
        return list(self.given) if part == "test" else super().variables(part)

    def fields(self, part: str, seed: int, ceiling: bool = False) -> Fields:
        """Patients `[n, d]`, standardised by the training part; missing is the mean, and a flag."""
        table = patients()
        site, label = table["site"], table["label"]
        rng = np.random.default_rng([seed, int(self.setting)])
        seen, held = site != self.setting, np.zeros(len(site), dtype=bool)
        for s in range(len(SITES)):
            for outcome in (0, 1):
                rows = rng.permutation(np.flatnonzero(seen & (site == s) & (label == outcome)))
                held[rows[: round(HELD_OUT * len(rows))]] = True
        known = table["numbers"][seen & ~held]
        mean, sd = np.nanmean(known, 0), np.nanstd(known, 0)
        numbers = np.nan_to_num((table["numbers"] - mean) / sd)
        chosen = {"train": seen & ~held, "val": held, "test": ~seen}[part]
        patient = np.concatenate([numbers, table["levels"], table["missing"]], 1)[chosen]
        return {
            "patient": torch.from_numpy(patient).float(),
            "label": torch.from_numpy(label[chosen]),
            "site": torch.from_numpy(site[chosen]),
        }

    def do(self, fields: Fields, level: float) -> Tensor:
        """There is none."""
        raise NotImplementedError("another pattern of missing values is not another hospital")

    def net(self, weight_decay: float | None = None, ceiling: bool = False) -> Classifier:
        """An MLP; "ceiling" is not given the flags, nor the cholesterol, which one hospital wrote as 0."""
        numbers, levels = len(NUMBERS), sum(LEVELS.values())
        flags = numbers + len(LEVELS)
        hidden = [NUMBERS.index("chol"), *range(numbers + levels, numbers + levels + flags)]
        first = Without(hidden) if ceiling else nn.Identity()
        return Classifier(first, numbers + levels + flags, 2, weight_decay or 0.0, hidden=64, inputs="patient")


@cache
def patients() -> dict[str, np.ndarray]:
    """All 920: numbers with NaN, levels as 0 and 1 (all 0 where missing), flags of what is missing, site, label."""
    with lzma.open(str(data_file(FILE)), "rt") as file:
        rows = list(csv.DictReader(file))
    numbers = np.array([[float(r[key] or "nan") for key in NUMBERS] for r in rows])
    found = {key: np.array([float(r[key] or "nan") for r in rows]) for key in LEVELS}
    hot = [(found[key][:, None] == level) for key in LEVELS for level in np.unique(found[key][~np.isnan(found[key])])]
    missing = [*np.isnan(numbers).T[:, :, None], *(np.isnan(values)[:, None] for values in found.values())]
    return {
        "numbers": numbers,
        "levels": np.concatenate(hot, 1).astype(float),
        "missing": np.concatenate(missing, 1).astype(float),
        "site": np.array([SITES.index(r["site"]) for r in rows]),
        "label": np.array([int(float(r["target"]) > 0) for r in rows]),
    }
