"""The coding of variables while training goes on: equal to that of all data at once, in whatever batches they came."""

import io
from collections import Counter

import pytest
import torch

from lightning_interp import Concept, Confounder
from lightning_interp.functional.coding import MAX_AUTO_LEVELS
from lightning_interp.training_design import TrainingDesign


def table(n=300, seed=0):
    """Columns: two levels, five levels, a number."""
    g = torch.Generator().manual_seed(seed)
    two = (torch.rand(n, generator=g) < 0.3).double()
    five = torch.randint(5, (n,), generator=g).double()
    return torch.stack([two, five, 40 + 7 * torch.randn(n, generator=g, dtype=torch.float64)], dim=1)


def variables():
    return [Confounder("two"), Concept("five"), Concept("number")]


def seen(values, sizes, given=None):
    design = TrainingDesign(variables() if given is None else given)
    for part in values.split(sizes):
        design.observe(part)
    return design


@pytest.mark.parametrize("sizes", [[300], [60] * 5, [7, 93, 1, 199], [20] * 15], ids=str)
def test_any_split_gives_the_same_coding(sizes):
    values = table()
    factors = seen(values, sizes).factors()
    assert [f.kind for f in factors] == ["binary", "categorical", "continuous"]
    assert factors[0].levels == (0.0, 1.0)
    assert factors[1].levels == (0.0, 1.0, 2.0, 3.0, 4.0)
    assert factors[2].center == pytest.approx(float(values[:, 2].mean()), rel=1e-13)
    assert factors[2].scale == pytest.approx(float(values[:, 2].std(unbiased=False)), rel=1e-12)


@pytest.mark.parametrize("sizes", [[300], [7, 93, 1, 199]], ids=str)
def test_cells_and_frequencies(sizes):
    values = table()
    design = seen(values, sizes)
    factors = design.factors()
    wanted = Counter(map(tuple, values[:, :2].tolist()))
    assert design.cells == len(wanted)
    assert float(design.frequency.sum()) == pytest.approx(1)
    coded = design.encode(values, factors)
    assert coded.z.shape == (300, 1 + 4 + 1)
    assert coded.width == 1
    assert torch.equal(coded.z, torch.cat([f.encode(values[:, j]) for j, f in enumerate(factors)], dim=1))
    cells = {}
    for i, key in enumerate(map(tuple, values[:, :2].tolist())):
        assert float(design.frequency[coded.cell[i]]) == pytest.approx(wanted[key] / 300)
        assert cells.setdefault(key, int(coded.cell[i])) == int(coded.cell[i])
    assert len(set(cells.values())) == len(wanted)


def test_cells_keep_their_number_as_more_come():
    values = table()
    design = TrainingDesign(variables())
    design.observe(values[:50])
    first = design.encode(values[:50], design.factors()).cell
    design.observe(values[50:])
    assert torch.equal(design.encode(values[:50], design.factors()).cell, first)


def test_one_value_only_has_no_coding_until_another_comes():
    values = table(40)
    values[:20, 0] = 1
    values[20:, 0] = 0
    design = TrainingDesign(variables())
    design.observe(values[:20])
    assert design.factors() is None
    design.observe(values[20:])
    assert design.factors()[0].levels == (0.0, 1.0)


def test_a_third_level_makes_a_binary_variable_categorical():
    design = TrainingDesign([Confounder("g")])
    design.observe(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    assert design.factors()[0].kind == "binary"
    design.observe(torch.tensor([[2.0]], dtype=torch.float64))
    assert design.factors()[0].kind == "categorical"
    assert design.factors()[0].width == 2


@pytest.mark.parametrize("column", [0, 1])
def test_too_many_levels_turn_continuous_and_merge_cells(column):
    n = 400
    g = torch.Generator().manual_seed(0)
    many = torch.arange(n).remainder(MAX_AUTO_LEVELS + 8).double()
    moo = torch.randint(2, (n,), generator=g).double()
    values = torch.stack([many, moo] if column == 0 else [moo, many], dim=1)
    design = TrainingDesign([Confounder("a"), Concept("b")])
    design.observe(values[:20])
    assert design.factors()[column].kind == "categorical"
    design.observe(values[20:])
    factors = design.factors()
    assert factors[column].kind == "continuous"
    assert factors[1 - column].kind == "binary"
    assert factors[column].center == pytest.approx(float(many.mean()))
    assert factors[column].scale == pytest.approx(float(many.std(unbiased=False)))
    assert design.cells == 2
    cell = design.encode(values, factors).cell
    for level in (0, 1):
        (own,) = cell[moo == level].unique().tolist()
        assert float(design.frequency[own]) == pytest.approx(float((moo == level).double().mean()), rel=1e-12)


def test_exactly_the_most_levels_and_a_stated_kind_stay_categorical():
    most = torch.arange(MAX_AUTO_LEVELS).double().unsqueeze(1)
    design = seen(most, [10, MAX_AUTO_LEVELS - 10], [Confounder("g")])
    assert design.factors()[0].kind == "categorical"
    more = torch.arange(MAX_AUTO_LEVELS + 8).double().unsqueeze(1)
    assert seen(more, [40], [Confounder("g", kind="categorical")]).factors()[0].kind == "categorical"
    assert seen(more % 3, [40], [Confounder("g", kind="continuous")]).factors()[0].kind == "continuous"


def test_continuous_variables_alone_make_one_cell():
    g = torch.Generator().manual_seed(0)
    values = torch.randn(50, 2, generator=g, dtype=torch.float64)
    design = seen(values, [20, 30], [Confounder("a"), Concept("b")])
    coded = design.encode(values, design.factors())
    assert design.cells == 1
    assert coded.cell.tolist() == [0] * 50
    assert torch.allclose(coded.z.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(coded.z.std(0, unbiased=False), torch.ones(2, dtype=torch.float64))


def test_state_goes_through_a_checkpoint():
    values = table()
    whole, one = TrainingDesign(variables()), TrainingDesign(variables())
    for part in values.split(100):
        whole.observe(part)
    for part in values[:200].split(100):
        one.observe(part)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other = TrainingDesign(variables())
    other.load_state_dict(torch.load(file, weights_only=True))
    other.observe(values[200:])
    assert other.factors() == whole.factors()
    assert torch.equal(other.frequency, whole.frequency)
    assert torch.equal(other.encode(values, other.factors()).cell, whole.encode(values, whole.factors()).cell)


def test_an_empty_state_goes_through_too():
    design = TrainingDesign(variables())
    design.load_state_dict(TrainingDesign(variables()).state_dict())
    design.observe(table())
    assert design.factors() == seen(table(), [300]).factors()
