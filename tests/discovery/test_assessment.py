"""Contributions against Shapley over all orders; flips, relations and obstacles on what was made for them."""

from itertools import permutations

import numpy as np
import pytest
import torch
from discovery.feature_scenes import draws, rows

from lightning_interp.discovery.assessment import (
    MIN_SAMPLES,
    by_cell,
    contributions,
    flips,
    obstacle,
    relation,
    sides,
    useful_directions,
)
from lightning_interp.functional.outputs import Explained, explain_output

N = 240


def probe_set(m=3, outputs=1, weights="balanced", seed=0):
    """Codes that travel with a named variable and with each other, and outputs made of all of them."""
    values = (draws(N, 1, seed=seed) > 0.5).double()
    codes = draws(N, m, seed=seed + 1) + values + 0.5 * draws(N, 1, seed=seed + 2)
    output = codes @ draws(m, outputs, seed=seed + 3) + 2 * values + draws(N, outputs, seed=seed + 4)
    target = draws(N, seed=seed + 5)  # a number, so that it is a regression and the outputs stay as they are
    return rows(draws(N, 4, seed=seed + 6), output, values, target, weights), codes


def by_orders(found, codes):
    """Shapley shares by the mean gain in R² over all orders of entry after the named variables, each fit anew."""
    where = (~found.fitting).numpy()
    w = found.weight.numpy()[where]
    w = w / w.sum()
    o, z, u = found.explained.output.numpy()[where], found.z.numpy()[where], codes.numpy()[where]
    total = (w[:, None] * (o - (w[:, None] * o).sum(0)) ** 2).sum()

    def r2(columns):
        x = np.column_stack([np.ones(len(z)), z, *(u[:, j] for j in columns)])
        root = np.sqrt(w)[:, None]
        left = o - x @ np.linalg.lstsq(root * x, root * o, rcond=None)[0]
        return 1 - (w[:, None] * left**2).sum() / total

    orders = list(permutations(range(u.shape[1])))
    shares = np.zeros(u.shape[1])
    for order in orders:
        for i, j in enumerate(order):
            shares[j] += (r2(order[: i + 1]) - r2(order[:i])) / len(orders)
    return shares, r2(range(u.shape[1])) - r2([])


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("weights", ["balanced", "natural"])
def test_contributions_are_shapley_values_of_r2_on_the_other_half(weights, outputs):
    found, codes = probe_set(4, outputs, weights)
    assert found.weights.mode == weights
    chosen, shares = contributions(found, codes, 10)
    expected, gain = by_orders(found, codes)
    assert chosen == [0, 1, 2, 3]
    assert shares == pytest.approx(expected, abs=1e-10)
    assert sum(shares) == pytest.approx(gain, abs=1e-10)


def test_the_units_of_a_code_do_not_matter():
    found, codes = probe_set()
    scale = torch.tensor([1e-7, 1.0, 1e7])
    assert contributions(found, codes * scale + 3, 10)[1] == pytest.approx(contributions(found, codes, 10)[1], abs=1e-9)


def test_the_strongest_are_chosen_on_the_half_that_features_are_found_on():
    found, codes = probe_set(6, weights="natural")
    codes[~found.fitting, 0] = 0  # of no use on the other half, where it is judged
    every = contributions(found, codes, 6)[1]
    assert every[0] == 0
    r2 = [float(np.corrcoef(*(found.residual(x, found.fitting)[:, 0] for x in (c[:, None], found.explained.output)))[0, 1] ** 2)
          for c in codes.T]  # fmt: skip
    for most in (1, 3, 5):
        assert contributions(found, codes, most)[0] == sorted(np.argsort(r2)[::-1][:most].tolist())


def test_constant_and_collinear_codes_share_what_there_is():
    found, codes = probe_set(2)
    one, other = contributions(found, codes, 10)[1]
    dead = torch.cat([codes, torch.ones(N, 1)], 1)
    assert contributions(found, dead, 10)[1] == pytest.approx([one, other, 0], abs=1e-10)
    alone = contributions(found, codes[:, :1], 10)[1]
    assert contributions(found, codes[:, [0, 0]] * torch.tensor([1.0, -3]), 10)[1] == pytest.approx([alone[0] / 2] * 2)
    assert contributions(found, torch.ones(N, 3), 10)[1] == [0, 0, 0]


