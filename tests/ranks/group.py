"""A group of processes that run all tables: `python -m ranks.group folder` is one of them, `run_group` starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import lightning_interp
from ranks.strategies import COLLECTIVE_LIMIT

HARD_LIMIT = 900  # seconds, of the whole group: on a quiet machine it takes a tenth of it

OF_TWO = {  # told for two processes
    "one rank hurt", "one batch hurt", "one batch hurt, sharded", "val, erased, hurt labels", "train window", "train by steps",
    "train by steps, accumulated", "loader, sharded",
}  # fmt: skip
OF_THREE = {  # `make test-all` alone has three
    "watched accumulated, by steps", "watched sharded, train", "watched train", "resumed group DRO", "resumed gradient",
    "resumed budget alone", "resumed erasure, val", "resumed sharded monitor", "resumed monitor",
}  # fmt: skip


def tables(devices: int, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each case of each table by its name."""
    from ranks.failing import FAILING, failing
    from ranks.looped import LOOPED, looped
    from ranks.measured import CASES, measured
    from ranks.penalised import FULL, PENALISED, SHARDED, penalised
    from ranks.resumed import RESUMED, resumed
    from ranks.watched import WATCHED, watched

    left_out = OF_TWO if devices == 3 else OF_THREE
    for name in CASES:
        if name not in left_out:
            yield name, lambda n=name: measured(n, devices)
    for name in PENALISED:
        yield (
            f"penalised {name}",
            lambda n=name: {"penalty": penalised(n, False, devices), "by hand": penalised(n, True, devices)},
        )
    for name in SHARDED:
        yield (
            f"sharded {name}",
            lambda n=name: {
                "penalty": penalised(n, False, devices, sharded=True, **FULL),
                "by hand": penalised(n, True, devices, **FULL),
            },
        )
    for name in WATCHED:
        if f"watched {name}" not in left_out:
            yield f"watched {name}", lambda n=name: watched(n, devices)
    for name in RESUMED:
        if f"resumed {name}" not in left_out:
            yield f"resumed {name}", lambda n=name: resumed(n, devices, folder)
    for name in FAILING:
        yield f"failing {name}", lambda n=name: failing(n, devices)
    for name in LOOPED:
        yield f"looped {name}", lambda n=name: looped(n)


def program(folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rank, devices = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=devices, timeout=COLLECTIVE_LIMIT)
    only = sys.argv[2:]
    for name, case in tables(devices, folder):
        if only and not any(part in name for part in only):
            continue
        start = time.perf_counter()
        try:
            found = case()
        except Exception as problem:
            traceback.print_exc()
            found = {"error": f"{type(problem).__name__}: {problem}"}
        print(f"{time.perf_counter() - start:6.2f} s  {name}", flush=True)
        torch.save(found, folder / f"{name}.{rank}")
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads now and then abort a process that ends in the ordinary way, its work long done


def run_group(folder: Path, processes: int, *only: str) -> dict[str, list[Any]]:
    """{case: what each process found}; a group whose processes wait for each other fails the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
    common["WORLD_SIZE"] = str(processes)
    tests = str(Path(__file__).parents[1])
    common["PYTHONPATH"] = str(Path(lightning_interp.__file__).parents[1])  # the one that is tested here
    started = []
    for rank in range(processes):
        with (folder / f"log.{rank}").open("w") as log:
            command = [sys.executable, "-m", "ranks.group", str(folder), *only]
            env = {**common, "LOCAL_RANK": str(rank)}
            started.append(subprocess.Popen(command, cwd=tests, env=env, stdout=log, stderr=log))
    try:
        for process in started:
            process.wait(HARD_LIMIT)
    except subprocess.TimeoutExpired:
        done = sorted(p.name for p in folder.iterdir())
        pytest.fail(f"the processes wait for each other; finished were {done}")
    finally:
        for process in started:
            process.kill()
            process.wait()
    logs = [(folder / f"log.{rank}").read_text()[-3000:] for rank in range(processes)]
    assert [process.returncode for process in started] == [0] * processes, "\n".join(logs)
    names = {path.stem for path in folder.glob("*.0")} - {"log"}
    return {name: [torch.load(folder / f"{name}.{rank}", weights_only=False) for rank in range(processes)] for name in names}


if __name__ == "__main__":
    program(Path(sys.argv[1]))
