"""Probes read from moments against scikit-learn's, fitted on rows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score

from lightning_interp.functional.moments import Cross, Moments, Target, cross, moments
from lightning_interp.functional.probe import auroc, balanced_accuracy, held_out_r2, ridge_probe, stack

SEEDS = st.integers(0, 2**31)
CODES = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])  # of a variable with three levels


def fold(seed: int, n: int, d: int, mean: float = 0.0):
    """Activations and three variables that they hold: binary, three levels, continuous."""
    rng = np.random.default_rng(seed)
    binary, level, x = rng.integers(0, 2, n), rng.integers(0, 3, n), rng.normal(50, 9, n)
    binary[:2], level[:3] = [0, 1], [0, 1, 2]
    signal = np.random.default_rng(99).normal(size=(4, d))
    z = np.column_stack([binary, CODES[level], (x - 50) / 9])
    return mean + z @ signal + rng.normal(size=(n, d)), binary, level, x


def read(h, binary, level, x) -> tuple[Moments, Cross]:
    member = torch.tensor(np.column_stack([1 + binary, 3 + level]))
    m = moments(torch.tensor(h), torch.tensor(x)[:, None], member, 6)
    targets = [
        Target(torch.tensor([1, 2]), torch.tensor([[-0.5], [0.5]]).double()),
        Target(torch.tensor([3, 4, 5]), torch.tensor(CODES)),
        Target(torch.tensor([0]), torch.empty(0), 0, 50.0, 9.0),
    ]
    return m, stack([cross(m, t) for t in targets])


BLOCKS = [slice(0, 1), slice(1, 3), slice(3, 4)]


@given(SEEDS, st.integers(1, 12), st.sampled_from([1e-3, 1e-2, 1.0]), st.sampled_from([0.0, 100.0]))
def test_cross_fitted_r2_is_that_of_scikit_learns_ridge(seed, d, ridge, mean):
    folds = [fold(seed, 70, d, mean), fold(seed + 1, 53, d, mean)]
    for a, b in (folds, folds[::-1]):
        m, target = read(*a)
        probe = ridge_probe(m, target, ridge)
        got = held_out_r2(probe, *read(*b), BLOCKS)
        alpha = len(a[0]) * ridge * np.trace(np.cov(a[0].T, bias=True).reshape(d, d)) / d
        for k, (ya, yb) in enumerate(zip(columns(a), columns(b))):
            sklearn = Ridge(alpha=alpha).fit(a[0], ya)
            guess = sklearn.predict(b[0]).reshape(yb.shape)
            np.testing.assert_allclose(probe.scores(torch.tensor(b[0]))[:, BLOCKS[k]], guess, atol=1e-10)
            pooled = 1 - ((yb - guess) ** 2).sum() / ((yb - yb.mean(0)) ** 2).sum()
            assert float(got[k]) == pytest.approx(pooled, abs=1e-12 if mean == 0 else 1e-10)


def columns(data):
    _, binary, level, x = data
    return (binary - 0.5)[:, None], CODES[level], ((x - 50) / 9)[:, None]


def test_a_single_columns_r2_is_scikit_learns_r2_score():
    a, b = fold(0, 80, 6), fold(1, 80, 6)
    m, target = read(*a)
    guess = ridge_probe(m, target).scores(torch.tensor(b[0]))[:, 0]
    got = held_out_r2(ridge_probe(m, target), *read(*b), BLOCKS[:1])
    assert float(got) == pytest.approx(r2_score(b[1] - 0.5, guess), abs=1e-12)


def test_moments_that_were_merged_give_the_same_probe():
    h, *rest = fold(3, 90, 5)
    parts = [read(h[i::3], *[v[i::3] for v in rest])[0] for i in range(3)]
    merged = parts[0] + parts[1] + parts[2]
    targets = Target(torch.tensor([3, 4, 5]), torch.tensor(CODES))
    whole = read(h, *rest)[0]
    for a, b in zip(ridge_probe(merged, cross(merged, targets)), ridge_probe(whole, cross(whole, targets))):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_r2_is_withheld_where_the_target_does_not_vary_in_the_fold():
    m, target = read(*fold(0, 60, 4))
    flat = Cross(target.mean, target.variance.clone(), target.covariance)
    flat.variance[0] = 0
    got = held_out_r2(ridge_probe(m, target), m, flat, BLOCKS)
    assert got.isnan().tolist() == [True, False, False]


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_a_constant_layer_reads_nothing(value):
    _, *rest = fold(0, 60, 4)
    m, target = read(np.full((60, 4), value), *rest)
    got = held_out_r2(ridge_probe(m, target), m, target, BLOCKS)
    np.testing.assert_allclose(got, 0, atol=1e-6)


def test_a_dead_neuron_changes_no_prediction_but_by_its_share_of_the_ridge():
    h, *rest = fold(2, 60, 4)
    wide = np.concatenate([h, np.zeros((60, 1))], axis=1)
    probe, dead = ridge_probe(*read(h, *rest), 1e-2), ridge_probe(*read(wide, *rest), 1e-2 * 5 / 4)
    torch.testing.assert_close(dead.weight[:4], probe.weight, rtol=1e-10, atol=1e-12)
    assert not dead.weight[4].any()


@given(SEEDS, st.integers(2, 80), st.integers(1, 4))
def test_auroc_is_scikit_learns_also_with_ties(seed, n, values):
    rng = np.random.default_rng(seed)
    scores = np.column_stack([rng.integers(0, values, n) / 3, rng.normal(size=n)])
    positive = np.column_stack([rng.random(n) < 0.3, rng.random(n) < 0.6])
    positive[0], positive[1] = True, False
    got = auroc(torch.tensor(scores), torch.tensor(positive))
    for k in range(2):
        assert float(got[k]) == pytest.approx(roc_auc_score(positive[:, k], scores[:, k]), abs=1e-12)


def test_auroc_is_withheld_where_a_class_is_missing():
    scores = torch.rand(6, 3, dtype=torch.float64)
    positive = torch.tensor([[1, 0, 1]] * 3 + [[1, 0, 0]] * 3).bool()
    assert auroc(scores, positive).isnan().tolist() == [True, True, False]


@given(SEEDS, st.integers(2, 5))
def test_balanced_accuracy_is_scikit_learns_for_the_same_guesses(seed, levels):
    rng = np.random.default_rng(seed)
    level = np.concatenate([np.arange(levels), rng.integers(0, levels, 40) ** 2 // levels])
    scores, midpoint = rng.normal(size=(len(level), levels)), rng.normal(size=levels)
    guess = [int(np.argmax(row - midpoint)) for row in scores]
    got = balanced_accuracy(torch.tensor(scores), torch.tensor(level), torch.tensor(midpoint))
    assert float(got) == pytest.approx(balanced_accuracy_score(level, guess), abs=1e-12)


@given(SEEDS)
def test_balanced_accuracy_of_a_binary_variable_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    level = np.concatenate([[0, 1], (rng.random(40) < 0.2).astype(int)])
    scores = level + rng.normal(size=42)
    got = balanced_accuracy(torch.tensor(scores)[:, None], torch.tensor(level), torch.tensor([0.5]).double())
    assert float(got) == pytest.approx(balanced_accuracy_score(level, scores > 0.5), abs=1e-12)


def test_balanced_accuracy_is_withheld_where_a_level_is_missing():
    assert balanced_accuracy(torch.rand(4, 3).double(), torch.tensor([0, 1, 1, 0]), torch.zeros(3).double()).isnan()
    assert balanced_accuracy(torch.rand(4, 1).double(), torch.zeros(4).long(), torch.zeros(1).double()).isnan()
