"""Capturing equals plain forward values, and no hook outlives its `with`."""

import copy
from collections import OrderedDict
from typing import NamedTuple

import nets
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_interp import capture
from lightning_interp.activations.capture import RootCalls, hooked, in_backward
from lightning_interp.activations.select import select
from lightning_interp.errors import LayerError

X = torch.arange(-6.0, 6.0).reshape(6, 2)


def test_an_in_place_layer_after_it_does_not_reach_what_was_captured():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True))
    plain = nn.functional.linear(X, net[0].weight, net[0].bias)
    with capture(net, ["0", "1"]) as found:
        net(X)
    assert (plain < 0).any()
    assert torch.equal(found["0"], plain)
    assert torch.equal(found["1"], plain.clamp_min(0))
    assert not found["0"].requires_grad


def test_a_later_in_place_change_by_the_user_does_not_either():
    net = nn.Sequential(nn.Linear(2, 3))
    with capture(net, ["0"]) as found:
        out = net(X)
    before = found["0"].clone()
    out.detach().zero_()
    assert torch.equal(found["0"], before)


class Named(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Says(nn.Module):
    """Returns what it is told to."""

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda x: x, "0"),
        (lambda x: (x, None), "0"),
        (lambda x: (None, x), "0"),
        (lambda x: ((x, x + 1), x + 2), "0"),
        (lambda x: [x, x + 1], "0"),
        (lambda x: Named(x, x + 1), "0"),
        (lambda x: {"hidden": x, "other": x + 1}, "0"),
        (lambda x: {"other": x + 1, "hidden": x}, "0:hidden"),
        (lambda x: OrderedDict(other=x + 1, hidden=x), "0:hidden"),
        (lambda x: (x + 1, x), "0:1"),
        (lambda x: {"hidden": (x, x + 1), "other": x + 2}, "0:hidden"),  # a ModelOutput's `hidden_states` is a tuple
    ],
)
def test_a_tensor_is_found_in_whatever_a_layer_returns(make, name):
    with capture(nn.Sequential(Says(make)), [name]) as found:
        Says(make)(X)
        assert found == {}
        nn.Sequential(Says(make))(X)
        assert found == {}
    net = nn.Sequential(Says(make))
    with capture(net, [name]) as found:
        net(X)
    assert list(found) == [name]
    assert torch.equal(found[name], X)


@pytest.mark.parametrize("make", [lambda x: None, lambda x: "text", lambda x: {"other": x}, lambda x: (x,)])
def test_no_tensor_at_the_key_captures_nothing(make):
    net = nn.Sequential(Says(make))
    with capture(net, ["0:7" if isinstance(make(X), tuple) else "0:hidden"]) as found:
        net(X)
    assert found == {}


def test_of_a_shared_module_the_last_call_counts_under_every_name():
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    net.append(net[0])
    with capture(net, ["0", "2"]) as found:
        out = net(X)
    assert torch.equal(found["0"], out)
    assert torch.equal(found["2"], out)


def test_a_layer_that_did_not_run_is_missing():
    net = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    with capture(net, ["0", "1"]) as found:
        net[1](X)
    assert list(found) == ["1"]


def test_a_pattern_that_matches_nothing_is_an_error_before_any_hook():
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(LayerError, match="'9' matches no submodule of Sequential"), capture(net, ["0", "9"]):
        pass
    assert nets.hooks(net) == 0


# --- whose hooks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_hooks_are_gone_after_exit_and_after_an_exception_and_foreign_ones_stay(error):
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    calls = []
    net[0].register_forward_hook(lambda m, a, o: calls.append("mine"))
    net[0].register_forward_pre_hook(lambda m, a: calls.append("pre"))
    foreign = dict(net[0]._forward_hooks)

    def run():
        with capture(net, ["*"]):
            assert nets.hooks(net) == 4
            net(X)
            if error:
                raise error("stop")

    if error:
        with pytest.raises(error, match="stop"):
            run()
    else:
        run()
    assert nets.hooks(net) == 2
    assert dict(net[0]._forward_hooks) == foreign
    net(X)
    assert calls == ["pre", "mine"] * 2


def test_a_failing_registration_undoes_the_earlier_ones():
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    layers = select(net, ["0", "1"])
    net[1].register_forward_hook = None  # cannot be called
    with pytest.raises(TypeError, match="NoneType"), hooked(layers, lambda *a: None):
        pass
    assert nets.hooks(net) == 0


def test_nested_captures_each_own_theirs():
    net = nn.Sequential(nn.Linear(2, 2))
    with capture(net, ["0"]) as outer:
        with capture(net, ["0"]) as inner:
            net(X)
        assert nets.hooks(net) == 1
        net(X + 1)
    assert torch.equal(inner["0"], net(X))
    assert torch.equal(outer["0"], net(X + 1))


def test_what_read_returns_replaces_the_output():
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    with hooked(select(net, ["0"]), lambda name, layer, output: output * 0):
        assert (net(X) == 0).all()
    assert (net(X) != 0).any()


# --- copies, recomputation --------------------------------------------------------------------------------------------


def test_a_model_can_be_copied_while_hooked_and_the_copy_is_not_watched():
    # weight averaging copies the model whenever it likes
    net = nn.Sequential(nn.Linear(2, 2))
    with capture(net, ["0"]) as found:
        out = net(X)
        twin = copy.deepcopy(net)
        twin(X + 1)
        assert torch.equal(found["0"], out)
    twin(X + 2)
    assert torch.equal(found["0"], out)
    assert nets.hooks(net) == 0


def test_activation_checkpointing_is_read_once():
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    seen = []
    x = X.clone().requires_grad_()
    with hooked(select(net, ["0"]), lambda name, layer, output: seen.append(in_backward())):
        checkpoint(net, x, use_reentrant=False).sum().backward()
    assert seen == [False]
    assert x.grad is not None


def test_a_hooked_layer_trains_as_without():
    grads = []
    for watched in (False, True):
        net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True), nn.Linear(2, 1))
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
        if watched:
            with capture(net, ["*"]):
                net(X).sum().backward()
        else:
            net(X).sum().backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_a_compiled_part_that_already_ran_is_still_captured():
    # a hook that is added after the first compiled call never fires by itself, and torch says nothing
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    net[0] = torch.compile(net[0], backend="eager")
    expected = net(X)
    with capture(net, ["*"]) as found:
        net(X)
    torch._dynamo.reset()
    assert sorted(found) == ["0", "1"]
    assert torch.equal(found["1"], expected)


# --- the strategy's own call of the root ------------------------------------------------------------------------------


class Root(nn.Module):
    def forward(self, x):
        return x


def test_the_strategys_call_of_the_root_is_told_from_the_users():
    root, calls, seen = Root(), RootCalls(), []
    with calls.watching(root):
        root.register_forward_hook(lambda m, a, o: seen.append(calls.wrapping), prepend=True)
        root(X)

        class _ForwardRedirection:
            def wrapped(self, x):
                vars(root).pop("forward")
                root(x)  # the user's own call, inside the step
                return x

        root.forward = _ForwardRedirection().wrapped
        root(X)
    assert seen == [False, False, True]
    assert not calls.wrapping


def test_an_exception_in_the_root_leaves_nothing_behind():
    root, calls = Says(lambda x: 1 / 0), RootCalls()
    with pytest.raises(ZeroDivisionError), calls.watching(root):
        root(X)
    assert nets.hooks(root) == 0
    root.make = lambda x: x
    with calls.watching(root):
        root(X)
        assert not calls.wrapping
    assert copy.deepcopy(calls) is calls
