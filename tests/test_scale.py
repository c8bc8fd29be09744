"""Many variables and wide layers: the numbers of the plain ways, no large object on the way, and limits that are told."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from lightning_interp import Confounder, Monitor, to_records
from lightning_interp import footprint as memory
from lightning_interp.errors import LayerError
from lightning_interp.footprint import footprint, module_units
from lightning_interp.functional import contribution
from lightning_interp.functional.contribution import effects, fit
from lightning_interp.functional.table import table
from lightning_interp.functional.unique import unique_rows
from lightning_interp.functional.weights import Weights
from lightning_interp.metrics import layer as statistics

pytestmark = pytest.mark.filterwarnings("ignore::lightning_interp.errors.InterpWarning")


class Net(nn.Module):
    """A layer of tanh and a linear head."""

    def __init__(self, units: int, outputs: int = 1) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(units, units), nn.Tanh())
        self.head = nn.Linear(units, outputs)

    def forward(self, x):
        return self.head(self.layer(x))


def batch_of(kinds, n, units, seed=0):
    """Inputs that hold variable j in unit j, and its values."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, units, generator=g, dtype=torch.float64)
    out = {"x": x, "y": torch.randint(2, (n,), generator=g)}
    for j, kind in enumerate(kinds):
        u = x[:, j % units] + 0.7 * torch.randn(n, generator=g, dtype=torch.float64)
        cut = {"binary": [0.0], "categorical": [-0.5, 0.5], "continuous": None}[kind]
        out[f"v{j}"] = u if cut is None else torch.bucketize(u, torch.tensor(cut).double())
    return out


def event_of(kinds, n=600, units=60, measures=("contribution", "decodability", "groups"), split=200, **options):
    torch.manual_seed(0)
    net, batch = Net(units).double(), batch_of(kinds, n, units)
    variables = [Confounder(f"v{j}", kind=kind) for j, kind in enumerate(kinds)]
    options = {"target": "y", **options}
    monitor = Monitor(net, variables, ["layer"], inputs="x", measures=measures, **options)
    for at in torch.arange(n).split(split):
        part = {name: values[at] for name, values in batch.items()}
        with monitor.watching(part), torch.no_grad():
            net(part["x"])
    return monitor.event(0)


def values_of(event):
    return {(r["measure"], r["layer"], r["variable"], r["by"]): r["value"] for r in to_records([event])}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key, value in b.items():
        assert (a[key] is None) == (value is None), key
        assert value is None or a[key] == pytest.approx(value, rel=1e-7, abs=1e-9), key


# --- wide layers ------------------------------------------------------------------------------------------------------

EVERYTHING = ("contribution", "decodability", "sensitivity", "mediation", "entanglement", "groups")
KINDS = [("binary", "categorical"), ("binary", "continuous"), ("continuous",), ("continuous", "continuous", "binary")]


@pytest.mark.parametrize("weights", ["balanced", "natural"])
@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_a_wide_layer_has_the_numbers_of_moments_where_all_rows_are_kept(kinds, weights, monkeypatch):
    exact = values_of(event_of(kinds, 300, 40, EVERYTHING, weights=weights))
    monkeypatch.setattr(statistics, "WIDE", 30)
    event = event_of(kinds, 300, 40, EVERYTHING, weights=weights)
    found = values_of(event)
    assert_same(found, exact)
    assert "layer 'layer': 40 units, probes and erasers from 300 kept samples of 300" in event.notes


def test_with_fewer_rows_kept_a_wide_layer_is_read_within_sampling_error(monkeypatch):
    exact = event_of(("binary", "continuous"), 4000, 200).decodability["layer"]
    monkeypatch.setattr(statistics, "WIDE", 100)
    event = event_of(("binary", "continuous"), 4000, 200, max_samples=1500)
    assert any("1500 kept samples of 4000" in note for note in event.notes)
    for name, score in event.decodability["layer"].items():
        assert score.value == pytest.approx(exact[name].value, abs=0.15)
        assert score.value < exact[name].value  # fewer rows never read more, but for luck
        assert score.accuracy == pytest.approx(exact[name].accuracy, abs=0.05)


