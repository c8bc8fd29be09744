"""How quick is the tab in TensorBoard under a large log directory, and what does it add to TensorBoard's start?

    python benchmarks/tab.py                  # 20 runs × 1,000 events × 100 records: under two minutes on two cores
    python benchmarks/tab.py --runs 4 --events 50
    python benchmarks/tab.py --picture runs docs/images/tab.png    # the README's, of what `make demo` left in runs/

Writes one run and links it under other names, starts TensorBoard, waits until it has read everything, and opens the tab in
Chromium (/usr/bin/chromium) with a cold and with a warm cache of the routes. Times are milliseconds since the tab's own page
was asked for: "text" is the sentences and bars of all chosen runs, "figure" the first of Plotly. "slider" is a press of an
arrow key until every card shows the new step, with the 60 ms that the slider waits for the next press. The start is the median
over pairs of processes that import what TensorBoard imports, with and without the plugin.

Prints one JSON line.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from tensorboard.compat.proto.event_pb2 import Event as TensorBoardEvent
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from lightning_interp.events import Event
from lightning_interp.results import Effect, Groups, Score, Share
from lightning_interp.summaries.event_log import event_content, event_tag, write_json

ROOT = Path(__file__).parent.parent
CHROMIUM = "/usr/bin/chromium"
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync"]  # fmt: skip
VARIABLES = [f"variable {i}" for i in range(10)]
LAYERS = [f"encoder.block{i}" for i in range(6)]
# The plugin is given to TensorBoard by hand, so that the environment need not know of it.
SERVE = """
import sys
from tensorboard import default, program
from lightning_interp.plugin import TabLoader
plugins = [p for p in default.get_plugins() if p is not TabLoader]
board = program.TensorBoard(plugins=[*plugins, TabLoader])
board.configure(argv=["tensorboard", *sys.argv[1:]])
sys.exit(board.main())
"""


class FileWriter:
    """As much of a `SummaryWriter` as the event log needs, without torch."""

    def __init__(self, path):
        self.events = EventFileWriter(str(path))
        self.file_writer = self

    def add_summary(self, summary, step):
        self.events.add_event(TensorBoardEvent(summary=summary, step=step, wall_time=time.time()))


def event(step, rng):
    """100 records and a few more: shares and effects of ten variables, six layers, groups."""
    share = rng.dirichlet(np.ones(len(VARIABLES) + 1))
    effects = {n: Effect(float(v), float(v) - 0.1, float(v) + 0.1) for n, v in zip(VARIABLES, rng.normal(size=len(VARIABLES)))}
    cells = {f"variable 0={a},variable 1={b}": float(rng.uniform()) for a in (0, 1) for b in (0, 1)}
    worst = min(cells, key=cells.get)
    return Event(
        step, step // 10, 1000, "balanced", "val", "binary", intercept=0.1,
        contribution={n: Share(float(s), float(s)) for n, s in zip([*VARIABLES, "unexplained"], share)},
        effect=effects, magnitude={n: e.value for n, e in effects.items()},
        decodability={layer: {n: Score(float(rng.uniform())) for n in VARIABLES} for layer in LAYERS},
        groups=Groups(cells, dict.fromkeys(cells, 100), worst, cells[worst], 0.5), confounders=("variable 0",),
    )  # fmt: skip


def write_load(folder, runs, events):
    """One run written, the others links to it: how quick the reader is does not depend on what the numbers are."""
    first = folder / "run 00"
    writer, rng = FileWriter(first), np.random.default_rng(0)
    for i in range(events):
        write_json(writer, event_tag(), event_content(event(10 * i, rng), number=i + 1), 10 * i)
        for tag in ("penalty", "penalty_weight", "penalty_scale"):
            writer.add_summary(Summary(value=[Summary.Value(tag=f"{tag}/variable 0", simple_value=rng.uniform())]), 10 * i)
    writer.events.close()
    (file,) = first.iterdir()
    for i in range(1, runs):
        (folder / f"run {i:02}").mkdir()
        os.link(file, folder / f"run {i:02}" / file.name)
    return len(event(0, rng).records()), file.stat().st_size


@contextlib.contextmanager
def tensorboard(folder):
    """Yields the address of a TensorBoard on a port of its own."""
    command = [sys.executable, "-c", SERVE, "--logdir", str(folder), "--port", "0", "--reload_interval", "5"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        address = next(found for line in process.stderr if (found := re.search(r"at (http://\S+?)/? \(", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()  # what it says later must not fill the pipe
        yield address[1]
    finally:
        process.terminate()
        process.wait()


def ask(address, route, **parameters):
    query = urllib.parse.urlencode(parameters, doseq=True)
    start = time.perf_counter()
    with urllib.request.urlopen(f"{address}/data/plugin/lightning_interp/{route}?{query}") as response:
        body = response.read()
    return json.loads(body), 1000 * (time.perf_counter() - start), len(body)


def wait_for(address, runs, last, patience=180):
    for _ in range(patience):
        found = ask(address, "runs")[0]["series"]
        if len(found) == runs and all(one["step"] == last for one in found):
            return
        time.sleep(1)
    raise TimeoutError(f"TensorBoard has not read everything after {patience} s")


def opened(browser, address):
    """Open the tab; times of its first texts and first figure, then of ten presses of an arrow key."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{address}/#lightning_interp")
    frame = page.wait_for_selector("iframe").content_frame()
    clock = "performance.now()"
    frame.wait_for_function("document.querySelector('.card .verdict')", polling=20)
    out = {"text": frame.evaluate(clock)}
    frame.evaluate("document.querySelector('#history').scrollIntoView()")  # a figure out of sight is not drawn
    frame.wait_for_function("document.querySelector('#history .main-svg')", polling=20)
    out["figure"] = frame.evaluate(clock)
    out["cards"] = frame.evaluate("document.querySelectorAll('.card').length")
    slider, pressed = frame.locator("#step"), []
    slider.focus()
    page.wait_for_timeout(1500)  # the other figures
    for _ in range(10):
        before = frame.evaluate(clock)
        slider.press("ArrowLeft")
        text = frame.locator("output").inner_text()
        frame.wait_for_function(
            "text => [...document.querySelectorAll('.card .when')].every(n => n.textContent === text)", arg=text, polling=10
        )
        pressed.append(frame.evaluate(clock) - before)
    page.close()
    return {
        **{k: round(v) for k, v in out.items()},
        "slider": round(statistics.median(pressed)),
        "slider_worst": round(max(pressed)),
    }


