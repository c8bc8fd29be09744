"""Imports flow one way: a folder or file imports only what stands after it in the list."""

import ast
from pathlib import Path

import pytest

import lightning_interp

ORDER = [
    "plugin",
    "cli",
    "demo",
    "callbacks",
    "huggingface",
    "editing",
    "explanation",
    "erasure",
    "suppression",
    "certificate",
    "steering",
    "gradient_cap",
    "budget",
    "held_out",
    "recent",
    "monitor",
    "discovery",
    "probe",
    "training_steps",
    "penalties",
    "running_pattern",
    "shown_pattern",
    "training_design",
    "cell_moments",
    "report",
    "summaries",
    "step_watcher",
    "passes",
    "loaders",
    "entanglement",
    "erasers",
    "layers",
    "measurement",
    "watcher",
    "reading",
    "collection",
    "footprint",
    "metrics",
    "activations",
    "progress",
    "processes",
    "functional",
    "variables",
    "batches",
    "events",
    "results",
    "schedules",
    "saved_state",
    "errors",
]
ROOT = Path(lightning_interp.__file__).parent
FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")
TRAINER_ONLY = {"callbacks", "demo"}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_every_room_has_its_place():
    assert {room(p) for p in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_what_stands_after_it(path):
    here = ORDER.index(room(path))
    for name in imports(path):
        if name.startswith("lightning_interp."):
            other = name.split(".")[1]
            assert other == room(path) or ORDER.index(other) > here, f"{room(path)} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_callbacks_know_the_trainer(path):
    if room(path) not in TRAINER_ONLY:
        assert not {n for n in imports(path) if n.split(".")[0] in {"lightning", "pytorch_lightning"}}
