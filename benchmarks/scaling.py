"""What does an event cost as one thing grows: variables, units, layers, samples? CPU time and peak memory, one axis at a time.

Every point runs in a process of its own with one thread, on random data in which variable j is in unit j: the network is a
stack of `nn.Identity` layers and a linear head, so that what is measured is the library. "With a ResNet-18" the pass of a real
network over images of 64 × 64 is in it, as in an event on a loader of its own. Two processes have half of the samples each; the
time is the slower one's. Appends one JSON line per point to results/scaling.jsonl; points that are there are not run again.

    python benchmarks/scaling.py            all points, about 30 minutes
    python benchmarks/scaling.py --quick    small points only, to a file of its own, under 1 minute
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

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
    out += [{"axis": "processes", **BASE, "units": 512, "samples": 16384, "processes": k} for k in (1, 2)]
    if not quick:
        out += [{"axis": "units, all measures", **BASE, "units": d, "more": EXTRA} for d in (1024, 2048, 4096, 8192)]
        deep = {"axis": "variables, with a ResNet-18", **BASE, "units": 512, "net": "resnet18"}
        out += [{**deep, "variables": p} for p in (10, 100, 1000)]
        largest = {"axis": "largest", **BASE}
        out += [{**largest, "variables": 1000, "kind": kind, "units": 16384} for kind in ("binary", "continuous")]
        out += [{**largest, "units": 1024, "layers": 70}]  # the two cases on paper, docs/scaling.md
        out += [{**largest, "units": 4096, "layers": n} for n in (16, 32)]
    return out


def measure(point: dict) -> dict:
    """One event of every monitor, in this process."""
    import torch

    from lightning_interp import Confounder, Monitor
    from lightning_interp.monitor import DEFAULT_MEASURES

    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    p, d, n = point["variables"], point["units"], point["samples"]
    names = [f"v{j}" for j in range(p)]
    variables = [Confounder(name, kind=point["kind"]) for name in names]
    net, layers, rows = network(point)
    measures = (*DEFAULT_MEASURES, *point["more"])
    monitors = [Monitor(net, variables, part, inputs="h", target="v0", measures=measures) for part in parts(layers)]
    signal = torch.randn(n, p) + rows.flatten(1)[:, torch.arange(p) % d]
    values = (signal > 0).long() if point["kind"] == "binary" else signal
    batches = [{"h": h, **dict(zip(names, v.unbind(1)))} for h, v in zip(rows.split(256), values.split(256))]
    rank, size = join()
    batches = batches[rank::size]
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
    score = events[0].decodability[layers[0]]["v0"]
    return {
        **point,
        "watching": round(watched - start, 3),
        "event": round(done - watched, 3),
        "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024,
        "stated_mib": stated(point),
        "r2": score.value,
        "notes": list(events[0].notes),
    }


def network(point: dict) -> tuple[nn.Module, list[str], torch.Tensor]:
    """The network, the layers that are watched, and its inputs."""
    import torch
    from scenes import resnet18
    from torch import nn

    if point.get("net") == "resnet18":
        return resnet18().eval(), ["body.stage4"], torch.randn(point["samples"], 3, 64, 64)
    layers = [str(i) for i in range(point["layers"])]
    net = nn.Sequential(*(nn.Identity() for _ in layers), nn.Linear(point["units"], 1))
    return net, layers, torch.randn(point["samples"], point["units"])


def join() -> tuple[int, int]:
    """(rank, processes), in their group where there are several."""
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


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
    command, size = [sys.executable, __file__, "--point", json.dumps(point)], point.get("processes", 1)
    group = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **group, "RANK": r}
        )
        for r in map(str, range(size))
    ]
    try:
        found = [rank.communicate(timeout=LIMIT) for rank in ranks]
        broken = [text for rank, (_, text) in zip(ranks, found) if rank.returncode]
        rows = [] if broken else [json.loads(out) for out, _ in found]
        row = {**point, "failed": broken[0].strip().splitlines()[-1:]} if broken else max(rows, key=spent)
    except subprocess.TimeoutExpired:
        for rank in ranks:
            rank.kill()
        row = {**point, "failed": [f"over {LIMIT} s"]}
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(line(row), flush=True)


def spent(row: dict) -> float:
    """CPU seconds of watching and event."""
    return row["watching"] + row["event"]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def line(row: dict) -> str:
    """A row of the table."""
    axis = f"{row['axis']}: {row['processes']}" if "processes" in row else row["axis"]
    name = f"| {axis} | {row['variables']} {row['kind']} | {row['units']} | {row['layers']} | {row['samples']} |"
    if "failed" in row:
        return f"{name} {row['failed']} |"
    return f"{name} {spent(row):.2f} | {row['mib']} | {stated(row)} |"


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
