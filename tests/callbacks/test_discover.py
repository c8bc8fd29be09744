"""`DiscoverFeatures` in a Trainer."""

import io
import sys
import warnings
from base64 import b64decode

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F

from callbacks import boring
from callbacks.boring import VAL, Animals, Boring, BoringData, Call, Memory, bits, fit, hooks, loader
from lightning_interp import Concept, ConceptMonitor, Confounder, DiscoverFeatures, EraseConfounder, SuppressConfounder, edit
from lightning_interp.discovery import FeatureLabel, TopKDictionary
from lightning_interp.errors import InterpError, InterpWarning
from lightning_interp.summaries.event_log import features_tag, read_json

pytestmark = boring.HOST_WARNINGS
LAYER = "encoder.4"


def discover(layer=LAYER, **options):
    """A DiscoverFeatures of `Boring` to which only moo has a name."""
    options = {"variables": [Concept("moo")], "output": "head", "target": "moo", "inputs": "x", "sample_id": "id", **options}
    return DiscoverFeatures(layer, **options)


def quiet_fit(*callbacks, **options):
    """Warnings of the library are not what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpWarning)
        return fit(*callbacks, **options)


def plain(events):
    return [{k: v for k, v in e.to_dict().items() if k != "cost_seconds"} for e in events]


# --- promise 1 --------------------------------------------------------------------------------------------------------


def everything(run, model):
    return bits([model.state_dict(), [o.state_dict() for o in run.optimizers]]), boring.streams(), model.hooks_in_step


def metrics(run):
    return {k: float(v) for k, v in run.callback_metrics.items() if not k.startswith("discovery/")}


@pytest.fixture(scope="module")
def untouched():
    run, model = fit()
    return everything(run, model), metrics(run)


@pytest.mark.parametrize("data", ["val", "train", "loader"])
@pytest.mark.parametrize("dictionary", [None, TopKDictionary(atoms=8, steps=20)])
def test_looking_changes_nothing(untouched, data, dictionary):
    found = discover(data=boring.probe_loader() if data == "loader" else data, dictionary=dictionary)
    run, model = quiet_fit(found)
    (state, streams, in_step), seen = everything(run, model), metrics(run)
    expected, logged = untouched
    assert state == expected[0]
    assert streams == expected[1]
    assert seen == logged
    assert hooks(model) == 0
    if data != "train":
        assert in_step == expected[2]
    assert len(found.history) == 2
    assert found.latest.features


def test_with_other_precision_and_a_compiled_encoder():
    for options in ({"precision": "bf16-mixed"}, {"model": lambda: Boring(compiled="eager")}, {"accumulate_grad_batches": 2}):
        run, model = fit(**options)
        found = discover()
        again, other = quiet_fit(found, **options)
        assert everything(again, other) == everything(run, model)
        assert found.latest.features


# --- what is found ----------------------------------------------------------------------------------------------------


class Grazing(LightningModule):
    """Looks at the grass above all, in a layer that shows it; `task` is what the label is like."""

    def __init__(self, task="two classes"):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 12), nn.Tanh())
        self.head = nn.Linear(12, {"two classes": 2, "regression": 1, "three classes": 3, "labels": 2}[task])
        self.task = task

    def forward(self, x):
        return self.head(self.encoder(x))

    def target(self, batch):
        moo, grass = batch["moo"], batch["grass"]
        return {
            "two classes": grass,
            "regression": (2.0 * grass + moo).unsqueeze(1),
            "three classes": grass + moo,
            "labels": torch.stack([grass, moo], 1).float(),
        }[self.task]

    def loss(self, batch):
        found, target = self(batch["x"]), self.target(batch)
        if self.task == "regression":
            return F.mse_loss(found, target)
        return F.binary_cross_entropy_with_logits(found, target) if self.task == "labels" else F.cross_entropy(found, target)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.02)


def grazed(*callbacks, task="two classes", epochs=4, val=240, **options):
    """A short run on data in which the grass is plain to see."""
    torch.manual_seed(0)
    model = Grazing(task)
    run = boring.trainer(*callbacks, max_epochs=epochs, **options)
    run.fit(model, loader(Animals(192, 1), batch=32), loader(Animals(val, 2), batch=32))
    return run, model


def grazing(layer="encoder", **options):
    return discover(layer, **options)


def grass_in(found, model, batch):
    """The feature that is the grass, and who has it."""
    label = {f.name: FeatureLabel(model, found.latest.layer, *_code(found, f.name)) for f in found.latest.features}
    agreement = {name: float((read(batch) == batch["grass"]).double().mean()) for name, read in label.items()}
    return max(agreement, key=lambda n: abs(agreement[n] - 0.5)), agreement


def _code(found, name):
    inner = found.discovery
    j = inner._found.names.index(name)
    return inner._found.code.select(torch.tensor([j])), inner.inputs, inner.pooling, inner._found.reversed[j], True


@pytest.mark.parametrize("task", ["two classes", "regression", "three classes", "labels"])
def test_the_grass_is_found_without_a_label(task):
    found = grazing(target=lambda batch: Grazing.target(_Task(task), batch))
    _, model = grazed(found, task=task)
    name, agreement = grass_in(found, model, boring.probe_batch())
    assert abs(agreement[name] - 0.5) > 0.49
    feature = found.latest[name]
    assert feature.contribution == max(f.contribution for f in found.latest.features) > 0.3
    assert feature.causal > 0.5
    assert (feature.target is None) == (task == "labels")
    assert found.latest.layer == "encoder"
    assert [e.epoch for e in found.history] == [0, 1, 2, 3]


class _Task:
    def __init__(self, task):
        self.task = task


class Reader(LightningModule):
    """Tokens to a transformer's layer `[n, t, d]`."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, ids):
        return self.head(self.layer(self.embed(ids)).mean(1))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.02)


