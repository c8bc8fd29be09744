"""How well the measures follow the truth: correlation, calibration, coverage, and what a hidden factor does to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from tabular import table as markdown

from measures.nets import DEPTHS

DRAWS = 1_000  # of the bootstrap, over nets: a net's checkpoints are alike
Row = dict


@dataclass(frozen=True)
class Measure:
    """One measure of how much a net uses a variable.

    Attributes:
        name: as in the tables, and in the rows' "theirs".
        null: what it is for a variable that is not used.
        logits: whether it is in logits, so that it can be right and not only in order.
        unsigned: whether it has no sign, and can only be compared with the size of the truth.
        ours: its key in the rows' "ours"; None: another's, for which the better of with and without sign is shown.
    """

    name: str
    null: float = 0.0
    logits: bool = False
    unsigned: bool = False
    ours: str | None = None

    def values(self, rows: Sequence[Row], depth: str | None = None) -> np.ndarray:
        """Its values, less the null."""
        found = [r["ours"][self.ours] if self.ours else r["theirs"][self.name] for r in rows]
        return np.array([f[depth] if isinstance(f, dict) else f for f in found], dtype=float) - self.null

    def depths(self, row: Row) -> Sequence[str | None]:
        """Where it is measured."""
        found = row["ours"][self.ours] if self.ours else row["theirs"][self.name]
        return DEPTHS if isinstance(found, dict) else (None,)


MEASURES = (
    Measure("effect (ours)", logits=True, ours="effect"),
    Measure("share (ours)", unsigned=True, ours="share"),
    Measure("sensitivity (ours)", logits=True, ours="sensitivity"),
    Measure("difference of mean outputs", logits=True),
    Measure("gradient × mean difference", logits=True),
    Measure("gradient × FastCAV direction"),
    Measure("FastCAV, TCAV score", null=0.5),
    Measure("TCAV score", null=0.5),
    Measure("TCAV derivative"),
    Measure("TCAV score, with against without", null=0.5),
    Measure("TCAV derivative, with against without"),
    Measure("probe accuracy", null=0.5, unsigned=True),
    Measure("LEACE, accuracy"),
    Measure("LEACE, variance", unsigned=True),
    Measure("LEACE, sd", logits=True, unsigned=True),
    Measure("LEACE, difference", logits=True),
)
WORDS = {
    "LEACE, accuracy": "LEACE: accuracy lost",
    "LEACE, variance": "LEACE: share of variance gone",
    "LEACE, sd": "LEACE: 2·√variance gone",
    "LEACE, difference": "LEACE: mean difference gone",
}
BY_SIZE = ", by size"


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; NaN where one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if min(np.ptp(a), np.ptp(b)) > 1e-9 and size > 0 else float("nan")


def ranked(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation."""
    return correlation(rankdata(a), rankdata(b))


def bootstrap(rows: Sequence[Row], a: np.ndarray, b: np.ndarray, how: Callable[[np.ndarray, np.ndarray], float]) -> list[float]:
    """The middle 95 % of a correlation over draws of nets."""
    names = [str([r[k] for k in ("task", "architecture", "agreement", "hidden", "training", "seed")]) for r in rows]
    _, net = np.unique(names, return_inverse=True)
    members = [np.flatnonzero(net == i) for i in range(net.max() + 1)]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        drawn = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        found.append(how(a[drawn], b[drawn]))
    return np.nanpercentile(found, [2.5, 97.5]).tolist() if np.isfinite(found).any() else [float("nan")] * 2


@dataclass(frozen=True)
class Found:
    """A measure against the truth, at its best depth, with sign or without: chosen for the better, with the truth in sight."""

    measure: Measure
    by_size: bool
    depth: str | None
    pearson: float
    interval: Sequence[float]
    spearman: float
    ranks: Sequence[float]
    by_depth: Sequence[float]
    slope: float | None
    error: float | None


