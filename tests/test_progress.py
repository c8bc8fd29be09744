"""Bars: only where they are wanted, only on a terminal, only when it takes long."""

import io
import sys

import pytest
import torch

import lightning_interp.progress as progress
from lightning_interp import Concept, Confounder, edit, explain
from lightning_interp.progress import bar, bars, wanted


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Makes standard error a terminal, and bars impatient; called in the test, for pytest puts its own back before that."""

    def make():
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setattr(progress, "DELAY", 0.0)
        return sys.stderr

    return make


def scene():
    grid = torch.arange(64)
    batch = {"x": torch.randn(64, 3), "moo": grid % 2, "grass": grid // 2 % 2}
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    return model, [batch], [Concept("moo"), Confounder("grass")]


def test_batches_come_through_as_they_are(terminal):
    shown = terminal()
    with bars(True):
        assert list(bar(iter([1, 2, 3]), "counting")) == [1, 2, 3]
    assert "counting: 0it" in shown.getvalue()


def test_without_a_wish_there_is_nothing(terminal):
    shown, batches = terminal(), [1, 2, 3]
    assert bar(batches, "counting") is batches
    with bars(False):
        assert bar(batches, "counting") is batches
    assert shown.getvalue() == ""


def test_the_wish_ends_with_its_block():
    with bars(True):
        assert wanted()
        with bars(False):
            assert not wanted()
        assert wanted()
    assert not wanted()


def test_what_is_no_terminal_gets_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "DELAY", 0.0)
    with bars(True):
        assert list(bar([1, 2], "counting")) == [1, 2]
    assert sys.stderr.getvalue() == ""


def test_what_is_quick_gets_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with bars(True):
        assert list(bar([1, 2], "counting")) == [1, 2]
    assert "counting" not in sys.stderr.getvalue()


@pytest.mark.parametrize("shown", [True, False])
def test_explain_shows_its_passes_or_not(terminal, shown):
    screen = terminal()
    model, data, variables = scene()
    explain(model, data, variables, inputs="x", layers=["0"], measures=("contribution", "mediation"), progress=shown)
    for what in ("measuring", "running the model again"):
        assert (what in screen.getvalue()) == shown


@pytest.mark.parametrize("shown", [True, False])
def test_edit_shows_its_passes_or_not(terminal, shown):
    screen = terminal()
    model, data, (moo, grass) = scene()
    edit(model, "0", grass, data, given=[moo], inputs="x", target="moo", progress=shown)
    for what in ("reading the layer", "measuring"):
        assert (what in screen.getvalue()) == shown
