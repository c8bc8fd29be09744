"""`IndependencePenalty`: against loops, unbiased, None where it cannot be had, and it takes the confounder out of a layer."""

import math

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from scipy.stats import pearsonr

from lightning_interp.functional.dependence import hsic
from lightning_interp.penalties import IndependencePenalty, Penalty, Step, correlation_penalty, hsic_penalty
from lightning_interp.penalties.contribution import halves


def data(n=60, d=5, seed=0, agreement=0.7):
    """Activations, columns of grass (binary) and moo (binary), cells; the activation goes with both."""
    g = torch.Generator().manual_seed(seed)
    moo = torch.randint(2, (n,), generator=g)
    grass = torch.where(torch.rand(n, generator=g) < agreement, moo, 1 - moo)
    z = torch.stack([grass, moo], dim=1).double() - 0.5
    h = torch.randn(n, d, generator=g, dtype=torch.float64) + z @ torch.randn(2, d, generator=g, dtype=torch.float64)
    return h, z, 2 * grass + moo


def step(h, z, cell, width=1):
    cells = int(cell.max()) + 1
    return Step(h[:, :1], z, width, cell, cells, torch.ones(cells) / cells, None, None, None, hidden=h)


def partial(h, z, given):
    """By least squares and scipy, unit by unit."""
    columns = np.column_stack([np.ones(len(z)), given])
    h, z = (x - columns @ np.linalg.lstsq(columns, x, rcond=None)[0] for x in (h, z))
    return np.array([[pearsonr(z[:, j], h[:, i]).statistic for i in range(h.shape[1])] for j in range(z.shape[1])])


def test_the_correlation_is_the_product_of_two_halves():
    h, z, cell = data()
    second = halves(cell)
    a, b = (partial(h[rows].numpy(), z[rows, :1].numpy(), z[rows, 1:].numpy()) for rows in (~second, second))
    assert float(correlation_penalty(h, z, 1, cell)) == pytest.approx((a * b).mean(), rel=1e-9)
    assert torch.equal(IndependencePenalty()(step(h, z, cell)), correlation_penalty(h, z, 1, cell))


@pytest.mark.parametrize("measure", ["correlation", "hsic"])
@pytest.mark.parametrize("n", [32, 128])
def test_it_is_0_on_average_where_the_activation_knows_only_the_class(measure, n):
    term, values = IndependencePenalty(measure), []
    for seed in range(300):
        _, z, cell = data(n, seed=seed)
        g = torch.Generator().manual_seed(1000 + seed)
        h = torch.randn(n, 4, generator=g, dtype=torch.float64) + 3 * z[:, 1:]
        found = term(step(h, z, cell))
        if found is not None:
            values.append(float(found))
    assert len(values) > 250
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(len(values))
    assert min(values) < 0  # never clamped


@pytest.mark.parametrize("measure", ["correlation", "hsic"])
def test_a_wider_layer_of_the_same_kind_has_the_same_value(measure):
    g = torch.Generator().manual_seed(0)
    _, z, cell = data(2000)
    noise = torch.randn(2000, 64, generator=g, dtype=torch.float64)
    term = IndependencePenalty(measure)
    narrow, wide = (float(term(step(noise[:, :d] + 2 * z[:, :1], z, cell))) for d in (4, 64))
    # The correlation is a mean over units; units of HSIC act together, and more of them tell more.
    assert wide == pytest.approx(narrow, rel=0.1) if measure == "correlation" else narrow <= wide < 2.5 * narrow


@pytest.mark.parametrize("measure", ["correlation", "hsic"])
def test_a_shrinking_activation_wins_nothing(measure):
    h, z, cell = data()
    term = IndependencePenalty(measure)
    assert float(term(step(1e-6 * h, z, cell))) == pytest.approx(float(term(step(h, z, cell))), rel=1e-6)
    h.requires_grad_()
    (gradient,) = torch.autograd.grad(term(step(h, z, cell)), h)
    along = (gradient * h.detach()).sum(0)
    assert float(along.abs().max()) < 1e-9 * float(gradient.norm() * h.detach().norm())


@pytest.mark.parametrize("measure", ["correlation", "hsic"])
def test_the_activation_may_be_float32_and_the_variables_float64(measure):
    h, z, cell = data()
    found = IndependencePenalty(measure)(step(h.float(), z, cell))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(IndependencePenalty(measure)(step(h, z, cell))), abs=1e-5)


