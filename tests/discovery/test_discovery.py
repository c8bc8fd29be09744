"""`Discovery` in a loop by hand: what is found, said, kept and refused."""

from dataclasses import replace

import nets
import pytest
import torch
from discovery.feature_scenes import LAYER, MARGIN, discovery, draws, feed, looked, model, samples
from nets import fingerprint, hooks, said
from torch import nn

from lightning_interp import Concept, Confounder
from lightning_interp.discovery import Discovery, FeatureEvent, TopKDictionary
from lightning_interp.errors import InterpError, LayerError, ProbeSetError, VariableError
from lightning_interp.functional.shares import MAX_LMG

VARIANCE = [c**2 / 4 for c in MARGIN[:3]]  # of moo, tail, grass where all cells count the same


def plain(event):
    found = event.to_dict()
    del found["cost_seconds"]
    return found


def has_of(found, name, h):
    """Who has a feature of the last event."""
    j = found._found.names.index(name)
    return (found._found.code.codes(h)[:, j] > found._found.code.threshold[j]) ^ found._found.reversed[j]


def truth_of(found, batch, net):
    """{feature: what it is}."""
    with torch.no_grad():
        h = net.encoder(batch["x"])
    out = {}
    for f in found.latest.features:
        for name in nets.NAMES:
            agreement = float((has_of(found, f.name, h).long() == batch[name]).double().mean())
            if max(agreement, 1 - agreement) > 0.99:
                out[f.name] = name
    return out


def test_features_are_what_the_model_uses_and_nobody_has_named():
    net, batch = model(), samples()
    found = looked(net, batch)
    event = found.latest
    known = truth_of(found, batch, net)
    assert sorted(known.values()) == ["grass", "tail"]
    total = sum(VARIANCE) + 0.3**2
    share = {known[f.name]: f.contribution for f in event.features if f.name in known}
    assert share == pytest.approx({"tail": VARIANCE[1] / total, "grass": VARIANCE[2] / total}, abs=0.05)
    assert event.unexplained == pytest.approx(1 - VARIANCE[0] / total, abs=0.05)
    assert event.unnamed == pytest.approx(event.unexplained - sum(f.contribution for f in event.features))
    first = event.features[0]
    assert known[first.name] == "grass"
    assert first.clarity > 0.99
    assert first.prevalence == pytest.approx(0.5)
    assert first.causal == pytest.approx(VARIANCE[2] / (total - VARIANCE[0]), abs=0.05)
    assert (event.step, event.epoch, event.layer, event.n, event.weights) == (1, 0, LAYER, 480, "balanced")
    assert [f.suspicion for f in event.features] == sorted((f.suspicion for f in event.features), reverse=True)
    assert first.suspicion == pytest.approx(first.contribution * (1 + (first.flip or 0)) / 3)
    assert set(first.groups) == {"moo=0", "moo=1"}
    assert (first.early, first.stability, first.promoted) == (None, None, None)
    assert event.scalars() == {
        **{f"discovery/{LAYER}/{f.name}": f.contribution for f in event.features},
        f"discovery/{LAYER}/unnamed": event.unnamed,
    }
    assert event[first.name] is first
    with pytest.raises(KeyError):
        event["feature 99"]


def test_the_label_and_its_flip():
    """Grass travels with the label, and the model goes by the grass alone: it errs where grass is not the label."""
    net = nets.Equation([[0.0, 0, -2, -0.1], [0.0, 0, 2, 0.1]])
    net.head.bias.data = torch.tensor([1.0, -1.0]).double()
    batch = nets.probe({(m, t, g): 90 if m == g else 15 for m in (0, 1) for t in (0, 1) for g in (0, 1)})
    batch["y"] = batch["moo"]
    found = looked(net, batch)
    named = truth_of(found, batch, net)
    feature = found.latest[next(n for n, what in named.items() if what == "grass")]
    assert feature.flip == pytest.approx(1, abs=0.05)
    truth = float(torch.corrcoef(torch.stack([batch["grass"], batch["y"]]))[0, 1])
    assert abs(feature.target) == pytest.approx(truth, abs=0.1)
    assert truth > 0.6
    assert found.latest.features[0] is feature


def test_without_variables_all_is_unexplained_and_there_are_no_groups():
    event = looked(model(), samples(), variables=()).latest
    assert event.unexplained == pytest.approx(1)
    assert all(f.groups == {} for f in event.features)
    assert len([f for f in event.features if f.contribution > 0.02]) == 3


