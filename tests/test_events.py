"""Events: plain on the way to disk, tidy as records, readable as text."""

import html
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import nets
import pytest
import torch

from lightning_interp import Concept, Confounder, to_records
from lightning_interp.events import Effect, Event, Groups, Score, Sensitivity, Share, magnitude_of
from lightning_interp.monitor import MEASURES
from lightning_interp.results import Entanglement, Mediation

KEYS = ["step", "epoch", "measure", "layer", "variable", "by", "value", "low", "high", "note"]


def full() -> Event:
    """An event that has something in every field, some of it withheld."""
    return Event(
        step=300,
        epoch=2,
        n=120,
        weights="balanced",
        mode="val",
        task="binary",
        intercept=-0.25,
        contribution={
            "moo": Share(0.6, 0.59, 0.4, 0.8, "few: the smallest cell has 4 samples"),
            "grass": Share(None, note="'grass' is constant"),
            "unexplained": Share(0.4),
        },
        effect={
            "moo": Effect(2.0, 1.5, 2.5, 0.25, 80.0, 0.4),
            "breed": {"angus": Effect(-1.0, -1.5, -0.5, 0.2, 9.0, 0.3), "value": Effect(1.0)},
            "grass": Effect(None, note="'grass' is constant"),
        },
        magnitude={"moo": 2.0, "breed": 2.0},
        decodability={"enc": {"moo": Score(0.9, 0.85, 0.95, 0.99, 0.1), "grass": Score(None, note="constant")}},
        sensitivity={
            "enc": {
                "moo": {"": Sensitivity(1.5, 4.0, 0.001, 1.0, "all equal")},
                "breed": {"angus": Sensitivity(3.0, 2.0, 0.1, 0.25), "value": Sensitivity(4.0)},
            }
        },
        intervention={"moo": Effect(1.9, 1.8, 2.0), "breed": {"0": Effect(3.0), "1": Effect(4.0)}},
        intervention_gap={"moo": 0.1},
        mediation={
            "enc": {
                "moo": Mediation({"moo": 0.9, "breed": None}, -0.1, {"moo": 0.1}, 0.01, 1, "natural", {"breed": "few"}),
                "breed": Mediation({"moo": None}, note="nothing to erase"),
            }
        },
        entanglement={
            "enc": Entanglement(0.3, {"moo": {"breed": 0.3}}, {"moo": {"breed": 0.05}}, 1.5),
            "two": Entanglement(None, note="one"),
        },
        groups=Groups({"moo=0": 0.75, "moo=1": 0.5}, {"moo=0": 60, "moo=1": 60}, "moo=1", 0.5, 0.25),
        coding={"moo": {"kind": "binary", "levels": ["0", "1"], "center": 0.0, "scale": 1.0}},
        skipped=1,
        cost_seconds=0.5,
        notes=("1 batches were left out",),
    )


@pytest.fixture(scope="module")
def real() -> Event:
    batch = nets.probe(20)
    model = nets.Equation([[2.0, -1.0, 0.5, 0.3]], constant=-1)
    which = [Concept("moo"), Concept("tail"), Confounder("grass", intervention="nets:swap_grass")]
    return nets.measured(model, batch, which, layers=["encoder.0"], target="moo", measures=MEASURES)


@pytest.fixture(params=["full", "real"])
def event(request, real) -> Event:
    return full() if request.param == "full" else real


# --- to disk and back -------------------------------------------------------------------------------------------------


def test_an_event_survives_json(event):
    text = json.dumps(event.to_dict(), allow_nan=False)
    assert Event.from_dict(json.loads(text)) == event


def test_an_event_survives_a_checkpoint_of_weights_only(event):
    file = io.BytesIO()
    torch.save(event.to_dict(), file)
    file.seek(0)
    assert Event.from_dict(torch.load(file, weights_only=True)) == event


def test_to_dict_shares_nothing_with_the_event():
    event = full()
    event.to_dict()["magnitude"]["moo"] = 99
    assert event.magnitude["moo"] == 2.0


def test_fields_of_a_later_version_are_left_out(event):
    assert Event.from_dict({**event.to_dict(), "of a later version": {"a": 1}}) == event


def test_fields_of_an_earlier_version_get_their_defaults():
    plain = full().to_dict()
    for name in ("skipped", "cost_seconds", "coding"):
        del plain[name]
    found = Event.from_dict(plain)
    assert (found.skipped, found.cost_seconds, found.coding) == (0, 0.0, {})
    assert found.effect == full().effect


