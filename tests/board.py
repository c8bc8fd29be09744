"""TensorBoard with the tab, and log directories for it: written without training, so that they hold whatever a test wants."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from importlib import metadata
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event as TensorBoardEvent
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter

import lightning_interp
from lightning_interp.events import Event
from lightning_interp.results import Effect, Groups, Mediation, Score, Sensitivity, Share
from lightning_interp.summaries.event_log import PLUGIN_NAME, event_content, event_tag, features_tag, write_json

ROOT = Path(lightning_interp.__file__).parent.parent
ENTRY_POINT = "lightning_interp = lightning_interp.plugin:TabLoader"
HOSTILE = "<script>alert(1)</script>\"'&amp; 草/ß"  # no variable's name may hold a slash, but a file can


class RunWriter:
    """Writes one run; as much of a `SummaryWriter` as the event log needs."""

    def __init__(self, path, start=1_700_000_000.0):
        self.events = EventFileWriter(str(path))
        self.file_writer = self
        self.wall_time = start
        self.number = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.events.close()

    def add_summary(self, summary, step):
        self.wall_time += 1.0
        self.events.add_event(TensorBoardEvent(summary=summary, step=step, wall_time=self.wall_time))

    def event(self, event, prefix="", alarms=()):
        self.number += 1
        write_json(self, event_tag(prefix), event_content(event, alarms, prefix, self.number), event.step - 1)

    def features(self, content):
        write_json(self, features_tag(content["layer"]), content, content["step"])

    def scalar(self, tag, value, step):
        self.add_summary(Summary(value=[Summary.Value(tag=tag, simple_value=value)]), step)

    def raw(self, text, tag="interp/event", step=0):
        """Any bytes under our tag, as another version or another program may write them."""
        metadata = SummaryMetadata(
            plugin_data=SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME), data_class=DATA_CLASS_TENSOR
        )
        value = TensorProto(dtype=DT_STRING, string_val=[text], tensor_shape=TensorShapeProto())
        self.add_summary(Summary(value=[Summary.Value(tag=tag, tensor=value, metadata=metadata)]), step)


def event(step, grass=0.6, name="grass", layers=("conv1", "conv2"), withheld=False, **more):
    """An event with every measure that the tab shows; grass's effect is withheld on request."""
    effect = (
        Effect(None, None, None, note="too few rows") if withheld else Effect(10 * grass, 10 * grass - 0.5, 10 * grass + 0.5)
    )
    cells = {f"digit={a},{name}={b}": 1.0 - grass * (a != b) for a in (0, 1) for b in (0, 1)}
    content = {
        "contribution": {"digit": Share(0.2, 0.19), name: Share(grass, grass), "unexplained": Share(0.8 - grass)},
        "effect": {"digit": Effect(1.5, 1.0, 2.0), name: effect},
        "magnitude": {"digit": 1.5} if withheld else {"digit": 1.5, name: 10 * grass},
        "decodability": {layer: {"digit": Score(0.25), name: Score(grass + 0.01 * i)} for i, layer in enumerate(layers)},
        "sensitivity": {
            layer: {n: {"1": Sensitivity(v, 2.0, 0.01, 0.5)} for n, v in (("digit", 0.5), (name, 3.0))} for layer in layers
        },
        "mediation": {layer: {name: Mediation({"digit": 0.1, name: 0.9}, accuracy=0.1)} for layer in layers},
        "groups": Groups(cells, dict.fromkeys(cells, 50), f"digit=0,{name}=1", 1.0 - grass, grass),
        "notes": ("intervals are clustered",), "confounders": (name,),
    }  # fmt: skip
    return Event(step, step // 10, 200, "balanced", "val", "binary", intercept=0.1, **{**content, **more})


def environment(folder):
    """What TensorBoard needs to find this tree's plugin: the installed entry point, else one written into a folder."""
    paths = [str(ROOT)]
    if not any(e.value == "lightning_interp.plugin:TabLoader" for e in metadata.entry_points(group="tensorboard_plugins")):
        info = Path(folder) / "lightning_interp_tab-0.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lightning-interp-tab\nVersion: 0\n")
        (info / "entry_points.txt").write_text(f"[tensorboard_plugins]\n{ENTRY_POINT}\n")
        paths.append(str(folder))
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


class Board:
    """A TensorBoard that runs."""

    def __init__(self, address):
        self.address = address
        self.said = []

    def ask(self, route, **parameters):
        """(status, answer) of one of the tab's routes."""
        query = urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(f"{self.address}/data/plugin/lightning_interp/{route}?{query}", timeout=30) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as problem:
            return problem.code, problem.read().decode()

    def wait(self, ready, patience=30.0):
        """Until TensorBoard has read what the test needs."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            found = self.ask("runs")[1]["series"]
            if ready(found):
                return found
            time.sleep(0.2)
        raise TimeoutError(f"TensorBoard has read {found}")


@contextlib.contextmanager
def tensorboard(log_dir, folder, *flags):
    """TensorBoard on a port of its own.

    Args:
        log_dir: what it shows.
        folder: for what it takes to find the plugin.
        flags: more of its command line.
    """
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(log_dir),
        "--port",
        "0",
        "--reload_interval",
        "1",
        *flags,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(folder), cwd=folder)
    try:
        before, found = [], None
        while found is None:
            line = process.stderr.readline()
            if not line:
                raise RuntimeError(f"TensorBoard did not start:\n{''.join(before)}")
            before.append(line)
            found = re.search(r"at (http://\S+?)/? \(", line)
        board = Board(found[1])
        board.said = before
        reader = threading.Thread(target=lambda: board.said.extend(process.stderr), daemon=True)
        reader.start()
        yield board
    finally:
        process.terminate()
        process.wait(10)
        reader.join(10)
        process.stderr.close()