def spelled(ids):
    return " ".join("abcdefghijkl"[i] for i in ids.tolist())


def test_a_layer_over_tokens(tmp_path):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 12, (320, 5), generator=generator)
    ids[:, 2] = torch.arange(320) % 2  # a or b
    items = torch.utils.data.TensorDataset(ids, ids[:, 2])
    torch.manual_seed(0)
    found = DiscoverFeatures("layer", output="head", decode="callbacks.test_discover:spelled", pooling="mean")
    run = boring.trainer(found, max_epochs=6, logger=TensorBoardLogger(tmp_path))
    run.fit(Reader(), loader(items, batch=32), loader(items, batch=64))
    first = max(found.latest.features, key=lambda f: f.contribution)
    assert first.contribution > 0.5
    ends = [{text.split()[2] for text in side["texts"]} for side in (first.strongest, first.weakest)]
    assert sorted(map(sorted, ends)) == [["a"], ["b"]]
    assert tensors(tmp_path, "/strongest/text_summary")


def test_two_layers_in_one_trainer():
    both = [grazing(), grazing("encoder.0", prefix="low")]
    run, _ = grazed(*both)
    assert both[0].state_key != both[1].state_key
    for found, start in zip(both, ("discovery/encoder/", "low/discovery/encoder.0/")):
        event = found.latest
        names = {start + f.name: f.contribution for f in event.features}
        expected = {**names, f"{start}unnamed": event.unnamed}
        assert {k: float(run.callback_metrics[k]) for k in expected} == pytest.approx(expected)
    with pytest.raises(RuntimeError, match="state_key"):
        boring.trainer(grazing(), grazing())


def test_all_reach_the_loggers_and_can_be_monitored():
    memory, found = Memory(), grazing()
    stop = EarlyStopping("discovery/encoder/unnamed", patience=9)
    grazed(found, stop, logger=memory)
    lines = [line for _, line in memory.lines if any(k.startswith("discovery/") for k in line)]
    assert lines == [e.scalars() for e in found.history]
    assert [step for step, line in memory.lines if "discovery/encoder/unnamed" in line] == [5, 11, 17, 23]
    assert stop.wait_count is not None


