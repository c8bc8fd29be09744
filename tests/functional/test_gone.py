"""The fraction of an effect that is gone, and the random subspace that it is held against."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_interp.functional.erasure import leace, random_leace
from lightning_interp.functional.mediation import gone

SEEDS = st.integers(0, 2**31)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- gone -------------------------------------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 4), st.integers(1, 3), st.floats(-3, 3))
def test_what_is_left_of_an_effect_is_not_gone(seed, m, c, left):
    before = draw(seed, m, c)
    assert gone(before, left * before) == pytest.approx(1 - left, abs=1e-12)


@given(SEEDS)
def test_equal_to_a_plain_loop(seed):
    before, after = draw(seed, 3, 2), draw(seed + 1, 3, 2)
    kept = total = 0.0
    for i in range(3):
        for k in range(2):
            kept += float(after[i, k] * before[i, k])
            total += float(before[i, k] ** 2)
    assert gone(before, after) == pytest.approx(1 - kept / total)


def test_a_reversed_effect_is_not_a_gone_one():
    before = torch.tensor([[2.0]])
    assert gone(before, 0 * before) == 1
    assert gone(before, -before) == 2  # of the magnitudes alone it would be 0, and of a part −0.1 of it .9
    assert gone(before, -0.1 * before) == pytest.approx(1.1)
    assert gone(before, 1.5 * before) == -0.5


def test_another_effect_in_its_place_does_not_count_as_what_is_left():
    before, other = torch.tensor([[1.0], [-1.0], [0.0]]), torch.tensor([[1.0], [1.0], [-2.0]])
    assert gone(before, other) == 1


# --- the random subspace ----------------------------------------------------------------------------------------------


def covariance(h):
    return (h - h.mean(0)).T @ (h - h.mean(0)) / len(h)


def rows_of(seed, n=200, d=7):
    return draw(seed, n, d) @ draw(seed + 1, d, d) + 5


@given(SEEDS, st.integers(1, 4), st.sampled_from([0.0, 1e-2]))
def test_the_random_labels_are_what_is_erased(seed, rank, ridge):
    h = rows_of(seed)
    found = random_leace(covariance(h), h.mean(0), h, rank, torch.Generator().manual_seed(seed), ridge)
    labels = draw(seed, len(h), rank)
    assert found.rank == rank
    left = (found(h) - found(h).mean(0)).T @ (labels - labels.mean(0)) / len(h)
    assert float(left.abs().max()) < 1e-9 * float(h.std(0).max())


@given(SEEDS, st.integers(1, 3))
def test_the_edit_is_as_large_as_that_of_a_variable_of_the_same_rank(seed, rank):
    h = rows_of(seed)
    z = h[:, :rank] + draw(seed + 2, len(h), rank)
    s = covariance(h)
    cross = (h - h.mean(0)).T @ (z - z.mean(0)) / len(h)
    edits = [leace(s, cross, h.mean(0)), random_leace(s, h.mean(0), h, rank, torch.Generator().manual_seed(seed))]
    for e in edits:  # E|h' − h|², in units of the activation's own covariance
        step = e.step(h)
        assert float((step @ torch.linalg.inv(s) * step).sum(1).mean()) == pytest.approx(rank, rel=1e-6)


def test_the_same_generator_gives_the_same_subspace():
    h = rows_of(3)
    a, b = (random_leace(covariance(h), h.mean(0), h, 2, torch.Generator().manual_seed(0)) for _ in range(2))
    c = random_leace(covariance(h), h.mean(0), h, 2, torch.Generator().manual_seed(1))
    assert torch.equal(a.write, b.write)
    assert not torch.allclose(a.write, c.write)


def test_rows_that_do_not_vary_have_nothing_to_erase():
    h = torch.ones(20, 3, dtype=torch.float64)
    assert random_leace(covariance(h), h.mean(0), h, 2, torch.Generator().manual_seed(0)).rank == 0
