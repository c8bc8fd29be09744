"""On several processes: the numbers of one, the same bits on all, the weights of the penalty by hand; nobody waits for ever.

One group of two processes runs all cases (`ranks.group`), and one of three in `make test-all`; one process, here, runs them
again. DDP and FSDP2, both with gloo.
"""

import math
import warnings

import pytest
import torch
from ranks.failing import FAILING
from ranks.group import OF_THREE, OF_TWO, run_group
from ranks.looped import PENALTIES, erased, monitored
from ranks.measured import CASES, SAMPLES, N, Normed, animals, measured
from ranks.penalised import PENALISED, SHARDED
from ranks.resumed import RESUMED
from ranks.watched import WATCHED

from callbacks import boring
from lightning_interp import explain
from lightning_interp.monitor import DEFAULT_MEASURES

pytestmark = [
    pytest.mark.ddp,
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning 2.6 with torch 2.13
]


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """{case: what each process found}, of a group of so many."""
    known = {}

    def find(processes):
        if processes not in known:
            known[processes] = run_group(tmp_path_factory.mktemp("group"), processes)
        return known[processes]

    return find


@pytest.fixture
def ranks(groups):
    """What each process of a group found in a case."""

    def find(processes, name):
        found = groups(processes)[name]
        assert len(found) == processes
        assert not any("error" in part for part in found), found
        return found

    return find


@pytest.fixture
def both(ranks):
    """What each of the two found."""
    return lambda name: ranks(2, name)


def every(names, table=""):
    """(processes, name) of a table: two, and three in `make test-all`."""
    two = [pytest.param(2, name, id=f"2-{name}") for name in names if f"{table}{name}" not in OF_THREE]
    three = [pytest.param(3, name, id=f"3-{name}", marks=pytest.mark.slow) for name in names if f"{table}{name}" not in OF_TWO]
    return two + three


@pytest.fixture(scope="module")
def alone():
    """What one process finds."""
    known = {}

    def find(name):
        if name not in known:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                known[name] = (
                    measured(name, devices=1) if name in CASES else {"monitored": monitored, "erased": erased}[name]("plain")
                )
        return known[name]

    return find