def tensors(folder, ending):
    found = EventAccumulator(str(next(folder.rglob("events*")).parent), size_guidance={"tensors": 0, "images": 0}).Reload()
    return {tag: found.Tensors(tag) for tag in found.Tags()["tensors"] if tag.endswith(ending)}


class Pictures(Grazing):
    """Sees the animals as pictures."""

    def forward(self, x):
        return super().forward(x.flatten(1)[:, :6])


def test_tensorboard_gets_json_and_pictures(tmp_path):
    class Drawn(Animals):
        def __getitem__(self, i):
            item = super().__getitem__(i)
            return {**item, "x": item["x"].repeat(1, 6, 1)}

    torch.manual_seed(0)
    found = grazing(prefix="run")
    run = boring.trainer(found, max_epochs=2, logger=TensorBoardLogger(tmp_path))
    run.fit(Pictures(), loader(Drawn(192, 1), batch=32), loader(Drawn(240, 2), batch=32))
    (written,) = tensors(tmp_path, features_tag("encoder", "run")).values()
    assert [w.step for w in written] == [5, 11]
    content = read_json(written[-1].tensor_proto.string_val[0])
    event = found.latest
    assert content["layer"] == "encoder"
    assert (content["unexplained"], content["unnamed"]) == (event.unexplained, event.unnamed)
    assert [f["name"] for f in content["features"]] == [f.name for f in event.features]
    first = content["features"][0]
    wanted = "name contribution causal stability suspicion flip early target groups promoted strongest weakest"
    assert set(wanted.split()) <= set(first)
    assert first["strongest"]["kind"] == "image"
    sheet = np.asarray(Image.open(io.BytesIO(b64decode(first["strongest"]["png"]))))
    assert sheet.shape == (2 * 60 + 2, 4 * 60 + 6, 3)
    accumulated = EventAccumulator(str(next(tmp_path.rglob("events*")).parent), size_guidance={"images": 0}).Reload()
    tags = accumulated.Tags()["images"]
    assert len(tags) == len({f"{e.features[i].name}/{s}" for e in found.history for i in range(3) for s in "sw"})
    tag = f"run/discovery/encoder/{first['name']}/strongest"
    shown = accumulated.Images(tag)[-1]
    assert (shown.width, shown.height) == sheet.shape[1::-1]


# --- what goes wrong --------------------------------------------------------------------------------------------------


class Hurt(Animals):
    """One sample whose input is no number, and a batch without a label."""

    def __getitem__(self, i):
        item = super().__getitem__(i)
        return {**item, "x": item["x"] + (torch.nan if i == 70 else 0)}


def texts(told):
    return {str(w.message) for w in told if issubclass(w.category, InterpWarning)}


def moo_unreadable_at_5(batch):
    if 5 in batch["id"]:
        raise ValueError("no label")
    return batch["moo"]


def test_batches_that_cannot_be_used_are_left_out_and_the_run_goes_on():
    found = grazing()
    run = boring.trainer(found, max_epochs=2)
    with pytest.warns(InterpWarning, match="1 batches were left out"):
        run.fit(Grazing(), loader(Animals(192, 1), batch=32), loader(Hurt(240, 2), batch=32))
    assert [e.n for e in found.history] == [208, 208]
    assert all("1 batches were left out" in e.notes for e in found.history)
    found = grazing(variables=[Concept("moo", label=moo_unreadable_at_5)], data=loader(Animals(240, 2), batch=32))
    with pytest.raises(ValueError, match="no label"):  # the first batch of all: a wrong setting
        grazed(found)
    reverse = loader(torch.utils.data.Subset(Animals(240, 2), range(239, -1, -1)), batch=32)
    found = grazing(variables=[Concept("moo", label=moo_unreadable_at_5)], data=reverse)
    with pytest.warns(InterpWarning) as told:
        grazed(found)
    assert texts(told) == {"a batch was left out: ValueError: no label", "1 batches were left out"}
    assert [e.n for e in found.history] == [224] * 4