def test_nothing_is_read_of_labels_that_are_random(monkeypatch):
    monkeypatch.setattr(statistics, "WIDE", 30)
    torch.manual_seed(1)
    net = Net(400).double()
    g = torch.Generator().manual_seed(2)
    batch = {"x": torch.randn(300, 400, generator=g, dtype=torch.float64)}
    batch |= {f"v{j}": torch.randint(2, (300,), generator=g) for j in range(60)}
    monitor = Monitor(net, [Confounder(f"v{j}") for j in range(60)], ["layer"], inputs="x", measures=["decodability"])
    with monitor.watching(batch), torch.no_grad():
        net(batch["x"])
    scores = monitor.event(0).decodability["layer"].values()
    assert np.mean([s.value > 0 for s in scores]) <= 0.05
    assert np.mean([s.selectivity > 0 for s in scores]) <= 0.05
    assert np.mean([s.auroc for s in scores]) == pytest.approx(0.5, abs=0.02)


def test_a_wide_layer_keeps_nothing_of_units_times_units(monkeypatch):
    monkeypatch.setattr(statistics, "WIDE", 30)
    h, values, key = torch.randn(50, 40), torch.randint(2, (50, 1)).double(), torch.arange(50)
    metric = statistics.LayerStatistics([True], 20)
    for at in torch.arange(50).split(13):
        metric.update(h[at], values[at], key[at])
    found = metric.compute()
    assert found.wide
    for m, mine in zip(found.folds, (found.kept_second.logical_not(), found.kept_second)):
        assert m.gram.shape == (40,)
        assert int(mine.sum()) <= float(m.count[0])
    _, m = found.total([True])
    torch.testing.assert_close(m.squares / 50, h.double().var(0, correction=0))


# --- many variables ---------------------------------------------------------------------------------------------------


def test_controls_in_the_span_of_their_bins_are_those_fitted_one_by_one(monkeypatch):
    kinds = ["binary", "continuous", "categorical"] * 12  # 48 columns, more than there are bins
    found = event_of(kinds, 800).decodability["layer"]
    alone = event_of(kinds[:3], 800).decodability["layer"]
    for name, score in alone.items():
        assert found[name].value == pytest.approx(score.value, abs=1e-9)
        assert found[name].selectivity == pytest.approx(score.selectivity, abs=1e-9)


def test_cells_of_many_continuous_variables_are_few():
    assert statistics.most_cells([True] * 12) == statistics.MAX_GROUPS
    assert statistics.most_cells([True, *[False] * 15]) == statistics.MAX_GROUPS
    assert statistics.most_cells([True, *[False] * 999]) == 4


def test_where_cells_cannot_be_kept_directions_are_natural_and_it_is_said(monkeypatch):
    kinds = ("binary", "binary", "continuous")
    natural = event_of(kinds, measures=["decodability", "entanglement"], weights="natural")
    monkeypatch.setattr(statistics, "MAX_CROSSED", 4)  # two cells, and there are four
    found = event_of(kinds, measures=["decodability", "entanglement"])
    assert found.weights == "balanced"
    assert any("directions under natural weights" in note for note in found.notes)
    assert found.entanglement["layer"].pairs["v0"]["v1"] == pytest.approx(natural.entanglement["layer"].pairs["v0"]["v1"])


def test_effects_of_many_variables_at_once_are_those_of_one_at_a_time(monkeypatch):
    from lightning_interp import measurement

    kinds = ["binary", "categorical", "continuous"] * 4
    many = values_of(event_of(kinds, measures=["contribution"]))
    monkeypatch.setattr(measurement, "_AT_ONCE", 1)
    one = values_of(event_of(kinds, measures=["contribution"]))
    assert many.keys() == one.keys()
    assert_same(many, one)
    shares = [v for (measure, _, _, by), v in many.items() if measure == "contribution" and by is None]
    assert sum(shares) == pytest.approx(1, abs=1e-12)


