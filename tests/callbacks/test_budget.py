"""`SuppressConfounder` by budget, `only_above`: what they read, when, and that a resumed run reads the same."""

import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks import boring
from callbacks.boring import Boring, BoringData, Call, Memory, fit, monitor, probe_loader, swap_grass
from lightning_interp import Concept, Confounder, SuppressConfounder
from lightning_interp.budget import Budget, reading
from lightning_interp.errors import InterpError, InterpWarning
from lightning_interp.penalties import GroupDRO, InvariancePenalty

pytestmark = boring.HOST_WARNINGS

FIXED = partial(Boring, dropout=0.0)
TRAINING = "reads the training batches, whose labels a network can memorise"


def suppress(penalty=None, given=None, **options):
    options = {"start_epoch": 0, "ramp_epochs": 0, "output": "head", "target": "moo", "inputs": "x", **options}
    given = [Concept("moo")] if given is None else given
    return SuppressConfounder(Confounder("grass", intervention=swap_grass), given, penalty, **options)


def multipliers(events, limit, on="share", acting=None):
    """What a Budget makes of events; `acting`: whether the penalty was in force before each."""
    budget, found = Budget(limit, on), [1.0]
    for i, event in enumerate(events):
        now = reading(event, "grass", ["moo"])
        if acting is None or acting[i]:
            budget.update(now)
        else:
            budget.start(now)
        found.append(budget.multiplier)
    return found


def logged(memory):
    """{optimizer steps done before: the weight of the step}."""
    return {step: line["penalty_weight/grass"] for step, line in memory.lines if "penalty_weight/grass" in line}


def expected(memory, events, values):
    """The same from what a budget made of the events: each counts from the next step on."""
    return {step: values[sum(e.step <= step for e in events)] for step in logged(memory)}


SOURCES = {  # what the monitor is told, whether it stands first in the list, and what the budget is on
    "val": ({}, True, "share"),
    "val, last": ({}, False, "ratio"),
    "train, last": ({"data": "train"}, False, "share"),
    "loader": ({"data": "probe"}, True, "share"),
    "train by steps, last": ({"data": "train", "every_n_train_steps": 5}, False, "share"),
    "only the output": ({"layers": [], "measures": ["contribution"], "output": None}, True, "share"),
}


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(f"ignore:`budget` {TRAINING}")
@pytest.mark.parametrize("source", SOURCES)
def test_the_multiplier_is_that_of_the_monitors_events(source):
    told, first, on = SOURCES[source]
    if told.get("data") == "probe":
        told = {"data": probe_loader()}
    watcher, s, memory = monitor(**told), suppress(budget=0.1, budget_on=on), Memory()
    run, _ = fit(*((watcher, s) if first else (s, watcher)), max_epochs=3, logger=memory)
    wanted = multipliers(watcher.history, 0.1, on)
    assert s.suppression.budget.multiplier == wanted[-1]  # the last event is read, too
    assert logged(memory) == expected(memory, watcher.history, wanted)
    assert len(set(logged(memory).values())) > 1
    assert float(run.callback_metrics["penalty_weight/grass"]) == pytest.approx(logged(memory)[35])
    assert s.suppression.measured == watcher.latest
    assert s.certificate["settings"]["multiplier"] == logged(memory)[35]


def test_nothing_moves_before_the_penalty_acts():
    watcher, s, memory = monitor(), suppress(budget=0.1, start_epoch=3), Memory()
    fit(watcher, s, max_epochs=5, logger=memory)
    wanted = multipliers(watcher.history, 0.1, acting=[False, False, False, True, True])
    assert logged(memory) == expected(memory, watcher.history, wanted)
    assert logged(memory)[37] == 1
    assert s.suppression.before == watcher.history[2]
    assert s.suppression.measured == watcher.history[4]


