"""The rows of a probe set: each sample once, in an order of their own."""

import numpy as np
import pytest
import torch
from discovery.feature_scenes import batch_rows, draws, rows

from lightning_interp import Concept, Confounder
from lightning_interp.discovery.rows import first_of_each, joined
from lightning_interp.errors import LayerError, ProbeSetError

ONE = [Confounder("v0")]


def plain(n=90, seed=0):
    return {
        "h": draws(n, 3, seed=seed),
        "output": draws(n, 2, seed=seed + 1),
        "values": torch.arange(n).remainder(3).lt(1)[:, None],
    }


def test_each_sample_counts_once_in_the_order_of_the_keys():
    key = torch.tensor([5, -2, 5, 9, -2, 0])
    found, first = first_of_each(key)
    assert found.tolist() == [-2, 0, 5, 9]
    assert first.tolist() == [1, 5, 0, 3]
    n = 90
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    parts = plain(n)
    whole = rows(**parts)
    twice = [batch_rows(**{k: v[order] for k, v in parts.items()}, key=order), batch_rows(**parts)]
    again = joined(twice, "layer", ONE, {}, "balanced", 0, 0)[0]
    for a, b in zip(whole, again):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b)
    assert len(whole.key) == n


def test_what_the_named_variables_leave_is_that_of_weighted_least_squares():
    parts = plain()
    found = rows(**parts)
    assert found.weights.mode == "balanced"
    some = found.fitting
    x = np.column_stack([np.ones(int(some.sum())), parts["values"].numpy()[some.numpy()].astype(float)])
    root = np.sqrt(found.weight[some].numpy())[:, None]
    y = found.h[some].numpy()
    expected = y - x @ np.linalg.lstsq(root * x, root * y, rcond=None)[0]
    assert np.allclose(found.residual(found.h, some).numpy(), expected)
    total, left = found.unexplained(found.explained.output, some)
    o = found.explained.output[some, 0].numpy()
    assert total == pytest.approx(np.cov(o, aweights=root[:, 0] ** 2, ddof=0))
    residual = o - x @ np.linalg.lstsq(root * x, root[:, 0] * o, rcond=None)[0]
    assert left == pytest.approx(np.average(residual**2, weights=root[:, 0] ** 2))


def test_without_variables_everything_is_unexplained():
    parts = plain()
    found = rows(parts["h"], parts["output"], torch.zeros(90, 0))
    total, left = found.unexplained(found.explained.output, found.fitting)
    assert left == pytest.approx(total)


def test_a_source_is_in_one_half():
    source = torch.arange(90) // 5
    found = rows(**plain(), source=source)
    assert all(len(found.fitting[source == s].unique()) == 1 for s in source.unique())
    assert len(found.fitting.unique()) == 2


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        (torch.arange(90) % 2, torch.arange(90) % 2),
        (torch.arange(90.0)[:, None], torch.arange(90.0)),  # a column, as BCEWithLogitsLoss likes it
        (torch.ones(90, 2), None),
        (None, None),
    ],
)
def test_a_target_of_one_value_per_sample_is_kept(target, kept):
    found = rows(**plain(), target=target)
    assert kept is None if found.target is None else torch.equal(found.target, kept)
    assert (found.target is None) == (kept is None)


def test_batches_that_are_not_finite_are_left_out_and_counted():
    bad = batch_rows(**plain(20, seed=5), key=torch.arange(90, 110))._replace(finite=torch.tensor(False))
    found, notes = joined([batch_rows(**plain()), bad], "layer", ONE, {}, "balanced", 0, 2)
    assert len(found.key) == 90
    assert notes == ["3 batches were left out"]
    assert joined([batch_rows(**plain())], "layer", ONE, {}, "balanced", 0, 0)[1] == []
    with pytest.raises(
        ProbeSetError, match="no batch had labels and finite outputs and activations; 3 were left out"
    ) as problem:
        joined([bad], "layer", ONE, {}, "balanced", 0, 2)
    assert problem.value.skipped == 3


def test_no_rows_and_a_layer_that_never_ran_are_told_apart():
    with pytest.raises(ProbeSetError, match=r"the probe set is empty: .* activations\.$"):
        joined([], "layer", ONE, {}, "balanced", 0, 0)
    with pytest.raises(LayerError, match="`layer`: 'other' never ran in a watched step"):
        joined([batch_rows(**plain())], "other", ONE, {}, "balanced", 0, 0)


def test_rows_that_do_not_count_are_left_out():
    keep = torch.arange(90) < 70
    assert rows(**plain(), keep=keep).key.tolist() == list(range(70))


def test_notes_say_which_weights_and_what_is_constant():
    parts = plain()
    parts["values"] = torch.cat([parts["values"], torch.ones(90, 1)], 1)
    named = [Concept("v0"), Concept("v1")]
    _, notes = joined([batch_rows(**parts)], "layer", named, {}, "natural", 0, 0)
    assert len(notes) == 1
    assert "v1" in notes[0]