def test_a_code_that_is_a_named_variable_contributes_nothing():
    found, codes = probe_set(2)
    named = found.z[:, :1] * 3 + 1
    assert contributions(found, named, 10)[1] == [0]
    shares = contributions(found, torch.cat([codes, named], 1), 10)[1]
    assert shares == pytest.approx([*contributions(found, codes, 10)[1], 0], abs=1e-10)


def test_shares_are_of_what_is_left_and_never_negative():
    for seed in range(20):
        found, codes = probe_set(3, seed=seed)
        total, left = found.unexplained(found.explained.output, ~found.fitting)
        shares = contributions(found, torch.cat([codes, draws(N, 3, seed=seed)], 1), 10)[1]
        assert min(shares) >= 0
        assert sum(shares) <= left / total + 1e-12


def test_a_useful_direction_reads_what_is_unexplained():
    found, _ = probe_set()
    h = draws(N, 4, seed=9)
    made = h @ torch.tensor([[1.0], [0], [-2], [0]], dtype=torch.float64)
    found = found._replace(h=h, explained=Explained("regression", made + 5 * found.z, None))
    direction = useful_directions(found)
    assert direction.shape == (4, 1)
    assert (direction[:, 0] / direction[:, 0].norm()).tolist() == pytest.approx([5**-0.5, 0, -2 * 5**-0.5, 0], abs=0.02)
    found = found._replace(explained=found.explained._replace(correct=(h[:, 1] > 0).double()))
    assert int(useful_directions(found)[:, 1].abs().argmax()) == 1  # who is right


# --- flips ------------------------------------------------------------------------------------------------------------


def predicted(code, label, right):
    return flips(torch.tensor(code).double().reshape(len(label), -1), torch.tensor(label), torch.tensor(right).bool())


def test_a_cause_does_not_flip_and_a_reversed_shortcut_does():
    label = torch.arange(400) % 2
    right = torch.arange(400) % 10 < 8
    noise = 0.1 * draws(400, seed=1)
    cause = label + noise
    shortcut = torch.where(right, label, 1 - label) + noise
    partly = torch.where(right, label.double(), 0.75 - 0.5 * label) + noise  # half as strong where it leads astray
    nothing = torch.where(right, label.double(), 0.5) + noise
    found = flips(torch.stack([cause, shortcut, partly, nothing], 1), label, right)
    assert found.tolist() == pytest.approx([0, 1, 0.5, 0], abs=0.1)
    assert found[0] == 0
    louder = torch.where(right, label.double(), 3 - 3 * label)
    assert float(flips(louder[:, None], label, right)) == pytest.approx(1, abs=1e-9)  # never over 1
    assert torch.equal(flips(5 - 2 * torch.stack([cause, shortcut], 1), label, right) > 0.5, torch.tensor([False, True]))


def test_a_flip_needs_samples_right_and_wrong_of_two_classes():
    label, right = [0, 1] * 40, [1] * 80
    assert predicted(label, label, right) is None
    wrong = [0] * 10 + [1] * 70  # five of each class
    assert predicted(label, label, wrong) is not None
    wrong[0] = 1
    assert predicted(label, label, wrong) is None
    of_one_class = [int(i % 2 or i > 20) for i in range(80)]
    assert predicted(label, label, of_one_class) is None


