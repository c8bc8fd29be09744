"""What may run code: no pickle, no evaluated text; an import path runs exactly what the user wrote, a file's text nothing."""

import ast
import contextlib
import importlib
import io
import json
import sys
from pathlib import Path

import pytest
import torch
from board import RunWriter, event
from report.histories import discovered
from torch import nn

import lightning_interp
from lightning_interp import Concept, Confounder, Erasure, Monitor, Suppression
from lightning_interp.activations.pooling import Pooling
from lightning_interp.batches import Inputs, load_function, resolve_place
from lightning_interp.discovery import Discovery, FeatureLabel
from lightning_interp.errors import InterpError, LabelError
from lightning_interp.events import Event
from lightning_interp.functional.splits import Splits
from lightning_interp.report.log_directory import read_log_directory
from lightning_interp.report.page import page

ROOT = Path(lightning_interp.__file__).parent
SOURCES = sorted(p for folder in (ROOT, ROOT.parent / "examples") for p in folder.rglob("*.py"))
FORBIDDEN = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "codeop", "runpy"}
CALLS = {"eval", "exec", "compile", "__import__", "execfile", "system", "popen"}  # as a name, or of these modules:
OF = {None, "builtins", "os"}
READERS = {
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("numpy", "load"),
    ("np", "load"),
    ("torch", "jit"),
}
# Calls of `import_module`: our modules; "pkg.mod:name" as the user wrote it; the class_path of a callback in the user's YAML.
IMPORTERS = {"lightning_interp/__init__.py": 2, "lightning_interp/batches.py": 1, "lightning_interp/callbacks/experiment.py": 1}


def called(node):
    """(owner, name) of a call."""
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value
        return owner.id if isinstance(owner, ast.Name) else "…", node.func.attr
    return None, getattr(node.func, "id", "")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT.parent)))
