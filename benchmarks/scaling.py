"""What does an event cost as one thing grows: variables, units, layers, samples? CPU time and peak memory, one axis at a time.

Every point runs in a process of its own with one thread, on random data in which variable j is in unit j: the network is a
stack of `nn.Identity` layers and a linear head, so that what is measured is the library. Appends one JSON line per point to
benchmarks/results/scaling.jsonl; points that are there already are not run again.

    python benchmarks/scaling.py            all points, about 30 minutes
    python benchmarks/scaling.py --quick    small points only, to a file of its own, under 1 minute
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "scaling.jsonl"
BASE = {"variables": 2, "kind": "binary", "units": 64, "layers": 1, "samples": 4096, "more": []}
LIMIT = 1800  # seconds for one point
MOST = 64  # layers of one monitor: more take several
HEAD = "| axis | variables | units | layers | samples | CPU s | peak MiB | MiB stated |\n" + "|---" * 8 + "|"
EXTRA = ["mediation", "entanglement", "sensitivity"]


def points(quick: bool) -> list[dict]:
    """The points, each the base with one thing changed."""
    variables = [1, 10, 30] if quick else [1, 10, 30, 100, 300, 1000]
    units = [128, 1024] if quick else [128, 512, 1024, 2048, 4096, 8192, 16384]
    layers = [4] if quick else [4, 16, 64]
    samples = [16384] if quick else [512, 16384, 65536]
    out = [{"axis": "variables", **BASE, "variables": p, "kind": kind} for kind in ("binary", "continuous") for p in variables]
    out += [{"axis": "units", **BASE, "units": d} for d in units]
    out += [{"axis": "layers", **BASE, "units": 256 if quick else 1024, "layers": n} for n in layers]
    out += [{"axis": "samples", **BASE, "samples": n} for n in samples]
    if not quick:
        out += [{"axis": "units, all measures", **BASE, "units": d, "more": EXTRA} for d in (1024, 2048, 4096, 8192)]
        largest = {"axis": "largest", **BASE}
        out += [{**largest, "variables": 1000, "kind": kind, "units": 16384} for kind in ("binary", "continuous")]
        out += [{**largest, "units": 1024, "layers": 70}]  # the two cases on paper, docs/scaling.md
        out += [{**largest, "units": 4096, "layers": n} for n in (16, 32)]
    return out


def measure(point: dict) -> dict:
    """One event of every monitor, in this process."""
    import torch
    from torch import nn

    from lightning_interp import Confounder, Monitor
    from lightning_interp.monitor import DEFAULT_MEASURES

    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    p, d, n = point["variables"], point["units"], point["samples"]
    net = nn.Sequential(*(nn.Identity() for _ in range(point["layers"])), nn.Linear(d, 1))
    names = [f"v{j}" for j in range(p)]
    variables = [Confounder(name, kind=point["kind"]) for name in names]
    layers = [str(i) for i in range(point["layers"])]
    measures = (*DEFAULT_MEASURES, *point["more"])
    monitors = [Monitor(net, variables, part, inputs="h", target="v0", measures=measures) for part in parts(layers)]
    rows = torch.randn(n, d)
    signal = torch.randn(n, p) + rows[:, torch.arange(p) % d]
    values = (signal > 0).long() if point["kind"] == "binary" else signal
    batches = [{"h": h, **dict(zip(names, v.unbind(1)))} for h, v in zip(rows.split(256), values.split(256))]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    for batch in batches:
        with contextlib.ExitStack() as stack, torch.no_grad():
            for monitor in monitors:
                stack.enter_context(monitor.watching(batch))
            net(batch["h"])
    watched = time.process_time()
    events = [monitor.event(0) for monitor in monitors]
    done = time.process_time()
    score = events[0].decodability["0"]["v0"]
    return {
        **point,
        "watching": round(watched - start, 3),
        "event": round(done - watched, 3),
        "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024,
        "stated_mib": stated(point),
        "r2": score.value,
        "notes": list(events[0].notes),
    }


def parts(layers: list[str]) -> list[list[str]]:
    """The layers of each monitor."""
    return [layers[i : i + MOST] for i in range(0, len(layers), MOST)]


def stated(point: dict) -> int:
    """MiB that the library says before, of all monitors."""
    from lightning_interp.footprint import footprint

    kinds = [point["kind"]] * point["variables"]
    layers = [str(i) for i in range(point["layers"])]
    return sum(footprint(dict.fromkeys(part, point["units"]), kinds, 4096).total for part in parts(layers)) // 2**20


def run(point: dict, results: Path) -> None:
    """One point in a process of its own; what went wrong is a result too."""
    command = [sys.executable, __file__, "--point", json.dumps(point)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environment)
        row = json.loads(done.stdout) if done.returncode == 0 else {**point, "failed": done.stderr.strip().splitlines()[-1:]}
    except subprocess.TimeoutExpired:
        row = {**point, "failed": [f"over {LIMIT} s"]}
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(line(row), flush=True)


def line(row: dict) -> str:
    """A row of the table."""
    name = f"| {row['axis']} | {row['variables']} {row['kind']} | {row['units']} | {row['layers']} | {row['samples']} |"
    if "failed" in row:
        return f"{name} {row['failed']} |"
    return f"{name} {row['watching'] + row['event']:.2f} | {row['mib']} | {stated(row)} |"


def report(rows: list[dict]) -> None:
    """Print the table, in the order of the points."""
    print(HEAD)
    for point in points(quick=False):
        found = [row for row in rows if all(row.get(key) == value for key, value in point.items())]
        if found:
            print(line(found[-1]))


def main() -> None:
    """Run the points that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--point", help="measure this point here, and print it")
    options = parser.parse_args()
    if options.point:
        print(json.dumps(measure(json.loads(options.point))))
        return
    results = RESULTS.with_name("scaling_quick.jsonl") if options.quick else RESULTS
    results.parent.mkdir(exist_ok=True)
    known = [json.loads(text) for text in results.read_text().splitlines()] if results.exists() else []
    print(HEAD)
    for point in points(options.quick):
        found = [row for row in known if all(row.get(key) == value for key, value in point.items())]
        if found:
            print(line(found[-1]))
        else:
            run(point, results)


if __name__ == "__main__":
    main()
