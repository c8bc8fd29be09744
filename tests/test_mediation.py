"""Mediation end to end: against LEACE written out by hand on the same rows, then the theorem, then what must not change."""

import itertools
import warnings

import nets
import numpy as np
import pytest
import torch
from nets import UNEVEN, cut, feed, measured, monitor_of, probe, said
from torch import nn

from lightning_interp import Concept, Confounder, erasers, to_records
from lightning_interp.events import Event
from lightning_interp.passes import mediation
from lightning_interp.passes.above import Above
from lightning_interp.results import Mediation

A, B, C, E = 2.0, -1.0, 0.5, 0.7  # moo, tail, grass, noise
PAIR = [Concept("moo"), Confounder("grass")]


def net(*rows):
    return nets.Equation(rows or [[A, B, C, E]])


class Deep(nn.Module):
    """x `[n, 4]` by way of two hidden layers, which are not linear, the second of them over three positions."""

    def __init__(self, seed=5, classes=2):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.one = nn.Sequential(nn.Linear(4, 8), nn.Tanh()).double()
            self.two = nn.Sequential(nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 6, 2), nn.ReLU(inplace=True)).double()
            self.head = nn.Sequential(nn.Flatten(), nn.Linear(18, 7), nn.Tanh(), nn.Linear(7, classes)).double()
            nn.init.normal_(self.one[0].weight, std=0.7)
            nn.init.normal_(self.head[1].weight, std=0.5)

    def forward(self, x):
        return self.head(self.two(self.one(x)))


class Calls(nn.Module):
    """Counts its runs."""

    def __init__(self, module):
        super().__init__()
        self.module, self.runs = module, 0

    def forward(self, x):
        self.runs += 1
        return self.module(x)


def mediations(model, batch, which=None, **options):
    return measured(model, batch, which or PAIR, **{"measures": ["contribution", "mediation"], "target": "moo", **options})


# --- against LEACE by hand --------------------------------------------------------------------------------------------


def by_hand(h, cell, code, ridge=erasers.RIDGE):
    """Numpy LEACE, every cell weighted alike: what is added to h `[n, d]`."""
    h, code = h.numpy(), code.numpy()
    cells = np.unique(cell)
    means = np.stack([h[cell == c].mean(0) for c in cells])
    codes = np.array([code[cell == c].mean() for c in cells])
    mean = means.mean(0)
    s = sum((h[cell == c] - m).T @ (h[cell == c] - m) for c, m in zip(cells, means)) / len(h)
    s = s + (means - mean).T @ (means - mean) / len(cells)
    s = s + ridge * np.trace(s) / len(s) * np.eye(len(s))
    q = ((codes - codes.mean()) @ (means - mean) / len(cells))[:, None]
    inverse = np.linalg.inv(s)
    return torch.from_numpy(-(h - mean) @ (inverse @ q @ np.linalg.inv(q.T @ inverse @ q)) @ q.T)


def equation(z, o, weight):
    """Weighted least squares: the coefficients of moo and grass."""
    root = np.sqrt(weight)[:, None]
    x = np.concatenate([np.ones((len(z), 1)), z], axis=1)
    return np.linalg.lstsq(root * x, root * o, rcond=None)[0][1:]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("layer", ["one", "two"])