# --- records ----------------------------------------------------------------------------------------------------------


def test_every_record_has_the_same_keys_in_order(event):
    assert event.records()
    assert all(list(r) == KEYS for r in event.records())
    assert {(r["step"], r["epoch"]) for r in event.records()} == {(event.step, event.epoch)}


def test_records_of_a_history_are_those_of_its_events():
    events = [full(), full()]
    assert to_records(events) == events[0].records() + events[1].records()


def found(event, **wanted):
    hits = [r for r in event.records() if all(r[k] == v for k, v in wanted.items())]
    assert len(hits) == 1, hits
    return hits[0]


def test_a_record_says_what_the_event_says():
    e = full()
    r = found(e, measure="effect", variable="moo", by=None)
    assert (r["value"], r["low"], r["high"], r["layer"]) == (2.0, 1.5, 2.5, None)
    assert found(e, measure="effect", variable="breed", by=None)["value"] == 2.0
    assert found(e, measure="effect", variable="breed", by="angus")["low"] == -1.5
    assert found(e, measure="effect", variable="moo", by="robustness")["value"] == 0.4
    assert found(e, measure="contribution", variable="moo", by="debiased")["value"] == 0.59
    assert found(e, measure="contribution", variable="moo", by=None)["low"] == 0.4
    assert found(e, measure="selectivity", layer="enc", variable="moo")["value"] == 0.85
    assert found(e, measure="decodability_auroc", layer="enc", variable="moo")["value"] == 0.99
    assert found(e, measure="drift", layer="enc", variable="moo")["value"] == 0.1
    assert (
        found(e, measure="sensitivity", layer="enc", variable="moo", by=None)["note"] == "z = 4.00, p = 0.001 (Holm); all equal"
    )
    assert found(e, measure="sensitivity", layer="enc", variable="breed", by=None)["value"] == 5.0
    assert found(e, measure="tcav", layer="enc", variable="breed", by="angus")["value"] == 0.25
    assert found(e, measure="intervention", variable="moo", by=None)["value"] == 1.9
    assert found(e, measure="intervention", variable="moo", by="effect − intervention")["value"] == 0.1
    assert found(e, measure="group", variable="worst_accuracy")["note"] == "moo=1"
    assert found(e, measure="group", variable="accuracy", by="moo=0")["value"] == 0.75


def test_what_was_withheld_is_none_with_a_note():
    withheld = [r for r in full().records() if r["value"] is None]
    assert {r["measure"] for r in withheld} == {"contribution", "effect", "decodability", "mediation", "entanglement"}
    assert all(r["note"] for r in withheld)


# --- logged keys ------------------------------------------------------------------------------------------------------


def test_scalars_are_the_logged_keys_of_the_design():
    assert full().scalars() == {
        "contribution/moo": 0.6,
        "contribution/unexplained": 0.4,
        "effect/moo": 2.0,
        "effect/breed": 2.0,
        "intervention/moo": 1.9,
        "intervention/breed": 5.0,
        "decodability/enc/moo": 0.9,
        "selectivity/enc/moo": 0.85,
        "decodability_accuracy/enc/moo": 0.95,
        "decodability_auroc/enc/moo": 0.99,
        "drift/enc/moo": 0.1,
        "sensitivity/enc/moo": 1.5,
        "sensitivity/enc/breed": 5.0,
        "tcav/enc/moo": 1.0,
        "mediation/enc/moo/moo": 0.9,
        "entanglement/enc": 0.3,
        "group/worst_accuracy": 0.5,
        "group/gap": 0.25,
        "group/accuracy/moo=0": 0.75,
        "group/accuracy/moo=1": 0.5,
    }


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scalars_never_hold_what_is_not_finite(bad):
    e = Event(
        0, 0, 10, "natural", "val", "binary",
        contribution={"a": Share(bad), "b": Share(0.5)},
        effect={"a": Effect(bad), "b": {"x": Effect(bad)}},
        magnitude={"b": bad},
        decodability={"enc": {"a": Score(bad, bad, bad, bad, bad)}},
        intervention_gap={"a": bad},
        groups=Groups({"a=0": bad}, {"a=0": 1}, "a=0", bad, bad),
    )  # fmt: skip
    assert e.scalars() == {"contribution/b": 0.5}


