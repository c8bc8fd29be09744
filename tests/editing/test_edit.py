"""`edit`: the folded weights do what the hooked erasure does, in a plain `state_dict`, and what it cannot do it says."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from nets import fingerprint, hooks, random_streams
from scenes import GRASS, KINDS, MOO, OPTIONS, Net, cut, rows, seq
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, Dataset

from lightning_interp import Concept, Confounder, Edit, capture, edit
from lightning_interp.certificate import write_certificate
from lightning_interp.errors import EditRefusedError, InterpError, LayerError, ProbeSetError, VariableError

# (kind, layer, modules that change, axis of the units)
PLACES = [
    ("linear", "body.0", ("body.0",), 1),
    ("linear", "body.1", ("head",), 1),
    ("linear", "body", ("head",), 1),
    ("conv1d", "body.0", ("body.0",), 1),
    ("conv1d", "body.2", ("body.2",), 1),
    ("conv1d", "body.3", ("head",), 1),
    ("conv2d", "body.0", ("body.0",), 1),
    ("conv2d", "body.1", ("body.3",), 1),
    ("conv2d", "body.2", ("body.3",), 1),
    ("conv2d", "body.5", ("head",), 1),
    ("conv3d", "body.0", ("body.0",), 1),
    ("conv3d", "body.1", ("head",), 1),
    ("transposed", "body.0", ("body.0",), 1),
    ("transposed", "body.1", ("head",), 1),
    ("circular", "body.1", ("body.2",), 1),
    ("layer norm", "body.0", ("body.0",), 1),
    ("layer norm", "body.1", ("head",), 1),
    ("batch norm", "body.0", ("body.0",), 1),
    ("batch norm", "body.1", ("head",), 1),
    ("batch norm", "body.2", ("head",), 1),
    ("conv, norm", "body.0", ("body.0", "body.1"), 1),
    ("conv, norm", "body.1", ("body.0", "body.1"), 1),
    ("conv, norm", "body.2", ("head",), 1),
    ("plain norm", "body.1", ("body.0",), 1),
    ("residual", "body.0", ("body.0",), 1),
    ("residual", "body.1.fc2", ("body.1.fc2",), 1),
    ("residual", "body.2", ("head",), 1),
    ("branches", "body.0", ("body.0.a.0", "body.0.a.1", "body.0.b"), 1),
    ("tokens", "body.embed", ("body.embed",), 2),
    ("tokens", "body.blocks.0.linear2", ("body.blocks.0.linear2",), 2),
    ("tokens", "body.blocks.1.self_attn", ("body.blocks.1.self_attn.out_proj",), 2),
    ("tokens", "body.norm", ("head",), 2),
]


def erased_by_hand(net, layer, eraser, axis):
    """A hook that projects every position, written out."""

    def hook(module, args, output):
        first = output[0] if isinstance(output, tuple) else output
        h = first.double().movedim(axis, -1)
        new = (h - (h - eraser.mean) @ eraser.read @ eraser.write).movedim(-1, axis).to(first.dtype)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return net.get_submodule(layer).register_forward_hook(hook)


@pytest.mark.parametrize(("kind", "layer", "modules", "axis"), PLACES)
def test_the_folded_weights_do_what_the_hooked_erasure_does(kind, layer, modules, axis):
    net, shape = Net(kind), KINDS[kind][0]
    plain = copy.deepcopy(net).eval()
    found = edit(net, layer, GRASS, cut(rows(*shape)), [MOO], **OPTIONS)
    assert isinstance(found, Edit)
    assert found.modules == modules
    other = rows(*shape, seed=1)["x"]
    handle = erased_by_hand(plain, layer, found.eraser, axis)
    with torch.no_grad():
        hooked = plain(other)
    handle.remove()
    fresh = Net(kind).eval()
    with torch.no_grad():
        untouched = fresh(other)
        fresh.load_state_dict(net.state_dict())
        folded = fresh(other)
    assert (untouched - hooked).abs().max() > 1e-2
    torch.testing.assert_close(folded, hooked, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_undo_is_bit_for_bit_and_nothing_else_was_touched(kind):
    net = Net(kind)
    net.train()
    net.body.eval()
    before, streams = fingerprint(net), random_streams()
    layer = {"conv, norm": "body.1", "branches": "body.0", "tokens": "body.norm", "residual, norm": "body.3"}.get(
        kind, "body.0"
    )
    found = edit(net, layer, GRASS, cut(rows(*KINDS[kind][0])), [MOO], **OPTIONS)
    after = fingerprint(net)
    changed = {name.rpartition(".")[0] for name, value in before.items() if after[name] != value}
    assert changed == set(found.modules)
    assert hooks(net) == 0
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    found.undo()
    assert fingerprint(net) == before
    assert random_streams()[:1] == streams[:1]
    assert str(random_streams()) == str(streams)


def least_squares_gain(h, grass, moo, weight):
    """R² of grass on the activation beyond what moo says, by numpy, weighted."""
    base = np.stack([np.ones(len(h)), moo], 1)
    w = np.sqrt(weight)[:, None]

    def rss(design):
        fit = np.linalg.lstsq(design * w, grass * w[:, 0], rcond=1e-6)[0]
        return ((w[:, 0] * (grass - design @ fit)) ** 2).sum()

    return 1 - rss(np.concatenate([base, h], 1)) / rss(base)


@pytest.mark.parametrize(("kind", "layer", "pooled"), [("linear", "body.0", None), ("conv2d", "body.0", (2, 3))])
def test_nothing_linear_reads_the_variable_on_the_fitting_rows(kind, layer, pooled):
    net, batch = Net(kind).eval(), rows(*KINDS[kind][0])
    grass, moo = batch["grass"].numpy().astype(float), batch["moo"].numpy().astype(float)
    cell = (2 * grass + moo).astype(int)
    weight = 1 / np.bincount(cell)[cell]

    def gain():
        with capture(net, [layer]) as seen, torch.no_grad():
            net(batch["x"])
        h = seen[layer].double() if pooled is None else seen[layer].double().mean(pooled)
        h = h.numpy()
        covariance = (weight[:, None] * (h - np.average(h, 0, weight))).T @ (grass - 0.5)
        return least_squares_gain(h, grass, moo, weight), np.abs(covariance).max()

    before = gain()
    edit(net, layer, GRASS, cut(batch), [MOO], **OPTIONS)
    after = gain()
    assert before[0] > 0.1
    assert before[1] > 0.1
    # Under these weights grass and moo are independent, so that the covariance is all that a linear probe can use.
    assert after[1] < 1e-5
    assert after[0] < 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    net = Net("linear").to(dtype).eval()
    plain = copy.deepcopy(net)
    batch = rows(6, dtype=dtype)
    found = edit(net, "body.0", GRASS, cut(batch), [MOO], **OPTIONS)
    handle = erased_by_hand(plain, "body.0", found.eraser, 1)
    with torch.no_grad():
        hooked, folded = plain(batch["x"]), net(batch["x"])
    handle.remove()
    assert net.body[0].weight.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(folded, hooked, rtol=tolerance, atol=tolerance)
    found.undo()
    for name, value in Net("linear").to(dtype).state_dict().items():
        assert torch.equal(net.state_dict()[name], value)


# --- data and variables -----------------------------------------------------------------------------------------------


class Items(Dataset):
    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return len(self.batch["x"])

    def __getitem__(self, i):
        return {k: v[i] for k, v in self.batch.items()}


def test_any_kind_of_data_gives_the_same_edit():
    batch = rows(6)
    items = Items(batch)
    kinds = [cut(batch), iter(cut(batch)), items, DataLoader(items, batch_size=50, shuffle=True)]
    states = []
    for data in kinds:
        net = Net("linear")
        edit(net, "body.0", GRASS, data, [MOO], **OPTIONS)
        states.append(net.state_dict())
    for state in states[1:]:
        for name, value in state.items():
            torch.testing.assert_close(value, states[0][name], rtol=1e-5, atol=1e-6)


def test_text_labels_several_levels_and_continuous_variables():
    batch = rows(6, n=360)
    level = torch.arange(360) // 2 % 3
    batch["x"][torch.arange(360), level] += 2
    names = [["meadow", "sea", "stable"][i] for i in level]
    data = [{**batch, "place": names}]
    found = edit(Net("linear"), "body.0", Confounder("place"), data, [MOO], **OPTIONS)
    assert found.eraser.rank == 2
    data = [{**batch, "age": batch["x"][:, 2]}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = edit(Net("linear"), "body.0", Confounder("age"), data, [MOO], **OPTIONS)
    assert found.certificate["settings"]["weights"] == "natural"
    assert found.certificate["erasure"]["guardedness"]["before"] > 0.2
    assert found.certificate["erasure"]["guardedness"]["after"] < 0.1


def test_several_directions_are_carried_through_flatten():
    net, batch = Net("conv, norm").eval(), rows(2, 5, 5, n=360)
    level = torch.arange(360) // 2 % 3
    batch["x"][:, 0, :, 0] += 2.0 * (level == 1)[:, None]
    batch["x"][:, 1, :, 0] += 2.0 * (level == 2)[:, None]
    copied = copy.deepcopy(net)
    found = edit(net, "body.2", Confounder("level"), [{**batch, "level": level}], [MOO], **OPTIONS)
    assert (found.eraser.rank, found.modules) == (2, ("head",))
    handle = erased_by_hand(copied, "body.2", found.eraser, 1)
    torch.testing.assert_close(net(batch["x"]), copied(batch["x"]), rtol=1e-5, atol=1e-5)
    handle.remove()


def test_rows_without_a_label_are_left_out():
    batch, none = rows(6), rows(6, seed=5, n=20)
    both = {k: torch.cat([batch[k], none[k]]) for k in batch}
    both["grass"] = both["grass"].double()
    both["grass"][-20:] = torch.nan
    a, b = Net("linear"), Net("linear")
    edit(a, "body.0", GRASS, [batch], [MOO], **OPTIONS)
    edit(b, "body.0", GRASS, [both], [MOO], **OPTIONS)
    torch.testing.assert_close(a.body[0].weight, b.body[0].weight)


# --- the certificate --------------------------------------------------------------------------------------------------


def swap(batch):
    x = batch["x"].clone()
    x[:, 1] -= 2 * (2 * batch["grass"] - 1)
    return {**batch, "x": x, "grass": 1 - batch["grass"]}


def leaning():
    """A net whose output is 3 times grass's unit and 2 times moo's, and their activation."""
    net = nn.Sequential(nn.Linear(6, 6), nn.Identity(), nn.Linear(6, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0])
        net[0].bias.zero_()
        net[2].weight.copy_(torch.tensor([[2.0, 3.0, 0, 0, 0, 0]]) @ net[0].weight.T)
        net[2].bias.zero_()
    return net


def test_the_certificate_says_what_was_done_and_measured(tmp_path):
    grass = Confounder("grass", intervention=swap)
    net = leaning()
    found = edit(net, "0", grass, cut(rows(6, n=800)), [MOO], **OPTIONS, max_collateral=0.2)
    c = found.certificate
    assert (c["kind"], c["confounder"], c["concepts"]) == ("edit", "grass", ["moo"])
    assert c["measured_on"]["n"] == 800
    assert c["measured_on"]["probe"] == c["before"]["probe"]
    assert c["measured_on"]["probe"] is not None
    assert c["change"]["grass"]["effect"][0] == pytest.approx(6, abs=0.5)
    assert c["change"]["grass"]["effect"][1] == pytest.approx(0, abs=1e-4)
    assert c["change"]["moo"]["effect"][1] == pytest.approx(4, abs=0.5)
    assert c["before"]["intervention"]["grass"]["value"] == pytest.approx(6, abs=1e-4)
    assert abs(c["after"]["intervention"]["grass"]["value"]) < 0.5
    e = c["erasure"]
    assert e["at"] == "output of 0"
    assert e["folded_into"] == {"0": "written"}
    assert e["guardedness"]["before"] > 0.3
    assert e["guardedness"]["after"] < 0.02
    assert e["guardedness"]["weights"] == "balanced"
    assert e["collateral"]["moo"] == pytest.approx(1 - c["change"]["moo"]["effect"][1] / c["change"]["moo"]["effect"][0])
    assert set(e["accuracy"]["before"]) == {"all", "0", "1"}
    assert e["accuracy"]["after"]["all"] > e["accuracy"]["before"]["all"]
    assert (e["control"]["rank"], e["control"]["draws"]) == (1, 3)
    assert e["control"]["effect"]["grass"] > 2
    assert np.asarray(e["directions"]["read"]).shape == (6, 1)
    assert e["largest_difference"] < 1e-5
    assert any("held-out" in note for note in c["notes"])
    write_certificate(tmp_path / "c.json", c)
    assert json.loads((tmp_path / "c.json").read_text())[0]["kind"] == "edit"


def test_an_edit_that_costs_too_much_is_refused_with_the_numbers():
    net = leaning()
    with torch.no_grad():
        net[2].weight.copy_(torch.tensor([[2.0, -1.0, 0, 0, 0, 0]]) @ net[0].weight.T)
    data = rows(6, n=800)
    data["x"][:, 1] += 1.5 * (2.0 * data["moo"] - 1)  # what carries grass carries moo
    data["x"][:, 0] -= 2.0 * data["moo"] - 1
    before = fingerprint(net)
    with pytest.raises(EditRefusedError, match=r"edit of 'grass' at the output of 0 is refused, it loses .*moo \d+ % \(") as e:
        edit(net, "0", GRASS, cut(data), [MOO], **OPTIONS, max_collateral=0.01)
    assert "The weights are as they were." in str(e.value)
    assert fingerprint(net) == before
    assert e.value.certificate["erasure"]["collateral"]["moo"] > 0.01


def test_a_second_edit_and_undo_in_order():
    net, data = Net("linear"), cut(rows(6))
    before = fingerprint(net)
    first = edit(net, "body.0", GRASS, data, [MOO], **OPTIONS)
    between = fingerprint(net)
    second = edit(net, "body.0", MOO, data, [], **OPTIONS)
    with pytest.raises(InterpError, match=r"the weights of 'body.0' are no longer what this edit made of them"):
        first.undo()
    second.undo()
    assert fingerprint(net) == between
    first.undo()
    assert fingerprint(net) == before
    with pytest.raises(InterpError, match="Undo later edits first"):
        first.undo()


def test_an_error_half_way_leaves_the_weights(monkeypatch):
    net = Net("linear")
    before = fingerprint(net)
    monkeypatch.setattr("lightning_interp.editing.surgery.certificate", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        edit(net, "body.0", GRASS, cut(rows(6)), [MOO], **OPTIONS)
    assert fingerprint(net) == before
    assert hooks(net) == 0


# --- what cannot be folded --------------------------------------------------------------------------------------------


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.relu(self.again(torch.relu(self.again(self.first(x))))))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.code, self.back, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.back.weight = self.code.weight

    def forward(self, x):
        return self.head(torch.relu(self.back(torch.relu(self.code(torch.relu(self.first(x)))))))


class Unseen(nn.Module):
    """Uses a weight where no module does."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = self.first(x)
        return self.head(h) + x @ self.first.weight[:2].T


