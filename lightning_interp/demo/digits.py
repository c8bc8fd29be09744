"""The data: handwritten digits on photographs, and the same digit on the other photograph."""

from functools import cache

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

SIZE = 32  # pixels, side of an image
DIGIT_SIZE = 28  # pixels, side of the digit in its centre
BLEND = 0.7  # opacity of full ink: how much of the photograph it covers, 0..1
SPLIT_SEED = 0  # which digits belong to which part: the same for every seed of an experiment
DIGITS = {"train": slice(0, 1100), "val": slice(1100, 1448), "test": slice(1448, 1797)}  # places in a fixed shuffle
ROWS = {"train": (0, 256), "val": (256, 384), "test": (384, 512)}  # of the photographs: no shared pixel


@cache
def originals() -> tuple[Tensor, Tensor, Tensor]:
    """Load what the two packages hold; no network is needed.

    Returns:
        ink: float32 `[1797, 28, 28]`, 0 (none) to 1 (full), upsampled from 8 × 8 by bicubic interpolation.
        numeral: int64 `[1797]`, 0 to 9.
        photographs: float32 `[2, 512, 512]`, 0 (black) to 1 (white), brick and grass, alike in mean brightness.

    Raises:
        ModuleNotFoundError: If the extra is not installed.
    """
    try:
        from skimage import data
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'The demo needs {error.name}: pip install "lightning-interp[demo]".') from error
    digits = load_digits()
    ink = torch.from_numpy(digits.images / 16).float().unsqueeze(1)
    ink = functional.interpolate(ink, size=(DIGIT_SIZE, DIGIT_SIZE), mode="bicubic", align_corners=False).clamp(0, 1)
    photographs = torch.from_numpy(np.stack([data.brick(), data.grass()])).float() / 255
    return ink.squeeze(1), torch.from_numpy(digits.target).long(), photographs


def composite(ink: Tensor, background: Tensor) -> Tensor:
    """Return `[..., 32, 32]`, 0 to 1: digits in white in the middle of a background, full ink covering 70 % of it.

    Args:
        ink: `[..., 28, 28]`, 0 to 1.
        background: `[..., 32, 32]`, 0 to 1; the leading axes broadcast against those of `ink`.
    """
    margin = (SIZE - DIGIT_SIZE) // 2
    opacity = BLEND * functional.pad(ink, (margin,) * 4)
    return background * (1 - opacity) + opacity


class GrassyDigits(Dataset[dict[str, Tensor]]):
    """Handwritten digits on photographs; everything is drawn once, at construction, from `seed` alone.

    An item is a dict:

    | key | type, shape | meaning |
    |---|---|---|
    | `image` | float32 `[1, 32, 32]` | the digit on its background, 0 to 1 |
    | `swapped` | float32 `[1, 32, 32]` | the same digit on the same crop of the other photograph |
    | `label`, `digit` | int64 | 1 where the digit is 5 or more: the task's target, and the same as a concept |
    | `numeral` | int64 | 0 to 9 |
    | `grass` | int64 | the confounder: 1 on grass, 0 on brick |
    | `source` | int64 | which of the 1,797 handwritten digits this is: the cluster of its crops |

    Which digits form a part does not depend on `seed` (1,100, 348 and 349 of them); crops and backgrounds do.

    Args:
        split: `"train"`, `"val"` or `"test"`: no digit and no pixel of a photograph is in two of them.
        agreement: Fraction of the images of each label, 0 to 1, whose background agrees with it (label 1 on grass,
            0 on brick); met exactly up to rounding. At 0.5 with even `crops`, every digit is on both equally often.
        crops: Images per digit.
        seed: Not negative.

    Attributes:
        fields: All items, `{key: [n, ...]}`.
        corners: int64 `[n, 2]`, row and column, in pixels, of each crop's upper left corner in the photographs.
    """

    def __init__(self, split: str = "train", agreement: float = 0.95, crops: int = 1, seed: int = 0) -> None:
        if split not in DIGITS:
            raise ValueError(f"`split` must be one of {', '.join(map(repr, DIGITS))}, but got {split!r}.")
        if not 0 <= agreement <= 1:
            raise ValueError(f"`agreement` must be a fraction between 0 and 1, but got {agreement}.")
        if crops < 1 or seed < 0:
            raise ValueError(f"`crops` must be at least 1 and `seed` at least 0, but got {crops} and {seed}.")
        ink, numeral, photographs = originals()
        rng = np.random.default_rng([seed, list(DIGITS).index(split)])
        source = np.random.default_rng(SPLIT_SEED).permutation(len(ink))[DIGITS[split]].repeat(crops)
        label = (numeral.numpy()[source] >= 5).astype(np.int64)
        grass = np.where(_agrees(label, crops, agreement, rng), label, 1 - label)
        top, bottom = ROWS[split]
        corners = rng.integers((top, 0), (bottom - SIZE + 1, 512 - SIZE + 1), size=(len(source), 2))
        windows = photographs.unfold(1, SIZE, 1).unfold(2, SIZE, 1)  # [2, 481, 481, 32, 32], a view
        drawn = composite(ink[source], windows[:, corners[:, 0], corners[:, 1]]).unsqueeze(2)  # [2, n, 1, 32, 32]
        self.corners, each = torch.from_numpy(corners), torch.arange(len(source))
        self.fields = {
            "image": drawn[grass, each],
            "swapped": drawn[1 - grass, each],
            "label": torch.from_numpy(label),
            "digit": torch.from_numpy(label),
            "numeral": numeral[source],
            "grass": torch.from_numpy(grass),
            "source": torch.from_numpy(source),
        }

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[index] for name, values in self.fields.items()}