def test_equal_to_leace_by_hand_a_hook_a_loop_and_least_squares(layer, classes):
    model, batch = Deep(classes=classes), probe(UNEVEN)
    event = mediations(model, batch, layers=["one", "two"])
    assert event.weights == "balanced"
    z = torch.stack([batch["moo"], batch["grass"]], 1).double().numpy() - 0.5
    cell = batch["moo"].numpy() * 2 + batch["grass"].numpy()
    weight = 1 / (4 * np.bincount(cell)[cell])
    module, seen = getattr(model, layer), []
    handle = module.register_forward_hook(lambda m, x, out: seen.append(out.clone()))
    with torch.no_grad():
        plain = model(batch["x"])
    handle.remove()
    spread = seen[0].ndim == 4
    pooled = seen[0].mean((2, 3)) if spread else seen[0]

    def effects(o):
        o = o[:, 1:] - o[:, :1] if classes == 2 else o - o.mean(1, keepdim=True)
        return equation(z, o.numpy(), weight)

    def accuracy(o):
        right = (o.argmax(1) == batch["moo"]).numpy()
        return np.mean([right[cell == c].mean() for c in range(4)])

    before = effects(plain)
    for j, erased in enumerate(("moo", "grass")):
        step = by_hand(pooled, cell, torch.from_numpy(z[:, j]))
        handle = module.register_forward_hook(lambda m, x, out, s=step: out + (s[:, :, None, None] if spread else s))
        with torch.no_grad():
            changed = model(batch["x"])
        handle.remove()
        after = effects(changed)
        found = event.mediation[layer][erased]
        for i, name in enumerate(("moo", "grass")):
            truth = 1 - (after[i] * before[i]).sum() / (before[i] ** 2).sum()
            assert found.gone[name] == pytest.approx(truth, rel=1e-8, abs=1e-10)
        assert found.accuracy == pytest.approx(accuracy(changed) - accuracy(plain), abs=1e-12)
        assert (found.rank, found.weights) == (1, "balanced")


def test_equal_to_the_reference_package_where_nothing_else_is_given(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        package = pytest.importorskip("concept_erasure")
    monkeypatch.setattr(erasers, "RIDGE", 0.0)
    model, batch = Deep(), probe(UNEVEN)
    event = mediations(model, batch, [Confounder("grass")], layers=["one"], weights="natural")
    z = batch["grass"].double()[:, None]
    with torch.no_grad():
        h = model.one(batch["x"])
        plain = model(batch["x"])
        theirs = package.LeaceFitter.fit(h, z, shrinkage=False, constrain_cov_trace=False, svd_tol=1e-9).eraser
        changed = model.head(model.two(theirs(h)))
    before, after = (equation(z.numpy() - 0.5, (o[:, 1:] - o[:, :1]).numpy(), np.ones(len(z))) for o in (plain, changed))
    assert event.mediation["one"]["grass"].gone["grass"] == pytest.approx(1 - (after / before).item(), abs=1e-6)


# --- the theorem ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["balanced", "natural"])
@pytest.mark.parametrize("counts", [20, UNEVEN])
@pytest.mark.parametrize("layer", ["encoder.0", "encoder.1"])
def test_before_a_linear_head_all_of_the_erased_effect_goes_and_nothing_of_the_others(layer, counts, weights):
    event = measured(net(), probe(counts), layers=[layer], measures=["mediation"], target="moo", weights=weights)
    for erased in nets.NAMES:
        found = event.mediation[layer][erased]
        assert found.weights == weights
        for name in nets.NAMES:
            assert found.gone[name] == pytest.approx(float(name == erased), abs=1e-6)


def test_of_several_classes_and_levels_all_of_the_effect_goes():
    g = torch.Generator().manual_seed(0)
    breed = torch.arange(200) % 4
    x = torch.cat([torch.eye(4, dtype=torch.float64)[breed], torch.randn(200, 2, generator=g, dtype=torch.float64)], 1)
    rows = torch.randn(3, 6, generator=g).tolist()
    event = measured(net(*rows), {"x": x, "breed": breed}, [Concept("breed")], layers=["encoder.0"], measures=["mediation"])
    found = event.mediation["encoder.0"]["breed"]
    assert found.rank == 3
    assert found.gone["breed"] == pytest.approx(1, abs=1e-6)
    assert found.accuracy is None  # no target


class Tokens(nn.Module):
    """Four tokens of 5 columns, an attention over them, and a linear head on what `pooling` reads of them."""

    def __init__(self, pooling):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Linear(4, 20).double()
            self.block = nn.MultiheadAttention(5, 1, batch_first=True).double()  # gives (tokens, weights)
            self.head = nn.Linear(5, 2).double()
        self.pooling = pooling

    def forward(self, x, attention_mask):
        h = self.embed(x).view(-1, 4, 5)
        tokens, _ = self.block(h, h, h, key_padding_mask=attention_mask == 0)
        last = attention_mask.sum(1) - 1
        keep = (attention_mask / attention_mask.sum(1, keepdim=True)).unsqueeze(2)
        each = torch.arange(len(x))
        read = {
            "mean": tokens.mean(1),
            "first": tokens[:, 0],
            "last": tokens[each, last],
            "masked_mean": (keep * tokens).sum(1),
        }
        return self.head(read[self.pooling])


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "masked_mean"])
def test_of_tokens_all_of_the_effect_goes_where_the_head_reads_what_pooling_does(pooling):
    batch = probe(UNEVEN, noise=0.3)
    length = 2 + torch.arange(len(batch["x"])) % 3
    batch["attention_mask"] = (torch.arange(4) < length.unsqueeze(1)).long()
    monitor = monitor_of(
        Tokens(pooling),
        PAIR,
        layers=["embed", "block"],
        pooling=pooling,
        inputs=["x", "attention_mask"],
        measures=["mediation"],
    )
    monitor.run(cut(batch, 37))
    found = monitor.event(1).mediation["block"]
    clear = [erased for erased, m in found.items() if m.gone[erased] is not None]
    assert clear
    for erased in clear:
        assert found[erased].gone[erased] == pytest.approx(1, abs=1e-6)


