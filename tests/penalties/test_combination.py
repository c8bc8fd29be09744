"""`Sum`: the weighted sum of its members, in value, gradient, needs and state."""

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_interp.penalties import (
    BalancedReweighting,
    ContributionPenalty,
    GroupDRO,
    IndependencePenalty,
    InvariancePenalty,
    Penalty,
    Step,
    Sum,
)


class Plain(Penalty):
    """Mean output times the number of calls before."""

    def __init__(self, calls=0):
        self.calls = calls

    def __call__(self, step):
        self.calls += 1
        return self.calls * step.output.mean()

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


class Absent(Penalty):
    """Can never be had."""

    def __call__(self, step):
        return None


class Labelled(Absent):
    needs_target = True


def step(output):
    cell = torch.arange(len(output)) % 4
    z = torch.stack([cell % 2, cell // 2], dim=1).double() - 0.5
    return Step(output, z, 1, cell, 4, torch.ones(4) / 4, None, None, lambda: 0 * output, output**3)


def test_value_and_gradient_are_the_weighted_sum():
    g = torch.Generator().manual_seed(0)
    output = torch.randn(300, 2, generator=g, dtype=torch.float64, requires_grad=True)
    members, weights = [ContributionPenalty(), InvariancePenalty(), IndependencePenalty("hsic")], [2.0, 0.5, 0.0]
    wanted = sum(w * p(step(output)) for p, w in zip(members, weights))
    found = Sum(members, weights)(step(output))
    assert torch.allclose(found, wanted, rtol=1e-12, atol=0)
    a, b = (torch.autograd.grad(x, output)[0] for x in (found, wanted))
    assert torch.allclose(a, b, rtol=1e-12, atol=1e-15)
    assert torch.equal(Sum(members)(step(output)), sum(p(step(output)) for p in members))


def test_a_member_that_cannot_be_had_is_left_out():
    now = step(torch.ones(4, 1))
    assert float(Sum([Absent(), Plain(2)], [5.0, 0.5])(now)) == 1.5
    assert Sum([Absent(), Absent()])(now) is None


def test_it_needs_what_any_member_needs():
    assert Sum([Plain()]).capped is False
    one = Sum([Plain(), ContributionPenalty(window_rows=64), IndependencePenalty()])
    assert (one.capped, one.needs_layer, one.needs_intervention, one.needs_target) == (True, True, False, False)
    assert one.window_rows == 64
    two = Sum([Labelled(), Sum([InvariancePenalty(), ContributionPenalty()])])
    assert (two.capped, two.needs_layer, two.needs_intervention, two.needs_target) == (True, False, True, True)
    assert two.window_rows == 256
    assert not two.replaces_loss
    assert (Penalty.capped, Penalty.needs_layer, Penalty.window_rows) == (False, False, 0)  # a sum of its own, not of all


def test_the_members_continue_from_their_states(tmp_path):
    first = Sum([Plain(), Sum([Absent(), Plain(5)])])
    first(step(torch.ones(4, 1)))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state == {"penalties": [{"calls": 1}, {"penalties": [{}, {"calls": 6}]}]}
    second = Sum([Plain(), Sum([Absent(), Plain()])])
    second.load_state_dict(state)
    now = step(torch.ones(4, 1))
    assert float(second(now)) == float(first(now)) == 9


@pytest.mark.parametrize("member", [GroupDRO, BalancedReweighting])
def test_a_member_that_replaces_the_loss_is_refused(member):
    text = f"`penalties`: {member.__name__} replaces the mean loss .* Give it a SuppressConfounder of its own."
    with pytest.raises(ValueError, match=text):
        Sum([ContributionPenalty(), member()])


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="`penalties` expects one or more, got none"):
        Sum([])
    with pytest.raises(ValueError, match="`weights` expects 2, one for each penalty, got 1"):
        Sum([Plain(), Plain()], [1.0])
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"`weights` expects 0 or more each, got \[1.0, {wrong}\]"):
            Sum([Plain(), Plain()], [1.0, wrong])


def test_it_builds_from_yaml():
    parser = ArgumentParser()
    parser.add_argument("--penalty", type=Penalty)
    at = "lightning_interp.penalties."
    members = [
        {"class_path": at + "ContributionPenalty", "init_args": {"window_rows": 128}},
        {"class_path": at + "IndependencePenalty", "init_args": {"measure": "hsic"}},
    ]
    config = parser.parse_object(
        {"penalty": {"class_path": at + "Sum", "init_args": {"penalties": members, "weights": [1, 10]}}}
    )
    built = parser.instantiate(config).penalty
    assert type(built) is Sum
    assert [type(p) for p in built.penalties] == [ContributionPenalty, IndependencePenalty]
    assert built.window_rows == 128
    assert built.penalties[1].measure == "hsic"
    assert built.weights == (1.0, 10.0)
