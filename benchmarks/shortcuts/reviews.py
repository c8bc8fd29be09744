"""`reviews`: is a film review positive? And the genre of the film (Kaushik et al. 2020).

In the original training reviews *romantic* and *romance* are in 99 positive and 1 negative, *horror* in 6 and 106. Human
revisions of the same reviews turn the sentiment round and leave the rest: there it is the other way round. Training holds the
1,707 originals; the validation part 245 originals and their revisions, the test part 488 and theirs, and accuracy is measured
on the two halves of it apart. do(genre) writes the words of one genre for those of the other, or at the end where there are
none. Genre is only one of the things that go with the sentiment here, and the only one that is named.
"""

import csv
import lzma
import re
from collections import Counter
from functools import cache

import numpy as np
import torch
from torch import Tensor

import lightning_interp as interp
from shortcuts.nets import BagOfWords
from shortcuts.tasks import Fields, Task, data_file

FILE = "cad_imdb.tsv.xz"
GENRES = {-1: ("horror", "horrors"), 1: ("romantic", "romance", "romances")}
NONE, UNKNOWN, HORROR, ROMANTIC, LAST = range(5)  # words that every vocabulary has; LAST is not one
WORDS, LONGEST = 5_000, 256
PARTS = {"train": "train", "val": "dev", "test": "test"}


class Reviews(Task):
    """Positive or negative."""

    name, layer, inputs = "reviews", "encoder.5", "words"
    setting = WORDS
    given = (interp.Concept("label", kind="binary"),)
    levels = (-1, 0, 1)
    also = ("originals", "revisions")

    def __init__(self, epochs: int = 20) -> None:
        self.epochs = epochs
        self.confounder = interp.Confounder("genre", kind="categorical", intervention=redraw_genre)
        self.number = interp.Confounder("genre", kind="continuous", intervention=redraw_genre)

    def fields(self, part: str, seed: int, ceiling: bool = False) -> Fields:
        """Words `[n, 256 + 1]`, the last place kept free; for the ceiling training holds the revisions too."""
        revised = reviews()["revised"].bool()
        kinds = {"train": ~revised | ceiling, "val": revised | ~revised, "test": revised | ~revised}
        kinds |= {"originals": ~revised, "revisions": revised}
        split = list(PARTS).index(part if part in PARTS else "test")
        chosen = kinds[part] & (reviews()["split"] == split)
        return {key: values[chosen] for key, values in reviews().items()}

    def do(self, fields: Fields, level: float) -> Tensor:
        """All of one genre, or of none."""
        return with_genre(fields["words"], torch.full_like(fields["genre"], int(level)))

    def net(self, weight_decay: float | None = None, ceiling: bool = False) -> BagOfWords:
        """A bag of words."""
        return BagOfWords(WORDS, weight_decay or 0.0)


def redraw_genre(batch: Fields) -> Fields:
    """do(genre): one of the three at random."""
    genre = torch.randint(-1, 2, batch["genre"].shape)
    return {**batch, "words": with_genre(batch["words"], genre), "genre": genre}


def with_genre(words: Tensor, genre: Tensor) -> Tensor:
    """Words `[n, t]` with those of a genre, −1, 0 or 1, where there were any, or else in the last place."""
    told = (words == HORROR) | (words == ROMANTIC)
    told[:, -1] |= ~told.any(1)
    word = torch.tensor([HORROR, NONE, ROMANTIC])[genre + 1]
    return torch.where(told, word[:, None], words)


@cache
def reviews() -> Fields:
    """All of them; the vocabulary is that of the training originals, all words of a genre one."""
    csv.field_size_limit(10**9)
    with lzma.open(str(data_file(FILE)), "rt") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    texts = [re.findall(r"[a-z']+", r["text"].lower()) for r in rows]
    genres = {word: HORROR if genre < 0 else ROMANTIC for genre, words in GENRES.items() for word in words}
    seen = Counter(
        w for t, r in zip(texts, rows) if r["split"] == "train" and r["kind"] == "orig" for w in t if w not in genres
    )
    number = {**{w: i for i, (w, _) in enumerate(seen.most_common(WORDS - LAST), LAST)}, **genres}
    words = np.zeros((len(rows), LONGEST + 1), dtype=np.int64)
    for i, text in enumerate(texts):
        numbers = [number.get(w, UNKNOWN) for w in text][:LONGEST]
        words[i, : len(numbers)] = numbers
    genre = (words == ROMANTIC).any(1).astype(int) - (words == HORROR).any(1)
    return {
        "words": torch.from_numpy(words),
        "label": torch.tensor([int(r["positive"]) for r in rows]),
        "genre": torch.from_numpy(genre),
        "revised": torch.tensor([int(r["kind"] == "revised") for r in rows]),
        "split": torch.tensor([list(PARTS.values()).index(r["split"]) for r in rows]),
    }