def test_flips_of_several_classes_are_those_of_the_formula():
    label = torch.arange(300) % 3
    right = torch.rand(300, generator=torch.Generator().manual_seed(0)) < 0.6
    loud = torch.tensor([2.0, 3.0, 0.0])[label]  # where it leads astray: larger, and turned by less than half
    code = 0.1 * draws(300, 2) + torch.stack([torch.where(right, label, -0.5 * label), torch.where(right, label, loud)], 1)
    expected = []
    for j in (0, 1):
        e, w = (np.array([code[(label == c) & (right == side), j].mean() for c in range(3)]) for side in (True, False))
        e, w = e - e.mean(), w - w.mean()
        size = np.linalg.norm(e)
        expected.append(min(1, max(0, -(e @ w) / (size * max(size, np.linalg.norm(w))))))
    assert flips(code, label, right).tolist() == pytest.approx(expected)
    assert [0.4 < e < 0.9 for e in expected] == [True, True]


def test_a_constant_code_does_not_flip():
    label = torch.arange(40) % 2
    assert flips(torch.ones(40, 1).double(), label, torch.arange(40) % 4 < 2).tolist() == [0]


# --- relations, cells, obstacles --------------------------------------------------------------------------------------


def test_the_relation_to_the_label():
    codes = draws(200, 2)
    number = codes[:, 0] + draws(200, seed=1)
    expected = [np.corrcoef(codes[:, j], number)[0, 1] for j in (0, 1)]
    assert relation(codes, number, True).tolist() == pytest.approx(expected)
    two = (number > 0).long()
    assert relation(codes, two, False).tolist() == pytest.approx([np.corrcoef(codes[:, j], two)[0, 1] for j in (0, 1)])
    three = torch.bucketize(number, torch.tensor([-0.5, 0.5]).double())
    grand = codes.mean(0)
    between = sum((three == c).sum() * (codes[three == c].mean(0) - grand) ** 2 for c in range(3))
    ratio = (between / ((codes - grand) ** 2).sum(0)).sqrt()
    assert relation(codes, three, False).tolist() == pytest.approx(ratio.tolist())
    assert relation(torch.ones(200, 1).double(), two, False).tolist() == [0]
    assert relation(codes, torch.zeros(200), False).tolist() == [0, 0]


def test_the_sides_of_a_task():
    output = torch.tensor([[-1.0], [2], [3], [-1]])
    target = torch.tensor([0, 0, 1, 1])
    found, right = sides(target, explain_output(output, target))
    assert found.tolist() == [0, 0, 1, 1]
    assert right.tolist() == [True, False, True, False]
    numbers = torch.tensor([0.5, 2.5, 7.0, 8.0])
    found, right = sides(numbers, explain_output(output, numbers))
    assert found.tolist() == [0, 0, 1, 1]
    assert right.tolist() == [True, True, False, False]  # errors of 1.5, .5, 4 and 9
    several = explain_output(torch.randn(4, 2), numbers)
    assert several.task == "regression"
    assert sides(numbers, several)[1] is None
    assert sides(target, Explained("multilabel", output, torch.ones(4)))[1] is None


def test_the_share_of_each_cell_that_has_a_feature():
    found, _ = probe_set()
    has = torch.stack([found.z[:, 0] > 0, torch.arange(N) < N // 2], 1)
    cells = by_cell(found, has)
    assert {name: cell[0] for name, cell in cells.items()} == {"v0=0": 0, "v0=1": 1}
    one = found.z[:, 0] > 0
    assert cells["v0=1"][1] == pytest.approx(float(has[one, 1].double().mean()))
    assert by_cell(rows(found.h, found.explained.output, torch.zeros(N, 0)), has) == {}


def test_what_is_in_the_way_of_a_discovery():
    found, _ = probe_set()
    assert obstacle(found) is None
    assert obstacle(found._replace(h=torch.full_like(found.h, 0.1))) == "the activation does not vary over the probe set"
    still = Explained("binary", torch.full((N, 1), 0.3, dtype=torch.float64), None)
    assert obstacle(found._replace(explained=still)) == "the output does not vary over the probe set"
    few = torch.zeros(N, dtype=torch.bool)
    few[: MIN_SAMPLES - 1] = True
    assert obstacle(found._replace(fitting=few)) == "59 distinct samples in a half, 60 are needed"
    few[MIN_SAMPLES - 1] = True
    assert obstacle(found._replace(fitting=few)) is None
    assert obstacle(found._replace(fitting=~few)) is None
