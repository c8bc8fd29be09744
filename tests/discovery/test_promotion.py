"""`FeatureLabel`: a frozen copy of the network reads a feature from the sample."""

import copy

import nets
import pytest
import torch
from discovery.feature_scenes import draws, feed, looked, model, samples
from nets import fingerprint, random_streams, said
from torch import nn

from lightning_interp import Concept, Confounder, explain
from lightning_interp.activations.capture import capture
from lightning_interp.activations.pooling import Pooling
from lightning_interp.batches import Inputs
from lightning_interp.discovery import Discovery, FeatureLabel, SplitDictionary, TopKDictionary
from lightning_interp.errors import InterpError, LabelError, LayerError


def found_in(net, batch, **options):
    """A discovery, and the feature that is the grass."""
    found = looked(net, batch, **options)
    return found, max(found.latest.features, key=lambda f: f.contribution).name


def read_by_hand(net, found, name, batch, layer="encoder.1"):
    """Activations captured with the library's `capture`, and the codes of the event."""
    net.eval()
    with capture(net, [layer]) as got, torch.no_grad():
        net(batch["x"])
    j = found._found.names.index(name)
    codes = found._found.code.codes(got[layer])[:, j]
    has = (codes > found._found.code.threshold[j]).double()
    return (1 - codes, 1 - has) if found._found.reversed[j] else (codes, has)


@pytest.mark.parametrize("dictionary", [SplitDictionary, lambda: TopKDictionary(atoms=6, k=2, steps=100)])
@pytest.mark.parametrize("turned", [False, True])
def test_it_is_the_code_of_the_layers_activation(dictionary, turned):
    net, batch = model(), samples()
    found, name = found_in(net, batch, dictionary=dictionary())
    if turned:  # as after an event at which the other side had it
        found._found = found._found._replace(reversed=tuple(not r for r in found._found.reversed))
    codes, has = read_by_hand(net, found, name, batch)
    binary, numbers = found.promote(name, "lawn"), found.promote(name, "lawn", kind="continuous")
    assert (binary.kind, numbers.kind, binary.name) == ("binary", "continuous", "lawn")
    assert torch.equal(binary.read(batch)[0], has)
    assert torch.allclose(numbers.read(batch)[0], codes, atol=1e-6)
    assert 0.2 < float(has.mean()) < 0.8
    for part in nets.cut(batch, 7):  # batches of any size
        n = len(part["x"])
        assert torch.allclose(numbers.read(part)[0], codes[:n], atol=1e-6)
        codes = codes[n:]


def test_what_was_found_is_the_grass():
    batch = samples()
    found, name = found_in(model(), batch)
    label = found.promote(name, "lawn").read(batch)[0]
    assert float((label == batch["grass"]).double().mean()) in (0.0, 1.0)


def test_it_is_frozen_while_the_network_trains_on():
    net, batch = model(), samples()
    found, name = found_in(net, batch)
    label = found.promote(name, "lawn", kind="continuous")
    before = label.read(batch)[0]
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(batch["x"]).square().sum().backward()
        optimizer.step()
    assert torch.equal(label.read(batch)[0], before)
    with said("the network was trained on since 'feature .' was found at step 1"):
        late = found.promote(name, "later", kind="continuous")
    assert not torch.allclose(late.read(batch)[0], before)
    copied = label.label.network
    assert not copied.training
    assert all(not p.requires_grad and p.grad is None for p in copied.parameters())
    assert all(p.grad is not None for p in net.parameters())


def test_any_step_of_training_is_noticed():
    net, batch = model(), samples()
    found, name = found_in(net, batch)
    found.promote(name, "lawn")  # says nothing: warnings are errors
    with torch.no_grad():
        net.head.weight[0, 0] += 1e-4
    with said("was trained on since"):
        found.promote(name, "lawn")