def test_over_256_cells_groups_are_single_levels():
    kinds = ["binary"] * 10
    event = event_of(kinds, 1200)
    batch = batch_of(kinds, 1200, 60)
    assert set(event.groups.accuracy) == {f"v{j}={level}" for j in range(10) for level in (0, 1)}
    assert event.groups.count["v3=1"] == int((batch["v3"] == 1).sum())
    assert any("groups are single levels" in note for note in event.notes)


def fitted(n, q, weighted, power, monkeypatch, most):
    monkeypatch.setattr(contribution, "MAX_EXACT_DF", most)
    g = torch.Generator().manual_seed(n + q)
    z = torch.randn(n, q, generator=g, dtype=torch.float64) ** power
    o = torch.randn(n, 2, generator=g, dtype=torch.float64)
    w = torch.rand(n, generator=g, dtype=torch.float64) + 0.2 if weighted else torch.ones(n, dtype=torch.float64)
    w = w / w.sum()
    one = torch.zeros(n, dtype=torch.int64)
    weights = Weights("natural", w, one, one[:1, None], torch.tensor([float(n)]), w[:1], float(n), None)
    rows = table(torch.arange(n).double()[:, None], o)
    return effects(fit(z, rows, weights), torch.eye(1 + q, dtype=torch.float64))


@pytest.mark.parametrize("power", [1, 3])  # 3: long tails, and few samples that say much
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "q"), [(60, 3), (60, 25), (200, 50)])
def test_degrees_of_freedom_by_their_bound_are_never_more_than_exact_ones(n, q, weighted, power, monkeypatch):
    exact = fitted(n, q, weighted, power, monkeypatch, 2**40)
    bound = fitted(n, q, weighted, power, monkeypatch, 0)
    assert (bound.df <= exact.df * (1 + 1e-9)).all()
    assert (bound.high >= exact.high - 1e-9).all()
    torch.testing.assert_close(bound.se, exact.se)


@pytest.mark.parametrize("weighted", [False, True])
def test_where_the_bound_is_used_intervals_are_those_of_exact_degrees_of_freedom(weighted, monkeypatch):
    exact, bound = (fitted(1000, 40, weighted, 1, monkeypatch, most) for most in (2**40, 0))
    width = (bound.high - bound.low) / (exact.high - exact.low)
    assert 1 - 1e-9 <= float(width.min()) <= float(width.max()) < 1.002


def test_too_many_sources_for_their_columns_withhold_intervals(monkeypatch):
    monkeypatch.setattr(contribution, "MAX_SOURCES", 100)
    batch = batch_of(["binary", "continuous"], 300, 20)
    batch["s"] = torch.arange(300) // 2
    net = Net(20).double()
    monitor = Monitor(net, [Confounder("v0"), Confounder("v1")], inputs="x", cluster="s")
    with monitor.watching(batch), torch.no_grad():
        net(batch["x"])
    event = monitor.event(0)
    assert event.effect["v0"].value is not None
    assert event.effect["v0"].low is None
    assert "too many sources" in event.effect["v0"].note
    assert event.contribution["v0"].debiased is None


