"""Entanglement in an event: from its moments alone, by name, and withheld where there is nothing to compare."""

import nets
import pytest
import torch
from nets import UNEVEN, cut, feed, measured, monitor_of, probe
from torch import nn

from lightning_interp import Concept, Confounder, to_records
from lightning_interp.events import Event
from lightning_interp.results import Entanglement

A, B, C, E = 2.0, -1.0, 0.5, 0.7


class Mixed(nn.Module):
    """Holds its input in directions that are not at right angles; one neuron for each column of `mix`."""

    def __init__(self, mix):
        super().__init__()
        self.layer = nn.Linear(4, mix.shape[1], bias=False).double()
        self.head = nn.Linear(mix.shape[1], 1).double()
        with torch.no_grad():
            self.layer.weight.copy_(mix.T)

    def forward(self, x):
        return self.head(self.layer(x))


def entangled(mix, batch=None, which=None, **options):
    options = {"layers": ["layer"], "measures": ["entanglement"], **options}
    return measured(Mixed(mix), probe(UNEVEN) if batch is None else batch, which, **options)


MIX = torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 2], [0.3, -0.4, 0.2, 0.5]], dtype=torch.float64)


@pytest.mark.parametrize("weights", ["balanced", "natural"])
def test_cosines_are_those_of_the_directions_the_net_was_given(weights):
    found = entangled(MIX, weights=weights).entanglement["layer"]
    assert found.pairs["moo"]["tail"] == pytest.approx(0.5)
    assert found.pairs["moo"]["grass"] == pytest.approx(0, abs=1e-9)
    assert found.pairs["tail"]["grass"] == pytest.approx(0, abs=1e-9)
    assert found.cosine == pytest.approx(0.5 / 3)


def test_the_multivariate_pattern_is_compared_not_what_travels_together():
    counts = {(a, b, c): 60 if a == c else 5 for a in (0, 1) for b in (0, 1) for c in (0, 1)}  # grass goes with moo
    found = entangled(MIX, probe(counts), weights="natural").entanglement["layer"]
    assert found.pairs["moo"]["grass"] == pytest.approx(0, abs=1e-9)


def test_a_neuron_for_each_variable_serves_one_and_shared_ones_serve_more():
    own = entangled(torch.eye(4, dtype=torch.float64)).entanglement["layer"]
    assert own.participation == pytest.approx(1)
    shared = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [0, 0, 0, 0]], dtype=torch.float64)
    assert entangled(shared, probe(20)).entanglement["layer"].participation == pytest.approx(3)


def test_erasing_what_another_shares_costs_the_other_its_decodability():
    batch = probe(UNEVEN)
    apart = entangled(torch.eye(4, dtype=torch.float64), batch).entanglement["layer"].collateral
    one = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 0], [0.2, 0.4]], dtype=torch.float64)  # moo and tail along nearly one line
    together = entangled(one, batch, [Concept("moo"), Concept("tail")]).entanglement["layer"].collateral
    assert apart["moo"]["moo"] > 0.9
    assert abs(apart["moo"]["tail"]) < 0.05
    assert together["moo"]["tail"] > 0.1


def test_of_subspaces_the_mean_over_principal_angles():
    breed = torch.arange(240) % 3
    moo = torch.arange(240) // 3 % 2
    g = torch.Generator().manual_seed(0)
    x = torch.stack(
        [(breed == 0).double(), (breed == 1).double(), moo.double(), 0.1 * torch.randn(240, generator=g).double()], 1
    )
    mix = torch.eye(4, dtype=torch.float64)
    mix[2] = torch.tensor([1.0, 1, 0, 0])  # moo is written into breed's plane
    found = entangled(mix, {"x": x, "breed": breed, "moo": moo}, [Concept("breed"), Confounder("moo")], weights="natural")
    assert found.entanglement["layer"].pairs["breed"]["moo"] == pytest.approx(1, abs=1e-3)


def test_it_takes_no_pass_of_its_own():
    model = Mixed(MIX)
    monitor = monitor_of(model, layers=["layer"], measures=["entanglement"])
    feed(monitor, model, cut(probe(UNEVEN), 37))
    assert not monitor._replay.batches
    model.forward = None  # it would fail
    assert monitor.event(1).entanglement["layer"].cosine is not None


def test_one_variable_alone_is_entangled_with_nothing():
    found = entangled(MIX, which=[Concept("moo")])
    assert found.entanglement["layer"].cosine is None
    assert "fewer than two" in found.entanglement["layer"].note
    assert "entanglement/layer" not in found.scalars()


def test_a_layer_that_does_not_vary_has_no_cosines():
    found = entangled(torch.zeros(4, 3, dtype=torch.float64), which=[Concept("moo"), Confounder("grass")])
    assert found.entanglement["layer"].cosine is None
    assert found.entanglement["layer"].note


def test_records_name_the_pairs_and_only_the_mean_is_logged():
    event = entangled(MIX)
    found = event.entanglement["layer"]
    rows = {(r["measure"], r["variable"], r["by"]): r["value"] for r in to_records([event]) if r["layer"] == "layer"}
    assert rows[("entanglement", None, None)] == found.cosine
    assert rows[("entanglement", "moo", "tail")] == found.pairs["moo"]["tail"]
    assert rows[("collateral_decodability", "tail", "moo")] == found.collateral["moo"]["tail"]
    assert rows[("participation", None, "neurons")] == found.participation
    assert event.scalars() == {"entanglement/layer": found.cosine}


def test_the_text_names_the_most_entangled_pairs_of_all_layers():
    pairs = {"a": {"b": 0.1, "c": 0.9}, "b": {"c": 0.3}}
    layers = {"one": Entanglement(0.4, pairs), "two": Entanglement(0.5, {"a": {"b": 0.5}})}
    text = str(Event(0, 0, 9, "balanced", "val", "binary", entanglement=layers))
    assert "most entangled: a and c at one (cosine 0.90), a and b at two (cosine 0.50), b and c at one (cosine 0.30)" in text
    assert "most entangled" not in str(entangled(MIX, which=[Concept("moo")]))


def test_a_bent_layer_is_like_any_other():
    event = measured(nets.Equation([[A, B, C, E]]), probe(20), layers=["encoder.0"], measures=["entanglement"])
    assert event.entanglement["encoder.0"].cosine == pytest.approx(0, abs=1e-9)
