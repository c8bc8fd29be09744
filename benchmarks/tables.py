"""Writes the tables of the README and of docs/ from the results files, so that no figure is typed by hand.

python benchmarks/tables.py
"""

import contextlib
import io
import json
import statistics
import sys
from pathlib import Path

from shortcuts.heart import SITES
from shortcuts.methods import METHODS
from shortcuts.report import at, chosen, hospitals, select, spread, table

HERE = Path(__file__).parent
PAGES = [HERE.parent / "README.md", *sorted((HERE.parent / "docs").rglob("*.md"))]
CARDS = [
    "ContributionPenalty", "InvariancePenalty", "IndependencePenalty", "GradientPenalty", "BalancedReweighting", "GroupDRO",
    "EraseConfounder",
]  # fmt: skip
TASKS = {
    "suppression": "digits on grass, 95 %",
    "suppression 0.99": "digits on grass, 99 %",
    "suppression coloured": "coloured MNIST",
    "suppression decoy": "decoy-MNIST",
    "suppression caltech": "Caltech, white frames",
    "suppression adult": "Adult, sex",
    "suppression reviews": "film reviews, genre",
}
# What a user has, the method, and its row in the table of costs.
CHOICE = [
    ("nothing (the plain net)", "plain", None),
    ("an intervention", "InvariancePenalty", "InvariancePenalty"),
    ("labels, and held-out labels", "ContributionPenalty, budget", "ContributionPenalty"),
    ("labels, and held-out labels", "EraseConfounder, held-out rows", None),
    ("labels", "IndependencePenalty, correlation", "IndependencePenalty, correlation, last layer"),
    ("labels", "IndependencePenalty, HSIC", "IndependencePenalty, hsic, last layer"),
    ("labels", "ContributionPenalty", "ContributionPenalty"),
    ("labels", "GradientPenalty", "GradientPenalty, last layer"),
    ("labels", "EraseConfounder, training rows", None),
    ("labels", "GroupDRO", "GroupDRO"),
    ("labels", "BalancedReweighting", "BalancedReweighting"),
    ("data without the shortcut (the ceiling)", "ceiling", None),
]

# What counts on a task, its name and setting.
REAL = {"also_exchanged": ("caltech", 941), "test_worst": ("adult", 3_600), "also_revisions": ("reviews", 5_000)}


def read(name: str) -> list[dict]:
    """The rows of a results file; none where there is no file."""
    path = HERE / "results" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def coverage() -> str:
    """Ranges of coverage over effects, classes and noise patterns, by setting and size of the smallest cell."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in read("coverage"):
        setting = row["setting"]
        if setting["kind"] != "Setting" or setting["ignore"]:
            continue
        size = "smallest cell 5 or 10" if setting["smallest"] < 30 else "30 or 100"
        columns = found.setdefault(setting["name"], {})
        columns.setdefault(size, []).extend(row["coverage"])
        columns.setdefault("ordinary", []).extend(row["ordinary"])
    heads = ["smallest cell 5 or 10", "30 or 100", "ordinary"]
    lines = [f"| variables | {' | '.join(heads)} |", "|---|---|---|---|"]
    for name, columns in found.items():
        lines.append(f"| {name} | {' | '.join(f'{min(columns[h]):.1f}–{max(columns[h]):.1f}' for h in heads)} |")
    return "\n".join(lines) if found else ""


def suppression() -> dict[str, str]:
    """The tables of the tasks, and of the demo at the stronger correlation."""
    rows = read("suppression")
    settings = {"": ("demo", 0.95), " 0.99": ("demo", 0.99), " coloured": ("coloured", 5_000), " decoy": ("decoy", 10_000)}
    settings |= {" caltech": ("caltech", 941), " adult": ("adult", 3_600), " reviews": ("reviews", 5_000)}
    tables = {f"suppression{name}": table(rows, *setting) for name, setting in settings.items()}
    return {**tables, "suppression heart": hospitals(rows)}


def cards(tables: dict[str, str]) -> dict[str, str]:
    """What each method's card shows: its lines of the tables of suppression, between the plain net and the ceiling."""
    heads = ["method", "knob", "accuracy", "worst group", "do", "share"]
    out = {}
    for card in CARDS:
        lines = []
        for name, task in TASKS.items():
            names, *rows = [
                [cell.strip() for cell in line.strip("|").split("|")] for line in tables.get(name, "").splitlines() if line
            ] or [[]]
            places = [i for head in heads for i, found in enumerate(names) if found.split("(")[0].split(" of ")[0] == head]
            mine = [row for row in rows[1:] if card in row[0] and "not selected" not in row[0]]
            if mine:
                around = {row[0]: row for row in rows if row[0] in ("plain", "ceiling")}
                shown = [around["plain"], *mine, around["ceiling"]]
                lines += [f"| {' | '.join([task, *(row[i] for i in places)])} |" for row in shown]
        if lines:
            out[f"card {card}"] = "\n".join([f"| task | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|", *lines])
    return out