def test_the_scalars_of_a_real_event_are_finite(real):
    scalars = real.scalars()
    assert {"contribution/grass", "effect/grass", "decodability/encoder.0/moo", "intervention/grass", "group/gap"} <= set(
        scalars
    )
    assert all(isinstance(v, float) and math.isfinite(v) for v in scalars.values())


# --- text -------------------------------------------------------------------------------------------------------------


def test_an_event_reads_as_an_equation():
    lines = str(full()).splitlines()
    assert lines[0] == "after 300 steps, epoch 2: n = 120, validation, balanced weights"
    assert lines[1] == "logit = −0.25 + 2.00·moo [1.50, 2.50] + 2.00·breed + ?·grass + unexplained"
    assert lines[2] == "share of variance: moo 60.0 % (debiased 59.0 %), unexplained 40.0 %"
    assert lines[3] == "do(moo) = 1.90, estimate off by + 0.10"
    assert lines[4] == "do(breed) = 5.00"
    assert lines[5] == "erase moo at enc: moo −90 %, accuracy −10.0 %; random −10.0 %"
    assert lines[6] == "most entangled: moo and breed at enc (cosine 0.30)"
    assert lines[7] == "worst group 0.500 (moo=1), gap 0.250"
    assert lines[8] == "note: 1 batches were left out"
    assert len(lines) == 9


def test_the_text_of_a_real_event_holds_the_true_coefficients(real):
    assert "logit = −0.25 + 2.00·moo [" in str(real)
    assert "− 1.00·tail [" in str(real)
    assert "do(grass) = 0.50, estimate off by" in str(real)


def test_names_are_printed_as_the_user_wrote_them():
    e = Event(
        0, 0, 9, "natural", "val", "binary",
        effect={"skin-tone": Effect(-1.0, -2.0, -0.5)},
        magnitude={"skin-tone": -1.0},
        intervention={"skin-tone": Effect(-1.0)},
    )  # fmt: skip
    assert "− 1.00·skin-tone [−2.00, −0.50]" in str(e)
    assert "do(skin-tone) = −1.00" in str(e)


def test_an_interventional_effect_as_one_number():
    assert magnitude_of(Effect(-2.0), "binary") == -2.0
    assert magnitude_of(Effect(None), "binary") is None
    two = {"0": Effect(-1.0), "1": Effect(1.0)}
    assert magnitude_of(two, "multiclass") == pytest.approx(2.0)  # two centred classes: |margin|
    assert magnitude_of(two, "regression") == pytest.approx(2**0.5)
    assert magnitude_of({"0": Effect(None)}, "multiclass") is None


# --- in a notebook ----------------------------------------------------------------------------------------------------


def test_a_notebook_typesets_the_equation_with_its_intervals(event):
    shown = event._repr_html_()
    HTMLParser().feed(shown)
    text = plain(shown)
    for name, found in event.effect.items():
        assert name in text
        if isinstance(found, Effect) and found.low is not None:
            assert f"[{found.low:.2f}, {found.high:.2f}]".replace("-", "−") in text
    for share in event.contribution.values():
        assert (f"{100 * share.value:.1f} %" if share.value is not None else f"withheld: {share.note}") in text
    assert text.count("worst") == (event.groups is not None)
    assert all(note in text for note in event.notes)
    assert "given no hidden factor" in text


def test_a_notebook_shows_levels_below_their_variable():
    event = replace(full(), contribution={"breed": Share(0.6, 0.5)})
    assert "angus−1.00[−1.50, −0.50]" in plain(event._repr_html_())


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a&b", '"quoted"'])
def test_names_are_text_in_a_notebook(name):
    e = full()
    evil = replace(
        e,
        contribution={name: e.contribution["moo"], "x": Share(None, note=name)},
        effect={name: e.effect["moo"], "levels": {name: Effect(1.0)}},
        magnitude={name: 2.0},
        groups=Groups({name: 0.5}, {name: 3}, name, 0.5, 0.0),
        confounders=(name,),
        notes=(name,),
    )
    shown = evil._repr_html_()
    assert "<script" not in shown
    assert plain(shown).count(name) == 5  # equation, share, why withheld, group, note


def plain(shown: str) -> str:
    """The text of some HTML."""
    return html.unescape(re.sub(r"<[^>]*>", "", shown))
