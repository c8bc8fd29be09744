"""Writes the README's tables from the results files, so that no figure there is typed by hand.

python benchmarks/tables.py
"""

import contextlib
import io
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


def read(name: str) -> list[dict]:
    """The rows of a results file."""
    return [json.loads(line) for line in (HERE / "results" / f"{name}.jsonl").read_text().splitlines()]


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
    return "\n".join(lines)


def printed(module: str, *args: object) -> str:
    """What a benchmark's own report prints of its table."""
    sys.path.insert(0, str(HERE))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        __import__(module).report(read(module), *args)
    return "\n".join(line for line in out.getvalue().splitlines() if line.startswith("|"))


def main() -> None:
    """Put each table between its markers."""
    text = README.read_text()
    tables = {"coverage": coverage(), "fidelity": printed("fidelity"), "suppression": printed("suppression", 0.95)}
    for name, table in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}\n{table}\n{end}{after}"
    README.write_text(text)


if __name__ == "__main__":
    main()