def test_a_validation_set_of_nan_stops_nothing():
    found = grazing()
    items = Animals(240, 2)
    items.x[:] = torch.nan
    run = boring.trainer(found, max_epochs=2)
    with pytest.warns(InterpWarning) as told:
        run.fit(Grazing(), loader(Animals(192, 1), batch=32), loader(items, batch=32))
    left = "no batch had labels and finite outputs and activations; 8 were left out."
    assert texts(told) == {f"no event at step 6: the probe set is empty: {left}"}  # once, whatever the step
    assert found.history == ()
    assert run.current_epoch == 2


def test_too_few_samples_are_a_note_and_the_run_goes_on():
    found = grazing()
    with pytest.warns(InterpWarning, match="discovery withheld: .* distinct samples in a half"):
        run, _ = grazed(found, val=64)
    assert [e.features for e in found.history] == [()] * 4
    assert run.current_epoch == 4
    assert not any(k.startswith("discovery/") for k in run.callback_metrics)


def test_wrong_settings_stop_the_run_before_or_at_the_first_event():
    with pytest.raises(InterpError, match=r"`layer='encodr'` is no submodule of Grazing. Did you mean 'encoder'"):
        grazed(grazing("encodr"))
    with pytest.raises(InterpError, match=r"`inputs` expects .* Grazing could not be called"):
        grazed(grazing(inputs=None))
    with pytest.raises(InterpError, match="`decode` failed: TypeError"):
        grazed(grazing(decode=lambda x: x + "a"))
    with pytest.raises(InterpError, match="`every_n_train_steps=3` does not go with `data='val'`"):
        grazing(every_n_train_steps=3)


@pytest.mark.parametrize("where", ["on_validation_batch_start", "on_train_batch_start", "on_train_batch_end"])
def test_no_hook_is_left_where_a_run_breaks_off(where):
    class Stop(boring.Callback):
        pass

    def stop(self, *args, **kwargs):
        raise KeyError("stop")

    setattr(Stop, where, stop)
    model = Grazing()
    run = boring.trainer(grazing(data="train" if "train" in where else "val"), Stop(), max_epochs=2)
    with pytest.raises(KeyError):
        run.fit(model, loader(Animals(192, 1), batch=32), loader(Animals(240, 2), batch=32))
    assert hooks(model) == 0


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [6, 12, 18, 24]),
        ({"every_n_epochs": 2}, [6, 18]),
        ({"data": "train"}, [6, 12, 18, 24]),
        ({"data": "train", "every_n_train_steps": 9}, [9, 18]),
        ({"data": "loader", "every_n_train_steps": 10}, [10, 20]),
    ],
)
def test_when_events_happen(options, steps):
    if options.get("data") == "loader":
        options = {**options, "data": loader(Animals(240, 2), batch=32)}
    found = grazing(**options)
    grazed(found)
    assert [e.step for e in found.history] == steps
    assert [e.n for e in found.history] == [192 if options.get("data") == "train" else 240] * len(steps)


def test_a_stream_of_training_batches_keeps_the_last():
    class Stream(boring.Stream):
        pass

    found = grazing(data="train", max_samples=160)
    run = boring.trainer(found, max_epochs=2)
    torch.manual_seed(0)
    run.fit(Grazing(), loader(Stream(Animals(192, 1)), batch=32))
    assert [e.n for e in found.history] == [160, 160]
    shown = {row[0] for f in found.latest.features for row in f.strongest["rows"]}
    assert shown


def test_validate_alone():
    found = grazing()
    model = Grazing()
    boring.trainer(found).validate(model, loader(Animals(240, 2), batch=32), verbose=False)
    assert len(found.history) == 1
    assert found.latest.features[0].causal is not None
    assert hooks(model) == 0


