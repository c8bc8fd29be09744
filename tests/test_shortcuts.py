"""What the benchmarks compare with, against plainer versions of it; and their tasks are what they say they are."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.func import functional_call

pytest.importorskip("concept_erasure")
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from shortcuts import clarc, dfr, methods
from shortcuts.jtt import repeated

FOLDER = os.environ.get("LIGHTNING_INTERP_DATA")


class Built:
    """A task of four columns: the second tells the confounder."""

    inputs, cluster, bent, layer = "x", None, "encoder.0", "encoder.1"

    class confounder:  # noqa: N801
        name = "grass"

    def __init__(self, n=400, agreement=0.9, seed=0):
        rng = torch.Generator().manual_seed(seed)
        label = torch.randint(0, 2, (n,), generator=rng)
        grass = torch.where(torch.rand(n, generator=rng) < agreement, label, 1 - label)
        x = torch.randn(n, 4, generator=rng)
        x[:, 0] += 2.0 * label
        x[:, 1] += 6.0 * grass
        self.all = {"x": x, "label": label, "grass": grass}

    def fields(self, part, seed, ceiling=False):
        return self.all


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.encoder(x))


# --- Right-Reason ClArC -----------------------------------------------------------------------------------------------


def test_the_penalty_of_a_linear_head_and_its_gradient_are_those_on_paper():
    head = nn.Linear(5, 3).double()
    hidden = torch.randn(20, 5).double().requires_grad_()
    signs = torch.randint(0, 2, (20, 3)).double() * 2 - 1
    v = torch.randn(5).double()
    penalty = clarc.gradient_along(head(hidden), hidden, signs, v)
    along = signs @ head.weight @ v  # m'Wv, one per sample
    torch.testing.assert_close(penalty, (along**2).mean())
    (found,) = torch.autograd.grad(penalty, head.weight)
    torch.testing.assert_close(found, 2 * torch.einsum("n,nc,d->cd", along, signs, v).detach() / 20)


def test_the_derivative_of_a_deep_net_is_that_of_its_jacobians():
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    h, v = torch.randn(9, 5).double(), torch.randn(5).double()
    signs = torch.randint(0, 2, (9, 2)).double() * 2 - 1
    names = [name for name, _ in net.named_parameters()]

    def penalty(*parameters):
        hidden = h.clone().requires_grad_()
        return clarc.gradient_along(functional_call(net, dict(zip(names, parameters)), (hidden,)), hidden, signs, v)

    change = torch.stack([torch.autograd.functional.jacobian(net, row) @ v for row in h])
    parameters = [p.detach().clone().requires_grad_() for p in net.parameters()]
    torch.testing.assert_close(penalty(*parameters), ((change * signs).sum(1) ** 2).mean())
    assert torch.autograd.gradcheck(penalty, parameters)  # the second derivative, by finite differences


def test_over_space_every_position_counts():
    hidden = torch.randn(3, 5, 2, 2).double().requires_grad_()
    weight, v = torch.randn(5, 2, 2).double(), torch.randn(5).double()
    output = (hidden * weight).sum((1, 2, 3)).unsqueeze(1)
    expected = np.mean([float((weight[:, i, j] @ v) ** 2) for i in range(2) for j in range(2)])
    assert float(clarc.gradient_along(output, hidden, torch.ones(3, 1), v)) == pytest.approx(expected)


def test_the_direction_is_the_covariance_with_the_confounder_of_unit_length():
    h, z = torch.randn(50, 4), torch.randint(0, 2, (50,)).float()
    expected = np.array([np.cov(h[:, j], z)[0, 1] for j in range(4)])
    np.testing.assert_allclose(clarc.pattern(h, z), expected / np.linalg.norm(expected), rtol=1e-4)
    assert [c.tolist() for c in clarc.columns(torch.tensor([3, 5, 3]))] == [[3, 5, 3]]
    assert [c.tolist() for c in clarc.columns(torch.tensor([0, 1, 2]))] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_tuning_leaves_what_stands_below_and_takes_the_derivative_away():
    task, net = Built(), Net()
    below = {k: v.clone() for k, v in net.encoder[0].state_dict().items()}
    cut = clarc.Tuned(net, task.bent)
    (v,) = clarc._directions(task, cut, task.all)
    signs = torch.ones(400, 2) * torch.tensor([-1.0, 1.0])

    def derivative():
        return float(clarc.gradient_along(net(task.all["x"]), cut.hidden, signs, v).detach())

    before = derivative()
    clarc.tune(task, net, 1000.0, 0, epochs=50, batch_size=100)
    assert derivative() < 0.05 * before
    cut.close()
    assert all(torch.equal(below[k], v) for k, v in net.encoder[0].state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())


# --- the others -------------------------------------------------------------------------------------------------------


def test_jtt_repeats_the_errors_and_nothing_else():
    task, net = Built(n=60), Net()
    wrong = net(task.all["x"]).argmax(1) != task.all["label"]
    assert 0 < wrong.sum() < 60
    again = repeated(task, net, task.all, 5)
    assert torch.equal(again["x"][:60], task.all["x"])
    assert len(again["x"]) == 60 + 4 * int(wrong.sum())
    assert torch.equal(again["grass"][60:], task.all["grass"][wrong].repeat(4))
    assert len(repeated(task, net, task.all, 1)["x"]) == 60


def test_groups_of_under_ten_rows_are_left_out_of_dfr():
    label = np.repeat([0, 0, 1, 1], [10, 9, 12, 30])
    site = np.repeat([2, 3, 2, 3], [10, 9, 12, 30])
    np.testing.assert_array_equal(dfr.groups(label, site), np.repeat([0, -1, 1, 2], [10, 9, 12, 30]))


def test_dfr_of_equal_groups_is_one_logistic_regression(monkeypatch):
    monkeypatch.setattr(dfr, "SUBSETS", 1)
    monkeypatch.setattr(dfr, "COSTS", (0.1,))
    task, net = Built(), Net()
    kept = [i for g in range(4) for i in torch.nonzero(2 * task.all["label"] + task.all["grass"] == g)[:15, 0].tolist()]
    rows = {k: v[kept] for k, v in task.all.items()}
    h = net.encoder(rows["x"]).detach().numpy()
    dfr.retrain(task, net, rows, 0)
    mean, sd = h.mean(0), h.std(0)
    found = LogisticRegression(C=0.1, l1_ratio=1, solver="liblinear").fit((h - mean) / sd, rows["label"].numpy())
    logits = net(rows["x"]).detach()
    np.testing.assert_allclose((logits[:, 1] - logits[:, 0]).numpy(), found.decision_function((h - mean) / sd), atol=1e-3)


def test_dfr_helps_the_worst_group_of_a_head_that_reads_the_shortcut():
    task, net = Built(n=4000, agreement=0.95), Net()
    net.encoder = nn.Identity()
    net.head = nn.Linear(4, 2)
    with torch.no_grad():
        net.head.weight.copy_(torch.tensor([[0.0, -1, 0, 0], [0.0, 1, 0, 0]]))
        net.head.bias.copy_(torch.tensor([3.0, -3.0]))

    def worst():
        right = net(task.all["x"]).argmax(1) == task.all["label"]
        cells = [(task.all["label"] == y) & (task.all["grass"] == g) for y in (0, 1) for g in (0, 1)]
        return min(float(right[c].double().mean()) for c in cells)

    assert worst() < 0.01
    dfr.retrain(task, net, task.all, 0)
    assert worst() > 0.75


def test_after_leace_the_logits_do_not_go_with_the_confounder():
    task, net = Built(), Net()
    before = net(task.all["x"]).detach().double()
    methods.leace(task, net, 0.0, 0)
    after = net(task.all["x"]).detach().double()
    z = task.all["grass"].double() - task.all["grass"].double().mean()
    assert (z @ before / 400).abs().max() > 1e-2
    assert (z @ after / 400).abs().max() < 1e-6


# --- the tasks --------------------------------------------------------------------------------------------------------


def needs(*names):
    missing = [name for name in names if not (FOLDER and (Path(FOLDER) / name).exists())]
    return pytest.mark.skipif(bool(missing), reason=f"LIGHTNING_INTERP_DATA is not set, or has no {', '.join(missing)}")


@needs("caltech_frames.npz")
def test_the_frame_goes_off_and_on():
    from shortcuts.caltech import Caltech, exchange_frame

    task = Caltech()
    train = task.fields("train", 0)
    assert train["image"].shape == (941, 3, 32, 32)
    counts = torch.bincount(2 * train["label"] + train["frame"])
    assert counts.tolist() == [391, 76, 61, 413]
    back = exchange_frame(exchange_frame(train))
    assert all(torch.equal(back[k], train[k]) for k in train)
    framed = train["frame"] == 1
    edge = task.do(train, 1)[~framed][:, :, 0, :]  # the uppermost row of one that was put on
    assert float((edge > 0.99).double().mean()) > 0.8
    half = torch.bincount(2 * (c := task.fields("train", 0, ceiling=True))["label"] + c["frame"])
    assert abs(int(half[0] - half[1])) <= 1
    assert abs(int(half[2] - half[3])) <= 1


@needs("heart_disease_4sites.csv.xz")
@pytest.mark.parametrize("site", range(4))
def test_the_hospital_that_is_left_out_is_in_the_test_part_alone(site):
    from shortcuts.heart import Heart

    task = Heart(site)
    parts = {part: task.fields(part, 0) for part in ("train", "val", "test")}
    assert sum(len(p["site"]) for p in parts.values()) == 920
    assert set(parts["test"]["site"].tolist()) == {site}
    assert site not in parts["train"]["site"].tolist() + parts["val"]["site"].tolist()
    assert all(bool(torch.isfinite(p["patient"]).all()) for p in parts.values())
    assert [v.name for v in task.variables("test")] == ["label"]


@needs("adult.data.xz", "adult.test.xz")
def test_sex_is_exchanged_and_agrees_as_often_as_is_said():
    from shortcuts.adult import Adult, columns, exchange_sex

    task = Adult()
    train = task.fields("train", 0)
    assert [float((train["label"] == train["male"]).double().mean()), len(train["label"])] == [0.95, 3600]
    once, twice = exchange_sex(train), exchange_sex(exchange_sex(train))
    assert torch.equal(twice["person"], train["person"])
    changed = (once["person"] != train["person"]).any(0)
    assert {columns()[i] for i in torch.nonzero(changed)[:, 0]} == {"Male", "Female", "Husband", "Wife"}
    assert torch.equal(once["person"][:, columns().index("Male")], 1.0 - train["male"])


@needs("cad_imdb.tsv.xz")
def test_genre_is_written_over_what_was_there():
    from shortcuts.reviews import HORROR, ROMANTIC, Reviews, with_genre

    task = Reviews()
    train = task.fields("train", 0)
    assert len(train["label"]) == 1707
    for level, word in ((-1, HORROR), (1, ROMANTIC)):
        words = task.do(train, level)
        assert bool((words == word).any(1).all())
        assert not bool((words == HORROR + ROMANTIC - word).any())
    neither = task.do(train, 0)
    assert not bool(((neither == HORROR) | (neither == ROMANTIC)).any())
    rest = (train["words"] != HORROR) & (train["words"] != ROMANTIC)
    rest[:, -1] = False
    assert torch.equal(neither[rest], train["words"][rest])
    assert [len(task.fields(part, 0)["label"]) for part in ("val", "test", "originals", "revisions")] == [490, 976, 488, 488]
    told = train["genre"] != 0
    assert torch.equal(with_genre(train["words"], train["genre"])[told], train["words"][told])
