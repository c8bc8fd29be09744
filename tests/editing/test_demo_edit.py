"""Surgery on the demo: a trained net, cut on validation digits, judged on test digits by the exact do(grass)."""

import copy

import lightning as L
import pytest
import torch

from lightning_interp import Concept, Confounder, edit, explain, zero_weight
from lightning_interp.demo import GrassyDigitsData, GrassyDigitsModel, swap_background

PLACES = {"inputs": "image", "target": "label"}
GRASS = Confounder("grass", kind="binary", intervention=swap_background)
DIGIT = Concept("digit", kind="binary")


@pytest.fixture(scope="module")
def trained():
    L.seed_everything(0, verbose=False)
    net, data = GrassyDigitsModel(width=8), GrassyDigitsData(crops=2)
    optimizer = net.configure_optimizers()
    for _ in range(8):
        for batch in data.train_dataloader():
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(batch["image"]), batch["label"]).backward()
            optimizer.step()
    return net, data


def truth(net, data):
    event = explain(net, data.test_dataloader(), [DIGIT, GRASS], measures=["intervention", "groups"], **PLACES)
    return abs(event.intervention["grass"].value), event.groups.worst_accuracy


@pytest.mark.parametrize("how", ["edit", "edit, below", "zero_weight"])
def test_the_true_effect_falls_on_digits_that_nothing_was_fitted_to(trained, how):
    net, data = copy.deepcopy(trained[0]), trained[1]
    do, worst = truth(net, data)
    rows = data.val_dataloader()
    if how == "zero_weight":
        zero_weight(net, "head", GRASS, rows, [DIGIT], cluster="source", **PLACES)
    else:
        layer = "encoder.flatten" if how == "edit" else "encoder.conv4"
        cut = edit(net, layer, GRASS, rows, [DIGIT], output="head", cluster="source", **PLACES)
        assert cut.modules == ("head",)
        assert cut.certificate["erasure"]["guardedness"]["after"] < 0.1
    after = truth(net, data)
    assert do > 1
    assert after[0] < (0.75 if how == "edit, below" else 0.2) * do
    assert after[1] > worst
    fresh = GrassyDigitsModel(width=8)
    fresh.load_state_dict(net.state_dict())
    assert truth(fresh, data) == after