def test_a_continuous_variable_is_erased_given_the_others_under_natural_weights_and_that_is_said():
    batch = probe(UNEVEN)
    batch["size"] = batch["x"][:, 3] + 0.5 * batch["grass"]
    which = [Concept("moo"), Confounder("grass"), Concept("size")]
    model = net([A, B, 1.5, E])
    event = measured(model, batch, which, layers=["encoder.0"], measures=["mediation"], target="moo")
    assert event.weights == "balanced"
    for erased in ("moo", "grass", "size"):
        found = event.mediation["encoder.0"][erased]
        assert found.weights == "natural"
    natural = measured(model, batch, which, layers=["encoder.0"], measures=["mediation"], target="moo", weights="natural")
    for erased, name in itertools.product(("moo", "grass", "size"), repeat=2):
        value = natural.mediation["encoder.0"][erased].gone[name]
        assert name != erased or value == pytest.approx(1, abs=1e-6)
    notes = [r["note"] for r in event.records() if r["measure"] == "mediation"]
    assert all("eraser fitted under natural weights" in note for note in notes)


def test_under_balanced_weights_erasing_one_leaves_the_other_where_natural_ones_do_not():
    # grass agrees with moo nine times in ten, and the layer holds both
    counts = {(a, b, c): 90 if a == c else 10 for a in (0, 1) for b in (0, 1) for c in (0, 1)}
    batch = probe(counts)
    balanced = mediations(net(), batch, layers=["encoder.0"]).mediation["encoder.0"]["grass"]
    assert abs(balanced.gone["moo"]) < 0.03
    alone = measured(  # grass without moo given, as natural LEACE would have it
        net(), batch, [Confounder("grass")], layers=["encoder.0"], measures=["mediation"], weights="natural"
    )
    assert alone.mediation["encoder.0"]["grass"].gone["grass"] == pytest.approx(1, abs=1e-6)


def test_the_random_subspace_is_that_of_its_seed_and_takes_less():
    x = torch.cat([probe(40)["x"], torch.randn(320, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)], 1)
    batch = {**probe(40), "x": x}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(64))
        model[1].weight[:, :4] = torch.tensor([[0, 0, 0, 0], [A, B, C, E]])
        model[1].weight[:, 4:] *= 0.1
    found = [mediations(model, batch, layers=["0"], seed=s).mediation["0"]["grass"] for s in (0, 0, 1)]
    assert found[0] == found[1]
    assert found[0].random != found[2].random
    assert found[0].gone == pytest.approx(found[2].gone)
    for f in found:
        assert f.gone["grass"] == pytest.approx(1, abs=1e-6)
        assert abs(f.random["grass"]) < 0.5


# --- withheld ---------------------------------------------------------------------------------------------------------


def test_an_effect_that_cannot_be_told_from_zero_is_withheld_and_not_logged():
    event = measured(net([A, 0.0, C, E]), probe(UNEVEN), layers=["encoder.0"], measures=["mediation"], target="moo")
    found = event.mediation["encoder.0"]["grass"]
    assert found.gone["tail"] is None
    assert found.random["tail"] is None
    assert found.gone["grass"] == pytest.approx(1)
    rows = [r for r in event.records() if r["measure"] == "mediation" and r["variable"] == "tail"]
    assert all(r["value"] is None and "cannot be told from 0" in r["note"] for r in rows)
    assert not any(key.endswith("/tail") for key in event.scalars() if key.startswith("mediation/"))


