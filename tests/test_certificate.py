"""`certificate`: what was done and measured, for whoever asks later, and the hash of what it was measured on."""

import json
import math
from dataclasses import replace

import pytest
import torch
from nets import Equation, cut, feed, measured, monitor_of, probe

from lightning_interp import __version__
from lightning_interp.certificate import certificate, write_certificate
from lightning_interp.events import HIDDEN_FACTOR, Event
from lightning_interp.functional.sampling import digest

NET = Equation([[1.0, 0.5, 2.0, 1.0]])


def events():
    before = replace(measured(NET, probe(), layers=["encoder.0"]), step=10, cost_seconds=1.0)
    after = replace(measured(Equation([[1.0, 0.5, 0.1, 1.0]]), probe(), layers=["encoder.0"]), step=20, cost_seconds=2.0)
    return before, after


def of(before, after, notes=(), **settings):
    return certificate("SuppressConfounder", "grass", ["moo", "tail"], {"penalty": "P", **settings}, before, after, notes)


# --- what it says -----------------------------------------------------------------------------------------------------


def test_a_whole_certificate():
    before, after = events()
    found = of(before, after, ["mine"], weight=2.0)
    assert (found["format"], found["version"], found["kind"]) == (1, __version__, "SuppressConfounder")
    assert (found["confounder"], found["concepts"]) == ("grass", ["moo", "tail"])
    assert found["settings"] == {"penalty": "P", "weight": 2.0}
    assert found["measured_on"] == {"mode": "probe", "n": 160, "weights": "balanced", "probe": after.probe}
    # effects and shares with their intervals, and what a layer still holds, before and after
    for part, event in (("before", before), ("after", after)):
        again = Event.from_dict(found[part])
        assert again == replace(event, cost_seconds=0.0)
        assert again.effect["grass"].low < again.effect["grass"].value < again.effect["grass"].high
        assert again.contribution["grass"].low <= again.contribution["grass"].high
        assert again.decodability["encoder.0"]["grass"].value > 0
    for name in ("grass", "moo", "tail"):
        assert found["change"][name] == {
            "share": [e.contribution[name].debiased for e in (before, after)],
            "effect": [e.magnitude[name] for e in (before, after)],
        }
    assert found["change"]["grass"]["effect"] == pytest.approx([2.0, 0.1], rel=1e-9)
    assert found["change"]["worst_group"] == [None, None]  # no target
    assert found["notes"] == ["mine", HIDDEN_FACTOR, *after.notes]


def test_groups_are_in_the_change():
    before, after = (replace(measured(NET, probe(seed=s), target="moo"), step=s) for s in (1, 2))
    found = of(before, after)["change"]
    assert found["worst_group"] == [before.groups.worst_accuracy, after.groups.worst_accuracy]
    means = [sum(e.groups.accuracy.values()) / len(e.groups.accuracy) for e in (before, after)]
    assert found["mean_group_accuracy"] == means


def test_the_same_run_gives_the_same_certificate():
    (before, after), (again, at_last) = events(), events()
    other = of(replace(again, cost_seconds=7.0), replace(at_last, cost_seconds=8.0))
    assert of(before, after) == other


def test_the_notes_say_what_is_missing():
    before, after = events()
    cases = [
        ((None, None), "nothing was measured: no ConceptMonitor gave an event"),
        ((before, None), "nothing was measured after it acted"),
        ((None, after), "nothing was measured before it acted"),
        ((before, replace(after, probe="0" * 16)), "on different samples"),
        ((replace(before, probe=None), replace(after, probe=None)), "on different samples"),
        ((before, replace(after, decodability={})), "whether a layer still holds the confounder was not measured"),
    ]
    for pair, text in cases:
        found = of(*pair)
        assert [n for n in found["notes"] if text in n], (text, found["notes"])
        assert (found["change"] is None) == (None in pair)
        assert [found[k] is None for k in ("before", "after")] == [e is None for e in pair]
    assert of(before, None)["measured_on"]["probe"] == before.probe
    assert of(None, None)["measured_on"] is None
    assert of(None, None)["notes"][-1] != HIDDEN_FACTOR
    assert of(before, replace(after, notes=("natural weights",)))["notes"][-1] == "natural weights"


