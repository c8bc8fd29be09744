"""Samples to look at."""

import base64
import io

import numpy as np
import pytest
import torch
from discovery.feature_scenes import draws
from PIL import Image

from lightning_interp.batches import Inputs
from lightning_interp.discovery.samples import GAP, LARGE, MOST_COLUMNS, MOST_TOKENS, TILE, find_samples, shown
from lightning_interp.errors import InterpError
from lightning_interp.passes import Replay
from lightning_interp.reading import Reader


def pixels(samples):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(samples["png"]))))


def sheet(*strongest, weakest=()):
    return pixels(shown(strongest, weakest, None)[0])


def test_one_channel_is_grey_and_small_pictures_are_enlarged():
    x = torch.rand(1, 7, 5)
    found = sheet(x)
    zoom = TILE // 7
    assert found.shape == (7 * zoom, 5 * zoom, 3)
    expected = (255 * x[0].double()).round().byte().numpy().repeat(zoom, 0).repeat(zoom, 1)
    assert np.array_equal(found, expected[:, :, None].repeat(3, 2))
    assert np.array_equal(sheet(x[0]), found)  # without channels


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_channels(channels):
    x = torch.rand(channels, 64, 40)
    found = sheet(x)
    expected = np.zeros((64, 40, 3), dtype=np.uint8)
    kept = x[:3]
    expected[:, :, : len(kept)] = (255 * kept.double()).round().byte().movedim(0, -1).numpy()
    assert np.array_equal(found, expected)


def test_more_than_four_channels_are_averaged():
    x = torch.rand(6, 64, 64)
    assert np.array_equal(sheet(x), sheet(x.mean(0, keepdim=True)))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_last(channels):
    x = torch.rand(channels, 64, 33)
    assert np.array_equal(sheet(x.movedim(0, -1)), sheet(x))


def test_bytes():
    x = torch.randint(0, 256, (3, 65, 64), dtype=torch.uint8)
    assert np.array_equal(sheet(x), x.movedim(0, -1).numpy())


def test_pictures_stand_four_in_a_row_on_white():
    colours = torch.linspace(0, 0.9, 6)
    found = sheet(*(torch.full((1, 32, 32), float(c)) for c in colours))
    side = 64
    assert found.shape == (2 * side + GAP, 4 * side + 3 * GAP, 3)
    for i, c in enumerate(colours):
        top, left = i // 4 * (side + GAP), i % 4 * (side + GAP)
        assert (found[top : top + side, left : left + side] == round(255 * float(c))).all()
    assert (found[side : side + GAP] == 255).all()
    assert (found[side + GAP :, 2 * (side + GAP) :] == 255).all()


def test_normalised_pictures_are_stretched_as_one_so_that_both_ends_can_be_compared():
    dark, bright = torch.full((1, 64, 64), -2.0), torch.full((1, 64, 64), 2.0)
    one, other = shown([bright], [dark, torch.zeros(1, 64, 64)], None)
    assert (pixels(one) == 255).all()
    assert (pixels(other)[:, :64] == 0).all()
    assert (pixels(other)[:, 64 + GAP :] == 128).all()
    assert (one["kind"], one["count"], other["count"]) == ("image", 1, 2)
    assert (sheet(torch.full((1, 64, 64), 3.0)) == 0).all()  # one value: black, and no division by zero


def test_large_pictures_are_made_smaller():
    x = torch.rand(3, 2 * LARGE, LARGE)
    found = sheet(x)
    assert found.shape == (LARGE, LARGE // 2, 3)
    expected = torch.nn.functional.avg_pool2d(x.double(), 2)
    assert np.abs(found - 255 * expected.movedim(0, -1).numpy()).max() <= 0.5 + 1e-6
    assert sheet(torch.rand(1, 999, 3)).shape[:2] == (LARGE, 1)


def test_what_is_not_finite_does_not_hide_the_rest():
    x = torch.zeros(1, 64, 64)
    x[0, 0, 0], x[0, 0, 1], x[0, 0, 2], x[0, 1, 0] = torch.nan, torch.inf, -torch.inf, 1
    found = sheet(x)
    assert found[1, 0, 0] == 255
    assert (found[0] == 0).all()


def test_others_than_the_first_shape_are_left_out():
    one, other = shown([torch.rand(1, 8, 8), torch.rand(1, 9, 8)], [torch.rand(1, 9, 8)], None)
    assert one["count"] == 1
    assert other is None
    one, other = shown([draws(3), draws(4)], [draws(3)], None)
    assert len(one["rows"]) == len(other["rows"]) == 1


def test_tokens():
    ids = torch.arange(100, 100 + 2 * MOST_TOKENS)
    one, other = shown([ids, torch.tensor([7])], [torch.tensor([1, 2])], None)
    assert one == {"kind": "text", "texts": [" ".join(map(str, range(100, 100 + MOST_TOKENS))), "7"]}
    assert other["texts"] == ["1 2"]
    one, other = shown([ids[:2], torch.tensor([7])], [], lambda t: f"<{t.tolist()}>")
    assert one["texts"] == ["<[100, 101]>", "<[7]>"]
    assert other is None
    assert shown([draws(2)], [], lambda t: 3)[0]["texts"] == ["3"]  # whatever decode is for
    with pytest.raises(InterpError, match="`decode` failed: KeyError: 100"):
        shown([ids], [], lambda t: {}[int(t[0])])


def test_rows_of_numbers_show_the_columns_that_differ_most():
    strongest, weakest = draws(8, 30, seed=1), draws(6, 30, seed=2)
    strongest[:, [3, 20]] += 50
    one, other = shown(list(strongest), list(weakest), None)
    assert one["kind"] == other["kind"] == "rows"
    assert one["columns"] == other["columns"]
    assert len(one["columns"]) == MOST_COLUMNS
    assert {"input 3", "input 20"} <= set(one["columns"])
    picked = [int(name.split()[1]) for name in one["columns"]]
    assert picked == sorted(picked)
    assert np.allclose(one["rows"], strongest[:, picked])
    assert np.allclose(other["rows"], weakest[:, picked])
    assert len(shown(list(draws(3, 2, 2, 2, 2)), [], None)[0]["rows"][0]) == MOST_COLUMNS  # no picture: flattened
    assert shown([torch.tensor(1.5)], [torch.tensor(2)], None)[1] == {"kind": "rows", "columns": ["input 0"], "rows": [[2.0]]}


def test_nothing_to_show():
    assert shown([], [], None) == (None, None)
    assert shown([], [torch.rand(1, 8, 8)], None)[0] is None
    assert shown([], [draws(3)], None)[0] is None


def test_samples_are_found_by_their_keys_in_the_kept_batches():
    replay = Replay(100)
    x = draws(10, 3)
    yes = torch.tensor(True)
    for i, part in enumerate(x.split(4)):
        keep = torch.ones(len(part), dtype=torch.bool)
        keep[1] = i != 1  # sample 5 is a sampler's padding
        replay.add({"x": part, "id": torch.arange(4 * i, 4 * i + len(part))}, keep, yes)
    inputs = Inputs("x")
    reader = Reader([], inputs, None, None, lambda batch: batch["id"])
    keys = reader.read({"x": x, "id": torch.arange(10)}).key
    found = find_samples(replay, reader, inputs, keys[[9, 5, 0, 9]])
    assert found.keys() == {int(keys[9]), int(keys[0])}
    assert torch.equal(found[int(keys[9])], x[9])
