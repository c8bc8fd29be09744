"""What is explained, for every kind of task."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_interp.errors import LayerError
from lightning_interp.functional.outputs import explain_output, level_spread, magnitude

SEEDS = st.integers(0, 2**31)


def logits(n: int, c: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_logits_become_their_margin():
    got = explain_output(torch.tensor([[1.0, 4.0], [2.0, 0.0]]), torch.tensor([1, 1]))
    assert got.task == "binary"
    assert got.output.tolist() == [[3.0], [-2.0]]
    assert got.correct.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool])
def test_one_logit_stays_one_whatever_the_targets_type(shape, dtype):
    raw = torch.tensor([2.0, -1.0, 3.0, -4.0]).reshape(shape)
    target = torch.tensor([1, 0, 0, 1]).to(dtype)
    for t in (target, target.unsqueeze(1)):
        got = explain_output(raw, t)
        assert got.task == "binary"
        assert got.output.tolist() == [[2.0], [-1.0], [3.0], [-4.0]]
        assert got.correct.tolist() == [1, 1, 0, 0]


@given(SEEDS, st.integers(3, 8))
def test_more_logits_are_centred_and_keep_their_argmax(seed, c):
    raw = logits(20, c, seed)
    target = torch.randint(0, c, (20,), generator=torch.Generator().manual_seed(seed))
    got = explain_output(raw, target)
    assert got.task == "multiclass"
    np.testing.assert_allclose(got.output, [row - row.mean() for row in raw.numpy()], atol=1e-12)
    assert got.correct.tolist() == [float(np.argmax(row) == t) for row, t in zip(raw.numpy(), target.tolist())]
    assert torch.equal(explain_output(raw, target.unsqueeze(1)).correct, got.correct)


def test_a_shift_common_to_all_logits_changes_nothing():
    raw = logits(10, 5)
    for c in (2, 5):
        torch.testing.assert_close(explain_output(raw[:, :c] + 7, None).output, explain_output(raw[:, :c], None).output)


def test_a_floating_target_of_other_numbers_makes_a_regression():
    for raw in (logits(4, 1)[:, 0], logits(4, 1), logits(4, 2)):
        got = explain_output(raw, torch.tensor([0.0, 1.0, 0.5, 2.0]))
        assert got.task == "regression"
        assert torch.equal(got.output, raw.reshape(4, -1))
        assert got.correct is None


def test_a_known_task_is_not_changed_by_an_odd_batch():
    regression = explain_output(logits(2, 1), torch.tensor([0.0, 1.0]), task="regression")
    assert (regression.task, regression.correct) == ("regression", None)
    odd = torch.tensor([0.0, 0.5])
    assert explain_output(logits(2, 1), odd, task="binary").task == "binary"


@pytest.mark.parametrize("c", [2, 3])
def test_a_known_multilabel_task_is_not_changed_by_a_batch_without_targets(c):
    got = explain_output(logits(4, c), None, task="multilabel")
    assert got.task == "multilabel"
    assert torch.equal(got.output, logits(4, c))


def test_a_target_of_the_outputs_shape_makes_it_multilabel():
    raw = torch.tensor([[1.0, -1.0, 2.0], [-1.0, -1.0, 3.0]])
    for dtype in (torch.int64, torch.float32):
        got = explain_output(raw, torch.tensor([[1, 0, 0], [0, 0, 1]]).to(dtype))
        assert got.task == "multilabel"
        assert torch.equal(got.output, raw.double())
        assert got.correct.tolist() == pytest.approx([2 / 3, 1])


def test_without_a_target_nothing_is_scored():
    for c in (1, 2, 4):
        assert explain_output(logits(3, c), None).correct is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_output_is_a_double_that_gradients_pass_through(dtype):
    raw = torch.randn(3, 2, requires_grad=True, dtype=dtype)
    got = explain_output(raw, None).output
    assert got.dtype == torch.float64
    got.sum().backward()
    assert raw.grad.tolist() == [[-1, 1]] * 3


def test_an_empty_batch_explains_nothing_but_does_not_fail():
    assert explain_output(torch.zeros(0, 3), None).output.shape == (0, 3)


@pytest.mark.parametrize("raw", [torch.zeros(2, 3, 4), torch.zeros(2, 3).long(), torch.tensor(1.0)])
def test_an_output_of_another_shape_or_type_is_an_error_that_helps(raw):
    with pytest.raises(LayerError, match=r"`output` expects a floating tensor \[n\] or \[n, c\], got torch\.\w+ \["):
        explain_output(raw, None)


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=5))
def test_magnitude_keeps_the_sign_of_one_output_and_pools_several(effect):
    tensor = torch.tensor(effect, dtype=torch.float64)
    length = float(np.linalg.norm(effect))
    for task in ("binary", "regression", "multilabel", "multiclass"):
        if len(effect) == 1:
            assert magnitude(tensor, task) == effect[0]
        else:
            factor = np.sqrt(2) if task == "multiclass" else 1
            assert magnitude(tensor, task) == pytest.approx(factor * length, rel=1e-12, abs=1e-300)


@given(st.floats(-9, 9))
def test_the_magnitude_of_two_centred_logits_is_that_of_their_margin(margin):
    half = torch.tensor([-margin / 2, margin / 2], dtype=torch.float64)
    assert magnitude(half, "multiclass") == pytest.approx(abs(margin), rel=1e-12)


@given(st.floats(-9, 9), st.floats(-9, 9))
def test_the_spread_of_two_levels_is_their_distance(a, b):
    assert float(level_spread(torch.tensor([[a], [b]], dtype=torch.float64))) == pytest.approx(abs(a - b), abs=1e-12)


@given(SEEDS, st.integers(2, 6))
def test_the_spread_of_levels_is_twice_their_standard_deviation(seed, levels):
    effect = np.random.default_rng(seed).normal(size=(levels, 3))
    np.testing.assert_allclose(level_spread(torch.tensor(effect)), 2 * effect.std(0), rtol=1e-12)


def test_the_spread_of_a_single_row_is_itself():
    assert level_spread(torch.tensor([[-2.0, 3.0]])).tolist() == [-2.0, 3.0]
