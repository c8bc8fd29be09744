"""`Monitor` end to end, on nets whose equation is known, and on every kind of bad input."""

import io
import itertools
import math
import re
from typing import NamedTuple

import nets
import pytest
import torch
from nets import UNEVEN, Equation, cut, feed, measured, monitor_of, probe, said
from torch import nn

from lightning_interp import Concept, Confounder, Monitor
from lightning_interp.batches import text_key
from lightning_interp.errors import InterpError, LabelError, LayerError, ProbeSetError, VariableError
from lightning_interp.events import Effect

A, B, C, E = 2.0, -1.0, 0.5, 0.7  # moo, tail, grass, noise
ALL = ("contribution", "decodability", "groups", "sensitivity", "mediation", "intervention", "entanglement")


def net(*rows, **options) -> Equation:
    return Equation(rows or [[A, B, C, E]], **options)


def plain(event):
    """Everything but the time it took."""
    found = event.to_dict()
    del found["cost_seconds"]
    return found


def assert_close(a, b, rtol=1e-10, atol=1e-12, path=""):
    """Two plain structures, numbers to rounding."""
    if isinstance(a, dict):
        assert list(a) == list(b), path
        for k in a:
            assert_close(a[k], b[k], rtol, atol, f"{path}/{k}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            assert_close(x, y, rtol, atol, f"{path}/{i}")
    elif isinstance(a, float) and isinstance(b, float):
        assert math.isclose(a, b, rel_tol=rtol, abs_tol=atol), f"{path}: {a} {b}"
    else:
        assert a == b, path


# --- the equation is the true one -------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [20, UNEVEN])
@pytest.mark.parametrize("weights", ["balanced", "natural"])
def test_effects_are_the_coefficients_of_the_net(counts, weights):
    event = measured(net(constant=0.3), probe(counts), weights=weights)
    assert event.weights == weights
    assert event.task == "binary"
    for name, truth in zip(nets.NAMES, (A, B, C)):
        assert event.effect[name].value == pytest.approx(truth, rel=1e-12)
        assert event.magnitude[name] == pytest.approx(truth, rel=1e-12)
        assert event.effect[name].low < truth < event.effect[name].high
    assert event.intercept == pytest.approx(0.3 + (A + B + C) / 2, rel=1e-12)


def test_shares_are_those_of_an_orthogonal_design():
    batch = probe(20)
    event = measured(net(), batch)
    total = (A**2 + B**2 + C**2) / 4 + E**2 * float(batch["x"][:, 3].pow(2).mean())
    for name, b in zip(nets.NAMES, (A, B, C)):
        share, effect = event.contribution[name], event.effect[name]
        assert share.value == pytest.approx(b**2 / 4 / total, rel=1e-10)
        assert share.debiased == pytest.approx((b**2 - effect.se**2) / 4 / total, rel=1e-10)
    assert event.contribution["unexplained"].value == pytest.approx(1 - (A**2 + B**2 + C**2) / 4 / total, rel=1e-10)


@pytest.mark.parametrize("interactions", [False, True])
@pytest.mark.parametrize("counts", [20, UNEVEN])
@pytest.mark.parametrize("weights", ["balanced", "natural"])
def test_raw_shares_sum_to_one(interactions, counts, weights):
    model = net([A, B, C, E], [1.0, 2.0, -1.0, 0.2], [0.0, 0.5, 1.5, -0.4])
    event = measured(model, probe(counts), interactions=interactions, weights=weights)
    names = [*nets.NAMES, *(["interactions"] if interactions else []), "unexplained"]
    assert list(event.contribution) == names
    assert sum(s.value for s in event.contribution.values()) == pytest.approx(1, abs=1e-12)


class Product(nn.Module):
    """A·moo + D·moo·tail, with variables in 0/1."""

    def forward(self, x):
        return (A * x[:, 0] + 1.5 * x[:, 0] * x[:, 1] + E * x[:, 3])[:, None]


def test_with_an_interaction_balanced_averages_over_the_other_variable_and_natural_does_not():
    batch = probe(UNEVEN)
    balanced = measured(Product(), batch, weights="balanced")
    assert balanced.effect["moo"].value == pytest.approx(A + 1.5 / 2, rel=1e-12)
    assert balanced.effect["tail"].value == pytest.approx(1.5 / 2, rel=1e-12)
    natural = measured(Product(), batch, weights="natural")
    z = torch.cat([torch.ones(len(batch["x"]), 1), batch["x"][:, :3] - 0.5], 1)
    plainly = torch.linalg.lstsq(z, Product()(batch["x"])).solution[:, 0]
    for j, name in enumerate(nets.NAMES):
        assert natural.effect[name].value == pytest.approx(float(plainly[1 + j]), rel=1e-9, abs=1e-12)
    assert abs(natural.effect["moo"].value - balanced.effect["moo"].value) > 0.02


def test_interactions_are_split_from_what_is_unexplained():
    batch = probe(20)
    event = measured(Product(), batch, interactions=True)
    noise = E**2 * float(batch["x"][:, 3].pow(2).mean())
    crossed = (1.5 / 4) ** 2  # 1.5·moo·tail = … + 1.5·z·z', variance of z·z' is 1/16
    total = ((A + 0.75) ** 2 + 0.75**2) / 4 + crossed + noise
    assert event.contribution["interactions"].value == pytest.approx(crossed / total, rel=1e-9)
    assert event.contribution["unexplained"].value == pytest.approx(noise / total, rel=1e-9)
    assert event.effect["moo"].value == pytest.approx(A + 0.75, rel=1e-12)


def test_the_interval_of_two_equal_groups_is_students():
    # one binary variable, equal cells: HC2 is Student's two-sample interval
    from scipy import stats

    batch = probe(20)
    event = measured(net(), batch, [Concept("moo")])
    o = net()(batch["x"]).detach().numpy()[:, 0]
    moo = batch["moo"].numpy()
    truth = stats.ttest_ind(o[moo == 1], o[moo == 0], equal_var=True).confidence_interval(0.95)
    assert event.effect["moo"].low == pytest.approx(truth.low, rel=1e-9)
    assert event.effect["moo"].high == pytest.approx(truth.high, rel=1e-9)


# --- every form of output ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("squeeze", [False, True])
def test_a_single_logit_and_a_margin_of_two_are_the_same(squeeze):
    batch = probe(UNEVEN)

    class One(Equation):
        def forward(self, x):
            return super().forward(x)[:, 0] if squeeze else super().forward(x)

    one = measured(One([[A, B, C, E]]), batch, target="moo")
    two = measured(net([0.5, 1, 2, 0], [0.5 + A, 1 + B, 2 + C, E]), batch, target="moo")
    assert one.task == two.task == "binary"
    assert_close(one.to_dict()["effect"], two.to_dict()["effect"], rtol=1e-9)
    assert_close(one.to_dict()["contribution"], two.to_dict()["contribution"], rtol=1e-9)
    assert one.effect["grass"].value == pytest.approx(C)


def test_accuracy_by_cell_is_counted_as_by_hand():
    batch = probe(UNEVEN)
    model = net([-1.0, 0, 0, 0], [1.0, 0.5, -2.0, 1.5])
    event = measured(model, batch, target="moo")
    guess = model(batch["x"]).argmax(1)
    for moo, tail, grass in itertools.product((0, 1), repeat=3):
        at = (batch["moo"] == moo) & (batch["tail"] == tail) & (batch["grass"] == grass)
        cell = f"moo={moo},tail={tail},grass={grass}"
        assert event.groups.accuracy[cell] == pytest.approx(float((guess == batch["moo"])[at].double().mean()))
        assert event.groups.count[cell] == UNEVEN[moo, tail, grass]
    assert event.groups.worst_accuracy == min(event.groups.accuracy.values())
    assert event.groups.accuracy[event.groups.worst] == event.groups.worst_accuracy
    assert event.groups.gap == pytest.approx(max(event.groups.accuracy.values()) - event.groups.worst_accuracy)


def test_without_a_target_accuracy_is_withheld():
    assert measured(net(), probe(20)).groups is None


def test_the_second_element_of_a_tuple_is_the_target():
    batch = probe(20)
    monitor = Monitor(net(), [Concept("moo", 2), Concept("tail", 3)], warn_above=math.inf)
    with monitor.watching((batch["x"], batch["moo"], batch["moo"], batch["tail"])):
        monitor.model(batch["x"])
    event = monitor.event(1)
    guess = monitor.model(batch["x"])[:, 0] > 0
    at = (batch["moo"] == 1) & (batch["tail"] == 0)
    assert event.groups.accuracy["moo=1,tail=0"] == pytest.approx(float((guess == batch["moo"])[at].double().mean()))


def test_several_classes_give_one_effect_per_centred_class():
    rows = [[1.0, 0.0, 2.0, 0.1], [0.0, -1.0, 0.5, 0.3], [4.0, 2.0, 0.0, -0.2]]
    event = measured(net(*rows), probe(UNEVEN), target="moo")
    assert event.task == "multiclass"
    assert event.intercept is None
    weight = torch.tensor(rows, dtype=torch.float64)
    centred = weight - weight.mean(0)
    for j, name in enumerate(nets.NAMES):
        assert list(event.effect[name]) == ["0", "1", "2"]
        for k in range(3):
            assert event.effect[name][str(k)].value == pytest.approx(float(centred[k, j]), abs=1e-12)
        assert event.magnitude[name] == pytest.approx(float((2 * centred[:, j].pow(2).sum()).sqrt()))
    assert sum(s.value for s in event.contribution.values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_floating_target_makes_a_regression(outputs):
    rows = [[A, B, C, E], [1.0, 0.0, 2.0, 0.1], [0.0, -1.0, 0.5, 0.3]][:outputs]
    batch = probe(20)
    batch["y"] = batch["x"][:, 3] * 10
    event = measured(net(*rows), batch, target="y")
    assert event.task == "regression"
    assert event.groups is None
    weight = torch.tensor(rows, dtype=torch.float64)
    for j, name in enumerate(nets.NAMES):
        found = event.effect[name]
        values = [found.value] if isinstance(found, Effect) else [e.value for e in found.values()]
        assert values == pytest.approx(weight[:, j].tolist(), abs=1e-12)
        size = float(weight[0, j]) if outputs == 1 else float(weight[:, j].norm())
        assert event.magnitude[name] == pytest.approx(size)


@pytest.mark.parametrize("outputs", [2, 3])
def test_a_target_of_the_outputs_shape_makes_it_multilabel(outputs):
    rows = [[2.0, 0.0, 1.0, 0.5], [0.0, -3.0, 1.0, 0.5], [1.0, 1.0, -4.0, 0.5]][:outputs]
    batch = probe(20)
    batch["labels"] = batch["x"][:, :outputs].clone()
    model = net(*rows)
    event = measured(model, batch, target="labels")
    assert event.task == "multilabel"
    weight = torch.tensor(rows, dtype=torch.float64)
    for j, name in enumerate(nets.NAMES):  # the logits themselves, not centred over the labels
        assert [e.value for e in event.effect[name].values()] == pytest.approx(weight[:, j].tolist(), abs=1e-12)
        assert event.magnitude[name] == pytest.approx(float(weight[:, j].norm()))
    right = ((model(batch["x"]) > 0) == (batch["labels"] > 0.5)).double().mean(1)
    at = (batch["moo"] == 1) & (batch["tail"] == 1) & (batch["grass"] == 1)
    assert event.groups.accuracy["moo=1,tail=1,grass=1"] == pytest.approx(float(right[at].mean()))


class Says(nn.Module):
    """Wraps a net's output the way its user likes."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.net = net()
        self.wrap = wrap

    def forward(self, x):
        hidden = self.net.encoder(x)
        return self.wrap(self.net.head(hidden), hidden)


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


WRAPS = {
    "tuple": lambda o, h: (o, h),
    "namedtuple": lambda o, h: Pair(o, h),
    "list": lambda o, h: [o],
    "dict": lambda o, h: {"out": o, "hidden": h},
    "logits after hidden": lambda o, h: {"hidden": h, "logits": o},
    "logits after loss": lambda o, h: {"loss": o.mean(), "logits": o},
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS.keys())
def test_the_result_of_the_forward_may_be_a_tuple_or_a_dict(wrap):
    grass = Confounder("grass", intervention="nets:swap_grass")
    event = measured(Says(wrap), probe(20), [Concept("moo"), grass], measures=ALL, layers=["net.encoder.0"], target="moo")
    assert event.effect["grass"].value == pytest.approx(C)
    # the passes of the library's own must explain the same output
    assert event.intervention["grass"].value == pytest.approx(C)
    assert event.sensitivity["net.encoder.0"]["grass"][""].value == pytest.approx(C, rel=1e-6)


@pytest.mark.parametrize("output", ["head", "encoder.1"])
def test_the_output_may_be_any_module(output):
    batch = probe(20)
    model = net()
    event = measured(model, batch, output=output)
    o = model(batch["x"]) if output == "head" else model.encoder(batch["x"])
    o = o - o.mean(1, keepdim=True) if o.shape[1] > 1 else o
    want = (o[batch["moo"] == 1].mean(0) - o[batch["moo"] == 0].mean(0)).tolist()
    found = event.effect["moo"]
    assert ([found.value] if isinstance(found, Effect) else [e.value for e in found.values()]) == pytest.approx(want)


def test_of_a_module_that_runs_twice_the_last_call_counts_and_that_is_said_once():
    model, batch = net(), probe(20)
    monitor = monitor_of(model, output="head")
    with said("'head' ran 2 times in one step: its last call counts") as texts:
        for part in cut(batch, 40):
            with monitor.watching(part):
                model(part["x"] * 0)
                model(part["x"])
    assert len(texts) == 1
    assert monitor.event(1).effect["moo"].value == pytest.approx(A)


# --- every kind of variable -------------------------------------------------------------------------------------------


def categorical(levels: int, per_level: int = 12, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    breed = torch.arange(levels).repeat_interleave(per_level)
    noise = torch.randn(len(breed), generator=g, dtype=torch.float64).view(levels, -1)
    noise = (noise - noise.mean(1, keepdim=True)).flatten()
    value = torch.randn(levels, generator=g, dtype=torch.float64)
    return breed, torch.stack([value[breed], noise], 1), value


@pytest.mark.parametrize("levels", [3, 12, 40])
@pytest.mark.parametrize("text", [False, True])
def test_each_level_of_a_categorical_variable_has_its_deviation_from_their_mean(levels, text):
    breed, x, value = categorical(levels)
    names = [f"breed {chr(97 + (7 * k) % 26)}{k}" for k in range(levels)]
    batch = {"x": x, "breed": [names[k] for k in breed.tolist()] if text else breed}
    event = measured(net([1.0, 0.5]), batch, [Concept("breed", kind="categorical")], size=50)
    assert event.coding["breed"]["kind"] == "categorical"
    shown = names if text else [str(k) for k in range(levels)]
    assert list(event.effect["breed"]) == (sorted(names) if text else shown)
    for k, name in enumerate(shown):
        assert event.effect["breed"][name].value == pytest.approx(float(value[k] - value.mean()), abs=1e-10)
    assert event.magnitude["breed"] == pytest.approx(2 * float(value.std(unbiased=False)))


def test_two_string_levels_are_binary_in_the_order_of_their_names():
    batch = probe(20)
    batch["place"] = ["desert" if g else "meadow" for g in batch["grass"].tolist()]
    event = measured(net(), batch, [Concept("moo"), Confounder("place")], target="moo")
    values = event.coding["place"].pop("values")
    assert event.coding["place"] == {"kind": "binary", "levels": ["desert", "meadow"], "center": 0.0, "scale": 1.0}
    assert values == [float(text_key([name]).item() >> 12) for name in ("desert", "meadow")]
    assert event.effect["place"].value == pytest.approx(-C)
    assert "moo=0,place=desert" in event.groups.accuracy


def test_string_levels_that_come_in_different_batches_are_all_named():
    breed, x, value = categorical(4, per_level=20)
    names = ["angus", "brahman", "charolais", "dexter"]
    model = net([1.0, 0.5])
    monitor = monitor_of(model, [Concept("breed")])
    feed(monitor, model, ({"x": x[breed == k], "breed": [names[k]] * 20} for k in (2, 0, 3, 1)))
    event = monitor.event(1)
    assert list(event.effect["breed"]) == names
    assert event.effect["breed"]["charolais"].value == pytest.approx(float(value[2] - value.mean()))


def test_two_levels_declared_categorical_span_the_binary_effect():
    batch = probe(20)
    event = measured(net(), batch, [Concept("moo", kind="categorical"), Concept("tail")])
    assert event.effect["moo"]["1"].value == pytest.approx(A / 2)
    assert event.effect["moo"]["0"].value == pytest.approx(-A / 2)
    assert event.magnitude["moo"] == pytest.approx(A)


def test_a_continuous_variable_has_its_effect_per_standard_deviation():
    g = torch.Generator().manual_seed(1)
    size = torch.randn(300, generator=g, dtype=torch.float64) * 7 + 40
    moo = (torch.rand(300, generator=g) < 0.5).long()
    batch = {"x": torch.stack([size, moo.double(), torch.zeros(300)], 1), "size": size, "moo": moo}
    event = measured(net([0.3, A, 0.0]), batch, [Concept("size"), Concept("moo")])
    assert event.coding["size"]["kind"] == "continuous"
    assert event.coding["size"]["center"] == pytest.approx(float(size.mean()))
    assert event.coding["size"]["scale"] == pytest.approx(float(size.std(unbiased=False)))
    assert event.effect["size"].value == pytest.approx(0.3 * float(size.std(unbiased=False)))
    assert event.effect["moo"].value == pytest.approx(A)
    assert event.contribution["unexplained"].value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("kind", "shown"), [("auto", "categorical"), ("continuous", "continuous")])
def test_the_users_kind_decides(kind, shown):
    breed, x, _ = categorical(5)
    assert measured(net([1.0, 0.5]), {"x": x, "breed": breed}, [Concept("breed", kind=kind)]).coding["breed"]["kind"] == shown


# --- weights and clusters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ({**UNEVEN, (0, 1, 0): 4}, "natural weights: cell moo=0,tail=1,grass=0 has 4 samples, balanced ones need 5"),
        ({**UNEVEN, (0, 1, 0): 0}, "natural weights: 1 of 8 cells are empty"),
    ],
)
def test_balanced_weights_that_cannot_be_had_are_natural_and_that_is_said(counts, why):
    with said(why):
        event = measured(net(), probe(counts))
    assert event.weights == "natural"
    assert why in event.notes
    assert event.effect["grass"].value == pytest.approx(C)


def test_clusters_of_one_change_nothing():
    batch = probe(UNEVEN)
    batch["id"] = torch.arange(len(batch["x"]))
    alone, clustered = measured(net(), batch), measured(net(), batch, cluster="id")
    assert_close(alone.to_dict()["effect"], clustered.to_dict()["effect"], rtol=1e-9)
    assert_close(alone.to_dict()["contribution"], clustered.to_dict()["contribution"], rtol=1e-9)


def test_copies_of_samples_add_no_certainty_when_their_cluster_is_named():
    batch = probe(UNEVEN)
    batch["id"] = [f"cow {i}" for i in range(len(batch["x"]))]
    four = {k: v * 4 if isinstance(v, list) else v.repeat(4, *[1] * (v.ndim - 1)) for k, v in batch.items()}
    once, naive, honest = measured(net(), batch), measured(net(), four), measured(net(), four, cluster="id")
    assert naive.effect["moo"].se < 0.6 * once.effect["moo"].se
    assert honest.effect["moo"].se == pytest.approx(once.effect["moo"].se, rel=1e-9)
    assert honest.effect["moo"].low == pytest.approx(once.effect["moo"].low, rel=1e-9)


# --- layers -----------------------------------------------------------------------------------------------------------


def test_what_a_layer_holds_is_decodable_and_what_it_lost_is_not():
    class Loses(Equation):
        def __init__(self):
            super().__init__([[A, B, C, E]])
            self.gone = nn.Identity()
            self.kept = nn.Identity()

        def forward(self, x):
            self.gone(x * torch.tensor([0.0, 1.0, 1.0, 1.0]))
            return super().forward(self.kept(x))

    event = measured(Loses(), probe(40), layers=["gone", "kept"])
    assert event.decodability["kept"]["moo"].value > 0.97
    assert event.decodability["kept"]["moo"].accuracy == 1.0
    assert event.decodability["kept"]["moo"].auroc == 1.0
    assert event.decodability["kept"]["moo"].selectivity > 0.9
    assert event.decodability["gone"]["moo"].value < 0.05
    assert event.decodability["gone"]["moo"].accuracy < 0.65
    assert event.decodability["gone"]["tail"].value > 0.97


def test_decodability_is_that_of_scikit_learns_ridge():
    linear_model = pytest.importorskip("sklearn.linear_model")
    from lightning_interp.functional.probe import RIDGE
    from lightning_interp.functional.sampling import content_key, uniform

    batch, model = probe(UNEVEN), net()
    event = measured(model, batch, layers=["encoder.0"], seed=5)
    h = model.encoder[0](batch["x"]).detach()
    second = uniform(content_key(batch["x"]), 5, 0) >= 0.5
    for name in nets.NAMES:
        y, scores = batch[name].double().numpy(), []
        for fit_on in (~second, second):
            a, b = fit_on.numpy(), ~fit_on.numpy()
            alpha = RIDGE * float(torch.cov(h[fit_on].T, correction=0).trace()) / h.shape[1] * int(a.sum())
            scores.append(linear_model.Ridge(alpha=alpha).fit(h.numpy()[a], y[a]).score(h.numpy()[b], y[b]))
        assert event.decodability["encoder.0"][name].value == pytest.approx(sum(scores) / 2, rel=1e-9)


def test_an_in_place_layer_after_a_layer_does_not_reach_it():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Identity()

        def forward(self, x):
            return self.first(-x).clamp_(min=0)[:, :1] + x[:, 1:2]

    event = measured(InPlace(), probe(20, noise=0.0), layers=["first"])
    assert event.decodability["first"]["moo"].value > 0.95  # it holds −moo before the clamp, nothing after it


def test_a_pooling_functions_view_is_not_reached_either():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Identity()

        def forward(self, x):
            return self.first(-x[:, None, :].clone()).clamp_(min=0)[:, 0, :1] + x[:, 1:2]

    event = measured(InPlace(), probe(20, noise=0.0), layers=["first"], pooling="nets:first_token")
    assert event.decodability["first"]["moo"].value > 0.95


@pytest.mark.parametrize("counts", [20, UNEVEN])
@pytest.mark.parametrize("layer", ["encoder.0", "encoder.1"])
@pytest.mark.parametrize("weights", ["balanced", "natural"])
def test_before_a_linear_head_the_sensitivity_is_the_effect(layer, counts, weights):
    event = measured(net(), probe(counts), layers=[layer], measures=ALL, weights=weights)
    for name, truth in zip(nets.NAMES, (A, B, C)):
        found = event.sensitivity[layer][name][""]
        assert found.value == pytest.approx(event.effect[name].value, rel=1e-6)
        assert found.value == pytest.approx(truth, rel=1e-6)
        assert found.tcav == float(truth > 0)
        assert "all gradients are equal" in found.note


def test_sensitivity_of_every_class_and_level_is_its_effect_too():
    breed, x, _ = categorical(4, per_level=20)
    rows = [[1.0, 0.5], [-0.5, 0.1], [2.0, 0.2]]
    event = measured(net(*rows), {"x": x, "breed": breed}, [Concept("breed")], layers=["encoder.0"], measures=ALL)
    found = event.sensitivity["encoder.0"]["breed"]
    assert list(found) == list(event.effect["breed"]) == [f"{k},{c}" for k in range(4) for c in range(3)]
    for by, s in found.items():
        assert s.value == pytest.approx(event.effect["breed"][by].value, rel=1e-6, abs=1e-9)


class Returns(nn.Module):
    """A layer that returns its tensor inside something."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, h):
        return self.wrap(h)


LAYERS = {
    "tuple": (lambda h: (h, None), lambda r: r[0]),
    "nested": (lambda h: ((h,), None), lambda r: r[0][0]),
    "list": (lambda h: [h], lambda r: r[0]),
    "dict": (lambda h: {"h": h}, lambda r: r["h"]),
    "dict of tuple": (lambda h: {"h": (h,)}, lambda r: r["h"][0]),
    "namedtuple": (lambda h: Pair(h, h), lambda r: r.first),
}


@pytest.mark.parametrize(("wrap", "unwrap"), LAYERS.values(), ids=LAYERS.keys())
def test_sensitivity_reaches_into_whatever_a_layer_returns(wrap, unwrap):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()
            self.layer = Returns(wrap)

        def forward(self, x):
            return self.inner.head(unwrap(self.layer(self.inner.encoder(x))))

    event = measured(Net(), probe(20), layers=["layer"], measures=ALL)
    assert event.sensitivity["layer"]["moo"][""].value == pytest.approx(A, rel=1e-6)


def test_a_layer_that_runs_without_gradients_has_no_sensitivity_and_that_is_said():
    # a frozen backbone under no_grad: zero would say that the output does not answer to it
    class Frozen(Equation):
        def forward(self, x):
            with torch.no_grad():
                h = self.encoder(x)
            return self.head(h)

    model = Frozen([[A, B, C, E]])
    monitor = monitor_of(model, layers=["encoder.0"], measures=ALL)
    feed(monitor, model, cut(probe(20), 40))
    with said("sensitivity .*withheld"):
        event = monitor.event(1)
    assert all(s.value is None for s in event.sensitivity.get("encoder.0", {}).get("moo", {}).values())
    assert event.effect["moo"].value == pytest.approx(A)


def test_a_forward_that_allows_no_gradients_at_all_does_not_end_the_run():
    class NoGrad(Equation):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    model = NoGrad([[A, B, C, E]])
    monitor = monitor_of(model, layers=["encoder.0"], measures=ALL)
    feed(monitor, model, cut(probe(20), 40))
    with said("sensitivity .*withheld"):
        event = monitor.event(1)
    assert event.effect["moo"].value == pytest.approx(A)


def test_a_glob_may_find_layers_that_never_run():
    class Spare(Equation):
        def __init__(self):
            super().__init__([[A, B, C, E]])
            self.spare = nn.Linear(4, 4)

    model, batch = Spare(), probe(20)
    monitor = monitor_of(model, layers=["en*", "sp*"])
    feed(monitor, model, cut(batch, 40))
    with said("layer 'spare' never ran in a watched step"):
        event = monitor.event(1)
    assert set(event.decodability) == {"encoder"}


def test_a_layer_of_one_unit_is_read_like_any_other():
    event = measured(net([5.0, 1.0, 0.5, 0.2]), probe(20), layers=["head"], measures=ALL)
    assert event.decodability["head"]["moo"].value > 0.8
    assert event.sensitivity["head"]["moo"][""].value == pytest.approx(5.0, rel=1e-6)


def test_only_a_constant_variable_and_a_layer_still_give_an_event():
    batch = probe({(1, 0, 0): 40, (1, 1, 1): 40})  # one cell, one output: a table of a single number
    with said("'moo' is constant over the probe set"):
        event = measured(net(), batch, [Concept("moo")], layers=["encoder.0"])
    assert event.decodability["encoder.0"]["moo"].value is None
    assert event.contribution["unexplained"].value == pytest.approx(1)


# --- drift ------------------------------------------------------------------------------------------------------------


def test_drift_is_the_turn_of_a_direction_between_events():
    class Turning(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()
            self.angle = 0.0

        def forward(self, x):
            moo, noise = x[:, 0] - 0.5, x[:, 3]
            h = self.layer(torch.stack([math.cos(self.angle) * moo, math.sin(self.angle) * moo, noise], 1))
            return h.sum(1, keepdim=True)

    model, batch = Turning(), probe(20)
    monitor = monitor_of(model, [Concept("moo")], layers=["layer"])
    drifts = []
    for angle in (0.0, 0.0, 0.3, 0.3 + math.pi / 2, 0.3 + math.pi / 2 + math.pi):
        model.angle = angle
        feed(monitor, model, cut(batch, 50))
        drifts.append(monitor.event(1).decodability["layer"]["moo"].drift)
    assert drifts[0] is None
    assert drifts[1:] == pytest.approx([0, 1 - math.cos(0.3), 1, 0], abs=1e-9)  # a subspace: the sign does not matter


# --- interventions ----------------------------------------------------------------------------------------------------


class Curved(nn.Module):
    """grass works only where there is a tail, and saturates."""

    def forward(self, x):
        return torch.tanh(x[:, 0] + 1.3 * x[:, 2] * x[:, 1] + 0.4 * x[:, 2] + 0.2 * x[:, 3])[:, None]


@pytest.mark.parametrize("weights", ["balanced", "natural"])
@pytest.mark.parametrize("counts", [20, UNEVEN])
def test_an_intervention_is_the_weighted_mean_of_paired_differences(weights, counts):
    batch, model = probe(counts), Curved()
    which = [Concept("moo"), Concept("tail"), Confounder("grass", intervention="nets:swap_grass")]
    event = measured(model, batch, which, measures=ALL, weights=weights)
    one, zero = batch["x"].clone(), batch["x"].clone()
    one[:, 2], zero[:, 2] = 1, 0
    difference = (model(one) - model(zero))[:, 0]
    cell = 4 * batch["moo"] + 2 * batch["tail"] + batch["grass"]
    by_cell = torch.stack([difference[cell == k].mean() for k in range(8)])
    truth = by_cell.mean() if weights == "balanced" else difference.mean()
    found = event.intervention["grass"]
    assert found.value == pytest.approx(float(truth), rel=1e-12)
    assert found.low < found.value < found.high
    assert event.intervention_gap["grass"] == pytest.approx(event.effect["grass"].value - float(truth), rel=1e-9)


def test_an_intervention_of_several_classes_is_that_of_each_centred_logit():
    rows = [[1.0, 0.0, 2.0, 0.1], [0.0, -1.0, 0.5, 0.3], [4.0, 2.0, 0.0, -0.2]]
    grass = Confounder("grass", intervention="nets:swap_grass")
    event = measured(net(*rows), probe(20), [Concept("moo"), grass], measures=ALL)
    column = torch.tensor([r[2] for r in rows], dtype=torch.float64)
    for k, want in enumerate((column - column.mean()).tolist()):
        assert event.intervention["grass"][str(k)].value == pytest.approx(want)
        assert event.intervention["grass"][str(k)].value == pytest.approx(event.effect["grass"][str(k)].value)


def test_an_intervention_on_a_continuous_variable_is_per_standard_deviation():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(200, 2, generator=g, dtype=torch.float64) * 3
    size = Confounder("size", intervention=lambda b: {**b, "x": b["x"] + torch.tensor([0.5, 0.0]), "size": b["size"] + 0.5})
    event = measured(net([0.3, 1.0]), {"x": x, "size": x[:, 0].clone()}, [size], measures=ALL)
    assert event.intervention["size"].value == pytest.approx(0.3 * float(x[:, 0].std(unbiased=False)))


def test_an_intervention_that_leaves_the_label_alone_still_flips_a_binary_variable():
    grass = Confounder("grass", intervention=lambda b: {**b, "x": nets.swap_grass(b)["x"]})
    event = measured(net(), probe(20), [Concept("moo"), grass], measures=ALL)
    assert event.intervention["grass"].value == pytest.approx(C)


def test_an_intervention_that_changes_the_batch_in_place_is_none_the_worse():
    def in_place(batch):
        batch["x"][:, 2] = 1 - batch["x"][:, 2]
        batch["grass"] = 1 - batch["grass"]
        return batch

    batch = probe(20)
    before = batch["x"].clone()
    event = measured(net(), batch, [Concept("moo"), Confounder("grass", intervention=in_place)], measures=ALL)
    assert event.intervention["grass"].value == pytest.approx(C)
    assert torch.equal(batch["x"], before)


def test_samples_without_a_label_do_not_enter_an_intervention():
    # grass works in cows only; half of the others' labels are missing: they must not count as level 0
    class Only(nn.Module):
        def forward(self, x):
            return (x[:, 0] * x[:, 2] + 0.1 * x[:, 3])[:, None]

    batch = probe(20)
    batch["moo"] = batch["moo"].double()
    extra = {k: v[batch["moo"] == 1] for k, v in batch.items()}
    extra["moo"] = torch.full_like(extra["moo"], math.nan)
    both = {k: torch.cat([v, extra[k]]) for k, v in batch.items()}
    grass = Confounder("grass", intervention=lambda b: {**b, "x": nets.swap_grass(b)["x"]})
    found = measured(Only(), both, [Concept("moo"), grass], measures=ALL, weights="natural")
    assert found.n == len(batch["x"])
    assert found.intervention["grass"].value == pytest.approx(0.5)


def test_an_intervention_that_fails_is_withheld_with_its_error():
    def broken(batch):
        raise KeyError("no mask")

    model = net()
    monitor = monitor_of(model, [Concept("moo"), Confounder("grass", intervention=broken)], measures=ALL)
    feed(monitor, model, [probe(20)])
    with said("intervention of 'grass' withheld: KeyError: 'no mask'"):
        event = monitor.event(1)
    assert event.intervention["grass"].value is None
    assert event.effect["grass"].value == pytest.approx(C)


def test_a_batch_with_nan_does_not_spoil_the_passes_of_its_own():
    batch, model = probe(20), net()
    bad = {k: v.clone() for k, v in batch.items()}
    bad["x"][0, 3] = math.nan
    which = [Concept("moo"), Confounder("grass", intervention="nets:swap_grass")]
    monitor = monitor_of(model, which, layers=["encoder.0"], measures=ALL)
    feed(monitor, model, [batch, bad])
    with said("batches with NaN or infinite outputs or activations are left out"):
        event = monitor.event(1)
    assert event.n == len(batch["x"])
    assert event.intervention["grass"].value == pytest.approx(C)
    assert event.sensitivity["encoder.0"]["moo"][""].value == pytest.approx(A, rel=1e-6)


# --- nothing depends on how the samples come --------------------------------------------------------------------------


def rich(seed=4):
    """A probe set with every kind of variable, and a net that works row by row."""
    g = torch.Generator().manual_seed(seed)
    n = 260
    moo = (torch.rand(n, generator=g) < 0.5).long()
    grass = torch.where(torch.rand(n, generator=g) < 0.8, moo, 1 - moo)
    breed = torch.randint(3, (n,), generator=g)
    size = torch.randn(n, generator=g, dtype=torch.float64)
    x = torch.stack([moo.double(), grass.double(), breed.double(), size, torch.randn(n, generator=g, dtype=torch.float64)], 1)
    names = ["angus", "brahman", "dexter"]
    return {"x": x, "moo": moo, "grass": grass, "breed": [names[k] for k in breed.tolist()], "size": size,
            "herd": torch.arange(n) // 3}  # fmt: skip


class RowByRow(nn.Module):
    """Elementwise, so that a row's output has the same bits in any batch."""

    def __init__(self):
        super().__init__()
        self.enc = nn.Tanh()

    def forward(self, x):
        h = self.enc(torch.stack([x[:, 0] + 0.3 * x[:, 4], x[:, 1] - 0.2 * x[:, 3], x[:, 2] * x[:, 0], x[:, 4]], 1))
        return torch.stack([h[:, 0] * 0.5, h[:, 1] + 0.3 * h[:, 2], h[:, 3] * h[:, 1]], 1)


def taken(batch, order):
    return {k: [v[i] for i in order.tolist()] if isinstance(v, list) else v[order] for k, v in batch.items()}


def swapped_grass(batch):
    x = batch["x"].clone()
    x[:, 1] = 1 - x[:, 1]
    return {**batch, "x": x}


RICH = [Concept("moo"), Confounder("grass", intervention=swapped_grass), Concept("breed"), Concept("size")]


def rich_event(batch, size, **options):
    options = {"layers": ["enc"], "measures": ALL, "target": "moo", "interactions": True, "weights": "natural", **options}
    return plain(measured(RowByRow(), batch, RICH, size=size, **options))


@pytest.mark.parametrize("options", [{}, {"max_samples": 64}, {"cluster": "herd"}])
@pytest.mark.parametrize(("seed", "size"), [(1, 260), (2, 1), (3, 41), (4, 100)])
def test_order_and_batch_size_change_nothing(options, seed, size):
    if "max_samples" in options:
        options = {**options, "measures": ("contribution", "decodability", "groups")}  # own passes use the first samples
    batch = rich()
    order = torch.randperm(260, generator=torch.Generator().manual_seed(seed))
    a, b = rich_event(batch, 37, **options), rich_event(taken(batch, order), size, **options)
    assert a["n"] == 260
    assert a["decodability"]["enc"]["breed"]["accuracy"] is not None
    assert_close(a, b)


def test_many_cells_in_many_chunks_give_the_same_as_in_one():
    # over 256 joint cells the layers fall back to levels, at another moment for each order
    g = torch.Generator().manual_seed(0)
    a, b = torch.randint(18, (1200,), generator=g), torch.randint(18, (1200,), generator=g)
    x = torch.stack([a.double(), b.double(), torch.randn(1200, generator=g, dtype=torch.float64)], 1)
    which = [Concept("a", kind="categorical"), Concept("b", kind="categorical")]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc = nn.Tanh()

        def forward(self, x):
            return self.enc(x / 10).sum(1)

    events = []
    for order, size, chunk in ((torch.arange(1200), 1200, 4096), (torch.randperm(1200, generator=g), 50, 100)):
        batch = {"x": x[order], "a": a[order], "b": b[order]}
        found = plain(measured(Net(), batch, which, size=size, layers=["enc"], weights="natural", max_samples=chunk))
        for scores in found["decodability"]["enc"].values():  # from the kept rows: fewer of them in the second run
            del scores["accuracy"], scores["auroc"]
        events.append(found)
    assert_close(*events)


@pytest.mark.parametrize("seed", [0, 1])
def test_folds_follow_the_seed_and_the_sample_id(seed):
    batch = probe(UNEVEN)
    batch["id"] = torch.arange(len(batch["x"]))

    def score(**options):
        return measured(net(), batch, layers=["encoder.0"], **options).decodability["encoder.0"]["moo"].value

    assert score(seed=seed) == score(seed=seed)
    assert score(seed=seed) != score(seed=seed + 2)
    assert score(seed=seed) != score(seed=seed, sample_id="id")
    twin = {**batch, "id": [str(i) for i in range(len(batch["x"]))]}
    assert measured(net(), twin, layers=["encoder.0"], sample_id="id").n == len(batch["x"])


def test_two_monitors_do_not_disturb_each_other():
    model, batch = net(), probe(UNEVEN)
    alone = [plain(measured(model, batch, which, layers=[layer])) for which, layer in
             (([Concept("moo")], "encoder.0"), ([Confounder("grass")], "encoder.1"))]  # fmt: skip
    one = monitor_of(model, [Concept("moo")], layers=["encoder.0"])
    two = monitor_of(model, [Confounder("grass")], layers=["encoder.1"])
    for part in cut(batch, 37):
        with one.watching(part), two.watching(part):
            model(part["x"])
    assert_close(plain(one.event(1)), alone[0], rtol=0, atol=0)
    assert_close(plain(two.event(1)), alone[1], rtol=0, atol=0)
    assert nets.hooks(model) == 0


@pytest.mark.parametrize("chunk", [50, 4096])
def test_watching_under_inference_mode_gives_the_same(chunk):
    model, batch = net(), probe(20)
    which = [Concept("moo"), Confounder("grass", intervention="nets:swap_grass")]
    options = {"layers": ["encoder.0"], "measures": ALL, "target": "moo", "max_samples": chunk}
    outside = plain(measured(model, batch, which, **options))
    monitor = monitor_of(model, which, **options)
    for part in cut(batch, 37):
        with torch.inference_mode(), monitor.watching(part):
            model(part["x"])
    assert_close(plain(monitor.event(1)), outside)


def test_run_equals_watching():
    model, batch = net(), probe(20)
    monitor = monitor_of(model, layers=["encoder.0"], target="moo")
    monitor.run(cut(batch, 37))
    assert_close(plain(monitor.event(1)), plain(measured(model, batch, layers=["encoder.0"], target="moo")))


def test_measuring_changes_nothing_in_the_model_or_the_random_streams():
    model, batch = net(), probe(20)
    model.train()
    model.encoder.eval()
    model.encoder.add_module("drop", nn.Dropout(0.5))
    which = [Concept("moo"), Confounder("grass", intervention="nets:swap_grass")]
    monitor = monitor_of(model, which, layers=["encoder.0"], measures=ALL)
    feed(monitor, model, cut(batch, 37))
    before, streams = nets.fingerprint(model), nets.random_streams()
    monitor.event(1)
    assert nets.fingerprint(model) == before
    assert nets.random_streams() == streams
    assert nets.hooks(model) == 0
    assert all(p.grad is None for p in model.parameters())


def test_the_watched_output_keeps_its_gradients():
    model, batch = net(), probe(20)
    monitor = monitor_of(model, layers=["encoder.*"])
    with monitor.watching(batch):
        model(batch["x"]).sum().backward()
    assert model.head.weight.grad is not None
    assert monitor.event(1).effect["moo"].value == pytest.approx(A)


def test_limit_leaves_a_samplers_padding_out():
    model, batch = net(), probe(20)
    n = len(batch["x"])
    padded = {k: torch.cat([v, v[:30]]) for k, v in batch.items()}
    monitor = monitor_of(model, layers=["encoder.0"])
    with monitor.watching(padded, limit=n):
        model(padded["x"])
    with monitor.watching(padded, limit=0):
        model(padded["x"])
    assert_close(plain(monitor.event(1)), plain(measured(model, batch, layers=["encoder.0"])))


def test_samples_without_a_label_are_left_out():
    model, batch = net(), probe(20)
    batch["moo"] = batch["moo"].double()
    more = {k: torch.cat([v, v[:30]]) for k, v in batch.items()}
    more["moo"][-30:] = math.nan
    assert_close(plain(measured(model, more, layers=["encoder.0"])), plain(measured(model, batch, layers=["encoder.0"])))


# --- history and state ------------------------------------------------------------------------------------------------


def test_latest_and_history_follow_the_events():
    model, batch = net(), probe(20)
    monitor = monitor_of(model)
    assert monitor.latest is None
    assert monitor.history == ()
    for step in (5, 10):
        feed(monitor, model, [batch])
        event = monitor.event(step, epoch=step // 5)
        assert monitor.latest is event
        assert (event.step, event.epoch, event.mode) == (step, step // 5, "probe")
        assert event.cost_seconds > 0
    assert [e.step for e in monitor.history] == [5, 10]


def test_each_event_starts_afresh():
    model, batch = net(), probe(20)
    monitor = monitor_of(model)
    feed(monitor, model, [batch, batch])
    assert monitor.event(1).n == 2 * len(batch["x"])
    feed(monitor, model, [batch])
    assert monitor.event(2).n == len(batch["x"])
    feed(monitor, model, [batch])
    monitor.restart()
    with pytest.raises(ProbeSetError, match="the probe set is empty"):
        monitor.event(3)


@pytest.mark.parametrize("most", [2, 3, 8])
def test_a_long_history_is_thinned_but_keeps_its_ends(most):
    model, batch = net(), probe(8)
    monitor = monitor_of(model, [Concept("moo")], max_events=most, measures=("contribution",))
    for step in range(20):
        feed(monitor, model, [batch])
        monitor.event(step)
        steps = [e.step for e in monitor.history]
        assert len(steps) <= most
        assert steps[0] == 0
        assert steps[-1] == step
        assert steps == sorted(set(steps))


def test_the_state_goes_through_a_checkpoint_of_weights_only():
    model, batch = net(), probe({**UNEVEN, (0, 1, 0): 4})
    options = {"layers": ["encoder.0"], "target": "moo"}
    one = monitor_of(model, **options)
    feed(one, model, cut(batch, 37))
    with said("natural weights"):
        one.event(1)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    two = monitor_of(None, **options)
    two.load_state_dict(torch.load(file, weights_only=True))
    two.bind(model)
    assert two.history == one.history
    for monitor in (one, two):
        feed(monitor, model, cut(batch, 50))
        monitor.event(2)  # what was said before the checkpoint is not said again: a warning would be an error here
    assert two.latest.decodability["encoder.0"]["moo"].drift == pytest.approx(0, abs=1e-12)
    assert_close(plain(two.latest), plain(one.latest), rtol=0, atol=0)


def test_a_state_of_a_later_version_says_so():
    monitor = monitor_of(net())
    with pytest.raises(InterpError, match="monitor state has version 99, this library reads up to 1; update lightning-interp"):
        monitor.load_state_dict({**monitor.state_dict(), "version": 99})


# --- the alarm --------------------------------------------------------------------------------------------------------


def test_a_confounder_that_is_leant_on_is_announced_once():
    model, batch = net([0.5, 0, 3.0, 0.2]), probe(20)
    monitor = monitor_of(model, warn_above=0.25)
    feed(monitor, model, [batch])
    with said(r"step 7: confounder 'grass' makes \d\d % of the output's variance") as texts:
        event = monitor.event(7)
    assert len(texts) == 1
    assert monitor.suspects(event) == ["grass"]
    feed(monitor, model, [batch])
    monitor.event(8)


def test_a_concept_may_matter_as_much_as_it_likes():
    model = net([3.0, 0, 0.1, 0.2])
    monitor = monitor_of(model, warn_above=0.25)
    feed(monitor, model, [probe(20)])
    assert monitor.suspects(monitor.event(1)) == []


# --- bad arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (
            {"layers": ["encodr.0"]},
            LayerError,
            r"`layers`: 'encodr.0' matches no submodule of Equation. Did you mean 'encoder.0'",
        ),
        ({"output": "haed"}, LayerError, r"`output='haed'` is no submodule of Equation. Did you mean 'head'"),
        ({"measures": ["decodabilty"]}, InterpError, r"`measures`: 'decodabilty' is none of .* Did you mean 'decodability'"),
        ({"measures": "groups,effects"}, InterpError, r"`measures`: 'groups,effects' is none of"),
        ({"weights": "balance"}, InterpError, r"`weights`: 'balance' is none of balanced, natural. Did you mean 'balanced'"),
        ({"pooling": "men"}, LayerError, r"`pooling='men'` is none of mean.*Did you mean 'mean'"),
        ({"max_samples": 1}, InterpError, r"`max_samples` expects a whole number of 2 or more, got 1"),
        ({"max_events": 2.5}, InterpError, r"`max_events` expects a whole number of 2 or more, got 2.5"),
        ({"inputs": 1.5}, LabelError, r"`inputs` expects a key"),
        ({"target": 1.5}, LabelError, r"`target` expects a key"),
        ({"cluster": True}, LabelError, r"`cluster` expects a key"),
        ({"sample_id": "nets:nothing"}, InterpError, r"`sample_id='nets:nothing'`: module 'nets' has no 'nothing'"),
    ],
)
def test_a_bad_argument_is_an_error_that_names_it(options, error, text):
    with pytest.raises(error, match=text):
        monitor_of(net(), **options)


def test_two_variables_of_one_name_are_an_error():
    with pytest.raises(VariableError, match="`variables` has two variables named 'moo'"):
        monitor_of(net(), [Concept("moo"), Confounder("moo")])


def test_a_monitor_without_a_model_says_so():
    with pytest.raises(InterpError, match="the Monitor has no model yet"), monitor_of(None).watching(probe(2)):
        pass


# --- bad batches ------------------------------------------------------------------------------------------------------


def without(batch, name):
    return {k: v for k, v in batch.items() if k != name}


class WrongShape(Equation):
    def forward(self, x):
        out = super().forward(x)
        return out[:, None, :] if x.shape[1] == 4 and x[0, 3] == 77 else out


def marked(batch):
    """A batch at which `WrongShape` misbehaves."""
    x = batch["x"].clone()
    x[0, 3] = 77
    return {**batch, "x": x}


BAD = {
    "no label": (lambda b: without(b, "tail"), LabelError, r"`label of 'tail'='tail'` is not in the batch, a dict: no 'tail'"),
    "a short label": (
        lambda b: {**b, "tail": b["tail"][:-1]}, LabelError,
        r"`label of 'tail'` has \d+ values, that of 'moo' \d+: expected one per sample",
    ),
    "labels of another length than the outputs": (
        lambda b: {**b, **{k: b[k][:-1] for k in (*nets.NAMES, "cow")}}, InterpError,
        r"`sample_id`: the batch's first input has \d+, the labels \d+; name the samples' ids, or the model's `inputs`",
    ),
    "an output of the wrong shape": (
        marked, LayerError, r"`output=None` gives torch.float64 of shape \[\d+, 1, 1\], expected floating \[n\] or \[n, c\]",
    ),
    "no input": (lambda b: {**without(b, "x"), "y": b["x"]}, LabelError, r"`inputs='x'` is not in the batch"),
    "a short target": (
        lambda b: {**b, "cow": b["cow"][:-1]}, LabelError, r"`target='cow'` has shape \[\d+\], expected one per sample, \d+",
    ),
    "no target": (lambda b: without(b, "cow"), LabelError, r"`target='cow'` is not in the batch"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "error", "text"), BAD.values(), ids=BAD.keys())
def test_a_bad_batch_is_an_error_at_first_and_later_only_left_out(spoil, error, text):
    model, good = WrongShape([[A, B, C, E]]), probe(20)
    good["cow"] = good["moo"]
    bad = spoil(good)
    x = bad.get("x", good["x"])

    first = monitor_of(model, target="cow")
    with pytest.raises(error, match=text), first.watching(bad):
        model(x)
    assert nets.hooks(model) == 0

    later = monitor_of(model, target="cow")
    feed(later, model, [good])
    with said(f"a batch was left out: .*{text}") as texts:
        for _ in range(3):
            with later.watching(bad):
                model(x)
        event = later.event(1)
    assert len([t for t in texts if "a batch was left out" in t]) == 1
    assert event.skipped == 3
    assert event.n == len(good["x"])
    assert "3 batches were left out" in event.notes
    assert event.effect["moo"].value == pytest.approx(A)


class Widens(Equation):
    """More outputs than before, from one batch on."""

    def forward(self, x):
        out = super().forward(x)
        return torch.cat([out, out, out], 1) if bool((x[:, 3] == 77).any()) else out


@pytest.mark.parametrize("chunk", [50, 4096])
def test_a_batch_with_another_number_of_outputs_is_left_out(chunk):
    model, good = Widens([[A, B, C, E]]), probe(20)
    monitor = monitor_of(model, max_samples=chunk)
    feed(monitor, model, [good])
    with said("left out"):
        feed(monitor, model, [marked(good)])
        event = monitor.event(1)
    assert event.n == len(good["x"])
    assert event.skipped == 1


@pytest.mark.parametrize("chunk", [50, 4096])
def test_a_batch_with_another_width_of_a_layer_is_left_out(chunk):
    class Stretches(Equation):
        def __init__(self):
            super().__init__([[A, B, C, E]])
            self.layer = nn.Identity()

        def forward(self, x):
            self.layer(x.repeat(1, 2) if bool((x[:, 3] == 77).any()) else x)
            return super().forward(x)

    model, good = Stretches(), probe(20)
    monitor = monitor_of(model, layers=["layer"], max_samples=chunk)
    feed(monitor, model, [good])
    with said("left out"):
        feed(monitor, model, [marked(good)])
        event = monitor.event(1)
    assert event.n == len(good["x"])
    assert event.decodability["layer"]["moo"].value > 0.9


def test_a_target_that_does_not_fit_the_outputs_is_an_error_that_names_it():
    batch = probe(20)
    batch["wide"] = torch.zeros(len(batch["x"]), 5, dtype=torch.long)
    with pytest.raises(InterpError, match="`target"):
        measured(net([A, B, C, E], [0, 0, 0, 0]), batch, target="wide")


@pytest.mark.parametrize("pooled", [lambda a: a[:, 0], lambda a: a[:-1], lambda a: a[:, :, None], lambda a: None])
def test_a_pooling_function_that_gives_no_rows_is_an_error_that_names_the_layer(pooled):
    with pytest.raises(LayerError, match=r"encoder.0"):
        measured(net(), probe(20), layers=["encoder.0"], pooling=pooled)


def test_a_pooling_function_that_fails_late_leaves_the_batch_out():
    def sometimes(a):
        if len(a) < 30:
            raise IndexError("no such token")
        return a

    model, batch = net(), probe(20)
    monitor = monitor_of(model, layers=["encoder.0"], pooling=sometimes)
    feed(monitor, model, [batch])
    with said("no such token"):
        feed(monitor, model, [{k: v[:20] for k, v in batch.items()}])
    with said():
        event = monitor.event(1)
    assert event.skipped == 1
    assert event.n == len(batch["x"])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["output", "layer"])
@pytest.mark.parametrize("chunk", [64, 4096])
def test_batches_that_are_not_finite_are_left_out_counted_and_announced_once(value, where, chunk):
    class Breaks(Equation):
        def __init__(self):
            super().__init__([[A, B, C, E]])
            self.layer = nn.Identity()

        def forward(self, x):
            self.layer(torch.where(x[:, 3:] == 77, value, x) if where == "layer" else x)
            return super().forward(torch.where(x == 77, value, x) if where == "output" else x.clamp(max=10))

    model, good = Breaks(), probe(20)
    monitor = monitor_of(model, layers=["layer"], max_samples=chunk)
    for step in (1, 2):
        feed(monitor, model, [marked(good), *cut(good, 40), marked(good)])  # the first batch may be bad too
        if step == 1:
            with said("batches with NaN or infinite outputs or activations are left out") as texts:
                event = monitor.event(step)
            assert len([t for t in texts if "NaN" in t]) == 1
        else:
            event = monitor.event(step)
        assert event.skipped == 2
        assert event.n == len(good["x"])
        assert event.effect["moo"].value == pytest.approx(A)
        assert all(math.isfinite(v) for v in event.scalars().values())


def test_what_is_left_out_is_announced_once_however_its_number_changes():
    model, good = net(), probe(20)
    bad = {**good, "x": good["x"] * math.nan}
    monitor = monitor_of(model)
    with said() as texts:
        for step in range(4):
            feed(monitor, model, [good, *[bad] * step])
            assert monitor.event(step).skipped == step
    assert len(texts) == len({re.sub(r"\d+", "#", t) for t in texts})


@pytest.mark.parametrize("chunk", [64, 4096])
def test_nothing_but_nan_is_an_empty_probe_set(chunk):
    batch = probe(20)
    batch["x"][:, 3] = math.nan
    monitor = monitor_of(net(), layers=["encoder.0"], max_samples=chunk)
    for part in cut(batch, 40):
        with monitor.watching(part):
            monitor.model(part["x"])
    with pytest.raises(ProbeSetError, match="the probe set is empty: no batch had labels and finite outputs; 4 were left out"):
        monitor.event(1)


def test_an_empty_probe_set_says_so():
    with pytest.raises(ProbeSetError, match=r"the probe set is empty: no batch had labels and finite outputs\."):
        monitor_of(net()).event(1)


def test_a_batch_of_no_samples_adds_nothing():
    model, good = net(), probe(20)
    monitor = monitor_of(model, layers=["encoder.0"])
    feed(monitor, model, [{k: v[:0] for k, v in good.items()}, good, {k: v[:0] for k, v in good.items()}])
    event = monitor.event(1)
    assert event.n == len(good["x"])
    assert event.skipped == 0


def test_a_label_function_may_raise_anything_after_good_batches():
    model, good = net(), probe(20)
    which = [Concept("moo", lambda b: [1 // 0] if "broken" in b else b["moo"]), Concept("tail")]
    monitor = monitor_of(model, which)
    with pytest.raises(ZeroDivisionError), monitor.watching({**good, "broken": 1}):
        pass
    feed(monitor, model, [good])
    with said("a batch was left out: ZeroDivisionError: integer division or modulo by zero"):
        feed(monitor, model, [{**good, "broken": 1}])
    event = monitor.event(1)
    assert event.skipped == 1
    assert "1 batches were left out" in event.notes


# --- bad probe sets ---------------------------------------------------------------------------------------------------


def test_a_layer_that_never_ran_is_an_error_that_names_it():
    class Spare(Equation):
        def __init__(self):
            super().__init__([[A, B, C, E]])
            self.spare = nn.Linear(4, 4)

    with pytest.raises(LayerError, match=r"`layers`: layer 'spare' never ran in a watched step, or returned no tensor"):
        measured(Spare(), probe(20), layers=["spare"])


def test_an_output_that_did_not_run_is_an_error_that_names_likely_modules():
    class Spare(Equation):
        def __init__(self):
            super().__init__([[A, B, C, E]])
            self.spare = nn.Linear(4, 4)

    with pytest.raises(LayerError, match=r"`output='spare'` did not run in the step. Likely modules: .*'head', 'spare'"):
        measured(Spare(), probe(20), output="spare")
    model, batch = net(), probe(20)
    monitor = monitor_of(model)
    text = r"`output=None` explains .* did not run in the step. Likely modules: .*'head'"
    with pytest.raises(LayerError, match=text), monitor.watching(batch):
        model.head(model.encoder(batch["x"]))


def test_a_layer_that_ran_for_some_samples_only_is_withheld():
    class Now(Equation):
        def __init__(self):
            super().__init__([[A, B, C, E]])
            self.extra = nn.Identity()

        def forward(self, x):
            if len(x) == 40:
                self.extra(x)
            return super().forward(x)

    model = Now()
    monitor = monitor_of(model, layers=["extra"])
    feed(monitor, model, [*cut(probe(15), 40), probe(10)])
    with said("layer 'extra' withheld: it ran for 120 of 200 samples"):
        event = monitor.event(1)
    assert event.decodability == {}


@pytest.mark.parametrize("kind", ["auto", "binary", "categorical", "continuous"])
@pytest.mark.parametrize("value", [1.0, 0.5])
@pytest.mark.parametrize("chunk", [50, 4096])
def test_a_constant_variable_is_reported_as_not_measurable_and_the_rest_goes_on(kind, value, chunk):
    batch = probe({(1, t, g): 30 for t in (0, 1) for g in (0, 1)})
    batch["moo"] = torch.full((120,), value)
    which = [Concept("moo", kind=kind), Concept("tail"), Confounder("grass")]
    shown = "1" if value == 1 else "0.5"
    with said(f"'moo' is constant over the probe set \\(always {shown}\\): not measurable"):
        event = measured(net(), batch, which, layers=["encoder.0"], max_samples=chunk)
    assert event.effect["moo"].value is event.contribution["moo"].value is None
    assert "not measurable" in event.effect["moo"].note
    assert event.effect["tail"].value == pytest.approx(B)
    assert event.decodability["encoder.0"]["moo"].value is None
    assert event.decodability["encoder.0"]["tail"].value > 0.9
    assert "effect/moo" not in event.scalars()
    assert sum(s.value for s in event.contribution.values() if s.value is not None) == pytest.approx(1)


def test_a_constant_string_is_shown_by_its_name():
    batch = probe(20)
    batch["place"] = ["meadow"] * len(batch["x"])
    with said(r"'place' is constant over the probe set \(always meadow\)"):
        measured(net(), batch, [Concept("moo"), Confounder("place")])


def test_what_is_withheld_is_announced_once_not_twice():
    batch = probe({(1, t, g): 30 for t in (0, 1) for g in (0, 1)})
    with said() as texts:
        measured(net(), batch)
    assert len([t for t in texts if "'moo'" in t]) == 1


def test_fewer_samples_than_parameters_withholds_the_effects():
    batch = {k: v[:3] for k, v in probe(20).items()}
    batch.update(moo=torch.tensor([0, 1, 0]), tail=torch.tensor([0, 0, 1]), grass=torch.tensor([1, 0, 1]))
    with said("effects withheld: 3 samples for 4 parameters"):
        event = measured(net(), batch, layers=["encoder.0"], measures=ALL)
    assert all(e.value is None and "3 samples for 4 parameters" in e.note for e in event.effect.values())
    assert not any(k.startswith(("effect", "contribution", "sensitivity")) for k in event.scalars())


@pytest.mark.parametrize("weights", ["balanced", "natural"])
def test_a_variable_that_is_a_function_of_another_is_an_error_that_names_the_pair(weights):
    batch = probe(20)
    breed = torch.arange(len(batch["x"])) % 4
    batch["breed"], batch["dairy"] = breed, breed // 2
    which = [Concept("moo"), Concept("breed"), Concept("dairy")]
    text = "variables 'breed' and 'dairy' cannot be told apart: 'dairy' is a function of 'breed' over the probe set"
    with pytest.raises(VariableError, match=text):
        measured(net(), batch, which, weights=weights)


def test_a_copy_of_a_variable_is_named_too():
    batch = probe(20)
    batch["again"] = 1 - batch["grass"]
    with pytest.raises(VariableError, match="variables 'grass' and 'again' cannot be told apart"):
        measured(net(), batch, [*nets.variables(), Confounder("again")])


def test_a_handful_of_samples_may_coincide_by_chance_and_is_withheld():
    batch = {k: v[:12] for k, v in probe(20).items()}
    batch["again"] = batch["grass"]
    with said("effects withheld: variables 'grass' and 'again' cannot be told apart"):
        event = measured(net(), batch, [Confounder("grass"), Confounder("again")])
    assert event.effect["again"].value is None


def test_more_values_than_two_are_not_binary():
    breed, x, _ = categorical(3)
    with pytest.raises(VariableError, match=r"variable 'breed': `kind='binary'` expects two values, got 3 \(0, 1, 2, …\)"):
        measured(net([1.0, 0.5]), {"x": x, "breed": breed}, [Concept("breed", kind="binary")])


@pytest.mark.parametrize("constant", [0.0, 0.1, -1 / 3, 1e6 / 7])
def test_an_output_that_does_not_vary_has_no_shares(constant):
    class Dead(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 1), constant, dtype=torch.float64)

    with said("the output does not vary over the probe set"):
        event = measured(Dead(), probe(UNEVEN))
    assert not any(k.startswith(("effect", "contribution")) for k in event.scalars())


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 / 7])
def test_a_layer_that_does_not_vary_tells_nothing(constant):
    class Dead(Equation):
        def __init__(self):
            super().__init__([[A, B, C, E]])
            self.layer = nn.Identity()

        def forward(self, x):
            self.layer(torch.full((len(x), 3), constant, dtype=torch.float64))
            return super().forward(x)

    event = measured(Dead(), probe(UNEVEN), layers=["layer"])
    for score in event.decodability["layer"].values():
        assert score.value is None or score.value < 0.05


# --- exceptions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [False, True])
def test_an_exception_inside_leaves_no_hook_and_discards_the_batch(error, after):
    model, batch = net(), probe(20)
    monitor = monitor_of(model, layers=["encoder.*"])
    feed(monitor, model, [batch])

    def stopped():
        with monitor.watching(batch):
            assert nets.hooks(model) > 0
            if after:
                model(batch["x"])
            raise error("stop")

    with pytest.raises(error, match="stop"):
        stopped()
    assert nets.hooks(model) == 0
    event = monitor.event(1)
    assert event.n == len(batch["x"])
    assert event.skipped == 0


def test_an_exception_inside_the_models_forward_leaves_no_hook():
    model, batch = net(), probe(20)
    monitor = monitor_of(model, layers=["encoder.*"])
    with pytest.raises(RuntimeError, match="mat1 and mat2"), monitor.watching(batch):
        model(batch["x"][:, :2])
    assert nets.hooks(model) == 0
    feed(monitor, model, [batch])
    assert monitor.event(1).n == len(batch["x"])


def test_a_foreign_hook_is_left_alone():
    model, batch, calls = net(), probe(20), []
    model.head.register_forward_hook(lambda m, a, o: calls.append(1))
    monitor = monitor_of(model, layers=["encoder.*"])
    feed(monitor, model, cut(batch, 40))
    monitor.event(1)
    assert len(calls) == 4
    assert nets.hooks(model) == 1
