"""`coding`, `weights`, `table`, `contribution`, `shares`, `intervention`, `sensitivity`, `mediation` on generated variables."""

import math
from itertools import pairwise, product

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fuzz.inputs import FLAWS, SEEDS, activations, close, finite, flawed, groups, normal, outcome, untouched
from lightning_interp.errors import VariableError
from lightning_interp.functional.coding import Design, Factor, code, infer_kind, is_discrete
from lightning_interp.functional.contribution import (
    Estimate,
    Fit,
    RankError,
    Sources,
    effects,
    fit,
    interval_note,
    robustness_value,
)  # fmt: skip
from lightning_interp.functional.intervention import interventional_effect
from lightning_interp.functional.mediation import gone
from lightning_interp.functional.sensitivity import Test as SensitivityTest
from lightning_interp.functional.sensitivity import derivative, derivative_test, holm, tcav
from lightning_interp.functional.shares import Spread, debiased_share, lmg, r_squared, relative_weights, shares, spread
from lightning_interp.functional.table import Table, group_sum, table
from lightning_interp.functional.weights import Weights, sample_weights, structural

KINDS = ("auto", "binary", "categorical", "continuous")
NUMBERS = st.one_of(
    st.integers(-3, 3).map(float),
    st.sampled_from([0.1, 0.1000001, 1e6 + 0.25, 1e6 + 0.5, 1e-300, 2e-300, 5e-324, 1e300, -1e300, 1e16, 1e16 + 2, -1e-9]),
    st.floats(-1e6, 1e6),
)
PAIRS = [[0.1, 0.1000001], [1e6, 1e6 + 0.5], [0.0, 1e300], [-1e308, 1e308], [1e-300, 2e-300], [0.0, 5e-324], [1e16, 1e16 + 2]]


@st.composite
def variables(draw, least=0, most=40, numbers=NUMBERS, p=4):
    """Raw values `[n, p]`, kinds and printed levels of variables: of few values, many, one, of any size, or text."""
    n, p = draw(st.integers(least, most)), draw(st.integers(0, p))
    columns, kinds, printed = [], [], {}
    for j in range(p):
        pool = draw(st.one_of(st.lists(numbers, min_size=1, max_size=5, unique=True), st.sampled_from(PAIRS)))
        generator = torch.Generator().manual_seed(draw(SEEDS))
        at = torch.randint(0, len(pool), (n,), generator=generator)
        column = torch.tensor(pool, dtype=torch.float64)[at]
        kind = draw(st.sampled_from(KINDS))
        if kind in ("auto", "continuous") and draw(st.booleans()):
            column = flawed(n, 1, draw(FLAWS), draw(SEEDS))[:, 0]
        elif draw(st.booleans()):
            printed[f"v{j}"] = {v: f"level {i}" for i, v in enumerate(pool)}
        columns.append(column)
        kinds.append(kind)
    values = torch.stack(columns, 1) if p else torch.zeros(n, 0, dtype=torch.float64)
    return values, [f"v{j}" for j in range(p)], kinds, printed


def designed(found):
    """The design, or None where the variables were refused in our words."""
    values, names, kinds, printed = found
    design, problem = outcome(VariableError, code, values, torch.ones(len(values)).double(), names, kinds, printed)
    assert problem is None or "variable 'v" in str(problem)
    return design


