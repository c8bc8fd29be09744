"""On real tables: four hospitals, ages with gaps, labels as text."""

import csv
import lzma
import math
import os
from pathlib import Path

import pytest
import torch
from nets import said
from torch import nn

from lightning_interp import Concept, Confounder, explain

FOLDER = os.environ.get("LIGHTNING_INTERP_DATA")
HEART = Path(FOLDER or "") / "heart_disease_4sites.csv.xz"
pytestmark = pytest.mark.skipif(
    not (FOLDER and HEART.exists()), reason="LIGHTNING_INTERP_DATA is not set, or has no heart disease"
)


@pytest.fixture(scope="module")
def patients():
    with lzma.open(HEART, "rt") as file:
        rows = [r for r in csv.DictReader(file) if r["age"]]
    sites = sorted({r["site"] for r in rows})
    age = torch.tensor([float(r["age"]) for r in rows]).double()
    site = [r["site"] for r in rows]
    hot = torch.tensor([[float(s == name) for name in sites] for s in site]).double()
    x = torch.cat([((age - 53) / 9).unsqueeze(1), hot], 1)
    disease = torch.tensor([int(float(r["target"]) > 0) for r in rows])
    return {"x": x, "age": age, "site": site, "disease": disease}, sites


@pytest.fixture(scope="module")
def fitted(patients):
    batch, _ = patients
    net = nn.Linear(batch["x"].shape[1], 1).double()
    nn.init.zeros_(net.weight)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=50)

    def loss():
        optimizer.zero_grad()
        value = nn.functional.binary_cross_entropy_with_logits(net(batch["x"])[:, 0], batch["disease"].double())
        value.backward()
        return value

    optimizer.step(loss)
    return net


def test_a_linear_models_weights_are_read_back_from_its_outputs(patients, fitted):
    batch, sites = patients
    variables = [Concept("age"), Confounder("site")]
    event = explain(fitted, [batch], variables, inputs="x", target="disease")
    weight = fitted.weight[0].detach()
    assert event.coding["age"]["kind"] == "continuous"
    assert event.coding["site"]["levels"] == sites
    assert event.magnitude["age"] == pytest.approx(float(weight[0] * batch["age"].std(unbiased=False) / 9), rel=1e-6)
    deviation = weight[1:] - weight[1:].mean()
    for name, truth in zip(sites, deviation.tolist()):
        assert event.effect["site"][name].value == pytest.approx(truth, abs=1e-8)
    assert event.magnitude["site"] == pytest.approx(2 * float(deviation.std(unbiased=False)), rel=1e-6)
    assert event.contribution["unexplained"].value == pytest.approx(0, abs=1e-9)
    assert math.fsum(s.value for s in event.contribution.values()) == pytest.approx(1)


def test_accuracy_by_hospital_is_that_of_a_plain_loop(patients, fitted):
    batch, sites = patients
    event = explain(fitted, [batch], [Confounder("site")], inputs="x", target="disease")
    right = (fitted(batch["x"])[:, 0] > 0).long() == batch["disease"]
    for name in sites:
        mine = torch.tensor([s == name for s in batch["site"]])
        assert event.groups.accuracy[f"site={name}"] == pytest.approx(float(right[mine].double().mean()))
        assert event.groups.count[f"site={name}"] == int(mine.sum())


def test_patients_without_an_age_are_left_out_and_counted_out(patients, fitted):
    batch, _ = patients
    age = batch["age"].clone()
    age[:40] = torch.nan
    event = explain(fitted, [{**batch, "age": age}], [Concept("age"), Confounder("site")], inputs="x", target="disease")
    assert event.n == len(age) - 40


def test_a_site_that_is_always_the_same_is_said_to_be_not_measurable(patients, fitted):
    batch, sites = patients
    one = torch.tensor([s == sites[0] for s in batch["site"]])
    only = {k: [v for v, here in zip(batch[k], one) if here] if k == "site" else batch[k][one] for k in batch}
    with said("'site' is constant over the probe set"):
        event = explain(fitted, [only], [Concept("age"), Confounder("site")], inputs="x", target="disease")
    assert event.effect["site"].value is None
    assert sites[0] in event.effect["site"].note