def differences(one, other, path=""):
    """Where two events differ by more than 1 part in 10¹⁰."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [d for key in one for d in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [d for i, pair in enumerate(zip(one, other)) for d in differences(*pair, f"{path}/{i}")]
    if isinstance(one, float) and isinstance(other, float):
        same = math.isclose(one, other, rel_tol=1e-10, abs_tol=1e-12)
        return [] if same else [f"{path}: {one!r} and {other!r}"]
    return [] if one == other else [f"{path}: {one!r} and {other!r}"]


# --- measuring --------------------------------------------------------------------------------------------------------

# Batches of its own, what only the first says, statistics before they are shared out, its penalty's last step.
EACH_ITS_OWN = ("skipped", "warnings", "weights", "own")


@pytest.mark.parametrize(("processes", "name"), every(CASES))
def test_all_processes_have_the_same_bits(ranks, processes, name):
    found = ranks(processes, name)
    assert len(found[0]["events"]) >= 2
    first, *others = [{k: v for k, v in part.items() if k not in EACH_ITS_OWN} for part in found]
    assert all(other == first for other in others)


@pytest.mark.parametrize(("processes", "name"), every(CASES))
def test_every_sample_counts_once(ranks, processes, name):
    found = [e["n"] for e in ranks(processes, name)[0]["events"]]
    assert found == SAMPLES.get(name, [N] * (2 if "by steps" not in name else len(found)))


COMPARED = [name for name, case in CASES.items() if case.get("alone", ()) is not None]


@pytest.mark.parametrize(("processes", "name"), every(COMPARED))
def test_several_processes_find_what_one_finds(ranks, alone, processes, name):
    left_out = ("step", "skipped", "notes", *CASES[name].get("left out", ()))
    ends = [
        [{k: v for k, v in event.items() if k not in left_out} for event in found["events"]]
        for found in (ranks(processes, name)[0], alone(name))
    ]
    assert differences(*ends) == []


@pytest.mark.parametrize(("processes", "name"), every(CASES))
def test_only_the_first_process_warns(ranks, processes, name):
    found = [part["warnings"] for part in ranks(processes, name)]
    assert all(not texts for texts in found[1:]) or "erased" in name  # a batch of an erasure is each process's own
    assert len(found[0]) == len(set(found[0]))


@pytest.mark.parametrize("name", ["one batch hurt", "one rank hurt", "one batch hurt, sharded"])
def test_what_another_process_leaves_out_is_said(both, name):
    (said,) = [text for text in both(name)[0]["warnings"] if "left out" in text]
    assert said == "process 1: batches with NaN or infinite outputs or activations are left out"


def test_an_event_is_that_of_the_statistics_that_all_have_from_the_first(both):
    """DDP shares out buffers before every forward pass."""
    found = both("val, batch norm")[0]
    net = Normed()
    net.load_state_dict(found["weights"])
    watcher = boring.monitor(measures=boring.ALL)
    places = {"layers": ["encoder.1", "encoder.3"], "output": "head", "inputs": "x", "target": "moo", "measures": boring.ALL}
    event = explain(net, boring.loader(animals(), batch=8), watcher.monitor.variables, **places, step=14, epoch=1)
    ends = (boring.without_drift(e) for e in (boring.plain(event, "mode"), {**found["events"][1]}))
    one, other = ({k: v for k, v in end.items() if k != "mode"} for end in ends)
    assert differences(one, other) == []


@pytest.mark.parametrize(("processes", "name"), every(["val, erased", "val, erased, sharded"]))
def test_an_erasure_is_fitted_to_the_rows_of_all(ranks, alone, processes, name):
    found = ranks(processes, name)[0]["eraser"]
    assert differences(found, alone(name)["eraser"]) == []
    assert len(found[1][0]) == 1


def test_a_batch_that_one_process_cannot_learn_from(both):
    hurt = both("val, erased, hurt labels")
    assert hurt[0]["eraser"] is not None
    assert sorted(found["skipped"] for found in hurt) in ([0, 2], [1, 1])  # a batch of one of them in each of two epochs


@pytest.mark.parametrize(("processes", "name"), every(["val, budget", "val, budget on training", "val, budget, sharded"]))
def test_the_multiplier_is_the_same_on_all(ranks, alone, processes, name):
    first, *others = ranks(processes, name)
    assert all(other["budget"] == first["budget"] for other in others)
    assert first["budget"]["multiplier"] != 1
    assert {part["own"]["penalty_weight/grass"] for part in (first, *others) if part["own"]} == {1}  # of those that had a term
    if "training" in name:
        assert first["measured"]["n"] == N + 1  # a sampler's repeat is trained on
        return
    assert first["measured"] == first["events"][-1]
    one = alone(name)
    assert differences([first["budget"], first["change"]], [one["budget"], one["change"]]) == []


@pytest.mark.parametrize(("processes", "name"), every(["val, discovered", "loader, discovered", "val, discovered, sharded"]))
def test_features_are_those_of_one_process(ranks, alone, processes, name):
    first, *others = ranks(processes, name)
    assert all(other["features"] == first["features"] for other in others)
    one = alone(name)
    ends = [[{k: v for k, v in e.items() if k != "step"} for e in found["features"]] for found in (first, one)]
    assert differences(*ends) == []
    assert [len(e["features"]) > 2 for e in first["features"]] == [True, True]
    assert all(f["causal"] is not None for f in first["features"][-1]["features"][:3])
    assert all(len(f["strongest"]["rows"]) == 8 for f in first["features"][-1]["features"])
    assert differences(first["scalars"], one["scalars"]) == []
    assert first["scalars"]
    if "sharded" not in name:  # it would need a copy of the net
        assert all(found["promoted"] == one["promoted"] for found in (first, *others))


@pytest.mark.parametrize(("name", "skipped"), [("val", 0), ("one batch hurt", 1), ("one rank hurt", 7)])
def test_batches_left_out_are_counted_over_the_processes(both, name, skipped):
    assert [e["skipped"] for e in both(name)[0]["events"]] == [skipped] * 2


OWN_PASSES = ["val", "train", "loader", "one batch hurt", "one rank hurt", "val, sharded", "one batch hurt, sharded"]


@pytest.mark.parametrize(("processes", "name"), every(OWN_PASSES))
def test_the_passes_of_the_monitors_own_have_results(ranks, processes, name):
    for event in ranks(processes, name)[0]["events"]:
        values = [s["value"] for layer in event["sensitivity"].values() for v in layer.values() for s in v.values()]
        assert len(values) == 4
        assert None not in values
        assert event["intervention"]["grass"]["value"] is not None


# --- penalties --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "name"), every(PENALISED))
def test_a_penalty_is_that_by_hand(ranks, processes, name):
    first, *others = ranks(processes, f"penalised {name}")
    assert torch.equal(first["penalty"], first["by hand"])
    assert all(torch.equal(first["penalty"], other["penalty"]) for other in others)
    other = "invariance" if name != "invariance" else "dro"
    assert not torch.equal(first["penalty"], ranks(processes, f"penalised {other}")[0]["penalty"])


@pytest.mark.parametrize(("processes", "name"), every(SHARDED))
def test_a_penalty_on_a_sharded_model_is_that_by_hand(ranks, processes, name):
    for part in ranks(processes, f"sharded {name}"):
        assert torch.allclose(part["penalty"], part["by hand"], rtol=0, atol=1e-6)  # a sum is made in another order


# --- watching changes nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "name"), every(WATCHED, "watched "))
def test_a_watched_run_has_the_same_bits_on_every_process(ranks, processes, name):
    assert [part["differ"] for part in ranks(processes, f"watched {name}")] == [[]] * processes


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "name"), every(RESUMED, "resumed "))
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(ranks, processes, name):
    for part in ranks(processes, f"resumed {name}"):
        if processes == 2 or RESUMED[name]:
            assert part["weights"]
            assert part["known"]
        assert part["apart"] < 1e-4  # of three, DDP adds up gradients in another order in its first step


# --- one process fails ------------------------------------------------------------------------------------------------

SAID = {
    "own data": "no event at step 14: process 1: RuntimeError: the disk is broken",
    "inputs": "sensitivity withheld: process 1: RuntimeError: inputs is broken",
    "target": "mediation withheld: process 1: RuntimeError: target is broken",
    "pass": "no event at step 14: process 1: RuntimeError: a pass is broken",
    "pass, sharded": "no event at step 14: process 1: RuntimeError: a pass is broken",
    "labels": "process 1: a batch was left out: RuntimeError: a label is broken",
    "labels of own data": "process 1: a batch was left out: RuntimeError: a label is broken",
    "decode": "no event at step 14: process 1: `decode` failed: RuntimeError: decode is broken",
}


@pytest.mark.parametrize(("processes", "name"), every(FAILING))
def test_what_fails_on_one_process_fails_on_all(ranks, processes, name):
    first, *others = ranks(processes, f"failing {name}")
    for other in others:
        assert {k: v for k, v in other.items() if k != "said"} == {k: v for k, v in first.items() if k != "said"}
        assert other["said"] == []
    assert first["hooks"] == 0
    if "at once" in name:  # settings that are wrong from the start
        broken = "the disk" if "data" in name else "inputs"
        assert first["problem"] == f"ProcessFailedError: process 1: RuntimeError: {broken} is broken"
        return
    assert first["problem"] is None
    whole = "no event" not in SAID[name]
    assert first["epochs"] == ([0, 1, 2] if whole else [0])
    steps = {2: "14", 3: "10"}[processes]
    assert first["said"].count(SAID[name].replace("14", steps)) == 1


def test_processes_stand_at_the_same_place_after_a_failure(both):
    first, second = both("looped together")
    assert first == second
    assert [first[key] for key in first if key.startswith("after")] == [[0, 1]] * 7
    failed = "ProcessFailedError: process {}: RuntimeError: at {}".format
    assert first["between"] == first["last"] == failed(1, 1)
    assert first["inner"] == [failed(1, 2), ["on", "on"]]
    assert first["outer_in_inner"] == first["both"] == failed(0, 1)
    assert first["everybody"] == "ValueError: all"


# --- loops of one's own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "kind"), every(["ddp", "fabric", "fsdp"]))
def test_a_loop_of_ones_own_finds_what_one_process_finds(ranks, alone, processes, kind):
    found, one = ranks(processes, f"looped {kind} monitored"), alone("monitored")
    for part in found:
        assert part["differ"] == []  # watched and unwatched
        assert differences(shorn(part), shorn(one)) == []


def shorn(found):
    """Without what tells the loop."""
    events = [e for where in found["events"].values() for e in where] + [found["explained"]]
    return [{k: v for k, v in e.items() if k not in ("step", "notes")} for e in events]


@pytest.mark.parametrize(("processes", "kind"), every(["ddp", "fsdp"]))
def test_a_loop_of_ones_own_erases_what_one_process_erases(ranks, alone, processes, kind):
    for part in ranks(processes, f"looped {kind} erased"):
        assert differences(part["eraser"], alone("erased")["eraser"]) == []


@pytest.mark.parametrize(("processes", "penalty"), every(PENALTIES))
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_loop_of_ones_own_is_that_with_gradients_averaged_by_hand(ranks, processes, penalty, kind):
    wanted = ranks(processes, f"looped hand {penalty}")[0]
    for part in ranks(processes, f"looped {kind} {penalty}"):
        assert part["acted"] == wanted["acted"] > 3
        for one, other in zip(part["weights"], wanted["weights"], strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_what_cannot_be_done_with_a_sharded_model_is_said(both):
    for found in both("looped refused"):
        assert found["edit"].startswith("InterpError: `model` expects whole weights, and those of this one are shared out")
        assert found[len(DEFAULT_MEASURES)] == N
        assert "`FullyShardedDataParallel` does not allow a pass of the library's own" in found[len(boring.ALL)]


@pytest.mark.parametrize(("processes", "penalty"), every(PENALTIES))
def test_on_a_sharded_model_a_penalty_acts_on_all_or_on_none(ranks, processes, penalty):
    found = ranks(processes, f"looped fsdp {penalty}, labels missing")
    usual = ranks(processes, f"looped fsdp {penalty}")[0]
    assert {(part["acted"], part["skipped"]) for part in found} == {(usual["acted"] - 1, usual["skipped"] + 1)}
