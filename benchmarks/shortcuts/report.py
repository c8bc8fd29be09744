"""Which value of a knob is taken, and the tables."""

import statistics
from collections.abc import Iterable

from shortcuts.heart import SITES
from shortcuts.methods import BATCH, BUILT, METHODS, SPREAD, Method
from shortcuts.runs import VERSION

TUNING_SEED = 100
NAMES = {"demo": "grass", "coloured": "colour", "decoy": "grey", "caltech": "frame", "adult": "sex", "reviews": "genre"}
# What is shown of a row, and with how many digits; then what is shown first on a task with parts of its own.
COLUMNS = {"test_accuracy": 3, "test_worst": 3, "test_do": 2, "test_share": 3}
ALSO = {
    "caltech": {"also_exchanged": "frames exchanged"},
    "adult": {"test_balanced": "mean of groups"},
    "reviews": {"also_originals": "originals", "also_revisions": "revisions"},
}

Row = dict


def chosen(rows: list[Row], method: Method) -> float | None:
    """The value whose worst group on the validation part of the tuning seed is best; ties: the lower share."""
    trials = [r for r in rows if r["method"] == method.name and r["seed"] == TUNING_SEED and r["batch"] == method.batch_size]
    trials = [r for r in trials if r["value"] in method.values and r.get("val_worst") is not None]
    if not trials:
        return None
    return max(trials, key=lambda r: (r["val_worst"], -(r["val_share"] or 0.0)))["value"]


def oracle(rows: list[Row], method: Method) -> float | None:
    """The best test accuracy of the same trials: what knowing the test part would have given."""
    trials = [r for r in rows if r["method"] == method.name and r["seed"] == TUNING_SEED and r["batch"] == method.batch_size]
    return max((r["test_accuracy"] for r in trials if "test_accuracy" in r), default=None)


def select(rows: list[Row], task: str, setting: float) -> list[Row]:
    """The rows of a task."""
    return [r for r in rows if r.get("version") == VERSION and r["task"] == task and r["setting"] == setting]


def table(rows: list[Row], task: str, setting: float) -> str:
    """Markdown, mean ± sd over the reported seeds on the test part; empty where there is nothing."""
    mine = select(rows, task, setting)
    also = ALSO.get(task, {})
    ceiling = at(mine, "ceiling", chosen(mine, METHODS["ceiling"]), BATCH)
    sd = {r["seed"]: r["test_sd"] for r in ceiling}
    lines = []
    for m in METHODS.values():
        value = chosen(mine, m)
        if value is not None:
            found = at(mine, m.name, value, m.batch_size)
            lines.append(line(m.name, f"{m.knob} {value:g}", found, sd, oracle(mine, m), also))
    lines += [
        line(f"{name}, not selected", f"λ {value:g}, batch {size}", at(mine, name, value, size), sd, None)
        for name, value, size in SPREAD
        if task in BUILT
    ]
    lines = [text for text in lines if text]
    if not lines:
        return ""
    name = NAMES[task]
    heads = ["method", "knob", *also.values(), "accuracy", "worst group", f"do({name})", f"share of {name}"]
    heads += ["sd", "seconds", "oracle"]
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines])


def hospitals(rows: list[Row]) -> str:
    """Area under the curve on every hospital that was left out, and what is the mean of the four in every seed."""
    parts = [select(rows, "heart", setting) for setting in range(len(SITES))]
    heads = ["method", "knob", *SITES, "mean AUC", "mean accuracy", "mean of outcomes", "share of site", "seconds"]
    lines = []
    for m in METHODS.values():
        values = [chosen(part, m) for part in parts]
        found = [{r["seed"]: r for r in at(part, m.name, v, m.batch_size)} for part, v in zip(parts, values)]
        seeds = sorted(set.intersection(*map(set, found)))
        if not seeds:
            continue
        cells = [spread([part[s]["test_auc"] for s in seeds], 3) for part in found]
        columns = {"test_auc": 3, "test_accuracy": 3, "test_balanced": 3, "val_share": 3, "seconds": 1}
        cells += [spread([statistics.mean(p[s][key] for p in found) for s in seeds], n) for key, n in columns.items()]
        lines.append(f"| {m.name} | {m.knob} {', '.join(f'{v:g}' for v in values)} | {' | '.join(cells)} |")
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines]) if lines else ""


def at(rows: list[Row], method: str, value: float | None, batch_size: int) -> list[Row]:
    """The reported runs of a method at a value."""
    found = [r for r in rows if (r["method"], r["value"], r["batch"]) == (method, value, batch_size)]
    return [r for r in found if r["seed"] != TUNING_SEED]


def line(
    name: str, knob: str, rows: list[Row], sd: dict[int, float], best: float | None, also: Iterable[str] = ()
) -> str | None:
    """A line of the table."""
    if not rows:
        return None
    ran = [r for r in rows if "test_accuracy" in r]
    columns = {**dict.fromkeys(also, 3), **COLUMNS}
    cells = [spread([r[key] for r in ran if r[key] is not None], digits) for key, digits in columns.items()]
    cells.append(spread([r["test_sd"] / sd[r["seed"]] for r in ran if r["seed"] in sd], 2))
    cells += [spread([r["seconds"] for r in ran], 0), "–" if best is None else f"{best:.3f}"]
    return f"| {' | '.join([name, knob, *cells])} |"


def answers(rows: list[Row], task: str, setting: float) -> list[str]:
    """What methods warned of or refused on a task, each once; what is said of the plain net too is of the measurement."""
    said: dict[str, dict[str, None]] = {"plain": {}}
    for r in select(rows, task, setting):
        texts = [*r["said"], *([r["error"]] if "error" in r else [])]
        said.setdefault(r["method"], {}).update(dict.fromkeys(texts))
    usual = said.pop("plain")
    return [f"{method}: {text}" for method, texts in said.items() for text in texts if text not in usual]


def spread(values: list[float], digits: int) -> str:
    """Mean ± sd."""
    if not values:
        return "–"
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {sd:.{digits}f}"
