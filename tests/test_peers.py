"""The measures that benchmarks/truth.py and benchmarks/peers.py set beside ours: hand-written ones against plain loops."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from measures import layer, nets, report, tcav

REASON = "captum is not installed: pip install 'lightning-interp[bench]'"


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nets.mlp(1, 4, width=6).eval()


def images(n=40):
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_fast_cav_is_the_mean_less_the_mean_of_all_at_unit_length():
    g = torch.Generator().manual_seed(0)
    concept, other = torch.randn(30, 5, generator=g) + 1, torch.randn(50, 5, generator=g)
    every = [*concept.tolist(), *other.tolist()]
    centre = [sum(row[i] for row in every) / len(every) for i in range(5)]
    mean = np.array([sum(row[i] - centre[i] for row in concept.tolist()) / 30 for i in range(5)])
    found = tcav.fast_cav(concept, other).numpy()
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), rtol=1e-5)
    apart = (concept.mean(0) - other.mean(0)).numpy()
    assert found @ apart / np.linalg.norm(apart) == pytest.approx(1, abs=1e-6)


def test_the_tcav_score_counts_positive_derivatives():
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 5.0], [2.0, 2.0], [0.0, 1.0]])
    assert tcav.tcav_score(gradients, torch.tensor([1.0, 0.0])) == 0.5


@pytest.mark.parametrize("depth", nets.DEPTHS)
def test_gradients_are_those_of_the_margin(net, depth):
    x = images(6)
    h, found = layer.activations(net, x)[depth], layer.gradients(net, x)[depth]
    for unit in range(h.shape[1]):
        step = torch.zeros_like(h)
        step[:, unit] = 1e-2
        ends = [layer.logits_from(net, depth, h + sign * step, x) for sign in (1, -1)]
        up, down = (o[:, 1] - o[:, 0] for o in ends)
        kink = (h[:, unit].abs() < 0.02) | ((up - down).abs() < 1e-7)  # of a ReLU after it
        slope = (up - down) / 2e-2
        close = (slope - found[:, unit]).abs() < 2e-3
        assert (close | kink | (layer.gradients(net, x)[depth][:, unit] == 0)).float().mean() > 0.8


@pytest.mark.parametrize("depth", nets.DEPTHS)
def test_the_rest_of_the_net_runs_from_a_stage(net, depth):
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(layer.logits_from(net, depth, layer.activations(net, x)[depth], x), net(x))


# --- by the packages --------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """A stage and a head whose margin is known: it grows along the first input."""

    def __init__(self):
        super().__init__()
        self.stage = nn.Linear(3, 3, bias=False)
        self.head = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.stage.weight.copy_(torch.eye(3))
            self.head.weight.copy_(torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))

    def forward(self, x):
        return self.head(self.stage(x))


def test_captum_is_asked_for_the_concept_and_not_for_what_it_is_told_from():
    pytest.importorskip("captum", reason=REASON)
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    for sign in (1, -1):
        concept, other = x[:100] + torch.tensor([3.0 * sign, 0.0, 0.0]), x[100:]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = tcav.captum_tcav(Linear(), ["stage"], [(concept, other), (other, concept)], x)
        (score, derivative), (other_score, other_derivative) = found["stage"]
        assert (score, other_score) == ((1.0, 0.0) if sign == 1 else (0.0, 1.0))
        assert sign * derivative > 0 > sign * other_derivative
        assert tcav.tcav_score(torch.tensor([[2.0, 0.0, 0.0]]), tcav.fast_cav(concept, other)) == score


def test_erasing_the_layer_before_a_linear_head_takes_the_mean_difference_away(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("concept_erasure", reason="concept-erasure is not installed")
    from measures.erasing import losses

    x = images(300)
    z = (torch.arange(300) % 2).long()
    x[z == 1] += 1.0
    fields = {"image": x, "label": z, "confounder": z}
    margin = layer.margin(net, x)
    apart = float(margin[z == 1].mean() - margin[z == 0].mean())
    lost = losses(net, "last", layer.activations(net, x)["last"], fields)
    assert lost["difference"] == pytest.approx(apart, rel=0.05)
    assert 0 < lost["variance"] <= 1


# --- the report -------------------------------------------------------------------------------------------------------


def rows(effect, score, do, other):
    keys = {"task": "hidden", "architecture": "mlp", "hidden": None, "training": "plain", "seed": 0, "probe": 0.5}
    return [
        {
            **keys,
            "agreement": i // 2,
            "do": d,
            "do_hidden": h,
            "ours": {"effect": e},
            "theirs": {"score": dict.fromkeys(nets.DEPTHS, s)},
        }
        for i, (e, s, d, h) in enumerate(zip(effect, score, do, other))
    ]


def test_correlations_are_scipys():
    a, b = np.random.default_rng(0).normal(size=(2, 50)).round(1)
    assert report.correlation(a, b) == pytest.approx(scipy.stats.pearsonr(a, b).statistic)
    assert report.ranked(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert np.isnan(report.correlation(np.ones(5), np.arange(5.0)))


def test_another_measure_is_shown_without_its_sign_where_that_is_better_and_ours_never():
    do = np.linspace(-3, 3, 20)
    found = rows(np.abs(do), 0.5 + np.abs(do), do, do)
    theirs = report.against(found, report.Measure("score", null=0.5))
    assert theirs.by_size
    assert theirs.pearson == pytest.approx(1)
    ours = report.against(found, report.Measure("effect", logits=True, ours="effect"))
    assert not ours.by_size
    assert abs(ours.pearson) < 0.1
    assert ours.error == pytest.approx(np.abs(np.abs(do) - do).mean())


def test_a_score_that_does_not_vary_has_no_correlation():
    do = np.linspace(-3, 3, 20)
    assert np.isnan(report.against(rows(do, np.ones(20), do, do), report.Measure("score", null=0.5)).pearson)