def picture(log_dir, file):
    """The first screen of the tab, as TensorBoard shows it, in a palette of 64 colours."""
    with tensorboard(log_dir) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        page = browser.new_page(viewport={"width": 1280, "height": 880}, color_scheme="light")
        page.goto(f"{address}/#lightning_interp")
        frame = page.wait_for_selector("iframe").content_frame()
        frame.wait_for_function("document.querySelector('#history .main-svg')")
        page.wait_for_timeout(1000)
        page.screenshot(path=file)
        browser.close()
    Image.open(file).convert("RGB").quantize(64).save(file, optimize=True)


def start_up(times=7):
    """Seconds that importing the plugin adds to `tensorboard --version`, median of paired starts."""
    plain = "import tensorboard.main, tensorboard.default as d; d.get_static_plugins()"
    extra = plain + "; from lightning_interp.plugin import TabLoader; TabLoader()"
    added = []
    for _ in range(times):
        seconds = []
        for code in (plain, extra):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
            seconds.append(time.perf_counter() - start)
        added.append(seconds[1] - seconds[0])
    return statistics.median(added)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--picture", nargs=2, metavar=("LOGDIR", "PNG"), help="only take a picture of a log directory")
    args = parser.parse_args()
    if args.picture:
        picture(*args.picture)
        return
    out = {"runs": args.runs, "events": args.events, "start_up_s": round(start_up(), 3)}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        out["records"], size = write_load(Path(folder), args.runs, args.events)
        out["mb_per_run"], out["write_s"] = round(size / 1e6, 1), round(time.perf_counter() - start, 1)
        with tensorboard(folder) as address, sync_playwright() as playwright:
            start = time.perf_counter()
            wait_for(address, args.runs, 10 * (args.events - 1))
            out["tensorboard_reads_s"] = round(time.perf_counter() - start, 1)
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
            out["cold"], out["warm"] = opened(browser, address), opened(browser, address)
            everything = [json.dumps([f"run {i:02}", ""]) for i in range(args.runs)]
            for name in ("all_cold", "all_warm"):
                _, took, length = ask(address, "history", series=everything)
                out[name] = {"history_ms": round(took), "history_mb": round(length / 1e6, 2)}
            browser.close()
    print(json.dumps(out))


if __name__ == "__main__":
    main()