def test_an_exact_zero_is_no_effect_to_lose():
    batch = probe(20, noise=0.0)
    event = measured(net([A, 0.0, C, E]), batch, layers=["encoder.0"], measures=["mediation"])
    assert event.mediation["encoder.0"]["grass"].gone["tail"] is None
    assert event.mediation["encoder.0"]["grass"].gone["grass"] == pytest.approx(1)


def test_outputs_that_are_not_finite_once_it_is_erased_are_said():
    class Brittle(nets.Equation):
        def forward(self, x):
            h = self.encoder(x) @ self.encoder[0].weight
            away = (h[:, :1] - h[:, :1].round()).abs()  # moo is 0 or 1, until it is erased
            return x[:, 2:4] @ torch.ones(2, 1, dtype=torch.float64) + h[:, :1] + torch.log(1 - 4 * away)

    event = measured(Brittle([[A, B, C, E]]), probe(20), PAIR, layers=["encoder.0"], measures=["mediation"])
    found = event.mediation["encoder.0"]["moo"]
    assert found.gone == {"moo": None, "grass": None}
    rows = [r for r in event.records() if r["measure"] == "mediation" and r["by"] == "moo"]
    assert all(r["note"] == "withheld: not finite once it is erased" for r in rows)


def test_where_the_kept_samples_are_too_few_for_balanced_weights_the_note_says_so():
    event = mediations(Deep(), probe(UNEVEN), layers=["one"], size=10, max_samples=20)
    assert event.weights == "balanced"
    for m in event.mediation["one"].values():
        assert m.note == "equation under natural weights on the 20 kept samples"


def test_a_layer_of_one_unit_has_nothing_left_to_erase_from():
    event = measured(net(), probe(20), layers=["head"], measures=["mediation"])
    for m in event.mediation["head"].values():
        assert "no more than the 1 dimensions" in m.note
        assert set(m.gone.values()) == {None}
    assert not [k for k in event.scalars() if k.startswith("mediation")]


def test_a_layer_on_which_the_output_does_not_depend_is_said():
    class Aside(nets.Equation):
        def __init__(self):
            super().__init__([[A, B, C, E]])
            self.aside, self.after = nn.Linear(4, 4).double(), nn.Identity()

        def forward(self, x):
            self.aside(x)
            out = super().forward(x)
            self.after(torch.cat([out, out**2, x], 1))
            return out

    model = Aside()
    monitor = monitor_of(model, layers=["aside", "after", "encoder.0"], output="head", measures=["mediation"])
    feed(monitor, model, cut(probe(20), 37))
    with said("the output does not depend on layer 'aside'") as texts:
        event = monitor.event(1)
    assert any("layer 'after'" in text for text in texts)
    for layer in ("aside", "after"):
        assert all(m.note and set(m.gone.values()) == {None} for m in event.mediation[layer].values())
    assert event.mediation["encoder.0"]["grass"].gone["grass"] == pytest.approx(1)


def test_what_a_function_has_pooled_cannot_be_written_back():
    monitor = monitor_of(net(), layers=["encoder.0"], measures=["mediation"], pooling=lambda a: a[:, :2])
    feed(monitor, monitor.model, cut(probe(20), 37))
    with said("mediation withheld: it is not defined for a pooling function"):
        assert monitor.event(1).mediation == {}


def test_too_few_samples_for_an_equation_are_too_few_for_mediation():
    monitor = monitor_of(net(), layers=["encoder.0"], measures=["mediation"])
    feed(monitor, monitor.model, [{k: v[:3] for k, v in probe(20).items()}])
    with said():
        assert monitor.event(1).mediation == {}


# --- what is run again ------------------------------------------------------------------------------------------------


def chain():
    return nn.Sequential(*(Calls(nn.Linear(6 if i else 4, 6).double()) for i in range(4)), nn.Linear(6, 2).double())


