"""When an event is due."""

import pytest

from lightning_interp.schedules import Schedule


@pytest.mark.parametrize(
    ("every", "due"), [(None, [0, 1, 2, 3, 4, 5, 6]), (1, [0, 1, 2, 3, 4, 5, 6]), (2, [0, 2, 4, 6]), (5, [0, 5]), (100, [0])]
)
def test_epochs_are_due_from_the_first_on(every, due):
    schedule = Schedule(every_n_epochs=every)
    assert [e for e in range(7) if schedule.epoch_due(e)] == due
    assert not schedule.by_steps
    assert not any(schedule.step_due(s) for s in range(20))


@pytest.mark.parametrize(("every", "due"), [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (5, [5]), (100, [])])
def test_steps_are_due_after_every_n_and_never_before_the_first(every, due):
    schedule = Schedule(every_n_train_steps=every)
    assert [s for s in range(7) if schedule.step_due(s)] == due
    assert schedule.by_steps
    assert not any(schedule.epoch_due(e) for e in range(20))


@pytest.mark.parametrize("every", [1, 2, 5])
def test_steps_to_next_leads_to_the_next_due_step(every):
    schedule = Schedule(every_n_train_steps=every)
    for step in range(12):
        next_due = next(s for s in range(step + 1, 100) if schedule.step_due(s))
        assert schedule.steps_to_next(step) == next_due - step


def test_both_are_an_error_with_what_was_given():
    with pytest.raises(
        ValueError, match=r"`every_n_epochs` and `every_n_train_steps` were both given; give one \(got 2 and 100\)"
    ):
        Schedule(2, 100)


@pytest.mark.parametrize("name", ["every_n_epochs", "every_n_train_steps"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_an_interval_is_a_whole_number_of_one_or_more(name, value):
    with pytest.raises(ValueError, match=f"`{name}` expects a whole number of 1 or more, got {value!r}"):
        Schedule(**{name: value})


def test_a_schedule_is_a_value():
    assert Schedule(2) == Schedule(every_n_epochs=2)
    with pytest.raises(AttributeError, match="cannot assign"):
        Schedule(2).every_n_epochs = 3