# --- promoted features ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found_grass():
    """A confounder that nobody has labelled, and the truth's sign."""
    found = grazing()
    _, model = grazed(found)
    batch = boring.probe_batch()
    name, agreement = grass_in(found, model, batch)
    return found.promote(name, "lawn"), agreement[name] > 0.5


def test_a_promoted_feature_in_a_monitor_is_as_good_as_its_label(found_grass):
    lawn, _ = found_grass
    places = {"output": "head", "target": "grass", "inputs": "x", "sample_id": "id", "warn_above": float("inf")}
    mine, truth = (ConceptMonitor([Concept("moo"), c], **places, prefix=c.name) for c in (lawn, Confounder("grass")))
    before = lawn.label.network.encoder[0].weight.clone()
    grazed(mine, truth)
    for a, b in zip(mine.history, truth.history):
        assert a.contribution["lawn"].value == pytest.approx(b.contribution["grass"].value, rel=1e-6)
        assert abs(a.effect["lawn"].value) == pytest.approx(abs(b.effect["grass"].value), rel=1e-6)
    assert truth.latest.contribution["grass"].value > 0.5
    assert torch.equal(lawn.label.network.encoder[0].weight, before)


def test_a_promoted_feature_is_suppressed_as_its_label_would_be(found_grass, tmp_path):
    lawn, same = found_grass
    places = {"output": "head", "inputs": "x", "target": "moo", "start_epoch": 0, "ramp_epochs": 0}
    weights = []
    for confounder in (lawn, Confounder("grass", label=(lambda b: b["grass"]) if same else (lambda b: 1 - b["grass"]))):
        s = SuppressConfounder(confounder, [Concept("moo")], **places)
        saver = ModelCheckpoint(tmp_path / str(len(weights)), save_last=True)
        run, model = grazed(s, saver, task="two classes", epochs=2, enable_checkpointing=True)
        assert f"penalty/{confounder.name}" in run.callback_metrics
        weights.append(bits(model.state_dict()))
    assert weights[0] == weights[1]
    assert weights[0] != bits(grazed(epochs=2)[1].state_dict())
    torch.load(tmp_path / "0" / "last.ckpt", weights_only=True)
    last = tmp_path / "0" / "last.ckpt"
    stopped = torch.load(last, weights_only=True)["state_dict"]
    model, again = Grazing(), SuppressConfounder(lawn, [Concept("moo")], **places)
    run = boring.trainer(again, max_epochs=3)
    run.fit(model, loader(Animals(192, 1), batch=32), ckpt_path=last)
    assert run.global_step == 18
    assert bits(model.state_dict()) != bits(dict(stopped))


def test_a_promoted_feature_is_erased_and_cut_as_its_label_would_be(found_grass):
    lawn, same = found_grass
    grass = Confounder("grass", label=(lambda b: b["grass"]) if same else (lambda b: 1 - b["grass"]))
    erased = []
    for confounder in (lawn, grass):
        erase = EraseConfounder(confounder, "encoder.0", [Concept("moo")], start_rows=64, every_n_steps=2, memory_rows=512)
        _, model = grazed(erase, epochs=2)
        assert erase.erasure.eraser is not None
        erased.append(bits(model.state_dict()))
    assert erased[0] == erased[1]
    cut = []
    batches = list(loader(Animals(240, 2), batch=32))
    for confounder in (lawn, grass):
        model = grazed(epochs=2)[1]
        edit(model, "encoder.0", confounder, batches, [Concept("moo")], output="head", inputs="x", target="grass")
        cut.append(bits(model.state_dict()))
    assert cut[0] == cut[1]


