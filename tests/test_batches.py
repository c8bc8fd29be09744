"""Where things sit in a batch, how the model is called with them, and how much they take."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import nets
import pytest
import torch
from torch import nn

from lightning_interp.batches import Inputs, as_tensor, is_text, moved, nbytes, pick, resolve_place, size, text_key
from lightning_interp.errors import InterpError, LabelError

X = torch.arange(6.0).reshape(3, 2)
Y = torch.tensor([0, 1, 1])
Pair = namedtuple("Pair", ["image", "label"])


@dataclass
class Sample:
    image: torch.Tensor
    label: torch.Tensor


class Movable:
    """What graph libraries hand out: a batch object of its own with `to`."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def to(self, device: torch.device | str) -> "Movable":
        return Movable(self.x.to(device))


# --- pick -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "batch"),
    [
        ("y", {"y": Y}),
        (1, (X, Y)),
        (-1, [X, Y]),
        (7, {7: Y}),
        ("label", Pair(X, Y)),
        (1, Pair(X, Y)),
        ("label", Sample(X, Y)),
        ("a.b.c", {"a": {"b": {"c": Y}}}),
        ("a.1.c", {"a": [X, SimpleNamespace(c=Y)]}),
        ("a.b", {"a.b": Y, "a": {"b": X}}),  # the whole key comes first
        (lambda batch: batch[0], [Y]),
    ],
)
def test_pick_finds_the_very_object(place, batch):
    assert pick(batch, place, "label") is Y


def test_pick_reads_rows_of_a_tensor_batch():
    assert pick(X, 1, "label").tolist() == [2, 3]


def test_a_string_is_no_container():
    with pytest.raises(LabelError, match=r"`target='a.0'` is not in the batch"):
        pick({"a": "text"}, "a.0", "target")


def test_resolve_place_imports_functions_and_leaves_the_rest():
    assert resolve_place("nets:grass_of", "label") is nets.grass_of
    assert resolve_place("a.b", "label") == "a.b"
    assert resolve_place(3, "label") == 3


# --- numbers and text -------------------------------------------------------------------------------------------------


def test_as_tensor_detaches_and_copies_nothing():
    w = torch.zeros(3, requires_grad=True)
    assert not as_tensor(w, "label").requires_grad
    assert as_tensor(Y, "label").data_ptr() == Y.data_ptr()
    assert as_tensor([1, 2], "label").tolist() == [1, 2]


@pytest.mark.parametrize(
    ("found", "text"), [(["a", "b"], True), (("a",), True), ([], False), (["a", 1], False), ("ab", False), (Y, False)]
)
def test_text_is_a_list_of_strings(found, text):
    assert is_text(found) == text


def test_text_keys_are_fixed_for_all_time():
    # a checkpoint or another rank must find the same number: blake2b of "grass", 8 bytes, little endian
    import hashlib

    plain = int.from_bytes(hashlib.blake2b(b"grass", digest_size=8).digest(), "little", signed=True)
    assert text_key(["grass", "moo"])[0] == plain
    assert text_key(["grass", "moo"])[0] != text_key(["grass", "moo"])[1]


# --- Inputs -----------------------------------------------------------------------------------------------------------


def said(*args, **kwargs):
    """Stands in for a model: returns what it was called with."""
    return args, kwargs


@pytest.mark.parametrize(
    ("place", "batch", "args", "kwargs"),
    [
        (None, (X, Y), (X,), {}),
        (None, [X, Y], (X,), {}),
        (None, X, (X,), {}),
        ("image", {"image": X, "label": Y}, (X,), {}),
        (1, (Y, X), (X,), {}),
        ("a.image", {"a": {"image": X}}, (X,), {}),
        (["image"], {"image": X, "label": Y}, (), {"image": X}),
        (("image", "label"), {"image": X, "label": Y}, (), {"image": X, "label": Y}),
        (lambda model, batch: model(batch["image"], scale=2), {"image": X}, (X,), {"scale": 2}),
        ("nets:call_x", {"x": X}, (X,), {}),
    ],
)
def test_inputs_call_the_model_as_each_form_says(place, batch, args, kwargs):
    got_args, got_kwargs = Inputs(place).call(said, batch)
    assert len(got_args) == len(args)
    assert all(a is b for a, b in zip(got_args, args))
    assert got_kwargs == kwargs


