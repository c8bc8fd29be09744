"""A callback lives inside other people's jobs: whatever goes wrong, training ends as it would have without it."""

import functools
import re

import pytest
from faults.scene import EPOCHS, MEASURING, Fault, Outcome, check_no_trace, run
from faults.table import FAULTS

from callbacks import boring
from lightning_interp.errors import alike

pytestmark = boring.HOST_WARNINGS
CASES = [pytest.param(fault, watcher, id=f"{fault.name}-{watcher}") for fault in FAULTS for watcher in fault.watchers]


@functools.cache
def alone(name: str) -> Outcome:
    """The same run without callbacks of ours."""
    return run(next(fault for fault in FAULTS if fault.name == name), None, None)


@functools.cache
def usual(watcher: str) -> Outcome:
    """A run in which nothing goes wrong."""
    return run(Fault("none", [watcher]), watcher, None)


@pytest.mark.parametrize(("fault", "watcher"), CASES)
def test_training_ends_as_it_would_have_without_it(fault, watcher, tmp_path):
    with_it, without = run(fault, watcher, tmp_path), alone(fault.name)
    check_no_trace(with_it.model)
    if fault.only_ours is not None:
        assert isinstance(with_it.problem, (fault.only_ours, SystemExit))
        return
    assert type(with_it.problem) is type(without.problem), repr(with_it.problem)
    assert str(with_it.problem) == str(without.problem)
    assert with_it.modes == without.modes
    if watcher in MEASURING:
        assert with_it.weights == without.weights
        assert with_it.random == without.random
    assert with_it.other == without.other
    check_said(fault, watcher, with_it.said)
    if without.problem is None and not fault.lasting:
        assert with_it.model.current_epoch == EPOCHS
        assert with_it.last == usual(watcher).last  # all is as before when the fault is over
    if fault.check is not None:
        fault.check(with_it.callbacks, with_it.model, tmp_path)


def check_said(fault, watcher, found):
    """What was said names the thing, and nothing is said twice."""
    said = [text for text in found if text not in usual(watcher).said]
    assert len({alike(text) for text in said}) == len(said), said
    about = [text for text in said if not text.startswith("no event")]
    if fault.says is None:
        return
    assert said, "nothing was said"
    assert all(re.search(fault.says, text) for text in about), said
    assert len(about) <= 2, said