def test_hsic_is_taken_within_the_classes_of_all_discrete_given_variables():
    h, z, cell = data(120)
    tail = torch.arange(120) % 3
    codes = torch.tensor([[1.0, 0], [0, 1], [-1, -1]], dtype=torch.float64)[tail]
    moo = (z[:, 1] > 0).long()
    found = hsic_penalty(h, torch.cat([z, codes], dim=1), 1, cell * 3 + tail)
    assert torch.allclose(found, hsic(h, z[:, :1], moo * 3 + tail), rtol=1e-9, atol=0)
    assert torch.allclose(hsic_penalty(h, z[:, :1], 1, cell // 2), hsic(h, z[:, :1]), rtol=1e-9, atol=0)


@pytest.mark.parametrize("measure", ["correlation", "hsic"])
def test_a_continuous_given_variable_is_held_fixed(measure):
    """Age goes with grass, the activation with age alone: given age there is nothing to find."""
    with_age, without = [], []
    for seed in range(60):
        h, z, cell = data(200, seed=seed)
        g = torch.Generator().manual_seed(seed)
        age = torch.randn(200, 1, generator=g, dtype=torch.float64) + 2 * z[:, :1]
        h = 2 * age + z[:, 1:] + torch.randn(200, 5, generator=g, dtype=torch.float64)
        term = IndependencePenalty(measure)
        with_age.append(float(term(step(h, torch.cat([z, age], dim=1), cell))))
        without.append(float(term(step(h, z, cell))))
    assert abs(np.mean(with_age)) < 0.01
    assert np.mean(without) > 0.1


@pytest.mark.parametrize("measure", ["correlation", "hsic"])
def test_none_where_it_cannot_be_had(measure):
    h, z, cell = data()
    term = IndependencePenalty(measure)
    good = step(h, z, cell)
    assert term(good) is not None
    assert term(Step(good.output, z, 1, cell, 4, good.frequency, None, None, None)) is None  # no layer
    rows = z[:, 0] > 0
    assert term(step(h[rows], z[rows], cell[rows])) is None  # one level of the confounder
    rows = z[:, 0] * z[:, 1] > 0
    assert term(step(h[rows], z[rows], cell[rows])) is None  # the confounder is the class
    assert term(step(h[:1], z[:1], cell[:1])) is None
    assert term(step(h[:3], z[:3], cell[:3])) is None
    assert term(step(h[:2], z[:2], torch.tensor([0, 2]))) is None  # both in one half
    rows = torch.cat([torch.nonzero(z[:, 1] > 0)[:1, 0], torch.nonzero(z[:, 1] < 0)[:20, 0]])  # one class of one sample
    assert term(step(h[rows], z[rows], cell[rows])) is not None


def test_a_level_that_one_half_lacks_leaves_its_column_out():
    h, z, _ = data(80)
    level = torch.arange(80) % 2
    level[0] = 2  # a single one: in one half its column is a copy of the other's
    codes = torch.tensor([[1.0, 0], [0, 1], [-1, -1]], dtype=torch.float64)[level]
    cell = level * 2 + (z[:, 1] > 0).long()
    found = correlation_penalty(h, torch.cat([codes, z[:, 1:]], dim=1), 2, cell)
    assert bool(torch.isfinite(found))
    level[0] = 0
    one = torch.stack([(level == 0).double(), torch.zeros(80, dtype=torch.float64)], dim=1)
    second = correlation_penalty(h, torch.cat([one, z[:, 1:]], dim=1), 2, level * 2 + (z[:, 1] > 0).long())
    alone = correlation_penalty(h, torch.cat([one[:, :1], z[:, 1:]], dim=1), 1, level * 2 + (z[:, 1] > 0).long())
    assert torch.equal(second, alone)


@pytest.mark.parametrize("measure", ["correlation", "hsic"])
def test_descent_on_it_takes_the_confounder_out_and_leaves_the_class(measure):
    """A linear layer of two mixed inputs: what is left of grass, by the within-class correlation on fresh rows."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 3).double()
    before = layer.weight.detach().clone()
    term = IndependencePenalty(measure)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    mix = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)

    def batch(n):
        moo = torch.randint(2, (n,), generator=g)
        grass = torch.where(torch.rand(n, generator=g) < 0.8, moo, 1 - moo)
        z = torch.stack([grass, moo], dim=1).double() - 0.5
        return (z + 0.3 * torch.randn(n, 2, generator=g, dtype=torch.float64)) @ mix, z, 2 * grass + moo

    x, z, _ = batch(4000)
    old = np.abs(partial((x @ before.T).numpy(), z[:, :1].numpy(), z[:, 1:].numpy()))
    for _ in range(150):
        x_now, z_now, cell = batch(128)
        optimizer.zero_grad()
        term(step(layer(x_now), z_now, cell)).backward()
        optimizer.step()
    h = layer(x).detach()
    assert np.abs(partial(h.numpy(), z[:, :1].numpy(), z[:, 1:].numpy())).max() < 0.25 * old.max()
    assert np.abs(partial(h.numpy(), z[:, 1:].numpy(), z[:, :1].numpy())).min() > 0.5


@pytest.mark.parametrize(("measure", "alone", "hidden"), [("correlation", 0.95, 0.02), ("hsic", 0.85, 0.07)])
def test_the_limit_that_the_card_names_is_as_large_as_it_says(measure, alone, hidden):
    _, z, cell = data(1500)
    g = torch.Generator().manual_seed(0)
    b, c = z[:, 0] + 0.1 * torch.randn(1500, generator=g), torch.randn(1500, generator=g)
    term = IndependencePenalty(measure)
    for k, wanted in ((0, alone), (3, hidden)):
        h = torch.stack([b + k * c, b - k * c], dim=1)
        assert float(term(step(h, z, cell))) == pytest.approx(wanted, abs=0.02)


def test_a_measure_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(
        ValueError, match=r"`measure` expects 'correlation' or 'hsic', got 'corelation'. Did you mean 'correlation'\?"
    ):
        IndependencePenalty("corelation")


def test_it_builds_from_yaml():
    parser = ArgumentParser()
    parser.add_argument("--penalty", type=Penalty)
    path = "lightning_interp.penalties.IndependencePenalty"
    config = parser.parse_object({"penalty": {"class_path": path, "init_args": {"measure": "hsic"}}})
    built = parser.instantiate(config).penalty
    assert type(built) is IndependencePenalty
    assert built.measure == "hsic"
    assert built.needs_layer
    assert not Penalty.needs_layer