def test_only_what_is_above_the_layer_is_run_again():
    torch.manual_seed(0)
    model, batch = chain(), probe(20)
    monitor = monitor_of(model, PAIR, layers=["0", "1", "2"], measures=["mediation"])
    feed(monitor, model, [batch])
    for part in model[:4]:
        part.runs = 0
    monitor.event(1)
    again = len(PAIR) + mediation.DRAWS
    assert [part.runs for part in model[:4]] == [1, 1 + again, 1 + 2 * again, 1 + 3 * again]


def test_what_is_skipped_changes_no_bit(monkeypatch):
    model, batch = Deep(), probe(UNEVEN)
    options = {"layers": ["one", "one.0", "two", "two.1", "head.1"]}
    above = mediations(model, batch, **options)
    monkeypatch.setattr(Above, "_known", lambda self, name: {})
    whole = mediations(model, batch, **options)
    assert above.mediation == whole.mediation
    assert all(m.gone["grass"] is not None for found in above.mediation.values() for m in found.values())


WRAPS = {
    "tuple": (lambda h: (h, None), lambda r: r[0]),
    "list": (lambda h: [h], lambda r: r[0]),
    "dict": (lambda h: {"h": h}, lambda r: r["h"]),
}


@pytest.mark.parametrize(("wrap", "unwrap"), WRAPS.values(), ids=WRAPS)
def test_a_layer_may_return_its_tensor_inside_something(wrap, unwrap):
    class Wraps(nn.Module):
        def forward(self, h):
            return wrap(h)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.layer = Deep(), Wraps()

        def forward(self, x):
            return self.inner.head(self.inner.two(unwrap(self.layer(self.inner.one(x)))))

    batch = probe(UNEVEN)
    wrapped = mediations(Net(), batch, layers=["inner.one", "layer"]).mediation
    assert wrapped["layer"] == wrapped["inner.one"] == mediations(Deep(), batch, layers=["one"]).mediation["one"]


def test_of_a_shared_layer_the_last_run_is_changed():
    class Twice(Deep):
        def forward(self, x):
            return super().forward(torch.tanh(self.same(self.same(x))))

        def __init__(self):
            super().__init__()
            self.same = nn.Linear(4, 4).double()
            with torch.no_grad():
                self.same.weight.copy_(torch.tensor([[1.0, 0.2, 0, 0], [0, 1, 0.3, 0], [0, 0, 1, 0.1], [0.4, 0, 0, 1]]))

    class Once(Deep):
        def forward(self, x):
            return super().forward(torch.tanh(self.second(self.first(x))))

        def __init__(self):
            super().__init__()
            self.first, self.second = Twice().same, Twice().same
            self.second.load_state_dict(self.first.state_dict())

    twice, once, batch = Twice(), Once(), probe(UNEVEN)
    once.first.load_state_dict(twice.same.state_dict())
    once.second.load_state_dict(twice.same.state_dict())
    monitor = monitor_of(twice, PAIR, layers=["same", "one"], measures=["mediation"], target="moo")
    with said("'same' ran 2 times in one step"):
        feed(monitor, twice, cut(batch, 37))
    found = monitor.event(1).mediation
    truth = mediations(once, batch, layers=["second", "one"]).mediation
    assert found["same"] == truth["second"]
    assert found["one"] == truth["one"]


def test_a_hook_of_the_users_acts_once():
    model, batch = Deep(), probe(UNEVEN)
    model.one.register_forward_hook(lambda module, x, out: 0.5 * out)

    class Halved(Deep):
        def forward(self, x):
            return self.head(self.two(self.halve(self.one(x))))

        def __init__(self):
            super().__init__()
            self.halve = Half()

    class Half(nn.Module):
        def forward(self, h):
            return 0.5 * h

    assert (
        mediations(model, batch, layers=["one"]).mediation["one"]
        == mediations(Halved(), batch, layers=["halve"]).mediation["halve"]
    )


def test_batch_size_and_the_number_of_kept_samples_are_those_of_the_pass():
    batch = probe(UNEVEN)
    a, b = (mediations(Deep(), batch, layers=["one"], size=size).mediation["one"]["grass"] for size in (1, 500))
    assert a.gone == pytest.approx(b.gone, rel=1e-9)
    few = mediations(Deep(), batch, layers=["one"], size=20, max_samples=60).mediation["one"]["grass"]
    assert few.gone["grass"] != pytest.approx(a.gone["grass"], rel=1e-3)


