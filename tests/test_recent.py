"""`Recent`: the equation of the latest training batches is `measurement.equation` of the same rows."""

import pytest
import torch

from lightning_interp import Concept, Confounder
from lightning_interp.errors import VariableError
from lightning_interp.functional.table import table
from lightning_interp.measurement import contributions, equation
from lightning_interp.recent import Recent

VARIABLES = [Confounder("grass"), Concept("moo")]


def rows(n, seed=0, c=1):
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(2, (n, 2), generator=g).double()
    return values, torch.randn(n, c, generator=g) + values[:, :1] * 2 - values[:, 1:]


def wanted(values, output, task="binary"):
    eq = equation(table(values, output), ["grass", "moo"], ["auto"] * 2, {}, task)
    return eq, contributions(eq)


@pytest.mark.parametrize(("c", "task"), [(1, "binary"), (4, "multiclass"), (2, "regression")])
def test_the_event_is_that_of_the_same_rows(c, task):
    values, output = rows(200, c=c)
    recent = Recent(VARIABLES)
    for v, o in zip(values.split(30), output.split(30)):
        recent.add(v, o.requires_grad_(), task)
    event = recent.event(7, 3)
    eq, fields = wanted(values, output.detach(), task)
    assert (event.step, event.epoch, event.n, event.mode, event.task) == (7, 3, 200, "train", task)
    assert event.weights == "balanced"
    assert {k: getattr(event, k) for k in fields} == fields
    assert event.coding == eq.coding()
    assert event.contribution["grass"].debiased > 0.1


@pytest.mark.parametrize("size", [10, 32, 100, 250])
def test_the_window_holds_so_many_rows_at_least_and_less_than_a_batch_more(size):
    recent = Recent(VARIABLES, rows=100)
    values, output = rows(1000)
    for v, o in zip(values.split(size), output.split(size)):
        recent.add(v, o, "binary")
    n = recent.event(0).n
    assert 100 <= n < 100 + size or n == size
    for v, o in zip(values.split(size), output.split(size)):
        recent.add(v, o, "binary")
    assert recent.event(0).contribution == wanted(values[-n:], output[-n:])[1]["contribution"]


def test_the_rows_are_forgotten_then():
    recent = Recent(VARIABLES)
    assert recent.event(0) is None
    recent.add(*rows(60), "binary")
    assert recent.event(0).n == 60
    assert recent.event(0) is None
    recent.add(*rows(50), "binary")
    assert recent.event(0).n == 50


@pytest.mark.parametrize("column", [0, 1])
def test_nothing_is_measured_of_a_variable_that_is_constant(column):
    recent = Recent(VARIABLES)
    values, output = rows(60)
    values[:, column] = 1
    recent.add(values, output, "binary")
    event = recent.event(0)
    name = VARIABLES[column].name
    assert event.contribution[name].debiased is None
    assert "always 1" in event.contribution[name].note
    assert event.contribution[VARIABLES[1 - column].name].debiased is not None


def test_two_variables_that_are_one_are_named():
    recent = Recent(VARIABLES)
    values, output = rows(60)
    recent.add(values[:, :1].expand(-1, 2), output, "binary")
    with pytest.raises(VariableError, match="'grass' and 'moo' cannot be told apart"):
        recent.event(0)
    assert recent.event(0) is None