@pytest.mark.parametrize("told", [None, {"measures": ["decodability"]}, {"output": "encoder"}, {"variables": [Concept("moo")]}])
def test_without_a_monitor_that_fits_the_training_batches_are_read_and_it_is_said_once(told):
    watchers = [] if told is None else [monitor(**told)]
    s, memory = suppress(budget=0.01), Memory()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(*watchers, s, max_epochs=3 if told is None else 2, logger=memory)
    assert len([w for w in caught if TRAINING in str(w.message)]) == 1
    assert s.suppression.measured.mode == "train"
    assert (s.suppression.measured.step, s.suppression.measured.epoch) == ((36, 2) if told is None else (24, 1))
    assert s.suppression.measured.n == boring.TRAIN
    assert len(set(logged(memory).values())) == (3 if told is None else 2)
    assert s.suppression.recent.event(0) is None


def test_a_fixed_weight_measures_nothing_of_its_own_and_says_nothing():
    s = suppress()
    fit(s)
    assert s.suppression.recent is None
    assert s.suppression.measured is None
    fit(monitor(data="train"), suppress())  # warnings are errors


def test_the_monitor_that_has_all_of_the_variables_is_read_before_others():
    alone, whole = monitor([Confounder("grass")], prefix="a"), monitor(prefix="b")
    s = suppress(budget=0.1, budget_on="ratio")
    fit(alone, whole, s)
    assert s.suppression.measured == whole.latest
    s = suppress(budget=0.1)
    fit(monitor([Confounder("grass")]), s)
    assert s.suppression.measured.mode == "val"


def test_a_ratio_that_no_event_holds_is_said():
    s = suppress(budget=0.1, budget_on="ratio")
    with pytest.warns(InterpWarning, match="`budget` finds nothing in the event at step 12: it has no ratio of 'grass'"):
        fit(monitor([Confounder("grass")]), s)
    assert s.suppression.budget.multiplier == 1


class Same(BoringData):
    """grass is moo in all of the training data."""

    def train_dataloader(self):
        items = boring.Animals(boring.TRAIN, 1)
        items.grass = items.moo
        return boring.loader(items)


def test_training_batches_that_tell_nothing_are_said():
    s = suppress(budget=0.1)
    with pytest.warns(
        InterpWarning, match="`budget` finds nothing in the training batches: variables 'grass' and 'moo' cannot be"
    ):
        fit(s, data=Same())
    assert s.suppression.budget.multiplier == 1


def test_an_event_of_before_fit_counts_as_before():
    watcher, s = monitor(), suppress(budget=0.1)
    boring.seed_everything(0, verbose=False)
    model, run = FIXED(), boring.trainer(watcher, s, inference_mode=False)
    run.validate(model, datamodule=BoringData(), verbose=False)
    run.fit(model, datamodule=BoringData())
    assert s.suppression.before == watcher.history[0]
    assert s.suppression.budget.multiplier == multipliers(watcher.history, 0.1, acting=[False, True, True])[-1]


def test_an_event_of_another_run_does_not():
    watcher = monitor()
    fit(watcher)
    s = suppress(budget=0.1)
    with pytest.warns(InterpWarning, match="holds events of another run"):
        fit(watcher, s)
    assert s.suppression.before is None
    assert s.suppression.budget.multiplier == multipliers(watcher.history[2:], 0.1)[-1]


def test_fit_goes_on_where_it_stopped():
    watcher, s = monitor(), suppress(budget=0.1)
    run, model = fit(watcher, s, model=FIXED)
    run.fit_loop.max_epochs = 4
    run.fit(model, datamodule=BoringData())
    assert len(watcher.history) == 4
    assert s.suppression.budget.multiplier == multipliers(watcher.history, 0.1)[-1]


# --- only_above -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["val", None])
def test_only_above_acts_only_while_over(data):
    shares, memory = [], Memory()
    s = suppress(only_above=0.2, weight=2.0)
    look = Call(on_train_epoch_start=lambda run, model: shares.append(s.suppression.measured))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpWarning)
        fit(*([monitor()] if data else []), s, look, max_epochs=5, logger=memory)
    weights = logged(memory)
    assert weights[1] == 2.0  # before the first event it acts
    at = {e.step: e.contribution["grass"].debiased for e in s._monitor.history} if data else {
        e.step: e.contribution["grass"].debiased for e in [*shares, s.suppression.measured] if e
    }  # fmt: skip
    assert len(at) == 5
    for step, weight in weights.items():
        last = max((k for k in at if k <= step), default=None)
        assert weight == (0.0 if last and at[last] <= 0.2 else 2.0), (step, at)
    assert {0.0, 2.0} == set(weights.values())


