"""Does a 95 % interval hold the truth 95 % of the time, and does the sensitivity test cry wolf 5 % of the time?

Prints one row per setting and appends it to benchmarks/results/coverage.jsonl; settings already there are skipped.

    python benchmarks/coverage.py            # about 5 minutes on one core
    python benchmarks/coverage.py --fresh    # forget earlier results

The truth of an effect is its population value under the weights in use, balanced ones wherever they can be had: cell
means are compared with every level of the other variable counting the same, whatever its frequency; with a continuous
variable it is the weighted regression in a population with the same cells. Every cell has noise of its own size: the
small cells are noisier, or the large ones. "ordinary" is the weighted least squares interval that regression packages
print; "ignored": the samples share sources, and the fit is not told. A continuous variable belongs to the source, where
there are sources. Goals: 93–97 % where the smallest cell has 30 samples (or sources) or more, 92–98 % below; 3–7 % for the
test. With ten binary variables most cells have one sample: there the goal is 92–98 % at n = 300 and 93–97 % at n = 1000.
Beside the sensitivity test stands the z-score of pooled second moments, which takes the noise for equal and the samples for
independent; the library does not use it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import ndtr, ndtri, stdtrit
from torch import Tensor

from lightning_interp.functional.coding import Design, code
from lightning_interp.functional.contribution import effects, fit, interval_note
from lightning_interp.functional.direction import pattern
from lightning_interp.functional.sensitivity import derivative, derivative_test
from lightning_interp.functional.table import table
from lightning_interp.functional.weights import sample_weights
from lightning_interp.metrics.layer import membership

RESULTS = Path(__file__).parent / "results" / "coverage.jsonl"
REPLICATES = 2_000
SMALLEST = (5, 10, 30, 100)
PER_SOURCE = 4

# Cell sizes in units of the smallest: the variables agree most of the time, as a confounder and a label do.
AGREE = {2: [[9, 1], [1, 9]], 3: [[9, 3, 1], [1, 3, 9]]}
DESIGNS = {
    "2 binary": {"levels": 2},
    "2 binary, interaction": {"levels": 2, "interaction": True},
    "binary + 3 levels": {"levels": 3},
    "binary + 3 levels, interaction": {"levels": 3, "interaction": True},
    "binary + continuous": {"levels": 1},
    "binary + continuous, interaction": {"levels": 1, "interaction": True},
    "2 binary, 3 classes": {"levels": 2, "classes": 3},
    "2 binary, sources span cells": {"levels": 2, "clusters": "across"},
    "2 binary, sources span cells, ignored": {"levels": 2, "clusters": "across", "ignore": True},
    "2 binary, sources in a cell": {"levels": 2, "clusters": "within"},
    "2 binary, sources in a cell, ignored": {"levels": 2, "clusters": "within", "ignore": True},
    "binary + continuous, sources in a cell": {"levels": 1, "clusters": "within"},
}


@dataclass(frozen=True)
class Setting:
    """One row of the coverage table.

    Attributes:
        name: key of `DESIGNS`.
        smallest: samples in the smallest cell; sources where samples share one.
        noisy: which cells are noisier, "small" or "large".
        levels: of the second variable; 1 makes it continuous.
        interaction: whether the data hold an interaction that the equation leaves out.
        classes: of the output.
        clusters: None, "across" (a source's samples lie in different cells) or "within" one cell; a continuous variable is
            then the same for all samples of a source.
        ignore: whether the clusters are kept from the fit.
    """

    name: str
    smallest: int
    noisy: str
    levels: int
    interaction: bool = False
    classes: int = 1
    clusters: str | None = None
    ignore: bool = False


def settings() -> Iterator[Setting]:
    """Every row of the coverage table."""
    for name, options in DESIGNS.items():
        for noisy in ("small", "large"):
            for smallest in SMALLEST:
                yield Setting(name, smallest, noisy, **options)


def cells_of(s: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Each sample's levels of the two variables."""
    # A continuous second variable leaves two cells: 5 samples in one make an effective n under 30, so natural weights.
    sizes = np.array(AGREE[s.levels] if s.levels > 1 else [[12], [1]]) * s.smallest
    index = np.indices(sizes.shape).reshape(2, -1)
    repeat = sizes.ravel() * (PER_SOURCE if s.clusters == "within" else 1)
    return np.repeat(index[0], repeat), np.repeat(index[1], repeat)


def sources_of(s: Setting, first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each sample's source: four samples each, of one cell or of any."""
    n = len(first)
    if s.clusters == "within":
        return np.arange(n) // PER_SOURCE  # samples stand in the order of their cells
    return rng.permutation(n) // PER_SOURCE if s.clusters == "across" else np.arange(n)


def noise_sd(s: Setting, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Each sample's noise: twice as large in the small (or large) cells, and 1.5 times where first is 1."""
    large = first == 0 if s.levels == 1 else first * (s.levels - 1) == second
    return np.where(large == (s.noisy == "small"), 1.0, 2.0) * np.where(first == 1, 1.5, 1.0)


def surface(s: Setting) -> np.ndarray:
    """Mean output of every cell, `[2, levels, classes]`."""
    first = np.array([-0.5, 0.5])[:, None, None] * np.array([2.0, -1.0, 0.5])[: s.classes]
    second = np.linspace(-0.7, 0.7, max(2, s.levels))[None, :, None] * np.array([1.0, 2.0, -1.0])[: s.classes]
    out = first + second
    if s.interaction:
        out = out + 1.5 * first * np.sign(second)
    return out - out.mean(2, keepdims=True) if s.classes > 1 else out


def discrete_truth(s: Setting) -> np.ndarray:
    """Effects averaged over the other variable's levels, `[effects, classes]`."""
    mean = surface(s)
    by_first, by_second = mean.mean(1), mean.mean(0)
    second = by_second[1:] - by_second[:1] if s.levels == 2 else by_second - by_second.mean(0)
    return np.concatenate([by_first[1:] - by_first[:1], second])


def contrasts(design: Design) -> Tensor:
    """The effects of all variables, `[m, 1 + q]`."""
    return torch.block_diag(torch.zeros(0, 1, dtype=torch.float64), *[f.contrasts() for f in design.factors])


def ordinary(z: Tensor, o: Tensor, w: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Half-width and value of the ordinary weighted least squares interval, as regression packages print it."""
    x = torch.cat([torch.ones_like(z[:, :1]), z], dim=1)
    bread = torch.linalg.inv(x.T @ (w[:, None] * x))
    b = bread @ x.T @ (w[:, None] * o)
    df = len(z) - x.shape[1]
    scale = (w[:, None] * (o - x @ b) ** 2).sum(0) / df
    se = ((rows @ bread * rows).sum(1, keepdim=True) * scale).sqrt()
    return rows @ b, se * float(stdtrit(df, 0.975))


def outputs(s: Setting, mean: np.ndarray, sd: np.ndarray, source: np.ndarray, count: int, rng: np.random.Generator):
    """`count` replicates of the output side by side, `[n, count * classes]`."""
    noise = rng.standard_normal((len(sd), count, s.classes))
    if s.clusters:  # half of the variance is the source's
        noise = np.sqrt(0.5) * (noise + rng.standard_normal((source.max() + 1, count, s.classes))[source])
    o = mean[:, None] + sd[:, None, None] * noise
    if s.classes > 1:
        o = o - o.mean(2, keepdims=True)
    return torch.tensor(o.reshape(len(sd), -1))


def inside(value: Tensor, low: Tensor, high: Tensor, truth: Tensor) -> Tensor:
    """Whether each interval holds the truth."""
    return ((low <= truth) & (truth <= high)).double()


def measure(
    s: Setting, values: np.ndarray, o: Tensor, truth: dict[str, np.ndarray], source: np.ndarray
) -> tuple[Tensor, Tensor, float, str]:
    """Coverage of every contrast by the library's interval and the ordinary one, half-width, weights used."""
    raw = torch.tensor(values, dtype=torch.float64)
    ones = torch.ones(len(raw), dtype=torch.float64)
    design = code(raw, ones, ["a", "b"], ["binary", ["continuous", "binary", "categorical"][s.levels - 1]])
    clustered = bool(s.clusters) and not s.ignore
    rows = table(raw, o, torch.tensor(source) if clustered else None)
    weights = sample_weights(design, rows.values, rows.count, "balanced")
    c = contrasts(design)
    got = effects(fit(design.encode(rows.values), rows, weights, clustered), c)
    if got.note and got.note.startswith("withheld"):
        raise RuntimeError(f"{s}: {got.note}")
    expected = torch.tensor(truth[weights.mode])
    if s.levels == 1:  # the effect is per standard deviation over this probe set
        expected = expected * torch.tensor([[1.0], [design.factors[1].scale]], dtype=torch.float64)
    expected = expected.repeat(1, o.shape[1] // s.classes)
    single = sample_weights(design, raw, ones, "balanced").row
    b, half = ordinary(design.encode(raw), o, single, c)
    plain = inside(b, b - half, b + half, expected)
    return inside(got.value, got.low, got.high, expected), plain, float((got.high - got.low).mean() / 2), weights.mode


def fixed_design(s: Setting, rng: np.random.Generator) -> dict:
    """Discrete variables: the cells stay, only the noise is drawn again; all replicates are columns of one fit."""
    first, second = cells_of(s)
    mean, sd = surface(s)[first, second], noise_sd(s, first, second)
    values, truth = np.column_stack([first, second]), {"balanced": discrete_truth(s)}
    hits, plain, half = [], [], []
    blocks = 10  # sources that span cells are dealt anew in every block
    for _ in range(blocks):
        source = sources_of(s, first, second, rng)
        o = outputs(s, mean, sd, source, REPLICATES // blocks, rng)
        a, b, h, mode = measure(s, values, o, truth, source)
        hits.append(a)
        plain.append(b)
        half.append(h)
    return summary(s, torch.cat(hits, 1), torch.cat(plain, 1), float(np.mean(half)), mode, len(first))


SLOPE, SHIFT = 0.8, 1.2  # of the output on x; of x between the two cells


def continuous_truth(s: Setting) -> dict[str, np.ndarray]:
    """{weights: coefficients of the population's regression on [1, a, x], x not yet divided by its deviation}."""
    a = np.repeat([-0.5, 0.5], 1_000_000)
    x = SHIFT * a + skewed(a, np.random.default_rng(0))
    design = np.column_stack([np.ones_like(a), a, x])
    out = {}
    for mode, ratio in (("balanced", 1), ("natural", 12)):
        w = np.where(a < 0, ratio, 1)[:, None]
        out[mode] = np.linalg.solve(design.T @ (w * design), design.T @ (w * response(s, a, x)))[1:]
    return out


def response(s: Setting, a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Mean output, `[n, 1]`."""
    return (2 * a + SLOPE * x + (1.0 if s.interaction else 0.0) * a * x)[:, None]


def skewed(a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The continuous variable about its cell's mean: skewed, and wider in the second cell."""
    return (rng.gamma(4, 0.5, len(a)) - 2) * np.where(a > 0, 1.3, 1.0)


def random_design(s: Setting, rng: np.random.Generator) -> dict:
    """A continuous variable: it is drawn again with the noise in every replicate, once for each source."""
    first, second = cells_of(s)
    source = sources_of(s, first, second, rng)
    leader = np.unique(source, return_index=True)[1]
    a, sd, truth = first - 0.5, noise_sd(s, first, second), continuous_truth(s)
    hits, plain, half = [], [], []
    for _ in range(REPLICATES):
        x = SHIFT * a + skewed(a[leader], rng)[source]
        o = outputs(s, response(s, a, x), sd * (1 + 0.3 * np.abs(x)), source, 1, rng)
        got = measure(s, np.column_stack([first, x]), o, truth, source)
        hits.append(got[0])
        plain.append(got[1])
        half.append(got[2])
    return summary(s, torch.cat(hits, 1), torch.cat(plain, 1), float(np.mean(half)), got[3], len(first))


def summary(s: Setting, hits: Tensor, plain: Tensor, half: float, mode: str, n: int) -> dict:
    """Coverage in percent of every effect (the first variable's, then the second's) on every class."""
    each, other = (100 * x.reshape(len(x), -1, s.classes).mean(1).flatten() for x in (hits, plain))
    return {
        "n": n,
        "weights": mode,
        "coverage": [round(float(v), 2) for v in each],
        "ordinary": [round(float(v), 2) for v in other],
        "half_width": round(half, 4),
    }


def goal(s: Setting, coverage: list[float]) -> bool:
    """Whether every effect's coverage is where it should be."""
    low, high = (93, 97) if s.smallest >= 30 else (92, 98)
    return all(low <= c <= high for c in coverage)


@dataclass(frozen=True)
class Many:
    """One row of the table of many variables: ten binary ones that go together, the last of them rare.

    Attributes:
        n: samples.
        noisy: whose noise is three times as large: "rare", where the last variable is 1, or "common", elsewhere.
        name: for printing.
    """

    n: int
    noisy: str
    name: str = "10 binary"


FREQUENCIES = np.linspace(0.5, 0.1, 10)


def many() -> Iterator[Many]:
    """Every row of the table of many variables."""
    for noisy in ("rare", "common"):
        for n in (300, 1_000):
            yield Many(n, noisy)


def many_variables(s: Many, rng: np.random.Generator) -> dict:
    """Natural weights: the variables are drawn again in every block, the noise in every replicate."""
    truth, blocks = np.linspace(-1, 1, 10), 40
    hits, plain, half, cells, single = [], [], [], 0, 0
    ones = torch.ones(s.n, dtype=torch.float64)
    for _ in range(blocks):
        latent = 0.6 * rng.standard_normal((s.n, 1)) + 0.8 * rng.standard_normal((s.n, 10))
        x = (latent > ndtri(1 - FREQUENCIES)).astype(float)
        sd = np.where((x[:, 9] == 1) == (s.noisy == "rare"), 3.0, 1.0) * np.where(x[:, 0] == 1, 1.5, 1.0)
        raw = torch.tensor(x)
        o = torch.tensor((x @ truth)[:, None] + sd[:, None] * rng.standard_normal((s.n, REPLICATES // blocks)))
        design = code(raw, ones, [f"v{j}" for j in range(10)], ["binary"] * 10)
        rows = table(raw, o)
        weights = sample_weights(design, rows.values, rows.count, "natural")
        c, expected = contrasts(design), torch.tensor(truth)[:, None]
        fitted = fit(design.encode(rows.values), rows, weights)
        if str(interval_note(fitted)).startswith("withheld"):
            raise RuntimeError(f"{s}: {interval_note(fitted)}")
        got = effects(fitted, c)
        b, width = ordinary(design.encode(raw), o, ones / s.n, c)
        hits.append(inside(got.value, got.low, got.high, expected))
        plain.append(inside(b, b - width, b + width, expected))
        half.append(float((got.high - got.low).mean() / 2))
        cells, single = cells + len(weights.cells), single + int((weights.cell_count == 1).sum())
    each, other = (100 * torch.cat(x, 1).mean(1) for x in (hits, plain))
    return {
        "cells": round(cells / blocks),
        "of_one": round(single / blocks),
        "coverage": [round(float(v), 2) for v in each],
        "ordinary": [round(float(v), 2) for v in other],
        "half_width": round(float(np.mean(half)), 4),
        "goal": all((92 if s.n < 1_000 else 93) <= v <= (98 if s.n < 1_000 else 97) for v in each),
    }


@dataclass(frozen=True)
class Alarm:
    """One row of the table of false alarms.

    Attributes:
        n: samples.
        mode: weights, "natural" or "balanced".
        noise: "equal"; "unequal": twice as large where the variables disagree; "shared": half of it common to the four
            samples of a source in a cell, which the test is told and the pooled z-score is not.
        kept: samples whose activations are kept for the test; the derivative rests on all.
        name: for printing.
    """

    n: int
    mode: str
    noise: str
    kept: int
    name: str = "sensitivity test"


def alarms() -> Iterator[Alarm]:
    """Every row of the table of false alarms."""
    for noise in ("equal", "unequal", "shared"):
        for mode in ("natural", "balanced"):
            for n in (200, 500, 1_000):
                yield Alarm(n, mode, noise, n)
            yield Alarm(1_000, mode, noise, 300)


def false_alarms(t: Alarm, rng: np.random.Generator, d: int = 32) -> dict:
    """How often p < 0.05 for a variable that moves nothing, beside one that does and agrees with it 8 times in 10."""
    rejected, pooled, unknown = 0, 0, 0
    mixing, signal = rng.standard_normal((d, d)) / np.sqrt(d), rng.standard_normal(d)
    gradient = torch.tensor(rng.standard_normal((1, d)))
    first = np.arange(t.n) % 2
    second = np.where(np.arange(t.n) // 2 % 5 < 4, first, 1 - first)
    order = np.lexsort((second, first))  # cell after cell
    first, second, source = first[order], second[order], np.arange(t.n) // PER_SOURCE
    loud = np.where((first == second) | (t.noise != "unequal"), 1.0, 2.0)[:, None]
    raw = torch.tensor(np.column_stack([first, second]), dtype=torch.float64)
    for k in range(REPLICATES):
        noise = rng.standard_normal((t.n, d))
        if t.noise == "shared":
            noise = np.sqrt(0.5) * (noise + rng.standard_normal((t.n, d))[source])
        h = torch.tensor((first - 0.5)[:, None] * signal + loud * noise @ mixing)
        p, z = test_of(raw, h, gradient, t, torch.tensor(source) if t.noise == "shared" else None, k)
        rejected += p < 0.05
        unknown += p != p
        pooled += float(2 * ndtr(-abs(z))) < 0.05
    return {
        "rejected": round(100 * rejected / REPLICATES, 2),
        "pooled": round(100 * pooled / REPLICATES, 2),
        "unknown": unknown,
    }


def test_of(raw: Tensor, h: Tensor, gradient: Tensor, t: Alarm, source: Tensor | None, k: int) -> tuple[float, float]:
    """p-value of the second variable by `derivative_test`, and its pooled z-score."""
    ones = torch.ones(len(raw), dtype=torch.float64)
    design = code(raw, ones, ["a", "b"], ["binary", "binary"])
    weights = sample_weights(design, raw, ones, t.mode)
    if weights.mode != t.mode:
        raise RuntimeError(weights.note)
    z, w = design.encode(raw), weights.row[:, None]
    zc, hc = z - (w * z).sum(0), h - (w * h).sum(0)
    zz = zc.T @ (w * zc)
    b = pattern(zz, zc.T @ (w * hc))
    s = derivative(gradient, b)
    kept = slice(None)
    if t.kept < t.n:  # the rows that `LayerStatistics` would keep
        ids = None if source is None else source + k * t.n  # others in every replicate, so that others are kept
        kept = membership(raw, torch.arange(t.n) + k * t.n, ids, [True, True], 0).order[: t.kept]
    rows = table(raw[kept], h[kept] @ gradient.T, None if source is None else source[kept])
    grouped = sample_weights(design, rows.values, rows.count, t.mode)
    fitted = fit(design.encode(rows.values), rows, grouped, source is not None)
    p = derivative_test(s, fitted, contrasts(design), t.n).p[1, 0]
    # The pooled score: variance g'Σg · ΣL², with one residual covariance Σ for all samples.
    rest = (hc - zc @ b) @ gradient[0]
    loading = torch.linalg.solve(zz, (w * zc).T)[1]
    return float(p), float(s[1, 0] / ((w[:, 0] * rest**2).sum() * (loading**2).sum()).sqrt())


def known(path: Path) -> set[str]:
    """Keys of the settings that have a result."""
    if not path.exists():
        return set()
    return {json.dumps(json.loads(line)["setting"], sort_keys=True) for line in path.read_text().splitlines()}


def run(fresh: bool) -> None:
    """Measure what is missing, then print everything."""
    RESULTS.parent.mkdir(exist_ok=True)
    if fresh:
        RESULTS.unlink(missing_ok=True)
    done, start = known(RESULTS), time.perf_counter()
    for number, s in enumerate([*settings(), *many(), *alarms()]):
        setting = {"kind": type(s).__name__, "replicates": REPLICATES, **vars(s)}
        if json.dumps(setting, sort_keys=True) in done:
            continue
        rng = np.random.default_rng([20, number])
        if isinstance(s, Alarm):
            result = false_alarms(s, rng)
            result["goal"] = 3 <= result["rejected"] <= 7
        elif isinstance(s, Many):
            result = many_variables(s, rng)
        else:
            result = (random_design if s.levels == 1 else fixed_design)(s, rng)
            result["goal"] = None if s.ignore else goal(s, result["coverage"])
        with RESULTS.open("a") as file:
            file.write(json.dumps({"setting": setting, **result}) + "\n")
    show([json.loads(line) for line in RESULTS.read_text().splitlines()])
    print(f"{time.perf_counter() - start:.0f} s")


VERDICT = {True: "yes", False: "NO", None: "–"}


def show(lines: list[dict]) -> None:
    """The two tables."""
    print(f"{'setting':38} {'noisy':6} {'cell':>4} {'n':>5} {'weights':9} {'coverage, %':30} {'ordinary, %':30} goal")
    for x in (x for x in lines if x["setting"]["kind"] == "Setting"):
        s = x["setting"]
        ours, other = (" ".join(f"{v:4.1f}" for v in x[k]) for k in ("coverage", "ordinary"))
        row = f"{s['name']:38} {s['noisy']:6} {s['smallest']:4} {x['n']:5} {x['weights']:9} {ours:30} {other:30}"
        print(row, VERDICT[x["goal"]])
    print(f"\n{'setting':10} {'noisy':7} {'n':>5} {'cells':>6} {'of one':>6}  {'coverage of each, %':49} ordinary, %  goal")
    for x in (x for x in lines if x["setting"]["kind"] == "Many"):
        s = x["setting"]
        row = f"{s['name']:10} {s['noisy']:7} {s['n']:5} {x['cells']:6} {x['of_one']:6}  "
        row += f"{' '.join(f'{v:4.1f}' for v in x['coverage'])} {min(x['ordinary']):5.1f}–{max(x['ordinary']):4.1f}   "
        print(row, VERDICT[x["goal"]])
    print(f"\n{'test':17} {'noise':8} {'weights':9} {'n':>5} {'kept':>5} {'p < .05, %':>11} {'pooled z-score, %':>18} goal")
    for x in (x for x in lines if x["setting"]["kind"] == "Alarm"):
        t = x["setting"]
        row = f"{t['name']:17} {t['noise']:8} {t['mode']:9} {t['n']:5} {t['kept']:5} {x['rejected']:11.1f} {x['pooled']:18.1f}"
        print(row, VERDICT[x["goal"]])


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    run(parser.parse_args().fresh)
