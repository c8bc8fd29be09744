"""Names and globs: what they pick, what they look through, and what they say when nothing is there."""

import re

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lightning_interp.activations.select import MAX_LAYERS, find_module, module_names, select
from lightning_interp.errors import LayerError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Linear(2, 2)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.conv(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(Block(), Block())
        self.heads = nn.ModuleDict({"cow": nn.Linear(2, 1), "horse": nn.Linear(2, 1)})
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(self.encoder(x))


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["fc"], ["fc"]),
        ("fc", ["fc"]),
        (["encoder.*"], ["encoder.0", "encoder.1"]),
        (["encoder.**"], ["encoder.0", "encoder.0.conv", "encoder.0.act", "encoder.1", "encoder.1.conv", "encoder.1.act"]),
        (["encoder.*.conv"], ["encoder.0.conv", "encoder.1.conv"]),
        (["**.conv"], ["encoder.0.conv", "encoder.1.conv"]),
        (["*"], ["encoder", "fc"]),  # a ModuleDict never runs
        (["*.cow"], ["heads.cow"]),
        (["f*"], ["fc"]),
        (["fc", "encoder.0", "fc"], ["fc", "encoder.0"]),
        (["encoder.1", "encoder.*"], ["encoder.1", "encoder.0"]),
        (["encoder.0:hidden"], ["encoder.0:hidden"]),
        ([], []),
    ],
)
def test_patterns_pick_layers(patterns, names):
    net = Net()
    found = select(net, patterns)
    assert list(found) == names
    assert all(layer.module is net.get_submodule(name.partition(":")[0]) for name, layer in found.items())


def test_a_dot_in_a_glob_is_a_dot():
    net = nn.ModuleDict({"a": nn.Sequential(nn.ReLU()), "ab0": nn.ReLU()})
    assert list(select(net, ["a.*"])) == ["a.0"]


def test_named_tells_a_full_name_from_a_glob():
    found = select(Net(), ["fc", "encoder.*"])
    assert [layer.named for layer in found.values()] == [True, False, False]


def test_a_key_after_a_colon_is_kept():
    layer = select(Net(), ["encoder.0:hidden"])["encoder.0:hidden"]
    assert layer.key == "hidden"
    assert find_module(Net(), "fc", "output").key is None
    assert find_module(Net(), "fc:logits", "output").key == "logits"


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("encodr.0", r"`layers`: 'encodr.0' matches no submodule of Net. Did you mean 'encoder.0'"),
        ("encoder.2", r"Did you mean 'encoder.\d'"),
        ("decoder.*", r"'decoder.\*' matches no submodule of Net."),
        ("heads.*.*", r"matches no submodule of Net."),
        ("", r"`layers`: '' matches no submodule of Net."),
        ("ncoder.0", "Did you mean 'encoder.0'"),  # the whole name, not a part of it
        ("fc.", "Did you mean 'fc'"),
    ],
)
def test_a_pattern_that_matches_nothing_names_the_nearest(pattern, said):
    with pytest.raises(LayerError, match=said):
        select(Net(), ["fc", pattern])


def test_an_output_that_does_not_exist_names_the_nearest():
    with pytest.raises(LayerError, match=r"`output='hedas.cow'` is no submodule of Net. Did you mean 'heads.cow'"):
        find_module(Net(), "hedas.cow", "output")


def test_more_than_64_layers_are_an_error_with_the_count():
    net = nn.Sequential(*[nn.ReLU() for _ in range(MAX_LAYERS + 1)])
    with pytest.raises(LayerError, match=r"`layers` matches 65 submodules of Sequential, at most 64 are read"):
        select(net, ["*"])
    assert len(select(net[:-1], ["*"])) == MAX_LAYERS


def test_the_same_layers_twice_count_once_towards_the_limit():
    net = nn.Sequential(*[nn.ReLU() for _ in range(MAX_LAYERS)])
    assert len(select(net, ["*", "**"])) == MAX_LAYERS


# --- wrappers ---------------------------------------------------------------------------------------------------------


def test_checkpoint_wrappers_are_looked_through():
    net = Net()
    inner = net.encoder[0]
    net.encoder[0] = checkpoint_wrapper(inner)
    assert select(net, ["encoder.0"])["encoder.0"].module is inner
    assert list(select(net, ["encoder.*"])) == ["encoder.0", "encoder.1"]
    assert select(net, ["encoder.0.conv"])["encoder.0.conv"].module is inner.conv


class Wrapped(nn.Module):
    """Names its inner module as a wrapper of torch or Fabric does."""

    def __init__(self, inner: nn.Module, attribute: str) -> None:
        super().__init__()
        setattr(self, attribute, inner)


@pytest.mark.parametrize("attribute", ["_orig_mod", "_forward_module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"])
def test_names_are_those_of_the_users_own_class(attribute):
    net = Net()
    plain = list(module_names(net))
    inner = net.encoder
    net.encoder = Wrapped(inner, attribute)
    assert list(module_names(net)) == plain
    assert module_names(net)["encoder"] is inner
    whole = Wrapped(net, attribute)
    assert list(module_names(whole)) == plain
    assert module_names(whole)[""] is net


def test_wrapping_with_torch_compile_keeps_names():
    net = Net()
    net.encoder = torch.compile(net.encoder, backend="eager")  # compiles nothing until it is called
    assert "encoder._orig_mod.0.conv" in dict(net.named_modules())
    assert list(select(net, ["encoder.*.conv"])) == ["encoder.0.conv", "encoder.1.conv"]


def test_a_module_under_two_names_is_found_under_both():
    net = nn.Sequential(nn.Linear(2, 2))
    net.add_module("again", net[0])
    found = select(net, ["0", "again"])
    assert found["0"].module is found["again"].module


def test_names_with_signs_of_regular_expressions_are_taken_literally():
    net = nn.ModuleDict({"a+b": nn.Sequential(nn.ReLU()), "aab": nn.Sequential(nn.ReLU())})
    assert list(select(net, ["a+b.*"])) == ["a+b.0"]
    assert re.fullmatch("a+b", "aab")