@pytest.mark.parametrize("m", [1, 70, 200])
def test_many_columns_of_two_values_are_ranked_as_numpy_ranks_them(m):
    g = torch.Generator().manual_seed(m)
    x = torch.randint(2, (500, m), generator=g)
    x[250:] = x[:250]  # every row twice: columns must be read to the end
    x[:, ::7] *= torch.randint(5, (500, 1), generator=g)
    expected, place = np.unique(x.numpy(), axis=0, return_inverse=True)
    found, index = unique_rows(x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(index, place.ravel())


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_two_hundred_variables_in_one_event(kind):
    event = event_of([kind] * 200, 500, 60)
    assert len(event.decodability["layer"]) == 200
    assert sum(share.value for share in event.contribution.values()) == pytest.approx(1, abs=1e-9)
    assert all(e.low is not None and e.low <= e.value <= e.high for e in event.effect.values())


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kinds", "units"), [(("binary", "continuous"), 60), (("categorical",) * 3, 20)])
@pytest.mark.parametrize("wide", [False, True])
def test_what_is_held_of_a_layer_is_no_more_than_stated(kinds, units, wide, monkeypatch):
    if wide:
        monkeypatch.setattr(statistics, "WIDE", 10)
        monkeypatch.setattr(memory, "WIDE", 10)
    batch = batch_of(kinds, 400, units)
    values = torch.stack([batch[f"v{j}"].double() for j in range(len(kinds))], 1)
    metric = statistics.LayerStatistics([kind != "continuous" for kind in kinds], 300)
    metric.update(batch["x"], values, torch.arange(400))
    held = sum(t.numel() * t.element_size() for name in statistics._STATES for t in getattr(metric, name))
    stated = footprint({"layer": units}, kinds, 300, itemsize=0).layers["layer"]
    assert held <= stated * 1.05  # the keys of the groups are not counted
    assert stated < 4 * held


def test_too_much_memory_is_refused_before_training_with_the_numbers(monkeypatch):
    monkeypatch.setattr(memory, "MAX_BYTES", 2**20)
    with pytest.raises(
        LayerError, match=r"statistics of 1 layers take up to \d+ MiB, over the 1 MiB allowed .*'head' with 3000"
    ):
        Monitor(nn.ModuleDict({"head": nn.Linear(2, 3000)}), [Confounder("v0")], ["head"])


def test_layers_whose_units_only_a_batch_tells_are_refused_at_the_first(monkeypatch):
    net, batch = nn.Sequential(nn.Tanh(), nn.Linear(500, 1)), {"x": torch.randn(8, 500), "v0": torch.arange(8) % 2}
    monkeypatch.setattr(memory, "MAX_BYTES", 2**20)
    monitor = Monitor(net, [Confounder("v0")], ["0"], inputs="x")
    with pytest.raises(LayerError, match=r"'0' with 500 units, .*max_samples=4096"), monitor.watching(batch):
        net(batch["x"])


@pytest.mark.parametrize(("kind", "columns"), [("binary", 1), ("continuous", 1), ("categorical", 3)])
def test_the_equation_of_many_variables_is_stated_and_of_few_settings_is_little(kind, columns):
    many, few, wide = (footprint({"layer": d}, [kind] * p, 300) for d, p in ((8, 400), (8, 2), (4096, 2)))
    assert many.equation == 8 * memory.ARRAYS * memory.ROWS * (1 + 400 * columns)
    assert many.total == many.layers["layer"] + many.equation
    assert "for the equation" in str(many)
    assert kind == "continuous" or few.equation <= 8 * memory.ARRAYS * 16 * 7  # settings are no more than levels allow
    assert wide.total == wide.layers["layer"] + wide.event
    assert "equation" not in str(wide)


def test_too_many_variables_are_refused_before_training(monkeypatch):
    monkeypatch.setattr(memory, "MAX_BYTES", 2**26)
    net = nn.ModuleDict({"head": nn.Linear(2, 3)})
    text = r"`variables`: statistics of \d layers take up to \d+ MiB \(\d+ MiB for the equation\), over the 64 MiB allowed"
    for layers in (["head"], []):
        with pytest.raises(LayerError, match=text):
            Monitor(net, [Confounder(f"v{j}", kind="continuous") for j in range(500)], layers)


def test_what_layers_take_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        event_of(("binary",))
    assert [r.message for r in caplog.records if "statistics of 1 layers take up to" in r.message]


@pytest.mark.parametrize(
    ("module", "units"),
    [
        (nn.Linear(3, 7), 7),
        (nn.Conv2d(3, 5, 3), 5),
        (nn.BatchNorm2d(4), 4),
        (nn.LayerNorm([2, 6]), 6),
        (nn.Embedding(9, 8), 8),
        (nn.ReLU(), None),
    ],
)
def test_units_by_the_shape_of_a_module(module, units):
    assert module_units(module) == units
