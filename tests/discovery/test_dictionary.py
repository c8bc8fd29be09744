"""The two dictionaries."""

import pytest
import torch
from discovery.feature_scenes import draws
from nets import random_streams

from lightning_interp.discovery import SplitDictionary, TopKDictionary
from lightning_interp.discovery.dictionary import _principal, code_of, code_state
from lightning_interp.errors import InterpError

N, D = 300, 8


def planted(seed=0, flip=()):
    """Three features along directions of their own, of which 30, 40 and 50 % of the samples have one."""
    generator = torch.Generator().manual_seed(seed)
    has = torch.rand(N, 3, generator=generator) < torch.tensor([0.3, 0.4, 0.5])
    has[:, list(flip)] = ~has[:, list(flip)]
    ways = torch.linalg.qr(torch.randn(D, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64))[0].T
    return 3 * has.double() @ ways + 0.2 * draws(N, D, seed=seed + 1), has


NO_STARTS = torch.zeros(D, 0, dtype=torch.float64)
NOTHING = torch.zeros(N, 0, dtype=torch.float64)


def same(a, b):
    return float(torch.corrcoef(torch.stack([a, b]).double())[0, 1].abs()) > 0.99


def test_splits_find_each_feature_once_the_clearest_first():
    h, has = planted()
    code = SplitDictionary().fit(h, NO_STARTS, NOTHING, 0)
    sides = code.codes(h) > code.threshold
    for j in range(3):
        assert sum(same(sides[:, i], has[:, j]) for i in range(sides.shape[1])) == 1
    assert all(any(same(sides[:, i], has[:, j]) for j in range(3)) for i in range(3))
    corr = torch.corrcoef(sides.T.double()).abs().fill_diagonal_(0)
    assert float(corr.max()) <= 0.3


def test_the_smaller_side_has_the_feature():
    for flip in ((), (0, 1), (0, 1, 2)):
        h, _ = planted(flip=flip)
        code = SplitDictionary().fit(h, NO_STARTS, NOTHING, 0)
        sides = (code.codes(h) > code.threshold).double()
        assert float(sides.mean(0).max()) <= 0.5
        mean = torch.stack([code.codes(h)[sides[:, j] > 0, j].mean() for j in range(sides.shape[1])])
        assert mean.tolist() == pytest.approx([1.0] * len(mean))


def test_starts_and_the_last_fit_are_started_from():
    h, _has = planted()
    few = SplitDictionary(components=1)
    faint = h.clone()
    faint[:, 0] *= 1e-3  # a feature in what has next to no variance
    faint[:, 0] += 2e-2 * (torch.arange(N) % 5 == 0)
    rare = torch.arange(N) % 5 == 0

    def found(code):
        sides = code.codes(faint) > code.threshold
        return any(same(sides[:, i], rare) for i in range(sides.shape[1]))

    assert not found(few.fit(faint, NO_STARTS, NOTHING, 0))
    start = torch.zeros(D, 1, dtype=torch.float64)
    start[0] = 1
    told = SplitDictionary(components=1, ridge=1e-9)
    assert found(told.fit(faint, start, NOTHING, 0))
    assert found(told.fit(faint, NO_STARTS, NOTHING, 0))  # from where it stood
    state = told.state_dict()
    other = SplitDictionary(components=1, ridge=1e-9)
    assert not found(other.fit(faint, NO_STARTS, NOTHING, 0))
    other.load_state_dict(state)
    assert found(other.fit(faint, NO_STARTS, NOTHING, 0))
    assert len(told.fit(planted()[0][:, :4], NO_STARTS[:4], NOTHING, 0).codes(h[:, :4])) == N  # a layer of another width: anew


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("agreement", [0.85, 0.95])
def test_a_feature_is_not_hidden_by_the_named_variable_that_it_travels_with(agreement, seed):
    generator = torch.Generator().manual_seed(seed)
    variable = torch.rand(600, generator=generator) < 0.5
    feature = variable ^ (torch.rand(600, generator=generator) > agreement)
    ways = torch.linalg.qr(torch.randn(D, 2, generator=generator, dtype=torch.float64))[0].T
    h = 2 * torch.stack([variable, feature], 1).double() @ ways + 0.2 * draws(600, D, seed=seed)
    code = SplitDictionary().fit(h, NO_STARTS, variable[:, None].double(), 0)
    sides = code.codes(h) > code.threshold
    assert sum(same(sides[:, i], feature) for i in range(sides.shape[1])) == 1
    assert not any(same(sides[:, i], variable) for i in range(sides.shape[1]))  # it has a name
    unnamed = SplitDictionary().fit(h, NO_STARTS, torch.zeros(600, 0).double(), 0)
    sides = unnamed.codes(h) > unnamed.threshold
    found = [any(same(sides[:, i], what) for i in range(sides.shape[1])) for what in (variable, feature)]
    assert sorted(found) == [False, True]  # the one hides the other, until it has a name


