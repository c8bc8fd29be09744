"""Balanced weights: what they make equal, and when they are refused."""

from itertools import combinations
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_interp.functional.coding import code
from lightning_interp.functional.weights import MAX_CELLS, sample_weights, structural


def rows_of(sizes: dict[tuple[float, ...], int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(list(sizes), dtype=torch.float64), torch.tensor(list(sizes.values()), dtype=torch.float64)


def weigh(sizes: dict[tuple[float, ...], int], mode: str = "balanced", kinds: list[str] | None = None):
    values, count = rows_of(sizes)
    p = values.shape[1]
    design = code(values, count, [f"v{j}" for j in range(p)], kinds or ["auto"] * p)
    return sample_weights(design, values, count, mode), count


@given(st.lists(st.integers(10, 500), min_size=6, max_size=6))
def test_balanced_weights_sum_to_one_and_make_cells_equal(sizes):
    weights, count = weigh({(a, b): sizes[3 * a + b] for a in range(2) for b in range(3)})
    assert weights.mode == "balanced"
    assert weights.note is None
    assert float((count * weights.row).sum()) == pytest.approx(1, rel=1e-12)
    in_cell = torch.zeros(6, dtype=torch.float64).index_add_(0, weights.cell, count * weights.row)
    torch.testing.assert_close(in_cell, torch.full((6,), 1 / 6, dtype=torch.float64))
    torch.testing.assert_close(weights.cell_weight * weights.cell_count, in_cell)
    each = torch.repeat_interleave(weights.row, count.long())
    assert weights.effective == pytest.approx(float(each.sum() ** 2 / (each**2).sum()), rel=1e-12)


@given(st.lists(st.integers(1, 500), min_size=4, max_size=4))
def test_natural_weights_make_samples_equal(sizes):
    weights, _ = weigh(dict(zip([(0, 0), (0, 1), (1, 0), (1, 1)], sizes)), "natural")
    assert weights.mode == "natural"
    assert weights.note is None
    torch.testing.assert_close(weights.row, torch.full((4,), 1 / sum(sizes), dtype=torch.float64))
    assert weights.effective == sum(sizes)


def test_rows_of_one_cell_that_differ_in_a_continuous_variable_share_its_weight():
    values = torch.tensor([[0.0, 0.1], [0.0, 0.2], [0.0, 0.7], [1.0, 0.3], [1.0, 0.9]]).double()
    count = torch.tensor([10.0, 20.0, 30.0, 15.0, 25.0]).double()
    design = code(values, count, ["a", "x"], ["binary", "continuous"])
    weights = sample_weights(design, values, count, "balanced")
    expected = torch.tensor([1 / 120] * 3 + [1 / 80] * 2).double()
    torch.testing.assert_close(weights.row, expected)
    assert weights.cell_count.tolist() == [60, 40]


def test_without_discrete_variables_there_is_one_cell_and_balanced_is_natural():
    weights, _ = weigh({(i / 7,): 1 for i in range(40)}, kinds=["continuous"])
    assert weights.mode == "balanced"
    torch.testing.assert_close(weights.row, torch.full((40,), 1 / 40, dtype=torch.float64))


def test_an_empty_cell_is_refused():
    weights, count = weigh({(0, 0): 50, (0, 1): 50, (1, 1): 50})
    assert weights.mode == "natural"
    assert weights.note == "natural weights: 1 of 4 cells are empty"
    assert float((count * weights.row).sum()) == pytest.approx(1)


@pytest.mark.parametrize(("smallest", "mode"), [(4, "natural"), (5, "balanced")])
def test_a_cell_needs_five_samples(smallest, mode):
    weights, _ = weigh({(0, 0): 100, (0, 1): 100, (1, 0): smallest, (1, 1): 100})
    assert weights.mode == mode
    if mode == "natural":
        assert weights.note == "natural weights: cell v0=1,v1=0 has 4 samples, balanced ones need 5"


@pytest.mark.parametrize(("size", "mode"), [(7, "natural"), (8, "balanced")])
def test_the_effective_sample_size_must_be_thirty(size, mode):
    weights, _ = weigh({(0, 0): size, (0, 1): size, (1, 0): size, (1, 1): size})
    assert weights.mode == mode
    if mode == "natural":
        assert weights.note == "natural weights: balanced ones would have an effective n of 28.0, under 30"


@pytest.mark.parametrize(("levels", "mode"), [(32, "balanced"), (33, "natural")])
def test_at_most_sixty_four_cells_are_balanced(levels, mode):
    weights, _ = weigh({(a, b): 6 for a in range(2) for b in range(levels)}, kinds=["binary", "categorical"])
    assert weights.mode == mode
    if mode == "natural":
        assert weights.note == f"natural weights: 66 cells, balanced ones need at most {MAX_CELLS}"


def test_cells_that_a_function_of_another_variable_empties_do_not_matter():
    weights, count = weigh({(0, 0): 40, (1, 0): 10, (2, 1): 20, (3, 1): 20})
    assert weights.mode == "balanced"
    in_cell = torch.zeros(4, dtype=torch.float64).index_add_(0, weights.cell, count * weights.row)
    torch.testing.assert_close(in_cell, torch.full((4,), 0.25, dtype=torch.float64))


def test_structural_means_that_some_variable_is_a_function_of_the_others():
    assert structural(torch.tensor([[0, 0], [1, 0], [2, 1]]), [3, 2])
    assert structural(torch.tensor([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]), [2, 2, 2])
    assert not structural(torch.tensor([[0, 0], [0, 1], [1, 0]]), [2, 2])
    assert not structural(torch.tensor([[0], [1]]), [3])


def fills_some_variables(cells: np.ndarray, sizes: list[int]) -> bool:
    """Whether some of the variables tell the cells apart and leave none of their own cells empty."""
    for k in range(1, len(sizes)):
        for some in combinations(range(len(sizes)), k):
            if len(np.unique(cells[:, some], axis=0)) == len(cells) == prod(sizes[j] for j in some):
                return True
    return False


@given(st.integers(0, 2**31), st.integers(1, 4), st.booleans())
def test_structural_agrees_with_a_search_over_all_sets_of_variables(seed, variables, derived):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 4, variables).tolist()
    cells = np.array(list(np.ndindex(*sizes)))
    if derived:  # a function of the others
        lookup = rng.permutation(np.arange(len(cells)) % 3)
        cells, sizes = np.column_stack([cells, lookup]), [*sizes, len(np.unique(lookup))]
    if rng.random() < 0.5:  # cells that are empty by chance
        cells = cells[rng.random(len(cells)) < 0.8]
    if len(cells):
        assert structural(torch.tensor(cells), sizes) == fills_some_variables(cells, sizes)


def test_a_cell_that_is_empty_by_chance_is_refused_also_beside_structural_ones():
    # v1 is a function of v0, but v0=2 with v2=1 is possible and empty: 5 of the 6 possible cells occur.
    weights, _ = weigh({(0, 0, 0): 30, (0, 0, 1): 30, (1, 1, 0): 30, (1, 1, 1): 30, (2, 1, 0): 30})
    assert weights.mode == "natural"


def test_too_few_cells_by_chance_are_not_taken_for_a_function():
    # v2 is a function of v0 and v1 on these rows only because v0=1 with v1=1 never occurs.
    weights, _ = weigh({(0, 0, 0): 30, (0, 1, 1): 30, (1, 0, 1): 30})
    assert weights.mode == "natural"
