"""Writes the README's tables from the results files, so that no figure there is typed by hand.

python benchmarks/tables.py
"""

import contextlib
import io
import json
import sys
from pathlib import Path

from shortcuts.report import table

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


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
    """The tables of the three tasks, and of the demo at the stronger correlation."""
    rows = read("suppression")
    settings = {"": ("demo", 0.95), " 0.99": ("demo", 0.99), " coloured": ("coloured", 5_000), " decoy": ("decoy", 10_000)}
    return {f"suppression{name}": table(rows, *setting) for name, setting in settings.items()}


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


def main() -> None:
    """Put each table between its markers."""
    text = README.read_text()
    tables = {"coverage": coverage(), "fidelity": printed("fidelity"), "step cost": printed("step_cost"), **suppression()}
    for name, found in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, opened, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if found and opened and closed:  # else as it is
            text = f"{before}{start}\n{found}\n{end}{after}"
        else:
            print(f"{name}: {'no marker in the README' if found else 'no results'}, left as it is")
    README.write_text(text)


if __name__ == "__main__":
    main()
