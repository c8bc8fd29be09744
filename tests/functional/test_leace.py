"""LEACE against the reference package, plain loops and scikit-learn; then the theorem: guarded, and no edit is smaller."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, LogisticRegression

from lightning_interp.errors import VariableError
from lightning_interp.functional.erasure import (
    balanced,
    balanced_leace,
    erased,
    leace,
    natural,
    net,
    partial_leace,
    random_leace,
)
from lightning_interp.functional.moments import moments

SEEDS = st.integers(0, 2**31)


def covariances(h, z, w=None):
    """(Σ_hh, Σ_hz, mean) by the textbook."""
    w = torch.ones(len(h), dtype=torch.float64) if w is None else w
    w = (w / w.sum()).unsqueeze(1)
    hc, zc = h - (w * h).sum(0), z - (w * z).sum(0)
    return hc.T @ (w * hc), hc.T @ (w * zc), (w * h).sum(0)


def sample(seed, n=300, d=6, k=2):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, k, generator=g, dtype=torch.float64)
    h = torch.randn(n, d, generator=g, dtype=torch.float64) @ torch.randn(d, d, generator=g, dtype=torch.float64)
    return h + z @ torch.randn(k, d, generator=g, dtype=torch.float64) + 100, z


def coefficients(h, z, w=None):
    """Largest least-squares coefficient of z on standardised activations."""
    sd = h.std(0)
    live = sd > 1e-9 * float(sd.max())
    found = LinearRegression().fit(((h - h.mean(0)) / sd)[:, live].numpy(), z.numpy(), None if w is None else w.numpy())
    return float(np.abs(found.coef_).max())


# --- the reference ----------------------------------------------------------------------------------------------------


def reference(h, z):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit.script, when it is imported
        package = pytest.importorskip("concept_erasure")
    # Its shrinkage and its bound on the trace leave the optimum; without them it is the theorem's.
    return package.LeaceFitter.fit(h, z, shrinkage=False, constrain_cov_trace=False, svd_tol=1e-9).eraser


@pytest.mark.parametrize(("n", "d", "k"), [(300, 6, 1), (300, 6, 3), (1000, 40, 5), (50, 4, 4), (200, 3, 5)])
def test_equal_to_the_reference_package(n, d, k):
    h, z = sample(n + d + k, n, d, k)
    ours, theirs = leace(*covariances(h, z)), reference(h, z)
    torch.testing.assert_close(ours(h), theirs(h), rtol=1e-5, atol=1e-5)
    assert ours.rank == min(d, k)


def test_equal_to_the_reference_package_on_repeated_rows():
    h, z = sample(1)
    w = torch.randint(0, 6, (len(h),), generator=torch.Generator().manual_seed(2))
    ours = leace(*covariances(h, z, w.double()))
    repeated = reference(h.repeat_interleave(w, 0), z.repeat_interleave(w, 0))
    torch.testing.assert_close(ours(h), repeated(h), rtol=1e-5, atol=1e-5)
    assert (ours(h) - reference(h, z)(h)).abs().max() > 0.01


def by_eigenvalues(hh, hz, mean, h):
    """The projection with a pseudo-inverse, as Theorem 4.2 has it."""
    values, vectors = torch.linalg.eigh(hh)
    kept = values > values[-1] * len(hh) * torch.finfo(hh.dtype).eps
    whiten = vectors[:, kept] @ torch.diag(values[kept].rsqrt()) @ vectors[:, kept].T
    back = vectors[:, kept] @ torch.diag(values[kept].sqrt()) @ vectors[:, kept].T
    u, s, _ = torch.linalg.svd(whiten @ hz, full_matrices=False)
    u = u[:, s > 1e-9 * s[0]]
    return h - (h - mean) @ (back @ u @ u.T @ whiten).T


@given(SEEDS, st.sampled_from(["full", "copies", "dead", "both", "scales", "few"]))
def test_equal_to_the_pseudo_inverse_whatever_the_rank(seed, case):
    h, z = sample(seed, 8 if case == "few" else 200, 12, 2)
    if case in ("copies", "both"):
        h[:, 3], h[:, 4] = h[:, 0], h[:, 1] - 2 * h[:, 2]
    if case in ("dead", "both"):
        h[:, 7] = 5.0
    if case == "scales":
        h = h * torch.logspace(-1, 1, 12, dtype=torch.float64)
    hh, hz, mean = covariances(h, z)
    found, scale = leace(hh, hz, mean), h.std(0).clamp_min(1e-9)
    torch.testing.assert_close(found(h) / scale, by_eigenvalues(hh, hz, mean, h) / scale, rtol=1e-5, atol=1e-4)


# --- the theorem ------------------------------------------------------------------------------------------------------


@given(SEEDS, st.integers(2, 60), st.integers(1, 12), st.integers(1, 4), st.sampled_from([0.0, 1e-2, 10.0]))
def test_covariance_is_zero_whatever_the_shape_and_the_ridge(seed, n, d, k, ridge):
    h, z = sample(seed, n, d, k)
    found = leace(*covariances(h, z), ridge)
    size = float(h.std(0).max() * z.std(0).max())
    assert covariances(found(h), z)[1].abs().max() < 1e-9 * size
    assert found.rank <= min(d, k, n - 1)
    torch.testing.assert_close(found(found(h)), found(h), rtol=1e-9, atol=1e-7)  # idempotent
    torch.testing.assert_close(found.write @ found.read, torch.eye(found.rank, dtype=torch.float64), rtol=0, atol=1e-8)


def test_no_linear_classifier_beats_the_constant():
    h, z = sample(0)
    label = (z[:, 0] > 0.3).long()
    after = leace(*covariances(h, label.double()[:, None] - 0.5))(h)
    assert coefficients(h, label.double()) > 0.1
    assert coefficients(after, label.double()) <= 1e-7
    x = ((after - after.mean(0)) / after.std(0)).numpy()
    fitted = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(x, label.numpy())
    assert np.abs(fitted.coef_).max() <= 1e-7


@pytest.mark.parametrize("seed", range(5))
def test_the_smallest_of_the_edits_that_guard(seed):
    h, z = sample(seed)
    hh, hz, mean = covariances(h, z)
    best = (leace(hh, hz, mean)(h) - h).pow(2).mean()
    q = torch.linalg.qr(hz)[0]
    orthogonal = (h - mean) @ q @ q.T
    assert covariances(h - orthogonal, z)[1].abs().max() < 1e-9
    assert best < 0.999 * orthogonal.pow(2).mean()
    for trial in range(20):  # all oblique projections along q guard
        g = torch.Generator().manual_seed(trial)
        r = leace(hh, hz, mean).read + 0.05 * torch.randn(q.shape, generator=g, dtype=torch.float64)
        edit = (h - mean) @ r @ torch.linalg.inv(q.T @ r) @ q.T
        assert covariances(h - edit, z)[1].abs().max() < 1e-9
        assert best < edit.pow(2).mean()


def test_a_ridge_goes_towards_the_orthogonal_projection():
    h, z = sample(3)
    hh, hz, mean = covariances(h, z)
    edits = [float((leace(hh, hz, mean, ridge)(h) - h).pow(2).mean()) for ridge in (0.0, 1e-2, 1.0, 1e6)]
    q = torch.linalg.qr(hz)[0]
    assert edits == sorted(edits)
    assert edits[-1] == pytest.approx(float(((h - mean) @ q @ q.T).pow(2).mean()), rel=1e-4)


# --- what is degenerate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_dead_and_doubled_units_and_more_units_than_rows(ridge):
    h, z = sample(4, n=30, d=20, k=1)
    wide = torch.cat([h, torch.full((30, 3), 7.0, dtype=torch.float64), h[:, :10] * 2, h @ torch.ones(20, 8).double()], 1)
    found = leace(*covariances(wide, z), ridge)
    after = found(wide)
    assert covariances(after, z)[1].abs().max() < 1e-9
    assert torch.equal(after[:, 20:23], wide[:, 20:23])
    assert found.rank == 1
    assert torch.isfinite(after).all()
    assert (after - wide).pow(2).mean() < 10 * wide.var()


def test_dependent_columns_and_columns_that_nothing_goes_with():
    h, z = sample(5, k=2)
    plain = leace(*covariances(h, z))
    more = torch.cat([z, z.sum(1, keepdim=True), -z[:, :1], torch.ones(len(z), 1, dtype=torch.float64)], 1)
    found = leace(*covariances(h, more))
    assert found.rank == 2
    torch.testing.assert_close(found(h), plain(h), rtol=1e-9, atol=1e-9)
    nothing = leace(*covariances(h, torch.ones(len(h), 1, dtype=torch.float64)))
    assert nothing.rank == 0
    assert torch.equal(nothing(h), h)


def test_the_variable_itself_as_a_unit_is_erased_to_its_mean():
    z = torch.randn(50, 1, dtype=torch.float64)
    found = leace(*covariances(z, z))
    torch.testing.assert_close(found(z), z.mean().expand(50, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype):
    h, z = sample(6)
    found = leace(*covariances(h, z))
    assert found(h.to(dtype)).dtype == dtype
    torch.testing.assert_close(found(h.to(dtype)).double(), found(h.to(dtype).double()).to(dtype).double())


# --- from moments by cell ---------------------------------------------------------------------------------------------


def cells(seed, counts, d=5, extra=0):
    """Rows of a binary confounder and a three-level given variable, with their moments by cell.

    Args:
        counts: {(confounder, given): rows}.
        extra: continuous given variables, correlated with the confounder.
    """
    g = torch.Generator().manual_seed(seed)
    known = list(itertools.product((0, 1), (0, 1, 2)))
    cell = torch.tensor([i for i, c in enumerate(known) for _ in range(counts.get(c, 0))])
    cell = cell[torch.randperm(len(cell), generator=g)]
    contrast = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]).double()
    codes = torch.stack([torch.cat([torch.tensor([a - 0.5]).double(), contrast[b]]) for a, b in known])
    x = torch.randn(len(cell), extra, generator=g, dtype=torch.float64) + codes[cell][:, :1]
    z = torch.cat([codes[cell], x], 1)
    h = torch.randn(len(cell), d, generator=g, dtype=torch.float64) @ torch.randn(d, d, generator=g, dtype=torch.float64)
    h = h + z @ torch.randn(z.shape[1], d, generator=g, dtype=torch.float64)
    return h, z, cell, codes, moments(h, x, cell[:, None] + 1, len(codes) + 1)


UNEVEN = {(0, 0): 90, (1, 0): 8, (0, 1): 30, (1, 1): 31, (0, 2): 6, (1, 2): 120}
FULL = st.fixed_dictionaries({c: st.integers(2, 40) for c in UNEVEN})


@given(SEEDS, FULL)
def test_balanced_second_moments_are_those_of_a_loop(seed, counts):
    h, z, cell, codes, m = cells(seed, counts)
    n, k = len(h), len(codes)
    found = balanced(m, codes)
    means = [h[cell == c].mean(0) for c in range(k)]
    within = sum(torch.outer(h[i] - means[cell[i]], h[i] - means[cell[i]]) for i in range(n)) / n
    middle = sum(means) / k
    between = sum(torch.outer(a - middle, a - middle) for a in means) / k
    w = 1 / torch.bincount(cell)[cell].double()
    torch.testing.assert_close(found.hh, within + between)
    torch.testing.assert_close(found.h, middle)
    torch.testing.assert_close(found.zh.T, covariances(h, z, w)[1])
    torch.testing.assert_close(found.zz, covariances(z, z, w)[1])


@given(SEEDS, FULL)
def test_balanced_guards_under_balanced_weights(seed, counts):
    h, z, cell, codes, m = cells(seed, counts)
    found = balanced_leace(m, codes, [0])
    w = 1 / torch.bincount(cell)[cell].double()
    assert found.rank == 1
    assert covariances(found(h), z[:, :1], w)[1].abs().max() < 1e-9
    assert coefficients(found(h), z[:, 0], w) < 1e-7
    weights = w / w.sum()
    torch.testing.assert_close((weights[:, None] * found(h)).sum(0), (weights[:, None] * h).sum(0))


def test_balanced_leaves_what_travels_with_it():
    _, z, cell, codes, _ = cells(0, UNEVEN)
    noise = torch.randn(len(z), 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    h = 0.3 * noise + torch.nn.functional.pad(z, (0, 2))  # each column of z is written along a unit of its own
    m = moments(h, z[:, :0], cell[:, None] + 1, len(codes) + 1)
    w = 1 / torch.bincount(cell)[cell].double()

    def kept(eraser):  # of the given variable's covariance with the activation, under balanced weights
        before, after = (covariances(a, z[:, 1:], w)[1].norm() for a in (h, eraser(h)))
        return float(after / before)

    assert kept(balanced_leace(m, codes, [0])) > 0.95
    assert kept(leace(*covariances(h, z[:, :1]))) < 0.85


def test_balanced_with_one_level_per_column_at_a_time():
    h, z, cell, codes, m = cells(1, UNEVEN)
    found = balanced_leace(m, codes, [1, 2])  # the three-level variable as the confounder
    w = 1 / torch.bincount(cell)[cell].double()
    assert found.rank == 2
    assert covariances(found(h), z[:, 1:], w)[1].abs().max() < 1e-9
    assert covariances(found(h), z[:, :1], w)[1].abs().max() > 0.01


def regression(h, z):
    """Coefficients of every unit on all columns of z, by scikit-learn."""
    return torch.tensor(LinearRegression().fit(z.numpy(), h.numpy()).coef_.T)


@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("empty", [[], [(1, 0)], [(1, 0), (0, 2)]], ids=len)
def test_partial_makes_the_pattern_zero_and_leaves_the_others(empty, extra):
    h, z, _, codes, m = cells(2, {c: n for c, n in UNEVEN.items() if c not in empty}, extra=extra)
    found = partial_leace(m, codes, [0])
    before, after = regression(h, z), regression(found(h), z)
    assert before[0].abs().max() > 0.1
    assert after[0].abs().max() < 1e-9
    residual = h - torch.tensor(LinearRegression().fit(z.numpy(), h.numpy()).predict(z.numpy()))
    torch.testing.assert_close(
        found.step(h), leace(residual.T @ residual / len(h), before[:1].T, found.mean).step(h), rtol=1e-7, atol=1e-7
    )
    constant = LinearRegression().fit(z.numpy(), h.numpy())
    at_zero = torch.tensor(constant.intercept_) + z[:, 3:].mean(0) @ before[3:]
    torch.testing.assert_close(found.mean, at_zero)


@pytest.mark.parametrize(("empty", "extra"), [([(1, 0)], 0), ([], 1)])
def test_balanced_is_partial_where_cells_are_empty_or_a_variable_is_continuous(empty, extra):
    _, _, _, codes, m = cells(3, {c: n for c, n in UNEVEN.items() if c not in empty}, extra=extra)
    for one, other in zip(balanced_leace(m, codes, [0]), partial_leace(m, codes, [0])):
        assert torch.equal(one, other)


def test_a_continuous_confounder():
    h, z, _, codes, m = cells(4, UNEVEN, extra=2)
    found = balanced_leace(m, codes, [3])
    assert found.rank == 1
    after = regression(found(h), z)
    assert after[3].abs().max() < 1e-9
    assert after[4].abs().max() > 0.01


def test_natural_second_moments_are_the_textbooks():
    h, z, _, codes, m = cells(5, UNEVEN, extra=2)
    found = natural(m, codes)
    torch.testing.assert_close(found.hh, covariances(h, z)[0])
    torch.testing.assert_close(found.zh.T, covariances(h, z)[1])
    torch.testing.assert_close(found.zz, covariances(z, z)[1])
    torch.testing.assert_close(found.z, z.mean(0))


@pytest.mark.parametrize("extra", [0, 1])
def test_net_is_the_residual_of_a_regression(extra):
    h, z, _, codes, m = cells(6, UNEVEN, extra=extra)
    variance, covariance = net(natural(m, codes), [0])
    left = z[:, 0] - torch.tensor(LinearRegression().fit(z[:, 1:].numpy(), z[:, 0].numpy()).predict(z[:, 1:].numpy()))
    torch.testing.assert_close(variance, left.pow(2).mean()[None])
    torch.testing.assert_close(covariance, (left @ (h - h.mean(0)) / len(h))[None])


def test_given_variables_that_are_functions_of_each_other_do_no_harm():
    h, _, _, codes, m = cells(7, UNEVEN)
    twice = torch.cat([codes, codes[:, 1:2] + codes[:, 2:]], 1)
    torch.testing.assert_close(balanced_leace(m, twice, [0])(h), balanced_leace(m, codes, [0])(h))
    torch.testing.assert_close(partial_leace(m, twice, [0])(h), partial_leace(m, codes, [0])(h))


@pytest.mark.parametrize("counts", [{(0, 0): 9, (1, 2): 9}, {(0, 0): 9, (0, 1): 5}], ids=["identical", "constant"])
def test_a_confounder_that_nothing_is_left_of_is_an_error(counts):
    _, _, _, codes, m = cells(8, counts)
    with pytest.raises(VariableError, match="cannot be told apart"):
        balanced_leace(m, codes, [0])


@given(SEEDS)
def test_moments_of_the_erased_are_those_of_the_erased_rows(seed):
    h, z, cell, codes, m = cells(seed, UNEVEN, extra=1)
    eraser = balanced_leace(m, codes, [0], 0.1)
    wanted = moments(eraser(h), z[:, 3:], cell[:, None] + 1, len(codes) + 1)
    for one, other in zip(erased(m, eraser), wanted):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("value", [0.0, -0.3113, 1e9])
def test_of_a_layer_that_is_constant_there_is_nothing_to_erase(value):
    h, z = torch.full((19, 3), value).double(), (torch.arange(19) % 2).double().unsqueeze(1)
    rounded = torch.full((3, 1), 1e-17 * value).double()  # what is left of a mean's last digit
    for hz in (rounded, (h - h.mean(0)).T @ (z - z.mean()) / 19):
        assert leace(torch.zeros(3, 3).double(), hz, h[0]).rank == 0
    assert random_leace(torch.zeros(3, 3).double(), h[0], h, 2, torch.Generator().manual_seed(0)).rank == 0