def against(rows: Sequence[Row], measure: Measure, free: bool = True) -> Found:
    """Compare; `free`: a measure of others may leave its sign away, where that is better for it."""
    do = np.array([r["do"] for r in rows])
    choices = []
    for by_size in {measure.unsigned, True} if free and measure.ours is None else {measure.unsigned}:
        target = np.abs(do) if by_size else do
        each = [measure.values(rows, depth) for depth in measure.depths(rows[0])]
        each = [np.abs(e) if by_size and not measure.unsigned else e for e in each]
        choices.append((by_size, target, each, [correlation(e, target) for e in each]))
    by_size, target, each, found = max(choices, key=lambda c: np.nanmax([*c[3], -2.0]))
    best = int(np.argmax(np.nan_to_num(found, nan=-2.0)))
    x = each[best]
    slope = error = None
    if measure.logits:
        slope = float(np.polyfit(x, target, 1)[0]) if np.ptp(x) > 0 else None
        error = float(np.abs(x - target).mean())
    return Found(
        measure,
        by_size,
        measure.depths(rows[0])[best],
        found[best],
        bootstrap(rows, x, target, correlation),
        ranked(x, target),
        bootstrap(rows, x, target, ranked),
        found,
        slope,
        error,
    )


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash."""
    return "–" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def fine(value: float) -> str:
    """A correlation: three digits, or four near 1."""
    return number(value, 4 if value > 0.9995 else 3)


def spread(value: float, interval: Sequence[float]) -> str:
    """A correlation with its interval."""
    return f"{fine(value)} ({fine(interval[0])} … {fine(interval[1])})"


def table(rows: Sequence[Row]) -> str:
    """Markdown: every measure against the truth on one task and probe set."""
    heads = ["measure", "Pearson (95 %)", "Spearman (95 %)", "early / middle / last", "slope", "error, logits"]
    lines: list[list[str]] = []
    for measure in MEASURES:
        f = against(rows, measure)
        name = WORDS.get(measure.name, measure.name) + (BY_SIZE if f.by_size else "")
        known = np.isfinite(f.pearson)
        depths = " / ".join(number(v) for v in f.by_depth) if len(f.by_depth) > 1 else "–"
        cells = [
            spread(f.pearson, f.interval) if known else "undefined: it does not vary",
            spread(f.spearman, f.ranks) if known else "–",
            depths,
            number(f.slope),
            number(f.error),
        ]
        lines.append([name, *cells])
    return markdown(heads, lines)


def coverage(rows: Sequence[Row]) -> str:
    """Markdown: how often our intervals hold the truth, on every task and probe set."""
    heads = [
        "images",
        "nets, checkpoints",
        "do, logits",
        "inside, same images",
        "inside, other images",
        "mean half-width",
        "correlation, other images",
    ]
    lines: list[list[str]] = []
    for name, mine in parts(rows).items():
        low, high, do, other, effect = (
            np.array([r["ours"][k] if k in r["ours"] else r[k] for r in mine])
            for k in ("low", "high", "do", "do_elsewhere", "effect")
        )
        nets = len({str({k: r[k] for k in ("architecture", "agreement", "hidden", "training", "seed")}) for r in mine})
        inside = [f"{100 * np.mean((low <= t) & (t <= high)):.0f} %" for t in (do, other)]
        cells = [f"{nets}, {len(mine)}", f"{do.min():.1f} … {do.max():.1f}", *inside]
        cells += [f"{(high - low).mean() / 2:.2f}", fine(correlation(effect, other))]
        lines.append([name, *cells])
    return markdown(heads, lines)


NAMES = {
    ("coloured", 0.5): "coloured MNIST, balanced",
    ("coloured", 0.9): "coloured MNIST, agreement 0.9",
    ("demo", 0.5): "digits on grass, balanced",
    ("demo", 0.9): "digits on grass, agreement 0.9",
    ("hidden", 0.5): "coloured MNIST, hidden patch",
}


def parts(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each task and probe set."""
    found = {name: [r for r in rows if (r["task"], r["probe"]) == key] for key, name in NAMES.items()}
    return {name: mine for name, mine in found.items() if mine}