class Moody(nn.Module):
    """Dropout and batch norm, and a buffer that a forward pass writes."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.head(self.encoder(x.float()))


def test_neither_looking_nor_reading_disturbs_a_network():
    torch.manual_seed(0)
    net, batch = Moody(), samples()
    found = Discovery(net, "encoder.2", [Concept("moo")], target="y", inputs="x")
    net.train()
    feed(found, net, batch)
    before, streams = fingerprint(net), random_streams()
    found.event(1)
    label = found.promote(found.latest.features[0].name, "lawn", kind="continuous")
    first = label.read(batch)[0]
    assert torch.equal(label.read(batch)[0], first)  # no dropout in the copy
    assert fingerprint(net) == before
    assert random_streams() == streams
    assert nets.hooks(net) == nets.hooks(label.label.network) == 0
    assert float(label.label.network.calls) == float(net.calls)


@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_reads_anywhere(outside):
    net, batch = model(), samples()
    found, name = found_in(net, batch)
    label = found.promote(name, "lawn")
    expected = label.read(batch)[0]
    with outside():
        got = label.read({k: v.clone() for k, v in batch.items()})[0]
    assert torch.equal(got, expected)
    assert not got.requires_grad


class Long(nn.Module):
    """What stands above the layer is counted; the layer may run several times."""

    def __init__(self, times=1):
        super().__init__()
        self.layer, self.above, self.times, self.calls = nn.Linear(4, 4), nn.Identity(), times, 0
        self.above.register_forward_pre_hook(self._count)

    def _count(self, module, args):
        self.calls += 1

    def forward(self, x):
        for _ in range(self.times):
            x = self.layer(x.float())
        return self.above(x)


def label_of(net, layer="layer", inputs="x", **options):
    h = draws(50, 4)
    code = SplitDictionary().fit(h, torch.zeros(4, 0), torch.zeros(50, 0), 0).select(torch.tensor([0]))
    options = {"pooling": Pooling("mean"), "reverse": False, "binary": False, **options}
    return FeatureLabel(net, layer, code, Inputs(inputs), **options)


@pytest.mark.parametrize("times", [1, 3])
def test_the_last_run_of_the_layer_counts_and_what_stands_above_it_does_not_run(times):
    net, x = Long(times), draws(10, 4).float()
    label = label_of(net)
    with torch.no_grad():
        expected = label.code.codes(net(x))[:, 0]
    counted = []
    label.network.above.register_forward_pre_hook(lambda m, a: counted.append(1))
    for _ in range(4):
        assert torch.equal(label({"x": x}), expected)
    assert len(counted) == 1  # the first time it is not known yet how often the layer runs


def test_half_precision_is_read_in_full():
    x = draws(10, 4).float()
    label = label_of(Long().bfloat16())
    assert next(label.network.parameters()).dtype == torch.float32
    whole = label({"x": x})
    assert torch.allclose(label({"x": x.bfloat16()}), whole, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(label({"x": x}), whole)
    assert next(label_of(model(), "encoder.1").network.parameters()).dtype == torch.float64


@pytest.mark.parametrize(
    "batch",
    [draws(6, 4), [draws(6, 4), torch.zeros(6)], (draws(6, 4), torch.zeros(6)), {"x": draws(6, 4), "y": ["a"] * 6}],
)
def test_kinds_of_batches(batch):
    label = label_of(Long(), inputs="x" if isinstance(batch, dict) else None)
    first = batch["x"] if isinstance(batch, dict) else batch if isinstance(batch, torch.Tensor) else batch[0]
    assert torch.equal(label(batch), label_of(Long()).code.codes(label.network.layer(first.float()).detach())[:, 0])
    function = label_of(Long(), inputs=lambda net, batch: net(first))
    assert function(batch).shape == (6,)


def test_tokens_are_masked():
    a, mask = draws(6, 5, 4), torch.arange(5) < torch.tensor([[1], [2], [3], [4], [5], [2]])
    label = label_of(nn.Sequential(nn.Identity()), "0", pooling=Pooling("masked_mean"))
    expected = label.code.codes((a * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True))[:, 0]
    assert torch.allclose(label({"x": a, "attention_mask": mask}), expected)


def test_a_layer_that_gives_no_rows_and_a_batch_without_tensors_are_named():
    class Never(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return x

    with pytest.raises(LabelError, match="layer 'layer' gave no row for each of 5 samples"):
        label_of(Never())({"x": draws(5, 4)})
    with pytest.raises(LabelError, match="read from the batch's inputs, and there is no tensor; check `inputs`"):
        label_of(Long(), inputs=None)({"x": ["a"]})


def test_a_network_that_cannot_be_copied_is_named():
    net = Long()
    net.kept = (torch.ones(2, requires_grad=True) * 2).sum()  # part of a graph
    with pytest.raises(LayerError, match="read by a copy of the network, and Long cannot be copied: RuntimeError"):
        label_of(net)


def test_save_and_load(tmp_path):
    net, batch = model(), samples()
    found, name = found_in(net, batch)
    for kind in ("binary", "continuous"):
        confounder = found.promote(name, "lawn", kind=kind)
        confounder.label.save(tmp_path / "lawn.pt")
        other = nets.Equation([[0.0] * 4, [1.0] * 4])  # another network of the same class
        weights = copy.deepcopy(other.state_dict())
        loaded = FeatureLabel.load(tmp_path / "lawn.pt", other)
        assert torch.equal(Confounder("lawn", label=loaded).read(batch)[0], confounder.read(batch)[0])
        assert all(torch.equal(v, weights[k]) for k, v in other.state_dict().items())
        assert repr(loaded) == repr(confounder.label) == f"FeatureLabel(layer='encoder.1', binary={kind == 'binary'})"
    torch.load(tmp_path / "lawn.pt", weights_only=True)
    with pytest.raises(LayerError, match=r"`model` does not fit the network in '.*lawn.pt'"):
        FeatureLabel.load(tmp_path / "lawn.pt", nn.Linear(2, 2))


def test_inputs_by_function_are_given_again(tmp_path):
    label = label_of(Long(), inputs=nets.call_x)
    label.save(tmp_path / "label.pt")
    with pytest.raises(LabelError, match=r"`inputs` was a function where '.*label.pt' was written"):
        FeatureLabel.load(tmp_path / "label.pt", Long())
    batch = {"x": draws(5, 4)}
    assert torch.equal(FeatureLabel.load(tmp_path / "label.pt", Long(), nets.call_x)(batch), label(batch))


def test_a_file_of_a_later_version_is_refused(tmp_path):
    label = label_of(Long())
    label.save(tmp_path / "label.pt")
    state = torch.load(tmp_path / "label.pt", weights_only=True)
    torch.save({**state, "version": 2}, tmp_path / "label.pt")
    with pytest.raises(InterpError, match="has version 2, this library reads up to 1"):
        FeatureLabel.load(tmp_path / "label.pt", Long())


def test_it_serves_in_explain_as_one_with_labels():
    net, batch = model(), samples()
    found, name = found_in(net, batch)
    named = found.promote(name, "lawn")
    options = {"inputs": "x", "target": "y"}
    mine = explain(net, [batch], [Concept("moo"), named], **options).contribution["lawn"]
    truth = explain(net, [batch], [Concept("moo"), Confounder("grass")], **options).contribution["grass"]
    assert mine.value == pytest.approx(truth.value)
    assert mine.value > 0.5
