"""`zero_weight`: the coefficient is zero, by the smallest change of the weights that makes it so."""

import numpy as np
import pytest
import torch
from nets import fingerprint
from scenes import GRASS, MOO, OPTIONS, Net, cut, rows
from torch import nn

from lightning_interp import Concept, Confounder, capture, explain, zero_weight
from lightning_interp.errors import EditRefusedError, InterpError, LayerError


def pattern_by_numpy(h, batch, balanced=True):
    """What grass adds to the activation, moo held fixed: weighted least squares."""
    grass, moo = batch["grass"].numpy().astype(float), batch["moo"].numpy().astype(float)
    cell = (2 * grass + moo).astype(int)
    weight = 1 / np.bincount(cell)[cell] if balanced else np.ones(len(cell))
    z = np.stack([grass, moo, np.ones(len(cell))], 1) * np.sqrt(weight)[:, None]
    fit = np.linalg.lstsq(z, h * np.sqrt(weight)[:, None], rcond=None)[0]
    mean = sum(h[cell == c].mean(0) for c in range(4)) / 4
    return fit[:1], mean


def test_the_weights_are_those_of_the_formula_and_the_coefficient_is_zero():
    net, batch = Net("linear").eval(), rows(6)
    w, b = (p.detach().double().numpy().copy() for p in (net.head.weight, net.head.bias))
    with capture(net, ["body"]) as seen, torch.no_grad():
        net(batch["x"])
    pattern, mean = pattern_by_numpy(seen["body"].double().numpy(), batch)
    wanted = w - w @ pattern.T @ np.linalg.pinv(pattern @ pattern.T) @ pattern
    before = explain(net, cut(batch), [GRASS, MOO], **OPTIONS)
    found = zero_weight(net, "head", GRASS, cut(batch), [MOO], **OPTIONS)
    after = explain(net, cut(batch), [GRASS, MOO], **OPTIONS)
    np.testing.assert_allclose(net.head.weight.detach().numpy(), wanted, atol=1e-6)
    np.testing.assert_allclose(net.head.bias.detach().numpy(), b + (w - wanted) @ mean, atol=1e-6)
    assert found.modules == ("head",)
    assert before.magnitude["grass"] > 0.1
    assert abs(after.magnitude["grass"]) < 1e-6
    assert found.certificate["kind"] == "zero_weight"
    assert found.certificate["erasure"]["at"] == "input of head"
    assert found.certificate["change"]["grass"]["effect"][1] == pytest.approx(0, abs=1e-6)


def test_no_smaller_change_of_the_weights_does_it():
    net, batch = Net("linear").eval(), rows(6)
    w = net.head.weight.detach().double().numpy().copy()
    with capture(net, ["body"]) as seen, torch.no_grad():
        net(batch["x"])
    pattern = pattern_by_numpy(seen["body"].double().numpy(), batch)[0]
    zero_weight(net, "head", GRASS, cut(batch), [MOO], **OPTIONS)
    change = net.head.weight.detach().double().numpy() - w
    # The smallest solution of change·pattern' = −w·pattern', by the general solver.
    least = np.linalg.lstsq(pattern, -(w @ pattern.T).T, rcond=None)[0].T
    np.testing.assert_allclose(change, least, atol=1e-6)


def test_a_continuous_variable_under_natural_weights():
    net, batch = Net("linear").eval(), rows(6)
    batch = {**batch, "age": batch["x"][:, 3]}
    found = zero_weight(net, "head", Confounder("age"), [batch], [MOO], **OPTIONS)
    after = explain(net, [batch], [Confounder("age"), MOO], weights="natural", **OPTIONS)
    assert found.certificate["settings"]["weights"] == found.certificate["after"]["weights"] == "natural"
    assert found.certificate["change"]["age"]["effect"][0] > 1e-2
    assert abs(after.magnitude["age"]) < 1e-6


def test_a_head_that_reads_tokens():
    net, batch = Net("tokens").eval(), rows(6, 5)
    zero_weight(net, "head", GRASS, cut(batch), [MOO], **OPTIONS)
    assert abs(explain(net, cut(batch), [GRASS, MOO], **OPTIONS).magnitude["grass"]) < 1e-5


def test_undo_is_bit_for_bit():
    net = Net("linear").half()
    net.train()
    before = fingerprint(net)
    found = zero_weight(net, "head", GRASS, cut(rows(6, dtype=torch.float16)), [MOO], **OPTIONS)
    assert fingerprint(net) != before
    found.undo()
    assert fingerprint(net) == before


def test_the_rest_of_the_equation_stays():
    net, batch = Net("linear").eval(), rows(6, n=800)
    events = [explain(net, cut(batch), [GRASS, MOO], **OPTIONS)]
    zero_weight(net, "head", GRASS, cut(batch), [MOO], **OPTIONS)
    events.append(explain(net, cut(batch), [GRASS, MOO], **OPTIONS))
    for name in ("0", "1", "2"):
        one, other = (e.effect["moo"][name].value for e in events)
        assert abs(one - other) < 0.5 * max(abs(events[0].effect["grass"][k].value) for k in ("0", "1", "2"))
    with pytest.raises(EditRefusedError, match="zero_weight of 'moo' at the input of head is refused"):
        zero_weight(Net("linear"), "head", MOO, cut(batch), [Concept("again", label=lambda b: b["x"][:, 0] > 0.2)],
                    inputs="x", target="moo", max_collateral=0.0)  # fmt: skip


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.head = nn.Linear(6, 6), nn.Linear(6, 6)
        self.one.weight = self.head.weight

    def forward(self, x):
        return self.head(torch.relu(self.one(x)))


@pytest.mark.parametrize(
    ("make", "output", "error", "match"),
    [
        (lambda: Net("linear"), "body", LayerError, r"`output='body'` expects a Linear, got Sequential. Did you mean 'body.0'"),
        (lambda: Net("linear"), "heda", LayerError, r"`output='heda'` is no submodule of Net. Did you mean 'head'"),
        (Reused, "head", LayerError, r"`output='head'` cannot be edited: the weights of 'head' are tied to those of 'one'."),
    ],
)
def test_errors_name_the_argument(make, output, error, match):
    with pytest.raises(error, match=match):
        zero_weight(make(), output, GRASS, cut(rows(6)), [MOO], **OPTIONS)


def test_a_bad_limit_is_an_error():
    with pytest.raises(InterpError, match=r"`max_collateral` expects 0 or more, got nan"):
        zero_weight(Net("linear"), "head", GRASS, cut(rows(6)), [MOO], **OPTIONS, max_collateral=float("nan"))