@given(variables())
def test_every_value_has_a_finite_code_of_its_own(found):
    values, names, _, _ = found
    design = designed(found)
    if design is None:
        return
    assert isinstance(design, Design)
    assert {f.name for f in design.factors} | set(design.unmeasurable) == set(names)
    assert all(name in why for name, why in design.unmeasurable.items())
    z = untouched(design.encode, values)
    finite(z)
    assert z.shape == (len(values), design.width)
    for f, block in zip(design.factors, design.blocks().values()):
        assert isinstance(f, Factor)
        assert z[:, block].shape[1] == f.width
        assert len(f.contrasts()) == (len(f.levels) if f.kind == "categorical" else 1)
        if f.discrete:
            assert len(set(f.labels)) == len(f.levels)  # no two levels are printed alike
            index = untouched(f.level_index, values[:, f.column])
            assert [f.levels[i] for i in index.tolist()] == values[:, f.column].tolist()
            assert torch.equal(f.level_codes()[f.level_index(values[:, f.column])], z[:, block])
            assert not f.level_codes().sum(0).any()
        else:
            assert abs(float(z[:, block].mean())) < 1e-6 * (1 + abs(f.center) / f.scale)
            if abs(f.center) < 1e6 * f.scale:
                assert abs(float(z[:, block].square().mean()) - 1) < 1e-6
    products = untouched(design.products, z)
    widths = [f.width for f in design.factors]
    assert products.shape == (len(z), (sum(widths) ** 2 - sum(w * w for w in widths)) // 2)


@given(variables(0, 30, st.integers(-3, 3).map(float)), st.booleans())
def test_cells_are_the_joint_settings_that_occur(found, balanced):
    values, _, _, _ = found
    design = designed(found)
    if design is None:
        return
    cells, cell = untouched(design.cells, values)
    levels = [f.level_index(values[:, f.column]).tolist() for f in design.discrete]
    rows = list(zip(*levels)) if levels else [()] * len(values)
    assert [tuple(cells[c].tolist()) for c in cell.tolist()] == rows
    assert len(set(map(tuple, cells.tolist()))) == len(cells)
    names = design.cell_names(cells)
    assert len(set(names)) == len(names)
    if not len(values):
        return
    count = torch.arange(1, len(values) + 1).double()
    w = untouched(sample_weights, design, values, count, "balanced" if balanced else "natural")
    assert isinstance(w, Weights)
    finite(w.row, w.cell_weight, w.cell_count)
    assert abs(float((count * w.row).sum()) - 1) < 1e-9
    assert bool((w.row > 0).all())
    assert 0 < w.effective <= float(count.sum()) + 1e-6
    assert (w.note is None) == (not balanced or w.mode == "balanced")
    assert torch.equal(untouched(w.locate, design, values), w.cell)
    per_cell = group_sum(count * w.row, w.cell, len(w.cells))
    close(per_cell, torch.full_like(per_cell, 1 / len(per_cell)) if w.mode == "balanced" else w.cell_count / count.sum())
    if w.mode == "balanced":
        assert len(cells) <= 64
        assert int(w.cell_count.min()) >= 5


@given(st.lists(st.integers(1, 3), min_size=0, max_size=3), SEEDS, st.booleans())
def test_cells_are_structurally_empty_where_a_variable_is_a_function_of_the_others(sizes, seed, function):
    full = torch.tensor(list(product(*(range(s) for s in sizes)))).reshape(math.prod(sizes), len(sizes))
    if function:
        last = torch.randint(0, 3, (len(full), 1), generator=torch.Generator().manual_seed(seed))
        assert untouched(structural, torch.cat([full, last], 1), [*sizes, 3]) == bool(sizes)
    elif len(sizes) > 1 and all(s > 1 for s in sizes) and math.prod(sizes) > 4:
        assert not structural(full[:-1], sizes)  # one cell of many is missing


@given(st.lists(NUMBERS, min_size=0, max_size=40), st.booleans(), st.sampled_from(KINDS))
def test_a_kind_is_one_of_three(values, named, kind):
    x = torch.tensor(values, dtype=torch.float64)
    found = untouched(infer_kind, torch.unique(x), named)
    assert found in KINDS[1:]
    assert untouched(is_discrete, kind, x, named) == ((found if kind == "auto" else kind) != "continuous")


@given(activations(0, 30, 3), st.data())
def test_a_table_has_the_sums_of_its_rows_in_any_order_and_split(o, data):
    o = o.detach()
    n = len(o)
    values = flawed(n, data.draw(st.integers(0, 2)), data.draw(FLAWS), data.draw(SEEDS)).round() + 0.0
    source = data.draw(groups(n))[0] if data.draw(st.booleans()) else None
    correct = (normal(n, 1, 3)[:, 0] > 0) if data.draw(st.booleans()) else None
    scored = (normal(n, 1, 4)[:, 0] > 0) if data.draw(st.booleans()) else None
    rows = untouched(table, values, o, source, correct, scored)
    assert isinstance(rows, Table)
    finite(rows.mean, rows.m2)
    size = float(o.double().abs().max()) + 1e-300 if n else 1.0
    key = [(*v, s) for v, s in zip(values.tolist(), [0] * n if source is None else source.tolist())]
    assert len(rows.count) == len(set(key))
    for i in range(len(rows.count)):
        own = torch.tensor([k == (*rows.values[i].tolist(), int(rows.source[i])) for k in key])
        assert int(own.sum()) == int(rows.count[i])
        close(rows.mean[i], o[own].double().mean(0), 1e-9, 1e-13 * size)
        close(rows.m2[i], ((o[own].double() - o[own].double().mean(0)) ** 2).sum(0), 1e-9, 1e-13 * size**2)
        known = scored if scored is not None else torch.full((n,), correct is not None)
        assert float(rows.scored[i]) == float(known[own].sum())
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    columns = (values, o, source, correct, scored)
    parts = [table(*(None if t is None else t[p] for t in columns)) for p in (order[: n // 3], order[n // 3 :])]
    for got, wanted in zip(untouched(Table.__add__, *parts), rows):
        close(got, wanted, 1e-9, 1e-12 * max(1, n) * max(size, size**2))
    assert all(torch.equal(a, b) for a, b in zip(rows.grouped(), rows))


@given(st.integers(0, 20), st.integers(1, 5), st.integers(1, 3), SEEDS)
def test_sums_of_groups(n, k, c, seed):
    x, index = normal(n, c, seed), torch.randint(0, k, (n,), generator=torch.Generator().manual_seed(seed))
    close(untouched(group_sum, x, index, k), torch.stack([x[index == g].sum(0) for g in range(k)]), 1e-12, 1e-12)


@st.composite
def equations(draw, least=0, most=40, outputs=FLAWS):
    """Columns z `[n, q]`, outputs `[n, c]`, weights and cells of single rows, and their sources."""
    n, q, c = draw(st.integers(least, most)), draw(st.integers(0, 4)), draw(st.integers(1, 3))
    form = draw(st.sampled_from(["none", "none", "copied column", "constant column", "one row differs", "repeated rows"]))
    z = flawed(n, q, form, draw(SEEDS))
    if draw(st.booleans()):
        z = z.sign() / 2  # as levels are coded
    o = flawed(n, c, draw(outputs), draw(SEEDS))
    cell, k = draw(groups(n))
    w = normal(k, 1, draw(SEEDS))[:, 0].exp()[cell]
    return z, o, w / w.sum() if n else w, cell, draw(groups(n, 12))[0]


def weights_of(w, cell):
    none = torch.empty(0)
    return Weights("natural", w, cell, none, none, none, 0.0, None)


def rows_of(z, o, source, count=None):
    """One row per sample."""
    n = len(z)
    zero = torch.zeros(n).double()
    return Table(z, source, zero + 1 if count is None else count, o, torch.zeros_like(o), zero, zero)


def fitted(case, clustered=False):
    """The fit, or None where the design is of deficient rank."""
    z, o, w, cell, source = case
    got, problem = outcome(RankError, fit, z, rows_of(z, o, source), weights_of(w, cell), clustered)
    assert problem is None or all(0 <= i < z.shape[1] for i in problem.involved)
    return got


@given(equations(), st.booleans())
def test_an_equation_has_numbers_or_says_which_columns_depend(case, clustered):
    z, o, w, _, _ = case
    got = fitted(case, clustered)
    root = w.sqrt().unsqueeze(1)
    x = torch.cat([torch.ones(len(z), 1).double(), z], 1)
    values = torch.linalg.svdvals(root * x) if len(z) else torch.zeros(1)
    if got is None:
        assert len(z) < x.shape[1] or float(values[-1]) < 1e-4 * float(values[0])
        return
    assert isinstance(got, Fit)
    size = float(o.abs().max())
    expected = torch.linalg.lstsq(root * x, root * o, driver="gelsd").solution
    condition = float(values[0] / values[-1])
    close(got.coefficients, expected, 1e-6, 1e-12 * condition**2 * size)
    close(got.residual, o - x @ got.coefficients, 1e-9, 1e-12 * condition * size)
    assert 0 <= got.leverage <= 1 + 1e-6
    contrast = torch.eye(x.shape[1]).double()
    found = untouched(effects, got, contrast)
    assert isinstance(found, Estimate)
    finite(found.value)
    assert found.note == interval_note(got)
    if found.note and found.note.startswith("withheld"):
        assert bool(found.se.isnan().all())
        assert bool(found.low.isnan().all())
        return
    finite(found.se, found.low, found.high)
    assert bool((found.low <= found.value).all())
    assert bool((found.value <= found.high).all())
    assert bool((found.df >= 1).all())
    # Where nothing is left unexplained there is no error to bring the effect into doubt.
    assert bool((((found.robustness >= 0) & (found.robustness <= 1)) | (found.se == 0)).all())
    close(got.variance(contrast).sqrt(), found.se)
    assert bool((found.df[:, 0] == got.degrees_of_freedom(contrast)).all())
    block = slice(0, x.shape[1])
    close(got.covariance(block).diagonal(), got.variance(contrast).sum(1), 1e-9, 1e-18 * size**2 * condition**4)
    if clustered:
        assert isinstance(got.sources, Sources)
        assert bool((got.sources.bell_mccaffrey(contrast) > 0).all())


@given(equations(6, outputs=st.sampled_from(["none", "units of all sizes", "repeated rows"])), st.booleans(), SEEDS)
def test_an_equation_does_not_see_order_or_unit(case, clustered, seed):
    z, o, w, cell, source = case
    got = fitted(case, clustered)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    again = fitted((z[order], o[order] * 2.0**20, w[order], cell[order], source[order]), clustered)
    assert (got is None) == (again is None)
    if got is None or got.leverage > 0.98:
        return
    contrast = torch.eye(1 + z.shape[1]).double()
    a, b = effects(got, contrast), effects(again, contrast)
    assert (a.note or "")[:8] == (b.note or "")[:8]
    size = float(o.abs().max())
    close(b.value / 2.0**20, a.value, 1e-6, 1e-8 * size)
    close(b.se / 2.0**20, a.se, 1e-5, 1e-8 * size)
    close(b.df, a.df, 1e-4, 1e-4)


@given(equations(6, 20, outputs=st.sampled_from(["none", "units of all sizes"])), st.integers(2, 3))
def test_a_row_that_counts_twice_is_two_rows(case, times):
    z, o, w, cell, source = case
    many = tuple(t.repeat(times, *[1] * (t.ndim - 1)) for t in (z, o, w / times, cell, source))
    each = fitted(many)
    try:
        one = fit(z, rows_of(z, o, source, torch.full((len(z),), float(times)).double()), weights_of(w / times, cell))
    except RankError:
        assert each is None
        return
    assert each is not None
    contrast = torch.eye(1 + z.shape[1]).double()
    a, b = effects(one, contrast), effects(each, contrast)
    size = float(o.abs().max())
    close(a.value, b.value, 1e-6, 1e-8 * size)
    close(a.se, b.se, 1e-5, 1e-8 * size)
    close(a.df, b.df, 1e-5, 1e-6)
    assert a.note == b.note


@given(st.floats(-1e8, 1e8), st.floats(1, 1e9))
def test_a_robustness_value_is_between_nought_and_one_and_grows_with_t(t, df):
    got = float(untouched(robustness_value, torch.tensor([t]).double(), torch.tensor([df]).double()))
    assert 0 <= got <= 1
    f = (t * t / df) ** 0.5
    if 1e-3 < f < 1e3:
        assert abs(got - 0.5 * ((f**4 + 4 * f**2) ** 0.5 - f**2)) < 1e-6
    more = float(robustness_value(torch.tensor([2 * t]).double(), torch.tensor([df]).double()))
    assert more >= got


@st.composite
def spreads(draw):
    """Second moments of columns and outputs, and the blocks of variables."""
    z, o, w, _, source = draw(equations(1))
    widths, left = [], z.shape[1]
    while left:
        widths.append(draw(st.integers(1, left)))
        left -= widths[-1]
    ends = np.cumsum([0, *widths]).tolist()
    return untouched(spread, z, rows_of(z, o, source), w), [slice(a, b) for a, b in pairwise(ends)]


@given(spreads())
def test_shares_add_up_to_what_is_explained(case):
    s, blocks = case
    assert isinstance(s, Spread)
    size = s.zz.diagonal()  # a column that is rounding alone is not coded
    assume(not bool(((size > 0) & (size < 1e-20 * size.max())).any()) if len(size) else True)
    whole = untouched(r_squared, s)
    assert -1e-6 <= whole <= 1 + 1e-6
    assert r_squared(s, []) == 0
    for found in (untouched(lmg, s, blocks), untouched(shares, s, blocks)):
        assert len(found) == len(blocks)
        assert abs(sum(found) - whole) < 1e-6
        assert all(-1e-6 <= f <= 1 + 1e-6 for f in found)
    johnson = untouched(relative_weights, s, blocks)
    assert len(johnson) == len(blocks)
    assert all(-1e-9 <= f <= 1 + 1e-6 for f in johnson)
    assert abs(sum(johnson) - whole) < 1e-5
    for b in blocks:
        k = b.stop - b.start
        got = untouched(debiased_share, s, b, s.zo[b], torch.zeros(k, k).double())
        assert got >= 0
        assert debiased_share(s, b, s.zo[b], 1e9 * torch.eye(k).double() + s.zz[b, b]) in (0.0, got) or got > 0
        assert debiased_share(s, b, s.zo[b] * 0, torch.eye(k).double()) == 0


@given(equations(1, 30), st.booleans())
def test_an_interventions_effect_is_the_weighted_mean_of_paired_differences(case, clustered):
    z, o, w, cell, source = case
    change = torch.where(z[:, 0] > 0, 1.0, -1.0).double() if z.shape[1] else torch.zeros(len(z)).double()
    change = torch.where(cell == 1, 0.0, change)  # samples that did not move
    got = untouched(interventional_effect, change, o, weights_of(w, cell), source if clustered else None)
    moved = change != 0
    assert (got is None) == (not bool(moved.any()))
    if got is None:
        return
    mass = (w[moved] / w[moved].sum()).unsqueeze(1)
    expected = (mass * o[moved] / change[moved].unsqueeze(1)).sum(0, keepdim=True)
    close(got.value, expected, 1e-9, 1e-12 * float(o.abs().max()))
    if int(moved.sum()) == 1:
        assert got.note.startswith("withheld")
    else:
        assert got.note or bool((got.low <= got.high).all())


@given(equations(6, 30), st.floats(1, 1e5))
def test_a_derivative_is_tested_on_its_projection(case, n):
    z = case[0]
    got = fitted(case)
    if got is None:
        return
    contrast = torch.eye(1 + z.shape[1]).double()
    s = contrast @ got.coefficients
    found = untouched(derivative_test, s, got, contrast, n)
    assert isinstance(found, SensitivityTest)
    withheld = (interval_note(got) or "").startswith("withheld")
    assert bool((found.p.isnan() | ((found.p >= 0) & (found.p <= 1))).all())
    if withheld:
        assert bool(found.p.isnan().all())
    else:
        zero = effects(got, contrast).se == 0
        assert not bool(found.p[~zero].isnan().any())


@given(st.integers(0, 5), st.integers(1, 5), st.integers(1, 3), SEEDS)
def test_derivatives_are_inner_products(m, d, c, seed):
    gradient, direction = normal(c, d, seed), normal(m, d, seed + 1)
    got = untouched(derivative, gradient, direction)
    assert got.shape == (m, c)
    for i in range(m):
        for k in range(c):
            assert abs(float(got[i, k]) - sum(float(direction[i, j] * gradient[k, j]) for j in range(d))) < 1e-9


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=12))
def test_holms_adjustment_is_the_step_down(p):
    got = untouched(holm, torch.tensor(p, dtype=torch.float64)).tolist()
    known = sorted((v, i) for i, v in enumerate(p) if not math.isnan(v))
    worst, expected = 0.0, [math.nan] * len(p)
    for place, (value, i) in enumerate(known):
        worst = max(worst, min(1.0, value * (len(known) - place)))
        expected[i] = worst
    assert all((math.isnan(a) and math.isnan(b)) or abs(a - b) < 1e-12 for a, b in zip(got, expected))


@given(activations(1, 20, memory=st.just("contiguous")), st.integers(0, 3), SEEDS)
def test_a_tcav_score_is_a_fraction(gradients, m, seed):
    direction = normal(m, gradients.shape[1], seed).to(gradients.dtype)
    got = untouched(tcav, gradients, direction)
    assert got.shape == (m,)
    assert bool(((got >= 0) & (got <= 1)).all())
    positive = gradients @ direction.T > 0
    assert got.tolist() == [float(positive[:, j].sum()) / len(gradients) for j in range(m)]


@given(activations(1, 4, 3, dtypes=st.just(torch.float64)), st.floats(-3, 3))
def test_what_is_gone_is_one_less_what_is_left_of_the_effect(effect, left):
    before = effect.detach()
    got = untouched(gone, before, before * left)
    if before.any():
        assert abs(got - (1 - left)) < 1e-9
    else:
        assert math.isnan(got)  # of nothing, nothing can be said