class Peeking(nn.Module):
    """A readout that looks at the activation besides the head."""

    def __init__(self):
        super().__init__()
        self.act, self.head = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 2)

    def forward(self, x):
        h = self.act(x)
        return self.head(h) * h.norm(dim=1, keepdim=True)


class Heads(nn.Module):
    """Several readers, all linear."""

    def __init__(self):
        super().__init__()
        self.body, self.a, self.b = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x):
        h = self.body(x)
        return self.a(h) - torch.sigmoid(self.b(h))


def plain(*modules):
    torch.manual_seed(0)
    return seq(*modules)


REFUSED = [
    (lambda: plain(nn.Linear(6, 8), nn.ReLU(), nn.Tanh(), nn.Linear(8, 2)), "1", (6,),
     r"`layer='1'` cannot be erased in the weights. Not into what makes it: '1' \(ReLU\) .*'2' \(Tanh\) stands in between.*"
     r"The nearest layer that works is '[02]'"),
    (Twice, "again", (6,), r"`layer`: 'again' runs 2 times in a forward pass, expected one run"),
    (Twice, "first", (6,), None),
    (Tied, "code", (6,), r"the weights of 'code' are tied to those of 'back'.*The nearest layer that works is 'first'"),
    (Peeking, "act", (6,), r"`norm` in 'Peeking' stands in between"),
    (lambda: Net("residual, norm"), "body.2", (6,),
     r"an addition in 'body.2'|reads what it is made of as well.*'body.3' \(LayerNorm\)"),
    (lambda: Net("residual, norm"), "body.1", (6,), r"reads what it is made of as well"),
    (lambda: plain(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(36, 2)), "1",
     (2, 5, 5), r"'2' pads with zeros"),
    (lambda: plain(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3), nn.Flatten(), nn.Linear(50, 2)), "1", (2, 5, 5),
     r"'2' is a transposed convolution"),
    (lambda: plain(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)), "0", (2, 5, 5),
     r"'0' is a convolution in 2 groups"),
    (lambda: plain(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 2)), "0", (6,), r"'0' has no bias to take up the mean"),
    (lambda: plain(parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 2)), "0", (6,),
     r"the weight of '0' is computed from other parameters"),
    (lambda: plain(nn.Linear(6, 8), nn.Softmax(1)), "1", (6,), r"Not into what reads it: it is what the network returns"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "layer", "shape", "match"), REFUSED)
