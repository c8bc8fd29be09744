"""Which value of a knob is taken, and the tables."""

import statistics

from shortcuts.methods import BATCH, METHODS, SPREAD, Method
from shortcuts.runs import VERSION

TUNING_SEED = 100
COLUMNS = {"accuracy": 3, "worst": 3, "do": 2, "share": 3}

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
    ceiling = at(mine, "ceiling", chosen(mine, METHODS["ceiling"]), BATCH)
    sd = {r["seed"]: r["test_sd"] for r in ceiling}
    lines = [line(m.name, f"{m.knob} {chosen(mine, m):g}", at(mine, m.name, chosen(mine, m), m.batch_size), sd, oracle(mine, m))
             for m in METHODS.values() if chosen(mine, m) is not None]  # fmt: skip
    lines += [
        line(f"{name}, not selected", f"λ {value:g}, batch {size}", at(mine, name, value, size), sd, None)
        for name, value, size in SPREAD
    ]
    lines = [text for text in lines if text]
    if not lines:
        return ""
    name = {"demo": "grass", "coloured": "colour", "decoy": "grey"}[task]
    heads = ["method", "knob", "accuracy", "worst group", f"do({name})", f"share of {name}", "sd", "seconds", "oracle"]
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines])


def at(rows: list[Row], method: str, value: float | None, batch_size: int) -> list[Row]:
    """The reported runs of a method at a value."""
    found = [r for r in rows if (r["method"], r["value"], r["batch"]) == (method, value, batch_size)]
    return [r for r in found if r["seed"] != TUNING_SEED]


def line(name: str, knob: str, rows: list[Row], sd: dict[int, float], best: float | None) -> str | None:
    """A line of the table."""
    if not rows:
        return None
    ran = [r for r in rows if "test_accuracy" in r]
    cells = [spread([r[f"test_{key}"] for r in ran if r[f"test_{key}"] is not None], digits) for key, digits in COLUMNS.items()]
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