def test_size_and_order_of_batches_do_not_matter():
    net, batch = model(), samples()
    order = torch.randperm(len(batch["x"]), generator=torch.Generator().manual_seed(5))
    other = {k: v[order] for k, v in batch.items()}
    assert plain(looked(net, batch, 37).latest) == plain(looked(net, other, 100).latest)


def test_no_target_no_label_and_no_flip():
    net, batch = model(), {k: v for k, v in samples().items() if k != "y"}
    found = discovery(net, target=None)
    feed(found, net, batch)
    event = found.event(1)
    assert all(f.target is None and f.flip is None for f in event.features)


@pytest.mark.parametrize("task", ["regression", "several numbers", "classes", "labels", "one logit"])
def test_tasks(task):
    batch = samples()
    x = batch["x"]
    outputs = {"regression": 1, "several numbers": 2, "classes": 3, "labels": 2, "one logit": 1}[task]
    net = nets.Equation(draws(outputs, 4, seed=3).tolist())
    batch["y"] = {
        "regression": x[:, 2] * 2 + x[:, 3],
        "several numbers": x[:, 1:3] + x[:, 3:],
        "classes": batch["moo"] + batch["grass"],
        "labels": torch.stack([batch["moo"], batch["grass"]], 1).double(),
        "one logit": batch["moo"].double().unsqueeze(1),
    }[task]
    found = looked(net, batch)
    event = found.latest
    assert event.features
    assert event.unexplained > 0.05
    related = task in ("regression", "classes", "one logit")
    assert all((f.target is not None) == related for f in event.features)
    if related and task != "one logit":
        named = truth_of(found, batch, net)
        grass = event[next(n for n, what in named.items() if what == "grass")]
        assert abs(grass.target) > 0.5
        assert (grass.target < 0) <= (task == "regression")
    if task == "classes":
        assert all(f.target >= 0 for f in event.features)