def hidden(rows: Sequence[Row]) -> str:
    """Markdown: what the measures credit the confounder with that is the hidden factor's.

    On the checkpoints the measure is regressed on the true effects of both; "credited" is the hidden factor's coefficient over
    that of the confounder: 0, a measure of the confounder alone; 1, the two are not told apart.
    """
    heads = ["measure", "at", "Pearson (95 %)", "Spearman", "credited", "error, logits", "error where colour is not used"]
    lines: list[list[str]] = []
    colour, patch = (np.array([r[k] for r in rows]) for k in ("do", "do_hidden"))
    unused = np.abs(colour) < UNUSED
    for measure in (*MEASURES, NAMED):
        f = against(rows, measure, free=False)
        x = measure.values(rows, f.depth)
        both = [np.abs(v) if f.by_size else v for v in (colour, patch)]
        x = np.abs(x) if f.by_size and not measure.unsigned else x
        fitted = np.linalg.lstsq(np.column_stack([*both, np.ones(len(x))]), x, rcond=None)[0]
        name = WORDS.get(measure.name, measure.name) + (BY_SIZE if f.by_size else "")
        known = np.isfinite(f.pearson)
        away = np.abs(x - both[0])
        cells = [
            f.depth or "–",
            spread(f.pearson, f.interval) if known else "undefined",
            fine(f.spearman) if known else "–",
            number(fitted[1] / fitted[0]) if known else "–",
            number(away.mean()) if measure.logits else "–",
            number(away[unused].mean()) if measure.logits and unused.any() else "–",
        ]
        lines.append([name, *cells])
    return markdown(heads, lines)


UNUSED = 0.3  # logits: the confounder is as good as not used


class Named(Measure):
    """Our effect where the hidden factor has been named too."""

    def values(self, rows: Sequence[Row], depth: str | None = None) -> np.ndarray:
        """The effects."""
        return np.array([r["ours"]["named"]["value"] for r in rows])

    def depths(self, row: Row) -> Sequence[str | None]:
        """The output only."""
        return (None,)


NAMED = Named("effect (ours), the patch named too", logits=True, ours="named")


def robustness(rows: Sequence[Row]) -> str:
    """Markdown: what the robustness value says of effects that are the confounder's own, and of those that are not."""
    lines = [
        "| the effect is | checkpoints | true do, logits | effect, logits | robustness value (range) | inside interval |",
        "|---" * 6 + "|",
    ]
    do, effect, rv, low, high = (
        np.array([r["ours"][k] if k in r["ours"] else r[k] for r in rows])
        for k in ("do", "effect", "robustness", "low", "high")
    )
    wrong = np.abs(effect - do) > np.abs(effect) / 2
    inside = (low <= do) & (do <= high)
    for name, which in (("mostly the hidden factor's", wrong), ("mostly its own", ~wrong)):
        if which.any():
            cells = [f"{np.abs(v[which]).mean():.2f}" for v in (do, effect)]
            values = f"{np.median(rv[which]):.2f} ({rv[which].min():.2f} … {rv[which].max():.2f})"
            lines.append(f"| {name} | {which.sum()} | {' | '.join(cells)} | {values} | {100 * inside[which].mean():.0f} % |")
    lines.append(f"| told apart by a low value: area under the ROC curve | – | – | – | {flags(rows)} | – |")
    return "\n".join(lines)


def flags(rows: Sequence[Row]) -> str:
    """How well a low robustness value marks an effect that is mostly the hidden factor's: the area under the ROC curve."""
    do, effect, rv = (
        np.array([r["ours"][k] if k in r["ours"] else r[k] for r in rows]) for k in ("do", "effect", "robustness")
    )
    wrong = np.abs(effect - do) > np.abs(effect) / 2
    if not wrong.any() or wrong.all():
        return "–"
    below = (rv[wrong][:, None] < rv[~wrong]) + 0.5 * (rv[wrong][:, None] == rv[~wrong])
    return f"{below.mean():.2f}"


def brief(rows: Sequence[Row]) -> str:
    """Markdown: the correlations alone, on every task and probe set."""
    found = parts(rows)
    lines = [f"| correlation with the true effect | {' | '.join(found)} |", "|---" * (1 + len(found)) + "|"]
    for measure in MEASURES:
        each = [against(mine, measure) for mine in found.values()]
        name = WORDS.get(measure.name, measure.name)
        lines.append(f"| {name} | {' | '.join(fine(f.pearson) for f in each)} |")
    return "\n".join(lines)


def tables(rows: Sequence[Row]) -> dict[str, str]:
    """All of them, by the name of their markers."""
    found = {f"truth {name}": table(mine) for name, mine in parts(rows).items() if "hidden" not in name}
    if rows:
        found |= {"truth": brief(rows), "truth coverage": coverage(rows)}
    tied = [r for r in rows if r["task"] == "hidden"]
    return found | ({"truth hidden": hidden(tied), "truth robustness": robustness(tied)} if tied else {})
