"""What TensorBoard gets of a discovery, and what a checkpoint of a long one costs."""

import json

import torch
from discovery.feature_scenes import discovery, looked, model, samples
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from lightning_interp.summaries.event_log import features_tag, read_json
from lightning_interp.summaries.features import SHOWN, write_features


def test_json_and_tables(tmp_path):
    event = looked(model(), samples(), variables=(), features=10).latest
    assert len(event.features) >= 3
    with SummaryWriter(tmp_path) as writer:
        write_features(writer, event.to_dict(), 7, "run")
    found = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    (written,) = found.Tensors(features_tag("encoder.1", "run"))
    content = read_json(written.tensor_proto.string_val[0])
    assert written.step == 7
    assert content == {**json.loads(json.dumps(event.to_dict())), "version": 1}
    tables = [tag for tag in found.Tags()["tensors"] if tag.startswith("run/discovery/")]
    ends = ("strongest", "weakest")
    assert sorted(tables) == sorted(
        f"run/discovery/encoder.1/{f.name}/{side}/text_summary" for f in event.features[:SHOWN] for side in ends
    )
    first = event.features[0]
    text = found.Tensors(f"run/discovery/encoder.1/{first.name}/strongest/text_summary")[0].tensor_proto.string_val[0].decode()
    lines = text.split("\n")
    assert lines[0] == "| " + " | ".join(first.strongest["columns"]) + " |"
    assert lines[2] == "| " + " | ".join(f"{x:.4g}" for x in first.strongest["rows"][0]) + " |"
    assert len(lines) == 2 + len(first.strongest["rows"])


def test_what_is_not_kept_is_not_written(tmp_path):
    event = looked(model(), samples(), show=0).latest
    with SummaryWriter(tmp_path) as writer:
        write_features(writer, event.to_dict(), 7)
    found = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    assert found.Tags()["tensors"] == [features_tag("encoder.1")]


def test_the_state_holds_pictures_of_the_last_event_only(tmp_path):
    found = looked(model(), samples())
    whole = found.history[0]
    found.history = (*[whole.without_samples()] * 999, whole)
    state = found.state_dict()
    assert [f["strongest"] is not None for e in state["events"] for f in e["features"]].count(True) == len(whole.features)
    torch.save(state, tmp_path / "state")
    assert (tmp_path / "state").stat().st_size < 3e6
    other = discovery(model())
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert other.history == found.history