def swap_background(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Show every digit on the other photograph: do(grass), exact and its own inverse.

    Takes an item or a collated batch of `GrassyDigits`, left as it is, and returns a new dict with `image` and
    `swapped` exchanged, `grass` flipped and all else the same.
    """
    missing = {"image", "swapped", "grass"} - batch.keys()
    if missing:
        raise ValueError(f"`batch` must be one of GrassyDigits, but {sorted(missing)} are not among {list(batch)}.")
    return {**batch, "image": batch["swapped"], "swapped": batch["image"], "grass": 1 - batch["grass"]}


class GrassyDigitsData(LightningDataModule):
    """The three parts of `GrassyDigits` as loaders: training confounded, validation and test balanced.

    Args:
        agreement: Of background and label in training, 0 to 1; 0.5 is the ceiling, a task without a confounder.
        batch_size: Images.
        crops: Images per validation or test digit, half of them on grass where even; a training digit has one.
        seed: Of crops and backgrounds; the order of training is torch's.
        num_workers: Processes per loader; 0 is fastest here, for images are ready made.
    """

    def __init__(
        self, agreement: float = 0.95, batch_size: int = 128, crops: int = 4, seed: int = 0, num_workers: int = 0
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.agreement, self.crops, self.seed = agreement, crops, seed
        self.batch_size, self.num_workers = batch_size, num_workers

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Return 1,100 shuffled images."""
        return self._loader(GrassyDigits("train", self.agreement, crops=1, seed=self.seed), shuffle=True)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Return 348 digits × `crops` images in order, balanced."""
        return self._loader(GrassyDigits("val", 0.5, self.crops, self.seed))

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Return 349 digits × `crops` images in order, balanced."""
        return self._loader(GrassyDigits("test", 0.5, self.crops, self.seed))

    def _loader(self, dataset: GrassyDigits, shuffle: bool = False) -> DataLoader[dict[str, Tensor]]:
        workers = self.num_workers
        return DataLoader(dataset, self.batch_size, shuffle, num_workers=workers, persistent_workers=workers > 0)


def _agrees(label: np.ndarray, crops: int, agreement: float, rng: np.random.Generator) -> np.ndarray:
    """Spread agreement as evenly as can be over the images of each label, digits in random order: bool `[n]`."""
    agrees = np.empty((len(label) // crops, crops), dtype=bool)
    for value in (0, 1):
        digits = rng.permutation(np.flatnonzero(label[::crops] == value))
        so_far = np.floor(agreement * np.arange(len(digits) * crops + 1) + 0.5)
        agrees[digits] = np.diff(so_far).reshape(-1, crops)
    return agrees.ravel()
