"""Distinct rows against torch and numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lightning_interp.functional.unique import unique_rows

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 5))
FLOATS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.1, math.nan, math.inf, -math.inf, 5e-324, 1e300])
INTEGERS = st.one_of(st.integers(-2, 2), st.sampled_from([-(2**63), 2**63 - 1, 2**62]))


@given(hnp.arrays(np.int64, SHAPES, elements=INTEGERS))
def test_distinct_rows_of_integers_are_those_of_torch_in_its_order(x):
    found, index = unique_rows(torch.tensor(x))
    expected, place = torch.unique(torch.tensor(x), dim=0, return_inverse=True)
    assert torch.equal(found, expected)
    assert torch.equal(index, place)


@given(hnp.arrays(np.float64, SHAPES, elements=FLOATS))
def test_distinct_rows_of_numbers_are_those_of_their_bits(x):
    found, index = unique_rows(torch.tensor(x))
    bits = np.unique(x.view(np.int64), axis=0)
    np.testing.assert_array_equal(found.numpy().view(np.int64), bits)
    np.testing.assert_array_equal(found[index].numpy().view(np.int64), x.view(np.int64))


@given(hnp.arrays(np.float64, SHAPES, elements=st.integers(0, 3).map(float)), st.randoms(use_true_random=False))
def test_distinct_rows_do_not_depend_on_the_order_they_come_in(x, random):
    order = random.sample(range(len(x)), len(x))
    found, index = unique_rows(torch.tensor(x))
    shuffled, other = unique_rows(torch.tensor(x)[order])
    assert torch.equal(shuffled, found)
    assert torch.equal(other, index[order])


def test_rows_of_nan_equal_themselves_and_nothing_else():
    x = torch.tensor([[math.nan, 1.0], [0.0, 1.0], [math.nan, 1.0], [math.nan, math.nan], [math.nan, math.nan]]).double()
    found, index = unique_rows(x)
    assert len(found) == 3
    assert index[0] == index[2]
    assert index[3] == index[4]
    assert len({int(index[k]) for k in (0, 1, 3)}) == 3


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
@pytest.mark.parametrize("columns", [0, 1, 3])
def test_no_rows_have_no_distinct_ones(dtype, columns):
    found, index = unique_rows(torch.zeros(0, columns, dtype=dtype))
    assert found.shape == (0, columns)
    assert index.shape == (0,)
    assert found.dtype == dtype
    assert index.dtype == torch.int64


def test_rows_without_columns_are_all_the_same():
    found, index = unique_rows(torch.zeros(4, 0, dtype=torch.float64))
    assert found.shape == (1, 0)
    assert index.tolist() == [0, 0, 0, 0]


def test_strides_do_not_matter():
    x = torch.randint(0, 2, (3, 20), generator=torch.Generator().manual_seed(0)).double()
    found, index = unique_rows(x.T)
    expected, place = unique_rows(x.T.contiguous())
    assert torch.equal(found, expected)
    assert torch.equal(index, place)
    assert torch.equal(unique_rows(x.T[::2])[0][unique_rows(x.T[::2])[1]], x.T[::2])