def test_where_it_cannot_be_folded_it_says_why(make, layer, shape, match):
    net = make()
    before = fingerprint(net)
    if match is None:
        edit(net, layer, GRASS, cut(rows(*shape)), [MOO], **OPTIONS)
        return
    with pytest.raises(LayerError, match=match):
        edit(net, layer, GRASS, cut(rows(*shape)), [MOO], **OPTIONS)
    assert fingerprint(net) == before
    assert hooks(net) == 0


def test_what_the_forward_pass_hides_is_found_by_comparing():
    torch.manual_seed(0)
    net = Unseen()
    before = fingerprint(net)
    with pytest.raises(
        LayerError, match="the weights of 'first' with the erasure folded in do not give what the hooked erasure"
    ):
        edit(net, "first", GRASS, cut(rows(6)), [MOO], **OPTIONS)
    assert fingerprint(net) == before


def test_several_readers_that_are_all_linear():
    torch.manual_seed(0)
    net = Heads().eval()
    copied = copy.deepcopy(net)
    found = edit(net, "body", GRASS, cut(rows(6)), [MOO], **OPTIONS)
    assert found.modules == ("a", "b")
    handle = erased_by_hand(copied, "body", found.eraser, 1)
    x = rows(6, seed=1)["x"]
    torch.testing.assert_close(net(x), copied(x), rtol=1e-5, atol=1e-5)
    handle.remove()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"layer": "body.7"}, LayerError, r"`layer='body.7'` is no submodule of Net. Did you mean"),
        ({"output": "haed"}, LayerError, r"`output='haed'` is no submodule of Net. Did you mean 'head'"),
        ({"max_collateral": -1}, InterpError, r"`max_collateral` expects 0 or more, got -1"),
        ({"ridge": float("inf")}, InterpError, r"`ridge` expects 0 or more, got inf"),
        ({"pooling": "mode"}, LayerError, r"`pooling='mode'` is none of"),
        ({"pooling": "flatten"}, LayerError, "cannot be written back"),
        ({"pooling": "nets:first_token"}, LayerError, r"`pooling='nets:first_token'` expects one of"),
        ({"data": []}, ProbeSetError, r"`data` holds no batch"),
        ({"data": 3}, ProbeSetError, r"`data` expects a DataLoader"),
        ({"given": [Concept("same", label="grass")]}, VariableError, r"'grass' given \['same'\]: .*cannot be told apart"),
        ({"variable": Confounder("no", label=lambda b: b["x"][:, 0] * 0)}, VariableError, r"'no' given \['moo'\]: .*constant"),
    ],
)
def test_errors_name_the_argument(options, error, match):
    arguments = {"layer": "body.0", "variable": GRASS, "data": cut(rows(6)), "given": [MOO], **OPTIONS, **options}
    with pytest.raises(error, match=match):
        edit(Net("linear"), **arguments)


def test_nothing_to_hold_the_edit_against():
    with pytest.raises(InterpError, match="`max_collateral` expects `given` variables or a `target`"):
        edit(Net("linear"), "body.0", GRASS, cut(rows(6)), inputs="x", max_collateral=0.1)
