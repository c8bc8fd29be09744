"""The demo is an experiment whose truth is known: these tests hold what that truth rests on."""

import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import default_collate

from lightning_interp import demo

pytest.importorskip("sklearn")
pytest.importorskip("skimage")

SPLITS = ("train", "val", "test")
COUNTS = {"train": 1100, "val": 348, "test": 349}


@pytest.fixture(scope="module")
def train():
    return demo.GrassyDigits("train")


@pytest.fixture(scope="module")
def val():
    return demo.GrassyDigits("val", agreement=0.5, crops=4)


def redraw(dataset, index, grass):
    """The slow way: one digit, pixel by pixel, on a crop of the chosen photograph."""
    ink, _, photographs = demo.originals()
    row, column = dataset.corners[index].tolist()
    image = np.empty((32, 32), dtype=np.float32)
    for i in range(32):
        for j in range(32):
            inside = 2 <= i < 30 and 2 <= j < 30
            opacity = 0.7 * ink[dataset.fields["source"][index], i - 2, j - 2].item() if inside else 0.0
            image[i, j] = photographs[grass, row + i, column + j].item() * (1 - opacity) + opacity
    return torch.from_numpy(image).unsqueeze(0)


def test_split_is_disjoint_and_complete():
    sources = [demo.GrassyDigits(split, seed=3).fields["source"] for split in SPLITS]
    assert [len(s) for s in sources] == [COUNTS[split] for split in SPLITS]
    assert torch.equal(torch.cat(sources).sort().values, torch.arange(1797))


def test_split_does_not_depend_on_the_seed(train):
    assert torch.equal(demo.GrassyDigits("train", seed=1).fields["source"], train.fields["source"])


def test_parts_share_no_pixel_of_the_photographs():
    rows = [demo.GrassyDigits(split, crops=4).corners[:, 0] for split in SPLITS]
    for before, after in pairwise(rows):
        assert before.max() + 32 <= after.min()
    assert rows[-1].max() + 32 <= 512