class Words(nn.Module):
    """Tokens to `[n, t, d]`; the second logit counts one token, the grass."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 6)
        self.block = nn.Identity()
        self.head = nn.Linear(6, 2)

    def forward(self, ids):
        return self.head(self.block(self.embed(ids)).mean(1))


@pytest.mark.parametrize("decode", [None, lambda ids: "-".join(map(str, ids.tolist()))])
@pytest.mark.parametrize("pooling", ["mean", "first", "masked_mean"])
def test_a_layer_over_tokens(pooling, decode):
    net = Words()
    ids = torch.randint(2, 20, (300, 7), generator=torch.Generator().manual_seed(0))
    grass = torch.arange(300) % 2
    ids[:, 0] = torch.where(grass > 0, 0, 1)
    batch = {"x": ids, "moo": torch.arange(300) // 2 % 2, "y": grass, "attention_mask": torch.ones_like(ids)}
    net.embed.weight.data[0] += 4
    event = looked(net, batch, layer="block", pooling=pooling, decode=decode).latest
    first = max(event.features, key=lambda f: f.contribution)
    assert first.causal > 0.3
    start = "0 " if decode is None else "0-"
    ends = [first.strongest, first.weakest]
    assert all(end["kind"] == "text" and len(end["texts"]) == 8 for end in ends)
    with_grass = [all(text.startswith(start) for text in end["texts"]) for end in ends]
    assert sorted(with_grass) == [False, True]


# --- events -----------------------------------------------------------------------------------------------------------


def test_names_last_over_events_and_early_ones_are_told():
    net, batch = model(), samples()
    found = looked(net, batch)
    names = truth_of(found, batch, net)
    feed(found, net, batch)
    second = found.event(step=2)
    assert truth_of(found, batch, net) == names
    assert all(f.stability == pytest.approx(1) and f.early == 1 for f in second.features if f.name in names)
    assert [e.step for e in found.history] == [1, 2]
    assert found.latest is second
    assert all(f.strongest is None and f.weakest is None for f in found.history[0].features)
    assert any(f.strongest is not None for f in second.features)


def test_a_side_that_has_become_the_larger_one_keeps_the_feature():
    net = model()
    batch = samples({(m, t, g): 60 - 10 * g for m in (0, 1) for t in (0, 1) for g in (0, 1)})
    more = samples({(m, t, 1): 30 for m in (0, 1) for t in (0, 1)}, seed=8)
    found = looked(net, batch)
    name = next(n for n, what in truth_of(found, batch, net).items() if what == "grass")
    assert found.latest[name].prevalence == pytest.approx(50 / 110)
    batch = {k: torch.cat([v, more[k]]) for k, v in batch.items()}
    feed(found, net, batch)
    event = found.event(2)
    assert found._found.reversed[found._found.names.index(name)]
    assert event[name].prevalence == pytest.approx(80 / 140)
    assert torch.equal(found.promote(name, "lawn").read(batch)[0], batch["grass"].double())
    grass = [[row[event[name].strongest["columns"].index("input 2")] for row in side["rows"]]
             for side in (event[name].strongest, event[name].weakest)]  # fmt: skip
    assert grass == [[1.0] * 8, [0.0] * 8]


def test_samples_that_change_from_event_to_event_are_said():
    net = model()
    found = looked(net, samples())
    feed(found, net, samples(seed=5))
    with said("features are named anew: the samples are not those of the last event; `sample_id`"):
        event = found.event(2)
    assert all(f.stability is None and f.early == 0 for f in event.features)


def test_old_events_are_thinned():
    net, batch = model(), samples(20)
    found = discovery(net, max_events=4, show=0)
    for step in range(9):
        feed(found, net, batch, 400)
        found.event(step)
    steps = [e.step for e in found.history]
    assert len(steps) <= 4
    assert steps[0] == 0
    assert steps[-1] == 8


def test_more_samples_than_count_are_said():
    net, batch = model(), samples()
    found = discovery(net, max_samples=400)
    feed(found, net, batch, 100)
    with said("only the first 400 samples count, 80 came after them: shuffle the data, or raise `max_samples`"):
        event = found.event(1)
    assert event.n == 400
    feed(found, net, {k: v[:400] for k, v in batch.items()}, 100)
    assert found.event(2).notes == ()


def test_a_window_keeps_rows_and_inputs_in_step():
    net, batch = model(), samples()
    found = discovery(net)
    found.window, ran = 3, []
    for size in (100, 37, 480):
        feed(found, net, batch, size)
        assert [len(r.keep) for r in found._rows] == [len(keep) for _, keep, _ in found._replay.batches]
        ran = [*ran, *(len(part["x"]) for part in nets.cut(batch, size))][-3:]
        assert [len(r.keep) for r in found._rows] == ran
    feed(found, net, batch, 100)
    found.restart()
    feed(found, net, batch, 160)
    event = found.event(1)
    assert event.n == 480
    assert all(f.strongest["kind"] == "rows" and len(f.strongest["rows"]) == 8 for f in event.features)


@pytest.mark.parametrize("n", [1, 2, 60, 100])
def test_too_few_samples_are_a_note_and_no_error(n):
    net, batch = model(), {k: v[:n] for k, v in samples().items()}
    found = discovery(net)
    feed(found, net, batch)
    with said(r"discovery withheld: \d+ distinct samples in a half, 60 are needed"):
        event = found.event(1)
    assert (event.n, event.features, event.unexplained, event.unnamed) == (n, (), None, None)
    assert event.scalars() == {}
    assert "unexplained withheld" in str(event)
    with pytest.raises(InterpError, match="no event with features yet"):
        found.promote("feature 1", "lawn")


@pytest.mark.parametrize("still", ["activation", "output"])
def test_what_does_not_vary_is_a_note(still):
    net, batch = model(), samples()
    (net.encoder[0] if still == "activation" else net.head).weight.data.zero_()
    if still == "activation":
        net.forward = lambda x: net.head(net.encoder(x)) + x[:, :2]
    found = discovery(net)
    feed(found, net, batch)
    with said(f"discovery withheld: the {still} does not vary over the probe set"):
        assert found.event(1).features == ()


def test_a_layer_without_a_split_is_a_note():
    """All but two samples give the same: outliers, and nothing to be found."""
    net, batch = model(), samples()

    class Rare(nn.Module):
        def forward(self, h):
            out = torch.zeros_like(h)
            out[0] = h[0]
            return out

    net.encoder[1] = Rare()
    net.forward = lambda x: net.head(net.encoder(x)) + x[:, :2] * torch.tensor([0.0, 1.0])
    found = discovery(net)
    feed(found, net, batch, 240)
    with said(f"no feature found at '{LAYER}'"):
        event = found.event(1)
    assert event.features == ()
    assert event.unnamed == event.unexplained > 0.5
    with pytest.raises(VariableError, match="`feature='feature 1'` is not in the last event, which has none"):
        found.promote("feature 1", "lawn")


def test_bad_batches_are_left_out_and_counted():
    net, batch = model(), samples()
    good = looked(net, batch)
    found = discovery(net)
    bad = {k: v[:37].clone() for k, v in samples(seed=9).items()}
    bad["x"][3] = torch.nan
    with said("2 batches were left out"):
        for part in [*nets.cut(batch, 37), bad, {"x": bad["x"]}]:
            with found.watching(part), torch.no_grad():
                net(part["x"])
        event = found.event(1)
    assert replace(event, notes=(), cost_seconds=0) == replace(good.latest, cost_seconds=0)
    alone = discovery(net)
    feed(alone, net, bad)
    with pytest.raises(ProbeSetError, match="1 were left out") as problem:
        alone.event(1)
    assert problem.value.skipped == 1  # so that a callback goes on


def test_no_batch_at_all_is_an_error():
    with pytest.raises(ProbeSetError, match="the probe set is empty"):
        discovery(model()).event(1)


def test_an_exception_in_the_forward_pass_leaves_no_hook_and_no_rows():
    net, batch = model(), samples()
    found = discovery(net)

    def step():
        with found.watching(batch):
            net(batch["x"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step()
    assert hooks(net) == 0
    with pytest.raises(ProbeSetError):
        found.event(1)


def test_inputs_that_the_model_cannot_be_called_with_are_named():
    net, batch = model(), samples()
    found = discovery(net, inputs=None)  # the whole batch, a dict
    for part in nets.cut(batch, 100):
        with found.watching(part), torch.no_grad():
            net(part["x"])
    before = fingerprint(net)
    with pytest.raises(InterpError, match=r"`inputs` expects .* Equation could not be called .* batch: TypeError"):
        found.event(1)
    assert fingerprint(net) == before
    assert hooks(net) == 0


@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes_of_the_caller(outside):
    expected = plain(looked(model(), samples(), dictionary=TopKDictionary(atoms=6, steps=20)).latest)
    with outside():
        net, batch = model(), samples()
        found = looked(net, batch, dictionary=TopKDictionary(atoms=6, steps=20))
    assert plain(found.latest) == expected


def test_half_precision():
    net = model().float()
    batch = {k: v.float() if k == "x" else v for k, v in samples().items()}
    found = discovery(net)
    for part in nets.cut(batch, 100):
        with found.watching(part), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            net(part["x"])
    found.event(1)
    assert found.latest.features[0].contribution == pytest.approx(
        looked(model(), samples()).latest.features[0].contribution, abs=0.05
    )
    assert found._found.code.read.dtype == torch.float64


def test_features_are_the_most_that_are_reported():
    assert len(looked(model(), samples(), features=2).latest.features) == 2
    assert looked(model(), samples(), features=1).latest.features[0].contribution > 0.5


def test_nothing_is_shown_where_nothing_is_asked_for():
    assert all(f.strongest is None for f in looked(model(), samples(), show=0).latest.features)
    assert all(len(f.strongest["rows"]) == 3 for f in looked(model(), samples(), show=3).latest.features)


def test_strongest_and_weakest_are_the_ends_of_the_code():
    net, batch = model(), samples()
    found = looked(net, batch)
    with torch.no_grad():
        h = net.encoder(batch["x"])
    for j, name in enumerate(found._found.names):
        codes = found._found.code.codes(h)[:, j]
        f = found.latest[name]
        columns = [int(c.split()[1]) for c in f.strongest["columns"]]
        strongest = batch["x"][codes.argsort(descending=True)[:8]][:, columns]
        weakest = batch["x"][codes.argsort()[:8]][:, columns]
        if found._found.reversed[j]:
            strongest, weakest = weakest, strongest
        assert f.strongest["rows"] == strongest.tolist()
        assert f.weakest["rows"] == weakest.tolist()


# --- naming -----------------------------------------------------------------------------------------------------------


def test_promoted_names_show_in_events():
    net, batch = model(), samples()
    found = looked(net, batch)
    name = found.latest.features[0].name
    confounder = found.promote(name, "lawn")
    assert isinstance(confounder, Confounder)
    assert found.latest[name].promoted == "lawn"
    assert found.latest[name].strongest is not None
    feed(found, net, batch)
    assert found.event(2)[name].promoted == "lawn"
    assert f"{name} (lawn)" in str(found.latest)
    assert found.promoted == {name: "lawn"}


def test_a_promoted_feature_that_is_named_contributes_no_more():
    net, batch = model(), samples()
    found = looked(net, batch)
    lawn = found.promote(found.latest.features[0].name, "lawn")
    again = looked(net, batch, variables=[Concept("moo"), lawn])
    assert again.latest.unexplained < 0.3 * found.latest.unexplained
    assert sorted(truth_of(again, batch, net).values()) == ["tail"]
    assert again.latest.features[0].contribution == pytest.approx(again.latest.unexplained, rel=0.3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("feature 11", "lawn"), r"`feature='feature 11'` is not in the last event, which has .*\. Did you mean 'feature 1'"),
        (("feature 1", "lawn", "binray"), "`kind='binray'` is none of binary, continuous. Did you mean 'binary'?"),
        (("feature 1", "a/b"), "holds a '/'"),
    ],
)
def test_what_cannot_be_promoted(arguments, text):
    found = looked(model(), samples())
    with pytest.raises(VariableError, match=text):
        found.promote(*arguments)
    assert found.promoted == {}


def test_nothing_is_promoted_before_an_event():
    with pytest.raises(InterpError, match="`promote`: there was no event with features yet"):
        discovery(None).promote("feature 1", "lawn")


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dictionary", [None, lambda: TopKDictionary(atoms=6, steps=20)])
def test_state_round_trip(dictionary, tmp_path):
    made = (lambda: None) if dictionary is None else dictionary
    net, batch = model(), samples()
    found = looked(net, batch, dictionary=made())
    found.promote(found.latest.features[0].name, "lawn")
    torch.save(found.state_dict(), tmp_path / "state")
    other = discovery(net, dictionary=made())
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert other.history == found.history
    assert other.promoted == found.promoted
    name = found.latest.features[-1].name
    assert torch.equal(other.promote(name, "tail").read(batch)[0], found.promote(name, "tail").read(batch)[0])
    for one in (found, other):
        feed(one, net, batch)
        one.event(2)
    assert plain(found.latest) == plain(other.latest)
    assert [plain(e) for e in found.history] == [plain(e) for e in other.history]


def test_state_before_the_first_event_and_of_a_later_version():
    fresh = discovery(model())
    other = discovery(model())
    other.load_state_dict(fresh.state_dict())
    assert other.history == ()
    with pytest.raises(InterpError, match="discovery state has version 99, this library reads up to 1"):
        other.load_state_dict({**fresh.state_dict(), "version": 99})


def test_an_event_as_plain_types_and_back():
    event = looked(model(), samples()).latest
    found = event.to_dict()
    assert FeatureEvent.from_dict(found) == event
    found["features"][0]["new"] = 1  # of a later version
    assert FeatureEvent.from_dict({**found, "newer": 2}) == event
    assert event.features[0].name in str(event)
    assert "unexplained, unnamed" in str(event)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layer": "encoder.*"}, "`layer='encoder.*'` expects one submodule, but it stands for 2 (encoder.0, encoder.1, …)"),
        ({"layer": "encodr.1"}, "`layer='encodr.1'` is no submodule of Equation. Did you mean 'encoder.1'"),
        ({"layer": ["encoder.1"]}, "`layer` expects the name of one submodule, got ['encoder.1']"),
        ({"layer": "deep*"}, "'deep*' matches no submodule"),
        ({"output": "hed"}, "`output='hed'` is no submodule of Equation. Did you mean 'head'"),
        ({"features": MAX_LMG + 1}, "`features` expects 10 at most, got 11: their shares are exact up to there"),
        ({"features": 0}, "`features` expects a whole number of 1 or more, got 0"),
        ({"weights": "balance"}, "`weights`: 'balance' is none of balanced, natural. Did you mean 'balanced'?"),
        ({"pooling": "nets:first_token"}, "`pooling` expects one of the library's own"),
        ({"pooling": "means"}, "`pooling='means'` is none of"),
        ({"show": -1}, "`show` expects a whole number of 0 or more, got -1"),
        ({"max_events": 1}, "`max_events` expects a whole number of 2 or more"),
        ({"max_samples": 1}, "`max_samples` expects a whole number of 2 or more"),
        ({"decode": "nets:nowhere"}, "module 'nets' has no 'nowhere'"),
        (
            {"variables": [Concept("stripes", examples=(nets.with_stripes, nets.without_stripes))]},
            "a discovery needs a value of 'stripes' for every sample",
        ),
    ],
)
def test_arguments_that_cannot_be_used(options, text):
    with pytest.raises(InterpError) as problem:
        discovery(model(), **options)
    assert text in str(problem.value)


def test_a_glob_that_stands_for_one_layer_is_that_layer():
    event = looked(model(), samples(), layer="*.1").latest
    assert event.layer == "encoder.1"


def test_no_model_yet():
    found = Discovery(None, "encoder.1")
    with pytest.raises(InterpError, match="the Discovery has no model yet"):
        found.event(1)


def test_a_layer_that_never_ran_is_named():
    net, batch = model(), samples()
    net.spare = nn.Linear(2, 2)
    found = discovery(net, layer="spare")
    feed(found, net, batch)
    with pytest.raises(LayerError, match="`layer`: 'spare' never ran in a watched step"):
        found.event(1)