def choice() -> str:
    """One line for every method: worst group and share on the demo, accuracy on coloured MNIST, cost of a step."""
    rows, costs = read("suppression"), read("step_cost")
    ratio = costs[-1]["ratio"] if costs else {}
    demo, coloured = select(rows, "demo", 0.95), select(rows, "coloured", 5_000)
    lines = []
    for have, name, cost in CHOICE:
        method = METHODS[name]
        here, there = (at(part, name, chosen(part, method), method.batch_size) for part in (demo, coloured))
        if not here:
            continue
        cells = [spread([r["test_worst"] for r in here], 2), spread([r["test_share"] for r in here], 3)]
        cells.append(spread([r["test_accuracy"] for r in there if "test_accuracy" in r], 3))
        lines.append(f"| {have} | {name} | {' | '.join(cells)} | {f'{ratio[cost][1]:.2f}' if cost in ratio else '–'} |")
    heads = [
        "you have",
        "use",
        "worst group (digits on grass)",
        "share of grass",
        "accuracy (coloured MNIST)",
        "cost of a step",
    ]
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines]) if lines else ""


def real() -> str:
    """One line for every method: what counts on each data set whose shortcut nobody built."""
    rows, lines = read("suppression"), []
    parts = {key: select(rows, *task) for key, task in REAL.items()}
    sites = [select(rows, "heart", setting) for setting in range(len(SITES))]
    for m in METHODS.values():
        found = {key: at(part, m.name, chosen(part, m), m.batch_size) for key, part in parts.items()}
        left_out = [{r["seed"]: r["test_auc"] for r in at(part, m.name, chosen(part, m), m.batch_size)} for part in sites]
        seeds = set.intersection(*map(set, left_out))
        cells = [spread([r[key] for r in mine if r.get(key) is not None], 2) for key, mine in found.items()]
        cells.append(spread([statistics.mean(site[s] for site in left_out) for s in sorted(seeds)], 2))
        if cells.count("–") < 2:  # a variant for one task alone has its line there
            lines.append(f"| {m.name} | {' | '.join(cells)} |")
    heads = [
        "method",
        "Caltech, frames exchanged",
        "Adult, worst group",
        "reviews, revised by hand",
        "heart, hospital left out (AUC)",
    ]
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines]) if lines else ""


def printed(module: str, *args: object) -> str:
    """What a benchmark's own report prints of its table."""
    rows = read(module)
    if not rows:
        return ""
    sys.path.insert(0, str(HERE))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        __import__(module).report(rows, *args)
    return "\n".join(line for line in out.getvalue().splitlines() if line.startswith("|"))


def discovery() -> dict[str, str]:
    """What was found with the labels hidden, and what came of it."""
    rows = read("discovery")
    if not rows:
        return {}
    from discovery import features_table, nets_table

    return {"discovery": features_table(rows), "discovery nets": nets_table(rows)}


def truth() -> dict[str, str]:
    """The measures against the true effect."""
    from measures.report import tables

    return tables(read("truth"))


def peers() -> dict[str, str]:
    """What sensitivity and erasure cost beside those of other packages."""
    from peers import erasure_table, sensitivity_table

    rows = read("peers")
    return {"peers sensitivity": sensitivity_table(rows), "peers erasure": erasure_table(rows)}


def main() -> None:
    """Put each table between its markers."""
    suppressed = suppression()
    tables = {
        "coverage": coverage(),
        "fidelity": printed("fidelity"),
        "step cost": printed("step_cost"),
        "mediation": printed("mediation"),
        "mediation coloured": printed("mediation", "coloured"),
        "scaling": printed("scaling"),
        "cutting": printed("cutting"),
        "cutting coloured": printed("cutting", "coloured"),
        "choice": choice(),
        "real": real(),
        "cost": printed("cost"),
        **suppressed,
        **cards(suppressed),
        **discovery(),
        **truth(),
        **peers(),
    }
    placed = set()
    for page in PAGES:
        text = page.read_text()
        for name, found in tables.items():
            start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
            before, opened, rest = text.partition(start)
            _, closed, after = rest.partition(end)
            if found and opened and closed:  # else as it is
                text = f"{before}{start}\n{found}\n{end}{after}"
                placed.add(name)
        page.write_text(text)
    for name, found in tables.items():
        if name not in placed:
            print(f"{name}: {'no marker in any page' if found else 'no results'}, left as it is")


if __name__ == "__main__":
    main()