def test_promoting_within_a_run_copies_neither_the_trainer_nor_other_callbacks():
    found, promoted = grazing(), []
    watch = boring.monitor(layers=["encoder"], target="grass")
    suppress = SuppressConfounder("grass", output="head", inputs="x", target="moo", start_epoch=0, ramp_epochs=0)
    name = Call(on_train_epoch_end=lambda run, model: promoted.append(found.promote(found.latest.features[0].name, "lawn")))
    grazed(found, watch, suppress, name, epochs=2)
    for confounder in promoted:
        network = confounder.label.network
        assert network._trainer is None
        assert hooks(network) == 0
        assert confounder.read(boring.probe_batch())[0].shape == (VAL,)


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dictionary", [None, lambda: TopKDictionary(atoms=8, steps=20)])
def test_a_resumed_run_goes_on_as_without_the_stop(tmp_path, dictionary):
    def go(epochs, folder, **more):
        found = grazing(dictionary=dictionary and dictionary(), prefix="a")
        saver = ModelCheckpoint(tmp_path / folder, save_last=True)
        run = boring.trainer(found, saver, max_epochs=epochs, enable_checkpointing=True)
        torch.manual_seed(0)
        model = Grazing()

        def name(run, model):
            if run.current_epoch == 1 and found.latest.epoch == 1:
                found.promote(found.latest.features[0].name, "lawn")

        run.callbacks.insert(1, Call(on_validation_end=name))
        run.fit(model, loader(Animals(192, 1), batch=32), loader(Animals(240, 2), batch=32), **more)
        return found, model

    whole, model = go(4, "whole")
    go(2, "half")
    last = tmp_path / "half" / "last.ckpt"
    saved = torch.load(last, weights_only=True)["callbacks"]
    (state,) = (v for k, v in saved.items() if k.startswith("DiscoverFeatures"))
    assert len(state["discovery"]["events"]) == 2
    resumed, other = go(4, "half", ckpt_path=last)
    assert bits(model.state_dict()) == bits(other.state_dict())
    assert plain(resumed.history) == plain(whole.history)
    assert len(whole.history) == 4
    assert resumed.discovery.promoted == whole.discovery.promoted != {}
    assert any(f.promoted == "lawn" for f in resumed.latest.features)
    batch = boring.probe_batch()
    for f in whole.latest.features:
        assert torch.equal(*(c.promote(f.name, "x", "continuous").read(batch)[0] for c in (whole, resumed)))


# --- YAML -------------------------------------------------------------------------------------------------------------

YAML = """
    - class_path: lightning_interp.DiscoverFeatures
      init_args:
        layer: encoder.4
        variables:
          - class_path: lightning_interp.Concept
            init_args: {name: moo}
        output: head
        target: moo
        inputs: x
        sample_id: id
"""


OF = "        dictionary: {{class_path: {}, init_args: {}}}\n"


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ("", "SplitDictionary"),
        (OF.format("lightning_interp.discovery.SplitDictionary", "{alike: 0.5}"), "SplitDictionary"),
        (OF.format("lightning_interp.discovery.TopKDictionary", "{atoms: 8, k: 2}"), "TopKDictionary"),
        (OF.format("TopKDictionary", "{atoms: 8, steps: 20}"), "TopKDictionary"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning 2.6 with jsonargparse 4.53
def test_from_yaml(tmp_path, monkeypatch, more, kind):
    cli = pytest.importorskip("lightning.pytorch.cli")
    monkeypatch.setattr(sys, "argv", ["fit"])
    path = tmp_path / "run.yaml"
    path.write_text("seed_everything: false\n" + boring.trainer_yaml(epochs=1) + YAML + more)
    made = cli.LightningCLI(Boring, BoringData, args=["fit", "--config", str(path)], save_config_callback=None)
    (found,) = (c for c in made.trainer.callbacks if isinstance(c, DiscoverFeatures))
    assert type(found.discovery.dictionary).__name__ == kind
    assert [type(v) for v in found.discovery.variables] == [Concept]
    assert found.latest.n == VAL
    assert found.latest.features
    if "alike" in more:
        assert found.discovery.dictionary.alike == 0.5
    if "atoms" in more:
        assert found.discovery.dictionary.atoms == 8