@pytest.mark.parametrize("agreement", [0.0, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("crops", [1, 3])
def test_agreement_counts_are_exact(agreement, crops):
    fields = demo.GrassyDigits("train", agreement=agreement, crops=crops).fields
    for value in (0, 1):
        grass = fields["grass"][fields["label"] == value]
        assert abs((grass == value).sum().item() - agreement * len(grass)) <= 0.5


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("crops", [2, 4])
def test_every_held_out_digit_is_equally_often_on_both(split, crops):
    fields = demo.GrassyDigits(split, agreement=0.5, crops=crops).fields
    assert torch.equal(fields["source"][::crops].repeat_interleave(crops), fields["source"])
    assert (fields["grass"].reshape(-1, crops).sum(1) == crops // 2).all()


def test_item_has_the_documented_types_and_values(train):
    item = train[5]
    assert set(item) == {"image", "swapped", "label", "digit", "numeral", "grass", "source"}
    assert item["image"].shape == item["swapped"].shape == (1, 32, 32)
    assert item["image"].dtype == item["swapped"].dtype == torch.float32
    for name in set(item) - {"image", "swapped"}:
        assert item[name].dtype == torch.int64
        assert item[name].shape == ()
    fields = train.fields
    assert torch.equal(fields["label"], (fields["numeral"] >= 5).long())
    assert torch.equal(fields["digit"], fields["label"])
    assert torch.equal(fields["numeral"], demo.originals()[1][fields["source"]])
    assert fields["image"].min() >= 0
    assert fields["image"].max() <= 1


@pytest.mark.parametrize("index", [0, 1, 2, 77])
def test_images_equal_the_slow_way_on_both_photographs(val, index):
    batch = default_collate([val[index]])
    grass = batch["grass"].item()
    torch.testing.assert_close(batch["image"][0], redraw(val, index, grass), rtol=0, atol=1e-6)
    swapped = demo.swap_background(batch)
    assert swapped["grass"].item() == 1 - grass
    torch.testing.assert_close(swapped["image"][0], redraw(val, index, 1 - grass), rtol=0, atol=1e-6)


def test_swap_is_an_involution_and_mutates_nothing(val):
    batch = default_collate([val[i] for i in range(8)])
    before = {name: values.clone() for name, values in batch.items()}
    swapped = demo.swap_background(batch)
    twice = demo.swap_background(swapped)
    assert list(twice) == list(swapped) == list(before)
    for name, values in before.items():
        assert torch.equal(batch[name], values)
        assert torch.equal(twice[name], values)
        assert torch.equal(swapped[name], values) == (name not in ("image", "swapped", "grass"))


def test_swap_names_the_missing_keys():
    with pytest.raises(ValueError, match=r"`batch` must be .* \['swapped'\] are not among \['image', 'grass'\]"):
        demo.swap_background({"image": torch.zeros(1), "grass": torch.zeros(1)})


def test_drawing_depends_on_the_seed_alone(train):
    same, other = demo.GrassyDigits("train"), demo.GrassyDigits("train", seed=1)
    for name, values in train.fields.items():
        assert torch.equal(same.fields[name], values)
    assert not torch.equal(other.fields["image"], train.fields["image"])
    assert not torch.equal(other.fields["grass"], train.fields["grass"])


def test_global_generators_are_left_alone():
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    demo.originals.cache_clear()
    demo.swap_background(demo.GrassyDigits("val", crops=2)[0])
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validate"}, r"`split` must be one of 'train', 'val', 'test', but got 'validate'"),
        ({"agreement": 95}, r"`agreement` must be .* between 0 and 1, but got 95"),
        ({"crops": 0}, r"`crops` must be at least 1 .* but got 0"),
        ({"seed": -1}, r"`seed` at least 0, but got 1 and -1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        demo.GrassyDigits(**arguments)


@pytest.mark.parametrize(("package", "module"), [("sklearn", "sklearn.datasets"), ("skimage", "skimage")])
def test_missing_extra_says_what_to_install(monkeypatch, package, module):
    monkeypatch.setitem(sys.modules, module, None)
    demo.originals.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=rf'The demo needs {package}.*"lightning-interp\[demo\]"'):
        demo.originals()


def test_data_module_serves_the_three_parts():
    data = demo.GrassyDigitsData(agreement=0.5, batch_size=100, crops=2)
    for loader, n in zip((data.train_dataloader(), data.val_dataloader(), data.test_dataloader()), (1100, 696, 698)):
        batches = list(loader)
        assert sum(len(batch["label"]) for batch in batches) == n
        assert batches[0]["image"].shape == (100, 1, 32, 32)
        assert sum(batch["grass"].sum().item() for batch in batches) == pytest.approx(n / 2, abs=1)


def test_model_maps_images_to_two_logits(val):
    model = demo.GrassyDigitsModel(width=4)
    assert model(val.fields["image"][:5]).shape == (5, 2)
    assert [name for name, _ in model.named_children()] == ["encoder", "head"]
    assert [name for name, _ in model.encoder.named_children()] == ["conv1", "conv2", "conv3", "conv4", "flatten"]
    assert dict(model.hparams) == {"width": 4, "lr": 1e-3, "weight_decay": 0.0}
    model.load_state_dict(demo.SmallCNN(width=4).state_dict())


def test_model_computes_the_same_in_training_and_evaluation(val):
    model, image = demo.SmallCNN(width=4), val.fields["image"][:5]
    assert torch.equal(model.train()(image), model.eval()(image))


@pytest.mark.parametrize("width", [0, 6])
def test_bad_width_is_named(width):
    with pytest.raises(ValueError, match=rf"`width` must be a positive multiple of 4 channels, but got {width}"):
        demo.SmallCNN(width)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning 2.6 with jsonargparse 4.53
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning 2.6 with torch 2.13
def test_training_from_yaml_logs_losses_and_accuracy(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse")
    monkeypatch.setattr(sys, "argv", ["fit"])  # else the command line warns of pytest's own arguments
    config = tmp_path / "demo.yaml"
    config.write_text(
        "seed_everything: false\n"
        "model: {class_path: lightning_interp.demo.GrassyDigitsModel, init_args: {width: 4, lr: 0.002}}\n"
        "data: {class_path: lightning_interp.demo.GrassyDigitsData, init_args: {batch_size: 550, crops: 2}}\n"
        "trainer: {max_epochs: 1, accelerator: cpu, logger: false, enable_checkpointing: false, log_every_n_steps: 1,\n"
        "  enable_progress_bar: false, enable_model_summary: false}\n"
    )
    run = LightningCLI(args=["fit", "--config", str(config)], save_config_callback=None)
    metrics = run.trainer.callback_metrics
    assert {"train_loss", "val_loss", "val_acc"} <= set(metrics)
    assert all(torch.isfinite(value) for value in metrics.values())
    run.trainer.test(run.model, run.datamodule, verbose=False)
    assert {"test_loss", "test_acc"} <= set(run.trainer.callback_metrics)