def test_it_holds_no_nan_and_no_infinity(tmp_path):
    before, after = events()
    broken = replace(after, intercept=math.nan, magnitude={"grass": math.inf, "moo": 1.0})
    found = of(before, broken, cap=math.inf, weight=-math.inf)
    assert (found["settings"]["cap"], found["settings"]["weight"]) == (None, None)
    assert found["change"]["grass"]["effect"][1] is None
    write_certificate(tmp_path / "c.json", found)

    def refuse(name):
        raise AssertionError(name)

    assert json.loads((tmp_path / "c.json").read_text(), parse_constant=refuse) == [found]


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_holds_a_list_and_replaces_its_own(tmp_path):
    path = tmp_path / "deep" / "a.certificate.json"
    before, after = events()
    first, second = of(before, after), {**of(None, after), "confounder": "Grün"}
    other = of(None, None, penalty="Q")
    for entry in (first, second, other):
        write_certificate(path, entry)
    assert json.loads(path.read_text(encoding="utf-8")) == [first, second, other]
    assert "Grün" in path.read_text(encoding="utf-8")
    newer = of(None, after)
    write_certificate(path, newer)
    assert json.loads(path.read_text(encoding="utf-8")) == [second, other, newer]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_file_that_is_no_json_is_not_overwritten(tmp_path):
    (tmp_path / "c.json").write_text("what the user wrote")
    with pytest.raises(json.JSONDecodeError):
        write_certificate(tmp_path / "c.json", of(None, None))
    assert (tmp_path / "c.json").read_text() == "what the user wrote"


# --- the hash of the probe set ----------------------------------------------------------------------------------------


def hash_of(batch, size=37, **options):
    return measured(NET, batch, size=size, **options).probe


def test_the_hash_does_not_depend_on_order_or_batches():
    batch = probe()
    found = hash_of(batch)
    assert len(found) == 16
    assert int(found, 16) > 0
    turned = {k: v.flip(0) for k, v in batch.items()}
    order = torch.randperm(160, generator=torch.Generator().manual_seed(1))
    for other in (turned, {k: v[order] for k, v in batch.items()}):
        assert hash_of(other, 10) == hash_of(batch, 160) == found
    assert hash_of(batch, max_samples=20) == found  # summed in pieces
    # the model is no part of it
    assert measured(Equation([[0.0, 0.0, 1.0, 1.0]]), batch).probe == found


def test_the_hash_changes_with_one_label_one_pixel_one_sample():
    batch = probe()
    found = {hash_of(batch)}
    for name in ("moo", "tail", "grass", "x"):
        for place in (0, 77, 159):
            changed = {k: v.clone() for k, v in batch.items()}
            if name == "x":
                changed["x"][place, 3] += 1e-9
            else:
                changed[name][place] = 1 - changed[name][place]
            found.add(hash_of(changed))
    found.add(hash_of({k: v[1:] for k, v in batch.items()}))
    found.add(hash_of({k: torch.cat([v, v[:1]]) for k, v in batch.items()}))
    moved = {**batch, "grass": batch["grass"].roll(1)}  # the same values, at other samples
    found.add(hash_of(moved))
    found.add(hash_of({**batch, "moo": batch["tail"], "tail": batch["moo"]}))
    assert len(found) == 1 + 12 + 4


def test_the_hash_is_of_the_last_samples_only():
    watched = monitor_of(NET)
    batch = probe()
    feed(watched, NET, cut(batch, 40))
    first = watched.event(1).probe
    feed(watched, NET, cut({k: v[:120] for k, v in batch.items()}, 40))
    assert watched.event(2).probe == hash_of({k: v[:120] for k, v in batch.items()}) != first
    watched.window = 2
    feed(watched, NET, cut(batch, 40))
    assert watched.event(3).probe == hash_of({k: v[80:] for k, v in batch.items()})


def test_the_hash_with_ids_is_of_the_ids():
    batch = {**probe(), "id": torch.arange(160)}
    found = hash_of(batch, sample_id="id")
    assert found == hash_of({**batch, "x": batch["x"] + 1}, sample_id="id")
    assert found != hash_of({**batch, "id": batch["id"] + 1}, sample_id="id")
    text = {**batch, "id": [f"a{i}" for i in range(160)]}
    assert found != hash_of(text, sample_id="id")


def test_hashes_of_parts_add_up():
    g = torch.Generator().manual_seed(0)
    key, values = torch.randint(-(2**62), 2**62, (100,), generator=g), torch.randn(100, 3, generator=g).double()
    whole = int(digest(key, values))
    parts = sum(int(digest(key[i::7], values[i::7])) for i in range(7))
    assert parts % 2**64 == whole % 2**64
    assert int(digest(key[:0], values[:0])) == 0


def test_an_event_of_an_older_version_has_no_hash():
    plain = measured(NET, probe()).to_dict()
    del plain["probe"]
    assert Event.from_dict(plain).probe is None