def test_without_inputs_a_dict_batch_is_handed_over_whole():
    batch = {"image": X}
    assert Inputs().call(said, batch)[0][0] is batch


@pytest.mark.parametrize(
    ("place", "batch"),
    [
        (None, (X, Y)),
        (None, {"image": X, "label": Y}),
        (None, SimpleNamespace(image=X)),
        (None, {"meta": {"name": "a", "n": 3, "scalar": torch.tensor(1.0)}, "image": X}),
        ("image", {"label": Y, "image": X}),
        (1, (Y, X)),
        (["image", "label"], {"label": Y, "image": X}),
        (nets.call_x, {"image": X}),
        ("image", {"image": [X, Y]}),
    ],
)
def test_the_first_input_is_what_the_model_is_given(place, batch):
    assert Inputs(place).first(batch) is X


def test_no_tensor_is_no_first_input():
    assert Inputs().first({"a": "text", "b": 3}) is None


@pytest.mark.parametrize("place", [True, 1.5, [], [1, 2], {"a": 1}])
def test_inputs_of_no_known_form_are_an_error(place):
    with pytest.raises(LabelError, match="`inputs` expects a key, an index, a list of keys or a function, got"):
        Inputs(place)


def test_inputs_that_are_not_in_the_batch_name_the_nearest():
    with pytest.raises(LabelError, match=r"`inputs='imag'` is not in the batch, a dict: no 'imag'. Did you mean 'image'\?"):
        Inputs("imag").call(said, {"image": X})
    with pytest.raises(LabelError, match=r"no 'labl'. Did you mean 'label'\?"):
        Inputs(["image", "labl"]).call(said, {"image": X, "label": Y})
    with pytest.raises(InterpError, match=r"`inputs='nets:cal_x'`: module 'nets' has no 'cal_x'. Did you mean 'call_x'"):
        Inputs("nets:cal_x")


# --- size, bytes, devices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "n"),
    [
        (X, 3),
        ((X, Y), 3),
        ({"name": "abc", "x": X}, 3),
        ({"lr": torch.tensor(0.1), "x": X}, 3),
        ({"names": ["a", "b"]}, 2),
        ([{"x": X}], 3),
        (Pair(X, Y), 3),
        (Sample(X, Y), 3),
        (SimpleNamespace(k=1, x=X), 3),
        (torch.tensor(1.0), 0),
        ({}, 0),
        (3, 0),
        (torch.zeros(0, 2), 0),
    ],
)
def test_size_counts_the_samples(batch, n):
    assert size(batch) == n


def test_size_counts_a_plain_list_of_numbers_too():
    assert size({"label": [0, 1, 1]}) == 3


@pytest.mark.parametrize(
    ("batch", "bytes_"),
    [
        (X, 24),
        (Y, 24),
        ((X, [Y, Y]), 72),
        ({"x": X, "name": "text", "k": 3}, 24),
        (Sample(X, Y), 48),
        (SimpleNamespace(x=X.half()), 12),
        ("text", 0),
    ],
)
def test_nbytes_adds_up_every_tensor(batch, bytes_):
    assert nbytes(batch) == bytes_


def test_a_batch_object_that_refers_to_itself_is_counted_once():
    batch = SimpleNamespace(x=X)
    batch.owner = batch
    assert nbytes(batch) == 24


def test_moved_rebuilds_containers_on_the_device():
    batch = {"x": X, "pair": Pair(X, "text"), "list": [Y, 3], "sample": Sample(X, Y)}
    there = moved(batch, "meta")
    assert there["x"].is_meta
    assert there["pair"].image.is_meta
    assert there["pair"].label == "text"
    assert there["list"][0].is_meta
    assert there["list"][1] == 3
    assert there["sample"].image.is_meta
    assert not batch["x"].is_meta
    assert not batch["sample"].image.is_meta


def test_moved_detaches():
    w = torch.ones(2, requires_grad=True)
    assert not moved({"w": w * 2}, "cpu")["w"].requires_grad


def test_moved_uses_a_batch_objects_own_to_as_lightning_does():
    assert moved({"graph": Movable(X)}, "meta")["graph"].x.is_meta


def test_inputs_run_a_real_module():
    net = nn.Linear(2, 1)
    assert torch.equal(Inputs("x").call(net, {"x": X}), net(X))