@pytest.mark.parametrize("shape", [(100, 3), (40, 90), (200, 1)])
def test_principal_components_are_those_of_the_decomposition(shape):
    h = draws(*shape) * torch.linspace(1, 3, shape[1])
    h = h - h.mean(0)
    main, white = _principal(h, 4)
    _, _s, v = torch.linalg.svd(h, full_matrices=False)
    assert torch.allclose((main.T @ v[:4].T).abs(), torch.eye(main.shape[1]).double(), atol=1e-6)
    assert torch.allclose((h @ white).norm(dim=0), torch.ones(main.shape[1]).double())
    assert main.shape[1] == min(4, shape[1])
    assert _principal(h[:, :1] @ torch.ones(1, 5).double(), 4)[0].shape == (5, 1)


@pytest.mark.parametrize("h", [torch.zeros(100, 5), torch.full((100, 5), 0.1), torch.eye(5)[:1].repeat(100, 1)])
@pytest.mark.parametrize("dictionary", [SplitDictionary(), TopKDictionary(steps=3)])
def test_a_constant_activation_has_no_features(dictionary, h):
    code = dictionary.fit(h.double(), torch.randn(5, 2).double(), NOTHING[:100], 0)
    assert len(code.threshold) == 0
    assert code.codes(h).shape == (100, 0)


def test_outliers_and_what_is_said_twice_are_no_features():
    h = torch.zeros(300, 4, dtype=torch.float64)
    h[:3, 0] = 1
    assert len(SplitDictionary().fit(h, torch.eye(4).double(), NOTHING, 0).threshold) == 0
    h[:150, 1] = h[:150, 2] = 1
    assert len(SplitDictionary().fit(h, torch.eye(4).double(), NOTHING, 0).threshold) == 1


def test_atoms_that_nobody_has_are_no_features():
    h, _ = planted()
    code = TopKDictionary(atoms=64, k=1, steps=20).fit(h, NO_STARTS, NOTHING, 0)
    codes = code.codes(h)
    assert 0 < codes.shape[1] < 64
    has = (codes > 0).double().sum(0)
    assert bool(((codes > code.threshold).any(0)).all())
    assert has.tolist() == sorted(has.tolist(), reverse=True)


@pytest.mark.parametrize("dictionary", [SplitDictionary, lambda: TopKDictionary(atoms=6, steps=20)])
def test_state_round_trip_and_nothing_drawn_from_outside(dictionary, tmp_path):
    h, _ = planted()
    one, other = dictionary(), dictionary()
    torch.save(one.state_dict(), tmp_path / "before")
    before = random_streams()
    code = one.fit(h, NO_STARTS, NOTHING, 0)
    torch.save({"dictionary": one.state_dict(), "code": code_state(code)}, tmp_path / "after")
    other.load_state_dict(torch.load(tmp_path / "before", weights_only=True))
    other.fit(h, NO_STARTS, NOTHING, 0)
    state = torch.load(tmp_path / "after", weights_only=True)
    other.load_state_dict(state["dictionary"])
    assert torch.equal(code_of(state["code"]).codes(h), code.codes(h))
    later, _ = planted(seed=3)
    first, second = one.fit(later, NO_STARTS, NOTHING, 1), other.fit(later, NO_STARTS, NOTHING, 1)
    assert torch.equal(first.codes(later), second.codes(later))
    assert random_streams() == before


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: SplitDictionary(components=0), "`components` expects a whole number of 1 or more, got 0"),
        (lambda: SplitDictionary(ridge=0), "`ridge` expects a number over 0, got 0"),
        (lambda: SplitDictionary(alike=1.5), "`alike` expects a correlation, 0…1, got 1.5"),
        (lambda: TopKDictionary(atoms=2.0), "`atoms` expects a whole number of 1 or more, got 2.0"),
        (lambda: TopKDictionary(atoms=3, k=4), "`k` expects 3 at most, the number of `atoms`, got 4"),
        (lambda: TopKDictionary(k=0), "`k` expects a whole number of 1 or more, got 0"),
        (lambda: TopKDictionary(steps=0), "`steps` expects"),
        (lambda: TopKDictionary(lr=-1.0), "`lr` expects a number over 0, got -1.0"),
    ],
)
def test_arguments_that_cannot_be_used(make, text):
    with pytest.raises(InterpError) as problem:
        make()
    assert text in str(problem.value)
