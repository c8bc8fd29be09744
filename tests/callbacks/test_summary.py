"""What a training says on the terminal: a table at its end, and bars where Lightning shows its own."""

import io
import sys

import pytest

from callbacks.boring import HOST_WARNINGS, Animals, fit, monitor
from lightning_interp import Concept, Confounder
from lightning_interp.progress import wanted
from lightning_interp.summaries.table import summary_table

pytestmark = HOST_WARNINGS


def test_the_table_is_printed_once_at_the_end(capsys):
    watch = monitor()
    fit(watch)
    out = capsys.readouterr().out
    assert out.count("What the model uses") == 1
    assert out.endswith(f"{summary_table(watch.history)}\n")


def test_no_table_where_none_is_wanted_or_nothing_was_measured(capsys):
    fit(monitor(summary=False))
    fit(monitor(summary=True, every_n_epochs=None, data="val"), limit_val_batches=1, max_epochs=0)
    assert "What the model uses" not in capsys.readouterr().out


def test_a_terminal_that_cannot_show_a_name_does_not_end_the_training(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    watch = monitor([Concept("moo ☃", label="moo"), Confounder("grass")])
    fit(watch)
    terminal.flush()
    assert b"moo ?" in terminal.buffer.getvalue()


@pytest.mark.parametrize("shown", [True, False])
def test_bars_show_where_lightning_shows_its_own(shown, monkeypatch):
    watch = monitor(data=Animals(64), summary=False)
    seen = []
    event, run = watch.monitor.event, watch.monitor.run
    monkeypatch.setattr(watch.monitor, "event", lambda *a: seen.append(wanted()) or event(*a))
    monkeypatch.setattr(watch.monitor, "run", lambda *a: seen.append(wanted()) or run(*a))
    fit(watch, enable_progress_bar=shown, max_epochs=1)
    assert seen == [shown, shown]
    assert not wanted()
