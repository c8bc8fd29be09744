"""Penalties as formulas: against plain loops, finite differences and known truths."""

import math

import numpy as np
import pytest
import torch

from lightning_interp.penalties import (
    BalancedReweighting,
    ContributionPenalty,
    GroupDRO,
    InvariancePenalty,
    Step,
    balanced_loss,
    contribution_penalty,
    invariance_penalty,
)
from lightning_interp.penalties.contribution import RIDGE, coefficients, halves, windowed_penalty


def data(n=40, c=3, seed=0):
    """Outputs, coded variables (two columns of the confounder, one given) and cells."""
    g = torch.Generator().manual_seed(seed)
    group = torch.randint(3, (n,), generator=g)
    moo = torch.randint(2, (n,), generator=g)
    codes = torch.tensor([[1.0, 0], [0, 1], [-1, -1]], dtype=torch.float64)
    z = torch.cat([codes[group], moo.double().unsqueeze(1) - 0.5], dim=1)
    return torch.randn(n, c, generator=g, dtype=torch.float64), z, group * 2 + moo


def ridge_loop(output, z, width, ridge):
    """Least squares by numpy, the ridge as rows of its own."""
    x = np.concatenate([z.numpy(), np.ones((len(z), 1))], axis=1)
    rows = np.concatenate([x, math.sqrt(len(x) * ridge) * np.eye(x.shape[1])])
    found = np.empty((width, output.shape[1]))
    for k in range(output.shape[1]):
        y = np.concatenate([output[:, k].numpy(), np.zeros(x.shape[1])])
        found[:, k] = np.linalg.lstsq(rows, y, rcond=None)[0][:width]
    return found


def step(output, z=None, cell=None, cells=None, width=2, **options):
    cell = torch.zeros(len(output), dtype=torch.int64) if cell is None else cell
    cells = int(cell.max()) + 1 if cells is None else cells
    options = {"frequency": torch.ones(cells) / cells, "window": None, "losses": None, "intervened": None, **options}
    return Step(output=output, z=z, width=width, cell=cell, cells=cells, **options)


