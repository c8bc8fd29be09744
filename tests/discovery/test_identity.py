"""Names last from event to event, because they follow who has a feature."""

import torch

from lightning_interp.discovery.identity import MIN_SHARED, REMEMBERED, Identities

N = 200
KEY = torch.arange(N)


def bits(m, n=N, seed=0):
    """Who has m features that have nothing to do with each other."""
    return torch.rand(n, m, generator=torch.Generator().manual_seed(seed)) < 0.4


def event(identities, has, key=KEY, shares=None):
    """What `Discovery` does; the names in order of the columns."""
    found = identities.match(key, has)
    names = [m.name for m in found]
    identities.remember(
        key, {n: has[:, j] ^ found[j].reversed for j, n in enumerate(names)}, dict(zip(names, shares or [1.0] * len(names)))
    )
    return found


def names(found):
    return [m.name for m in found]


def test_new_features_are_numbered_and_known_ones_keep_their_name_in_any_order():
    identities, has = Identities(), bits(3)
    first = event(identities, has)
    assert [(m.name, m.stability, m.reversed) for m in first] == [(f"feature {j}", None, False) for j in (1, 2, 3)]
    second = event(identities, has[:, [2, 0, 1]])
    assert names(second) == ["feature 3", "feature 1", "feature 2"]
    assert [round(m.stability, 9) for m in second] == [1, 1, 1]


def test_a_side_that_has_become_the_other_one_is_reversed():
    identities, has = Identities(), bits(2)
    event(identities, has)
    found = event(identities, torch.stack([~has[:, 1], has[:, 0]], 1))
    assert [(m.name, m.reversed) for m in found] == [("feature 2", True), ("feature 1", False)]
    again = event(identities, has)  # who has it is remembered as it was turned
    assert [m.reversed for m in again] == [False, False]


def test_stability_is_the_correlation_of_who_has_it():
    identities, has = Identities(), bits(1)
    event(identities, has)
    changed = has.clone()
    changed[:30] = ~changed[:30]
    r = float(torch.corrcoef(torch.cat([has, changed], 1).T.double())[0, 1])
    assert abs(event(identities, changed)[0].stability - r) < 1e-9
    assert r < 0.8


def test_a_feature_that_was_not_found_once_keeps_its_name():
    identities, has = Identities(), bits(3)
    event(identities, has)
    assert names(event(identities, has[:, [0, 2]])) == ["feature 1", "feature 3"]
    assert names(event(identities, has)) == ["feature 1", "feature 2", "feature 3"]
    assert names(event(identities, bits(1, seed=9))) == ["feature 4"]


def test_a_number_is_never_given_twice():
    identities = Identities()
    seen = [name for seed in range(5) for name in names(event(identities, bits(2, seed=seed)))]
    assert seen == [f"feature {j}" for j in range(1, 11)]


def test_samples_are_compared_by_their_keys():
    identities, has = Identities(), bits(2)
    event(identities, has)
    later = torch.arange(100, 300)
    wider = torch.cat([has[100:], bits(2, 100, seed=3)])
    assert names(event(identities, wider, later)) == ["feature 1", "feature 2"]
    assert not identities.comparable(torch.arange(400, 600))
    assert names(event(identities, has, torch.arange(400, 600))) == ["feature 3", "feature 4"]  # nothing to compare


def test_so_many_samples_must_be_shared():
    for shared, kept in ((MIN_SHARED, True), (MIN_SHARED - 1, False)):
        identities, has = Identities(), bits(1)
        assert identities.comparable(KEY)
        event(identities, has)
        key = torch.arange(N - shared, 2 * N - shared)
        now = torch.cat([has[N - shared :], bits(1, N - shared, seed=4)])
        assert identities.comparable(key) == kept
        assert (names(event(identities, now, key)) == ["feature 1"]) == kept


def test_two_poor_matches_do_not_cost_a_good_one():
    """Old A and B, new j and k. A is k at .8, and j at .55; B is k at .3 and not j: as a sum, A–j with B–k would win."""
    identities = Identities()
    generator = torch.Generator().manual_seed(0)
    n = 4000
    base = torch.randn(n, 4, generator=generator)

    def mix(*weights):
        return (base @ torch.tensor(weights)).gt(0)

    a, b = mix(1.0, 0, 0, 0), mix(0.0, 1, 0, 0)
    j, k = mix(0.86, -0.1, 0.5, 0), mix(0.97, 0.53, 0, 0)
    corr = torch.corrcoef(torch.stack([a, b, j, k]).double())
    assert corr[0, 3] > corr[0, 2] > 0.5
    assert corr[0, 2] + corr[1, 3] > corr[0, 3] + abs(corr[1, 2])
    assert corr[1, 3] < 0.5
    key = torch.arange(n)
    event(identities, torch.stack([a, b], 1), key)
    assert names(event(identities, torch.stack([j, k], 1), key)) == ["feature 3", "feature 1"]


def test_constant_features_match_nothing():
    identities = Identities()
    event(identities, torch.ones(N, 1).bool())
    assert names(event(identities, torch.ones(N, 1).bool())) == ["feature 2"]


def test_no_features_at_all():
    identities, has = Identities(), bits(2)
    assert identities.match(KEY, has[:, :0]) == []
    event(identities, has)
    assert event(identities, has[:, :0]) == []
    assert names(event(identities, has)) == ["feature 1", "feature 2"]


def test_how_early_a_feature_came():
    identities, has = Identities(), bits(3)
    assert identities.early("feature 1", 0.5) is None  # the first event
    event(identities, has[:, :1], shares=[0.1])
    assert identities.early("feature 1", 0.1) == 1
    event(identities, has[:, :2], shares=[0.3, 0.2])
    event(identities, has[:, :1], shares=[0.3])
    event(identities, has[:, :1], shares=[0.3])
    assert identities.early("feature 1", 0.3) == 1 - 1 / 4  # over half of its largest from the second event on
    assert identities.early("feature 1", 0.1) == 1 - 1 / 4
    assert identities.early("feature 2", 0.1) == 1 - 1 / 4
    assert identities.early("feature 2", 0.5) == 0
    assert identities.early("feature 3", 0.5) == 0  # new
    assert identities.early("feature 3", 0.0) == 0


def test_only_so_many_are_remembered():
    identities = Identities()
    many = bits(REMEMBERED, seed=1)
    event(identities, many)
    event(identities, bits(1, seed=2))
    assert len(identities.state_dict()["keys"]) == REMEMBERED == len(identities.state_dict()["shares"])
    assert names(event(identities, many[:, :1])) == ["feature 1"]
    assert names(event(identities, many[:, -1:])) == [f"feature {REMEMBERED + 2}"]  # let go


def test_state_round_trip(tmp_path):
    identities, has = Identities(), bits(3)
    event(identities, has, shares=[0.1, 0.2, 0.3])
    event(identities, has[:, 1:], shares=[0.5, 0.1])
    torch.save(identities.state_dict(), tmp_path / "state")
    other = Identities()
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    now = torch.cat([~has[:, :2], bits(1, seed=8)], 1)
    assert other.match(KEY, now) == identities.match(KEY, now)
    assert [other.early(f"feature {j}", 0.2) for j in (1, 2, 3)] == [identities.early(f"feature {j}", 0.2) for j in (1, 2, 3)]
    assert event(other, now) == event(identities, now)
    state = identities.state_dict()
    assert all(t.untyped_storage().nbytes() == N for t in state["has"].values())  # no views of whole events