# --- nothing is left behind -------------------------------------------------------------------------------------------


def test_no_hook_and_no_stand_in_outlives_an_exception():
    class Bomb(nn.Module):
        runs = 0

        def forward(self, h):
            self.runs += 1
            if self.runs > 3:
                raise RuntimeError("boom")
            return h

    model = nn.Sequential(nn.Linear(4, 6).double(), Bomb(), nn.Linear(6, 2).double())
    monitor = monitor_of(model, PAIR, layers=["0", "1"], measures=["mediation"])
    feed(monitor, model, [probe(20)])
    before = nets.fingerprint(model)
    with pytest.raises(RuntimeError, match="boom"):
        monitor.event(1)
    assert nets.hooks(model) == 0
    assert not any("forward" in vars(m) for m in model.modules())
    assert nets.fingerprint(model) == before


def test_a_forward_of_the_modules_own_is_put_back():
    model = Deep()
    mine = type(model.one).forward.__get__(model.one)
    model.one.forward = mine
    mediations(model, probe(UNEVEN), layers=["one", "two"])
    assert vars(model.one)["forward"] is mine
    assert "forward" not in vars(model.two)


def test_a_model_that_writes_to_its_input_sees_it_afresh():
    class InPlace(Deep):
        def forward(self, x):
            return super().forward(x.mul_(0.5))

    class Halves(Deep):
        def forward(self, x):
            return super().forward(0.5 * x)

    found = []
    for model in (InPlace(), Halves()):
        monitor = monitor_of(model, PAIR, layers=["one"], measures=["mediation"], target="moo")
        for part in cut(probe(UNEVEN), 37):
            with monitor.watching(part), torch.no_grad():
                model(part["x"].clone())
        found.append(monitor.event(1).mediation)
    assert found[0] == found[1]


# --- as it is shown ---------------------------------------------------------------------------------------------------


def event_with(**options):
    return Event(0, 0, 100, "balanced", "val", "binary", **options)


def test_the_line_reads_as_a_sentence():
    found = Mediation({"digit": 0.06, "grass": 0.92, "tail": None}, -0.011, {"grass": 0.003, "digit": 0.5}, -0.1, 1, "balanced")
    text = str(event_with(mediation={"conv3": {"grass": found}}))
    assert "erase grass at conv3: grass −92 %, digit −6 %, accuracy −1.1 %; random −0.3 %" in text.splitlines()
    grown = Mediation({"grass": -0.2, "digit": 0.001}, None, {"grass": None}, None, 1, "balanced")
    assert "erase grass at a: grass +20 %, digit 0 %" in str(event_with(mediation={"a": {"grass": grown}})).splitlines()
    withheld = Mediation({"grass": None}, note="withheld: why")
    assert "erase" not in str(event_with(mediation={"a": {"grass": withheld}}))


def test_records_and_keys_are_those_of_the_design():
    event = mediations(net(), probe(UNEVEN), layers=["encoder.0"])
    found = event.mediation["encoder.0"]["grass"]
    keys = {k: v for k, v in event.scalars().items() if k.startswith("mediation")}
    assert set(keys) == {f"mediation/encoder.0/{a}/{b}" for a in ("moo", "grass") for b in ("moo", "grass")}
    assert keys["mediation/encoder.0/grass/moo"] == found.gone["moo"]
    rows = [r for r in to_records([event]) if r["layer"] == "encoder.0" and r["by"] == "grass"]
    shown = {(r["measure"], r["variable"]): r["value"] for r in rows}
    assert shown[("mediation", "grass")] == found.gone["grass"]
    assert shown[("mediation_random", "moo")] == found.random["moo"]
    assert shown[("mediation_accuracy", None)] == found.accuracy
    assert shown[("mediation_random_accuracy", None)] == found.random_accuracy
    assert Event.from_dict(event.to_dict()) == event


def test_an_event_of_an_earlier_version_has_neither():
    event = mediations(net(), probe(20), layers=["encoder.0"])
    plain = event.to_dict()
    del plain["mediation"], plain["entanglement"]
    assert Event.from_dict(plain).mediation == {}
