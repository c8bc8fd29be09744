"""Coding against plain definitions, and the meaning that it gives to coefficients."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_interp.errors import VariableError
from lightning_interp.functional.coding import Design, code, infer_kind
from lightning_interp.functional.contribution import effects, fit
from lightning_interp.functional.outputs import level_spread, magnitude
from lightning_interp.functional.table import table
from lightning_interp.functional.weights import sample_weights


def design_of(values: torch.Tensor, kinds: list[str]) -> Design:
    return code(values, torch.ones(len(values), dtype=torch.float64), [f"v{j}" for j in range(len(kinds))], kinds)


def crossed(*level_counts: int, repeat: int = 10) -> torch.Tensor:
    axes = [torch.arange(k, dtype=torch.float64) for k in level_counts]
    return torch.cartesian_prod(*axes).reshape(-1, len(level_counts)).repeat(repeat, 1)


def contrast_of(design: Design, name: str) -> torch.Tensor:
    factor = next(f for f in design.factors if f.name == name)
    rows = factor.contrasts()
    out = torch.zeros(len(rows), 1 + design.width, dtype=torch.float64)
    block = design.blocks()[name]
    out[:, 1 + block.start : 1 + block.stop] = rows
    return out


def fitted(design: Design, values: torch.Tensor, output: torch.Tensor):
    rows = table(values, output)
    weights = sample_weights(design, rows.values, rows.count, "balanced")
    return fit(design.encode(rows.values), rows, weights)


@pytest.mark.parametrize(
    ("levels", "named", "kind"),
    [
        ([0, 1], False, "binary"),
        ([0.3, 7.1], False, "binary"),
        ([11, 12], True, "binary"),
        ([0, 1, 2], False, "categorical"),
        ([0.5, 1, 2], False, "continuous"),
        ([0.5, 1, 2], True, "categorical"),
        (range(32), False, "categorical"),
        (range(33), False, "continuous"),
        (range(33), True, "categorical"),
    ],
)
def test_the_kind_is_inferred_from_the_levels(levels, named, kind):
    assert infer_kind(torch.tensor([float(v) for v in levels], dtype=torch.float64), named) == kind


def test_binary_is_plus_minus_a_half_in_the_order_of_values():
    design = design_of(torch.tensor([[3.0], [-1.0], [3.0]]), ["auto"])
    assert design.encode(torch.tensor([[3.0], [-1.0]])).tolist() == [[0.5], [-0.5]]
    assert design.factors[0].labels == ("-1", "3")


@given(st.integers(3, 6), st.integers(0, 2**31))
def test_categorical_is_sum_to_zero_over_equally_weighted_levels(k, seed):
    x = torch.randint(0, k, (200,), generator=torch.Generator().manual_seed(seed)).double().unsqueeze(1)
    x[:k, 0] = torch.arange(k)
    factor = design_of(x, ["categorical"]).factors[0]
    levels = torch.arange(k, dtype=torch.float64)
    z = factor.encode(levels)
    expected = np.zeros((k, k - 1))
    for level in range(k):
        for j in range(k - 1):
            expected[level, j] = 1 if level == j else (-1 if level == k - 1 else 0)
    assert z.numpy().tolist() == expected.tolist()
    assert z.sum(0).abs().max() == 0
    assert factor.width == k - 1


@given(st.lists(st.integers(1, 9), min_size=3, max_size=12), st.integers(0, 2**31))
def test_continuous_is_centred_and_scaled_over_the_counted_samples(counts, seed):
    x = np.random.default_rng(seed).normal(5e3, 3, len(counts))
    design = code(torch.tensor(x)[:, None], torch.tensor(counts, dtype=torch.float64), ["age"], ["continuous"])
    every = np.repeat(x, counts)
    factor = design.factors[0]
    assert factor.center == pytest.approx(every.mean(), rel=1e-12)
    assert factor.scale == pytest.approx(every.std(), rel=1e-10)
    z = design.encode(torch.tensor(every)[:, None])[:, 0]
    assert abs(float(z.mean())) < 1e-9
    assert float(z.std(unbiased=False)) == pytest.approx(1, rel=1e-9)


def test_a_constant_variable_is_unmeasurable_and_says_so():
    values = torch.tensor([[1.0, 0.0, 8.0], [1.0, 1.0, 8.0]])
    design = code(values, torch.ones(2), ["grass", "digit", "site"], ["auto"] * 3, {"site": {8.0: "Rome"}})
    assert [f.name for f in design.factors] == ["digit"]
    assert design.unmeasurable["grass"] == "'grass' is constant over the probe set (always 1): not measurable"
    assert "always Rome" in design.unmeasurable["site"]


def test_binary_with_three_values_is_an_error_that_helps():
    with pytest.raises(VariableError, match=r"variable 'age': `kind='binary'` expects two values, got 3 \(1, 2, 2\.5"):
        code(torch.tensor([[1.0], [2.0], [2.5]]), torch.ones(3), ["age"], ["binary"])


def test_names_cannot_be_continuous():
    names = {"site": {1.0: "a", 2.0: "b", 3.0: "c"}}
    with pytest.raises(VariableError, match=r"`kind='continuous'` expects numbers, got text labels"):
        code(torch.tensor([[1.0], [2.0], [3.0]]), torch.ones(3), ["site"], ["continuous"], names)


def test_named_levels_stand_in_the_order_of_their_names_whatever_their_codes():
    names = {"site": {9.0: "Athens", -4.0: "Rome", 2.0: "Bern"}}
    factor = code(torch.tensor([[-4.0], [2.0], [9.0]]), torch.ones(3), ["site"], ["auto"], names).factors[0]
    assert factor.labels == ("Athens", "Bern", "Rome")
    assert factor.levels == (9.0, 2.0, -4.0)
    assert factor.level_index(torch.tensor([-4.0, 9.0, 2.0])).tolist() == [2, 0, 1]


def test_columns_stand_in_the_users_order_without_the_unmeasurable():
    values = torch.cat([crossed(2, 3), torch.ones(60, 1), torch.linspace(0, 1, 60).double()[:, None]], dim=1)
    design = design_of(values, ["auto"] * 4)
    assert design.blocks() == {"v0": slice(0, 1), "v1": slice(1, 3), "v3": slice(3, 4)}
    z = design.encode(values)
    assert z.shape == (60, design.width)
    for factor in design.factors:
        assert torch.equal(z[:, design.blocks()[factor.name]], factor.encode(values[:, factor.column]))


def test_products_are_all_pairs_of_columns_of_different_variables():
    values = torch.cat([crossed(2, 3, 2), torch.linspace(-1, 1, 120).double()[:, None]], dim=1)
    design = design_of(values, ["binary", "categorical", "binary", "continuous"])
    z = design.encode(values)
    owner = [name for name, block in design.blocks().items() for _ in range(block.stop - block.start)]
    pairs = [(i, j) for i in range(len(owner)) for j in range(i + 1, len(owner)) if owner[i] != owner[j]]
    expected = {tuple((z[:, i] * z[:, j]).tolist()) for i, j in pairs}
    got = design.products(z)
    assert got.shape[1] == len(pairs)
    assert {tuple(column.tolist()) for column in got.unbind(1)} == expected


@given(st.integers(0, 2**31))
def test_cells_are_the_joint_settings_that_occur(seed):
    rng = np.random.default_rng(seed)
    values = torch.tensor(np.stack([rng.integers(0, 2, 40), rng.normal(size=40), rng.integers(0, 3, 40)], 1))
    values[:3, 2] = torch.arange(3, dtype=torch.float64)
    values[:2, 0] = torch.arange(2, dtype=torch.float64)
    design = design_of(values, ["binary", "continuous", "categorical"])
    cells, cell = design.cells(values)
    settings = [(int(a), int(c)) for a, _, c in values.tolist()]
    assert [tuple(c) for c in cells.tolist()] == sorted(set(settings))
    assert [tuple(cells[i].tolist()) for i in cell] == settings


def test_cells_are_named_by_their_levels():
    values = torch.tensor([[0.0, 5.0], [1.0, 7.0]])
    design = code(values, torch.ones(2), ["digit", "grass"], ["auto"] * 2, {"grass": {5.0: "no", 7.0: "yes"}})
    assert design.cell_names(design.cells(values)[0]) == ["digit=0,grass=no", "digit=1,grass=yes"]
    alone = design_of(torch.linspace(0, 1, 50).double()[:, None], ["continuous"])
    assert alone.cell_names(alone.cells(torch.zeros(2, 1))[0]) == ["all"]


def test_a_design_of_nothing_has_no_columns_and_one_cell():
    design = design_of(torch.ones(4, 1), ["auto"])
    assert design.encode(torch.ones(4, 1)).shape == (4, 0)
    assert design.products(torch.ones(4, 0)).shape == (4, 0)
    assert design.cells(torch.ones(4, 1))[1].tolist() == [0, 0, 0, 0]


@given(st.integers(0, 2**31))
def test_a_binary_effect_is_the_difference_averaged_over_the_other_variable(seed):
    rng = np.random.default_rng(seed)
    values = crossed(2, 3, repeat=8)
    surface = torch.tensor(rng.normal(size=(2, 3)))
    output = surface[values[:, 0].long(), values[:, 1].long()].unsqueeze(1)
    design = design_of(values, ["binary", "categorical"])
    effect = effects(fitted(design, values, output), contrast_of(design, "v0")).value
    assert float(effect) == pytest.approx(float((surface[1] - surface[0]).mean()), abs=1e-12)


@given(st.integers(3, 5), st.integers(1, 3), st.integers(0, 2**31))
def test_a_categorical_effect_is_each_levels_deviation_also_the_last_ones(k, outputs, seed):
    rng = np.random.default_rng(seed)
    values = crossed(2, k, repeat=8)
    surface = torch.tensor(rng.normal(size=(2, k, outputs)))
    output = surface[values[:, 0].long(), values[:, 1].long()]
    design = design_of(values, ["binary", "categorical"])
    effect = effects(fitted(design, values, output), contrast_of(design, "v1")).value
    means = surface.mean(0)
    torch.testing.assert_close(effect, means - means.mean(0), atol=1e-12, rtol=0)
    torch.testing.assert_close(level_spread(effect), 2 * means.std(0, unbiased=False), atol=1e-12, rtol=0)


def test_a_two_level_categorical_says_the_same_as_a_binary():
    values = crossed(2, repeat=20)
    output = torch.randn(40, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    binary, categorical = design_of(values, ["binary"]), design_of(values, ["categorical"])
    difference = effects(fitted(binary, values, output), contrast_of(binary, "v0")).value
    levels = effects(fitted(categorical, values, output), contrast_of(categorical, "v0")).value
    assert float(level_spread(levels)) == pytest.approx(abs(float(difference)), rel=1e-12)
    assert float(levels[1] - levels[0]) == pytest.approx(float(difference), rel=1e-12)


def test_a_continuous_effect_is_the_change_per_standard_deviation():
    x = torch.linspace(100, 300, 60, dtype=torch.float64).unsqueeze(1)
    design = design_of(x, ["continuous"])
    effect = effects(fitted(design, x, 0.03 * x + 7), contrast_of(design, "v0")).value
    assert float(effect) == pytest.approx(0.03 * float(x.std(unbiased=False)), rel=1e-12)


@given(st.integers(0, 2**31))
def test_the_effect_on_two_centred_logits_has_the_margin_effects_size(seed):
    rng = np.random.default_rng(seed)
    values = crossed(2, 2)
    logits = torch.tensor(rng.normal(size=(40, 2)))
    design = design_of(values, ["binary", "binary"])
    centred = effects(fitted(design, values, logits - logits.mean(1, keepdim=True)), contrast_of(design, "v1")).value
    margin = effects(fitted(design, values, logits[:, 1:] - logits[:, :1]), contrast_of(design, "v1")).value
    assert magnitude(centred[0], "multiclass") == pytest.approx(abs(float(margin)), rel=1e-9)
