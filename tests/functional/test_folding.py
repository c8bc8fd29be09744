"""Folding: the new weights against the erasure applied where it says, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from lightning_interp.functional.erasure import leace
from lightning_interp.functional.folding import pointwise, read, read_bias, scaled, spread, written, written_bias


def eraser_of(d, k=2, seed=0):
    torch.manual_seed(seed)
    a = torch.randn(d, d).double()
    return leace(a @ a.T + torch.eye(d), torch.randn(d, k).double(), torch.randn(d).double())


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 100))
def test_a_linear_that_writes_and_one_that_reads(d, k, seed):
    e = eraser_of(d, k, seed)
    w, b, x = torch.randn(d, 5).double(), torch.randn(d).double(), torch.randn(7, 5).double()
    close(F.linear(x, written(w, e), written_bias(b, e)), e(F.linear(x, w, b)))
    v, c, h = torch.randn(3, d).double(), torch.randn(3).double(), torch.randn(7, d).double()
    close(F.linear(h, read(v, e), read_bias(c, v, e)), F.linear(e(h), v, c))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions(dims):
    e = eraser_of(4)
    conv = [F.conv1d, F.conv2d, F.conv3d][dims - 1]
    x = torch.randn(2, 3, *[5] * dims).double()
    w, b = torch.randn(4, 3, *[2] * dims).double(), torch.randn(4).double()
    close(conv(x, written(w, e), written_bias(b, e)), pointwise(conv(x, w, b), e, 1))
    h = torch.randn(2, 4, *[5] * dims).double()
    v, c = torch.randn(3, 4, *[2] * dims).double(), torch.randn(3).double()
    close(conv(h, read(v, e), read_bias(c, v, e)), conv(pointwise(h, e, 1), v, c))


def test_a_transposed_convolution_writes_along_its_second_axis():
    e = eraser_of(4)
    x, w, b = torch.randn(2, 3, 5, 5).double(), torch.randn(3, 4, 2, 2).double(), torch.randn(4).double()
    close(F.conv_transpose2d(x, written(w, e, 1), written_bias(b, e)), pointwise(F.conv_transpose2d(x, w, b), e, 1))


def test_without_the_constant_something_else_takes_it_up():
    e = eraser_of(4)
    b = torch.randn(4).double()
    close(written_bias(b, e, constant=False) + e(torch.zeros(4).double()), written_bias(b, e))


def test_the_pooled_activation_is_erased_with_every_position():
    e = eraser_of(4)
    h = torch.randn(3, 4, 5, 5).double()
    close(pointwise(h, e, 1).mean((2, 3)), e(h.mean((2, 3))))


def test_an_eraser_is_carried_through_what_keeps_units_apart():
    e = eraser_of(4)
    scale, shift = torch.randn(4).double() + 3, torch.randn(4).double()
    h = torch.randn(7, 4).double()
    close(scaled(e, scale, shift)(h * scale + shift), e(h) * scale + shift)


@pytest.mark.parametrize(("shape", "axis"), [((4,), 1), ((4, 3, 2), 1), ((3, 4), 2), ((3, 4, 2), 2)])
def test_an_eraser_is_carried_through_flatten(shape, axis):
    e = eraser_of(4)
    h = torch.randn(5, *shape).double()
    before, after = torch.Size(shape[: axis - 1]).numel(), torch.Size(shape[axis:]).numel()
    close(spread(e, before, after)(h.flatten(1)), pointwise(h, e, axis).flatten(1))