def test_under_it_the_run_is_the_plain_one():
    ends = []
    for callbacks in ([monitor(), suppress(only_above=0.999)], []):
        boring.seed_everything(0, verbose=False)
        model = FIXED()
        run = boring.trainer(*callbacks, inference_mode=False)
        run.validate(model, datamodule=BoringData(), verbose=False)  # known before the first step: it is under
        run.fit(model, datamodule=BoringData(shuffle=False))
        ends.append(boring.bits(dict(model.named_parameters())))
        if callbacks:
            found = callbacks[1]
    assert ends[0] == ends[1]
    assert found.suppression.acted == 0
    assert "the penalty never acted" in found.certificate["notes"]


def test_a_multiplier_does_not_wind_up_while_only_above_holds_it_back():
    watcher, s = monitor(), suppress(budget=0.01, only_above=0.999)
    fit(watcher, s, max_epochs=5)
    assert s.suppression.budget.multiplier == multipliers(watcher.history[:1], 0.01)[-1]


# --- checkpoints ------------------------------------------------------------------------------------------------------

RESUMED = {
    "val": {"told": {}},
    "train, last": {"told": {"data": "train"}, "last": True, "at": True},
    "no monitor, at the end of the epoch": {"told": None, "at": True},
    "ratio, invariance": {"told": {}, "penalty": InvariancePenalty, "budget_on": "ratio"},
    "late, only_above": {"told": {}, "start_epoch": 1, "ramp_epochs": 2, "only_above": 0.1},
}


@pytest.mark.filterwarnings(f"ignore:`budget` {TRAINING}")
@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path, case):
    options = dict(RESUMED[case])
    at_train_end = options.pop("at", None)
    told, last, penalty = options.pop("told"), options.pop("last", False), options.pop("penalty", None)

    def go(epochs, **more):
        s = suppress(penalty and penalty(), budget=0.05, **options)
        watchers = [] if told is None else [monitor(**told)]
        saver = [ModelCheckpoint(tmp_path, save_last=True, save_on_train_epoch_end=at_train_end)] if epochs == 2 else []
        callbacks = [s, *watchers] if last else [*watchers, s]
        still = BoringData(shuffle=False)
        _, model = fit(*callbacks, *saver, model=FIXED, data=still, max_epochs=epochs, enable_checkpointing=epochs == 2, **more)
        return s, model

    whole, model = go(3)
    half, _ = go(2)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"][half.state_key]["suppression"]
    assert saved["budget"]["multiplier"] != 0
    resumed, again = go(3, ckpt_path=str(tmp_path / "last.ckpt"))
    assert resumed.suppression.budget.state_dict() == whole.suppression.budget.state_dict()
    assert boring.bits(again.state_dict()) == boring.bits(model.state_dict())
    assert resumed.certificate == whole.certificate


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"weight": 1.0, "budget": 0.1}, "`weight` and `budget` were both given (1.0 and 0.1); give one."),
        ({"budget": 0.1, "penalty": GroupDRO()}, "`budget` does not go with `penalty=GroupDRO`"),
        ({"weight": 2.0, "penalty": GroupDRO()}, "`weight` does not go with `penalty=GroupDRO`"),
        ({"budget": 1.5}, "`budget` expects a number between 0 and 1, both excluded, got 1.5"),
        ({"budget": 0.1, "budget_on": "rato"}, "Did you mean 'ratio'?"),
        (
            {"budget": 0.1, "budget_on": "ratio", "given": []},
            "`budget_on='ratio'` compares with the concepts: name them in `given`",
        ),
        ({"only_above": 0.0}, "`only_above` expects a share between 0 and 1, got 0.0"),
        ({"only_above": float("nan")}, "`only_above` expects a share between 0 and 1, got nan"),
        ({"layer": "encoder"}, "`layer='encoder'` has no meaning with `penalty=ContributionPenalty`"),
    ],
    ids=lambda x: None if isinstance(x, str) else str(sorted(x)),
)
def test_bad_arguments_are_named(options, text):
    with pytest.raises(InterpError) as caught:
        suppress(**options)
    assert text in str(caught.value)