def test_no_pickle_is_read_and_no_text_is_run(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    imports += [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    assert not {name.partition(".")[0] for name in imports} & FORBIDDEN
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = [called(node) for node in calls]
    assert not [one for one in found if one[1] in CALLS and one[0] in OF]
    assert not set(found) & READERS
    for node, one in zip(calls, found):
        if one == ("torch", "load"):
            (given,) = [k.value for k in node.keywords if k.arg == "weights_only"]
            assert isinstance(given, ast.Constant)
            assert given.value is True
        assert not [k for k in node.keywords if k.arg in ("allow_pickle", "shell") and getattr(k.value, "value", True)]
    dynamic = [one for one in found if one[1] == "import_module"]
    assert len(dynamic) == IMPORTERS.get(str(path.relative_to(ROOT.parent)), 0)


# --- what the user wrote is imported, and no more ---------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """Modules that nobody may import, and one that may be: each notes that it was."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("trap_near", "trap_wanted", "trap_package/__init__", "trap_package/inner", "trap_package/other"):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("def reader(batch):\n    return batch\n\n\nvalue = 3\n")
    importlib.invalidate_caches()
    yield lambda: {name for name in sys.modules if name.startswith("trap_")}
    for name in [name for name in sys.modules if name.startswith("trap_")]:
        del sys.modules[name]


PLACES = [
    lambda path: load_function(path, "label"),
    lambda path: resolve_place(path, "label"),
    lambda path: Confounder("grass", label=path),
    lambda path: Confounder("grass", intervention=path),
    lambda path: Inputs(path),
    lambda path: Pooling(path),
]


@pytest.mark.parametrize("make", PLACES)
def test_the_module_that_was_named_is_imported_and_no_other(trap, make):
    make("trap_wanted:reader")
    assert trap() == {"trap_wanted"}


@pytest.mark.parametrize(
    ("path", "imported"),
    [
        ("trap_wantd:reader", set()), ("trap_wanted:readr", {"trap_wanted"}), ("trap_wanted:value", {"trap_wanted"}),
        ("trap_package:inner", {"trap_package"}), ("trap_package:inner.reader", {"trap_package"}),
        ("trap_package.innr:reader", {"trap_package"}), ("trap_package.inner:readr", {"trap_package", "trap_package.inner"}),
        ("trap_package.inner.deeper:reader", {"trap_package", "trap_package.inner"}),
        (":reader", set()), (".trap_near:reader", set()),
        ("trap_wanted:trap_near:reader", {"trap_wanted"}), ("trap_near.py:reader", {"trap_near"}), ("trap_near/:reader", set()),
    ],
)  # fmt: skip
@pytest.mark.parametrize("make", PLACES)
def test_a_mistyped_path_imports_nothing_but_what_was_named_on_the_way(trap, make, path, imported):
    with pytest.raises(InterpError, match=r"label|intervention|inputs|pooling"):
        make(path)
    assert trap() == imported


def test_a_mistyped_class_in_yaml_imports_nothing_but_its_parent(trap):
    pytest.importorskip("jsonargparse")
    from lightning_interp.callbacks.parser import _meant

    before = set(sys.modules)
    assert not list(_meant("given class_path 'trap_near.Readr' is no class"))
    (said,) = _meant("given class_path 'lightning_interp.Confoundr' is no class")
    assert "Did you mean 'Confounder'" in said
    assert {name for name in set(sys.modules) - before if not name.startswith("lightning_interp")} == set()
    assert trap() == set()


# --- nothing that a file says is imported -----------------------------------------------------------------------------

PATH = "trap_near:reader"


def poisoned(value):
    """Every text in a state replaced by an import path, in lists of every size as well."""
    if isinstance(value, str):
        return PATH
    if isinstance(value, dict):
        return {key: poisoned(one) for key, one in value.items()}
    return type(value)(map(poisoned, value)) if type(value) in (list, tuple) else value


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.encoder(x))


def batch():
    i = torch.arange(80)
    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    return {"x": x, "moo": i % 2, "grass": i // 2 % 2, "y": i % 2}


MOO, GRASS = Concept("moo"), Confounder("grass")
PLACED = {"output": "head", "target": "moo", "inputs": "x"}
CORES = {
    "monitor": lambda: Monitor(None, [MOO, GRASS], ["encoder"], **PLACED),
    "suppression": lambda: Suppression(None, GRASS, [MOO], **PLACED),
    "erasure": lambda: Erasure(None, GRASS, "encoder", [MOO], start_rows=64, every_n_steps=1),
    "discovery": lambda: Discovery(None, "encoder", [MOO], **PLACED),
}


def roundtrip(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("name", CORES)
@pytest.mark.filterwarnings("ignore::lightning_interp.errors.InterpWarning")
def test_a_checkpoints_texts_are_not_imported(trap, name):
    net, core = Net(), CORES[name]()
    core.bind(net)
    with core.watching(batch()):
        loss = nn.functional.cross_entropy(net(batch()["x"]), batch()["y"])
    if name == "suppression":
        core.penalty(loss)
    if name in ("monitor", "discovery"):
        core.event(0)
    state = roundtrip(core.state_dict())
    for bad in (poisoned(state), *({**state, key: poisoned(value)} for key, value in state.items())):
        again = CORES[name]()
        again.bind(net)
        with contextlib.suppress(InterpError, LookupError, TypeError, ValueError, RuntimeError, AttributeError):
            again.load_state_dict(bad)
            str(getattr(again, "history", ""))
            again.state_dict()
    assert trap() == set()


def test_a_probe_files_texts_are_not_imported(trap, tmp_path):
    one = torch.ones(1, dtype=torch.float64)
    code = Splits(torch.ones(4, 1, dtype=torch.float64), one, one / 2)
    label = FeatureLabel(Net(), "encoder", code, Inputs("x"), Pooling("mean"), False, True)
    label.save(tmp_path / "label.pt")
    state = torch.load(tmp_path / "label.pt", weights_only=True)
    assert torch.equal(FeatureLabel.load(tmp_path / "label.pt", Net())(batch()), label(batch()))
    for key in ("inputs", "pooling"):
        torch.save({**state, key: PATH}, tmp_path / "bad.pt")
        with pytest.raises(LabelError, match=f"`{key}` was a function"):
            FeatureLabel.load(tmp_path / "bad.pt", Net())
    for key in ("layer", "code"):
        torch.save({**state, key: poisoned(state[key])}, tmp_path / "bad.pt")
        with pytest.raises((InterpError, KeyError)):
            FeatureLabel.load(tmp_path / "bad.pt", Net())
    assert trap() == set()


def test_a_pooling_by_function_is_given_again(tmp_path):
    one = torch.ones(1, dtype=torch.float64)
    code = Splits(torch.ones(4, 1, dtype=torch.float64), one, one / 2)
    label = FeatureLabel(Net(), "encoder", code, Inputs("x"), Pooling(lambda a: a.relu()), False, False)
    label.save(tmp_path / "label.pt")
    with pytest.raises(LabelError, match="`pooling` was a function"):
        FeatureLabel.load(tmp_path / "label.pt", label.network)
    again = FeatureLabel.load(tmp_path / "label.pt", label.network, pooling=lambda a: a.relu())
    assert torch.equal(again(batch()), label(batch()))


def test_an_event_files_texts_are_not_imported(trap, tmp_path):
    content = poisoned(discovered())
    with RunWriter(tmp_path / PATH) as run:
        run.event(event(10, name=PATH), prefix=PATH, alarms=[PATH])
        run.features({**content, "layer": PATH})
    page(read_log_directory(tmp_path))
    plain = json.loads(json.dumps(event(10, name=PATH).to_dict()))
    Event.from_dict(plain)
    assert trap() == set()
