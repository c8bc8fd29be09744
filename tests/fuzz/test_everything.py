"""Every public function, class and method of `functional/` is called in this folder, in tests of generated input."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

from lightning_interp import functional

MODULES = [importlib.import_module(f"{functional.__name__}.{m.name}") for m in pkgutil.iter_modules(functional.__path__)]
NOT_CALLED = {"RankError.involved"}  # read where it is raised
TREES = {p.name: ast.parse(p.read_text()) for p in Path(__file__).parent.glob("test_*.py") if p.name != Path(__file__).name}


def public(module):
    """Names of the functions and classes that a module defines, and of their methods and properties."""
    names = []
    for name, found in vars(module).items():
        if name.startswith("_") or getattr(found, "__module__", None) != module.__name__:
            continue
        names.append(name)
        if inspect.isclass(found):
            names += [f"{name}.{m}" for m, f in vars(found).items() if not m.startswith("_") and is_method(f)]
    return names


def is_method(found):
    return inspect.isfunction(found) or isinstance(found, property)


def imported(module):
    """Names that the tests import from a module, and names of attributes that they read."""
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    wanted = {a.name for n in nodes if isinstance(n, ast.ImportFrom) and n.module == module.__name__ for a in n.names}
    return wanted, {n.attr for n in nodes if isinstance(n, ast.Attribute)}


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.rpartition(".")[2])
def test_everything_public_is_fuzzed(module):
    names, attributes = imported(module)
    missing = [n for n in public(module) if (n.partition(".")[2] not in attributes if "." in n else n not in names)]
    assert public(module)
    assert not set(missing) - NOT_CALLED


@pytest.mark.parametrize("file", sorted(TREES))
def test_the_tests_are_of_generated_input(file):
    tests = [n for n in TREES[file].body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
    given = [n.name for n in tests if any("given" in ast.dump(d) for d in n.decorator_list)]
    assert given == [n.name for n in tests]