# --- ContributionPenalty ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [RIDGE, 0.0, 0.1])
def test_contribution_equals_a_loop_with_numpy(ridge):
    output, z, cell = data()
    second = halves(cell)
    a = ridge_loop(output[~second], z[~second], 2, ridge)
    b = ridge_loop(output[second], z[second], 2, ridge)
    wanted = sum(a[j, k] * b[j, k] for j in range(2) for k in range(3))
    assert float(contribution_penalty(output, z, 2, second, ridge)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("effect", [0.0, 0.3, 1.0])
def test_contribution_is_unbiased_for_the_squared_coefficient(effect):
    g = torch.Generator().manual_seed(7)
    values = []
    for _ in range(2000):
        moo = torch.randint(2, (64,), generator=g)
        grass = torch.where(torch.rand(64, generator=g) < 0.8, moo, 1 - moo)
        if len((2 * grass + moo).unique()) < 4 or int(torch.bincount(2 * grass + moo).min()) < 2:
            continue
        z = torch.stack([grass, moo], dim=1).double() - 0.5
        output = z @ torch.tensor([[effect], [1.5]], dtype=torch.float64) + 0.3 + torch.randn(64, 1, generator=g)
        values.append(float(contribution_penalty(output, z, 1, halves(2 * grass + moo), ridge=0.0)))
    found = torch.tensor(values, dtype=torch.float64)
    assert len(found) > 1500
    assert abs(float(found.mean()) - effect**2) < 3 * float(found.std()) / math.sqrt(len(found))
    assert effect > 0.5 or float(found.min()) < 0  # never clamped


def test_contribution_gradient_by_finite_differences():
    output, z, cell = data(24)
    past, past_z, _ = data(50, seed=1)
    output.requires_grad_()
    assert torch.autograd.gradcheck(lambda o: contribution_penalty(o, z, 2, halves(cell)), output)
    assert torch.autograd.gradcheck(lambda o: coefficients(o, z, 2), output)
    # The window's value keeps the plain product while its gradient is doubled.
    (found,) = torch.autograd.grad(windowed_penalty(output, z, 2, past, past_z), output)
    plain = (coefficients(output, z, 2) * coefficients(past, past_z, 2).detach()).sum()
    (wanted,) = torch.autograd.grad(plain, output)
    assert torch.allclose(found, 2 * wanted, rtol=1e-12, atol=0)
    value = windowed_penalty(output, z, 2, past, past_z).detach()
    assert float(value) == pytest.approx(float(plain.detach()), rel=1e-12)


def test_window_gives_no_gradient_to_the_past():
    output, z, _ = data(24)
    past, past_z, _ = data(50, seed=1)
    past.requires_grad_()
    output.requires_grad_()
    found = torch.autograd.grad(windowed_penalty(output, z, 2, past, past_z), [output, past], allow_unused=True)
    assert found[0] is not None
    assert found[1] is None


@pytest.mark.parametrize("seed", range(20))
def test_halves_hold_every_cell_that_has_two(seed):
    g = torch.Generator().manual_seed(seed)
    cell = torch.randint(12, (int(torch.randint(2, 80, (), generator=g)),), generator=g)
    cell = cell[torch.randperm(len(cell), generator=g)]
    second = halves(cell)
    for k in cell.unique().tolist():
        one, other = int((second & (cell == k)).sum()), int((~second & (cell == k)).sum())
        assert abs(one - other) <= 1  # so both have it where there are two
    assert torch.equal(halves(cell), second)


def test_halves_differ_by_little_in_size():
    cell = torch.arange(10).repeat(3)  # three of each: odd cells give their odd sample to the other half
    assert int(halves(cell).sum()) == 15


def test_contribution_class_chooses_halves_or_window_and_skips_incomplete_batches():
    output, z, cell = data(300)
    past, past_z, past_cell = data(200, seed=1)
    term = ContributionPenalty()
    assert torch.equal(term(step(output, z, cell, 6)), contribution_penalty(output, z, 2, halves(cell)))
    few = slice(0, 64)
    window = (past, past_z, past_cell)
    wanted = windowed_penalty(output[few], z[few], 2, past, past_z)
    assert torch.equal(term(step(output[few], z[few], cell[few], 6, window=window)), wanted)
    assert term(step(output[few], z[few], cell[few], 6)) is None  # no window yet
    assert term(step(output, z, cell, 7)) is None  # a cell that this batch lacks
    assert term(step(output[few], z[few], cell[few], 7, window=window)) is None
    with pytest.raises(ValueError, match="`window_rows` expects 2 or more, got 1"):
        ContributionPenalty(window_rows=1)


# --- losses that replace the mean -------------------------------------------------------------------------------------


def test_balanced_loss_equals_a_loop():
    g = torch.Generator().manual_seed(0)
    losses, cell = torch.rand(50, generator=g, dtype=torch.float64), torch.randint(4, (50,), generator=g)
    frequency = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    wanted = sum(float(losses[i]) / (4 * float(frequency[cell[i]])) for i in range(50)) / 50
    assert float(balanced_loss(losses, cell, frequency)) == pytest.approx(wanted, rel=1e-12)
    # With the batch's own frequencies it is the mean of the cells' means.
    own = torch.bincount(cell).double() / 50
    means = [float(losses[cell == k].mean()) for k in range(4)]
    assert float(balanced_loss(losses, cell, own)) == pytest.approx(sum(means) / 4, rel=1e-12)


def test_reweighting_plus_mean_is_the_balanced_loss():
    output, z, cell = data()
    losses = output[:, 0] ** 2
    frequency = torch.bincount(cell, minlength=6).double() / 40
    term = BalancedReweighting()(step(output, z, cell, 6, losses=losses, frequency=frequency))
    assert torch.allclose(term + losses.mean(), balanced_loss(losses, cell, frequency), rtol=1e-12, atol=0)
    assert BalancedReweighting()(step(output, z, cell, 6)) is None


@pytest.mark.parametrize("adjustment", [0.0, 2.0])
def test_group_dro_equals_algorithm_1(adjustment):
    eta, groups = 0.2, 3
    term = GroupDRO(eta, adjustment)
    g = torch.Generator().manual_seed(3)
    q, seen = [1 / groups] * groups, [0] * groups
    for t in range(6):
        cell = torch.randint(groups, (20,), generator=g) if t != 3 else torch.arange(20) % 2  # one without the last group
        w = torch.rand(20, generator=g, dtype=torch.float64, requires_grad=True)
        losses = w**2
        found = term(step(w.detach().unsqueeze(1), None, cell, groups, losses=losses)) + losses.mean()
        here = [k for k in range(groups) if int((cell == k).sum())]
        means = {k: float(losses.detach()[cell == k].mean()) for k in here}
        for k in here:
            seen[k] += int((cell == k).sum())
            q[k] *= math.exp(eta * (means[k] + adjustment / math.sqrt(seen[k])))
        q = [x / sum(q) for x in q]
        assert term.weight.tolist() == pytest.approx(q, rel=1e-12)
        (gradient,) = torch.autograd.grad(found, w, retain_graph=True)
        size = torch.bincount(cell, minlength=groups)
        wanted = [q[k] * 2 * float(x) / int(size[k]) for k, x in zip(cell.tolist(), w.detach())]
        assert gradient.tolist() == pytest.approx(wanted, rel=1e-10)


def test_group_dro_value_is_without_the_adjustment():
    term = GroupDRO(0.1, 5.0)
    losses = torch.rand(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cell = torch.arange(30) % 3
    found = float(term(step(losses.unsqueeze(1), None, cell, 3, losses=losses)) + losses.mean())
    wanted = sum(float(term.weight[k] * losses[cell == k].mean()) for k in range(3))
    assert found == pytest.approx(wanted, rel=1e-12)


def test_group_dro_without_target_and_with_bad_arguments():
    assert GroupDRO()(step(torch.zeros(4, 1))) is None
    for wrong in ({"step_size": 0.0}, {"adjustment": -1.0}):
        with pytest.raises(ValueError, match="`step_size` expects over 0 and `adjustment` 0 or more"):
            GroupDRO(**wrong)


# --- InvariancePenalty ------------------------------------------------------------------------------------------------


def test_invariance_equals_a_loop():
    output, _, _ = data()
    other, _, _ = data(seed=1)
    wanted = sum((float(output[i, k]) - float(other[i, k])) ** 2 for i in range(40) for k in range(3)) / 40
    assert float(invariance_penalty(output, other)) == pytest.approx(wanted, rel=1e-12)
    assert torch.equal(InvariancePenalty()(step(output, intervened=lambda: other)), invariance_penalty(output, other))
    assert InvariancePenalty()(step(output)) is None
    assert torch.autograd.gradcheck(invariance_penalty, (output.requires_grad_(), other.requires_grad_()))
