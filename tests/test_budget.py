"""`Budget`: the control law against a plain loop, on plants whose answer is known, and what it must never do."""

import io
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_interp.budget import AIM, BRAKE, FLOOR, GAIN, HIGHEST, LOWEST, Budget, Reading, reading
from lightning_interp.errors import InterpError
from lightning_interp.events import Event
from lightning_interp.results import Share

LIMIT = 0.1


def share(value, concepts=None):
    return Reading(value, None, concepts)


def fed(values, limit=LIMIT, **options):
    budget, found = Budget(limit, **options), []
    for value in values:
        budget.update(value if isinstance(value, Reading) else share(value))
        found.append(budget.multiplier)
    return budget, found


def loop(values, limit=LIMIT):
    """The law as it is written down: log m = integral of e, held within m's range, plus what e has just changed by."""
    found, integral, before = [], 0.0, 0.0
    for value in values:
        e = math.log(value / (AIM * limit)) if value > 0 else -1.0
        e = -1.0 if e < -1 else 1.0 if e > 1 else e
        integral += GAIN * e
        integral = math.log(LOWEST) if integral < math.log(LOWEST) else integral
        integral = math.log(HIGHEST) if integral > math.log(HIGHEST) else integral
        m = math.exp(integral) * math.exp(BRAKE * (e - before))
        found.append(LOWEST if m < LOWEST else HIGHEST if m > HIGHEST else m)
        before = e
    return found


SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=60)


# --- the law ----------------------------------------------------------------------------------------------------------


@given(SHARES)
def test_the_law_is_that_of_a_plain_loop(values):
    assert fed(values)[1] == pytest.approx(loop(values), rel=1e-9)


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e6), st.just(math.inf), st.just(math.nan)), max_size=60))
def test_the_multiplier_stays_in_its_range(values):
    _, found = fed([Reading(v, v, v) for v in values])
    assert all(LOWEST <= m <= HIGHEST for m in found)


@given(SHARES, st.integers(40, 300), SHARES)
def test_it_never_winds_up(before, long, after):
    """However long it stood over the limit, and whatever came before, it comes down at once, as from the shortest way up."""
    _, found = fed([*before, *[1.0] * long, 0.0, 0.0, *after])
    top = len(before) + long
    assert found[top - 1] == HIGHEST
    assert found[top] < 0.5 * HIGHEST
    assert found[top + 1] < 0.6 * HIGHEST
    _, short = fed([*[1.0] * 40, 0.0, 0.0, *after])
    assert found[top:] == pytest.approx(short[40:], rel=1e-9)


@given(st.integers(30, 300))
def test_it_comes_up_from_the_bottom_in_fourteen_measurements(long):
    _, found = fed([*[0.0] * long, *[1.0] * 14])
    assert found[long - 1] == pytest.approx(LOWEST)
    assert found[-1] >= 0.6  # what is added at once when it first shows is gone by then
    assert fed([*[0.0] * long, *[1.0] * 16])[1][-1] >= 1


def test_over_the_limit_it_grows_and_under_it_falls():
    _, up = fed([0.5] * 10)
    assert up == sorted(up)
    assert up[0] > 1
    _, down = fed([0.01] * 10)
    assert down == sorted(down, reverse=True)
    assert down[0] < 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 19))
def test_a_withheld_measurement_changes_nothing(values, place):
    budget, _ = fed(values[: place + 1])
    before = budget.state_dict()
    for gone in (Reading(None, 0.5, 0.0), Reading(math.nan, 0.5, 0.0), Reading(None, None, None)):
        budget.update(gone)
        assert budget.state_dict() == before
    assert Budget(LIMIT).held is None


def test_a_ratio_may_exceed_one():
    limit = 0.1
    far, near = ([Reading(None, r, 0.3)] * 5 for r in (50.0, 1.0))
    assert fed(far, limit, on="ratio")[1] == fed(near, limit, on="ratio")[1]  # both are far over it
    budget, found = fed([Reading(0.9, 0.05, 0.3)], limit, on="ratio")  # the share does not count
    assert budget.held
    assert found[-1] < 1


# --- on a plant -------------------------------------------------------------------------------------------------------


def plant(limit, k, noise, n=60, seed=0, start=0.6):
    """share = start / (1 + k·m), with noise, and m takes effect one measurement late."""
    draw, budget, m, out = random.Random(seed), Budget(limit), [1.0, 1.0], []
    for _ in range(n):
        out.append(min(1.0, start / (1 + k * m[-2]) * math.exp(draw.gauss(0, noise))))
        budget.update(share(out[-1]))
        m.append(budget.multiplier)
    return out, m


@pytest.mark.parametrize(("limit", "k"), [(0.1, 0.1), (0.1, 1), (0.1, 10), (0.1, 1000), (0.02, 1), (0.02, 10), (0.02, 1000)])
def test_a_plant_comes_to_the_limit_and_stays_under_it(limit, k):
    out, m = plant(limit, k, 0.0)
    assert next(i for i, s in enumerate(out) if s <= limit) <= 16
    assert all(s <= limit * (1 + 1e-9) for s in out[25:])
    assert max(m[30:]) / min(m[30:]) < 1.3  # no oscillation
    if k < 1000:  # else the lowest multiplier holds it far under the limit
        assert out[-1] == pytest.approx(AIM * limit, rel=0.05)


@pytest.mark.parametrize("k", [1, 10])
def test_noise_does_not_carry_it_away(k):
    held, ranges = [], []
    for seed in range(10):
        out, m = plant(LIMIT, k, 0.2, seed=seed)
        held += [s <= LIMIT for s in out[25:]]
        ranges.append(max(m[25:]) / min(m[25:]))
    assert sum(held) / len(held) > 0.7
    assert max(ranges) < 3


def test_a_plant_that_uses_the_confounder_late_is_caught():
    budget, m, over = Budget(LIMIT), 1.0, 0
    for t in range(100):
        now = 0.6 / (1 + 10 * m) if t >= 60 else 0.001
        over += now > LIMIT
        budget.update(share(now))
        m = budget.multiplier
    assert over <= 18
    assert budget.held


# --- the concepts' floor ----------------------------------------------------------------------------------------------


def test_it_does_not_grow_while_the_concepts_are_under_their_floor():
    budget, _ = fed([share(0.5, 0.4)] * 3)
    stood = budget.multiplier
    for _ in range(5):
        budget.update(share(0.5, FLOOR * 0.4 - 0.01))
        assert budget.frozen
        assert budget.multiplier == stood
    budget.update(share(0.5, FLOOR * 0.4))  # at the floor it is free again
    assert not budget.frozen
    assert stood < budget.multiplier <= stood * math.exp(GAIN) * (1 + 1e-12)  # nothing was saved up


def test_under_the_limit_it_falls_though_the_concepts_are_under_their_floor():
    budget, _ = fed([share(0.5, 0.4)] * 5)
    stood = budget.multiplier
    found = []
    for _ in range(5):
        budget.update(share(0.01, 0.05))
        found.append(budget.multiplier)
    assert budget.frozen
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.3 * stood


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=40))
def test_frozen_it_never_grows(pairs):
    budget = Budget(LIMIT)
    for s, concepts in pairs:
        before = budget.multiplier
        budget.update(share(s, concepts))
        assert not (budget.frozen and budget.multiplier > before)


def test_the_floor_is_half_of_what_stood_before_the_penalty_acted():
    budget = Budget(LIMIT)
    for concepts in (0.05, 0.8):
        budget.start(share(0.5, concepts))
    assert budget.multiplier == 1
    assert budget.held is None
    budget.update(share(0.5, 0.39))
    assert budget.frozen
    budget.update(share(0.5, 0.41))
    assert not budget.frozen


def test_without_concepts_there_is_no_floor():
    budget, _ = fed([share(0.5, None), share(0.5, None)])
    assert not budget.frozen
    budget.update(share(0.5, 0.4))  # the first that is known
    budget.update(share(0.5, 0.1))
    assert budget.frozen


# --- what is said -----------------------------------------------------------------------------------------------------


def test_the_report_at_the_top_has_its_numbers():
    budget, _ = fed([share(0.5, 0.4)] * 10)
    assert budget.report("grass") is None  # still growing
    for _ in range(20):
        budget.update(share(0.5, 0.3))
    assert budget.report("grass") == (
        "the budget cannot be held: share of 'grass' is 0.500, budget 0.1, multiplier 100; the multiplier is at its end. "
        "The concepts' share went from 0.400 to 0.300."
    )
    budget.update(share(0.1, 0.3))
    assert budget.held
    assert budget.report("grass") is None


def test_the_report_of_a_frozen_multiplier_has_its_numbers():
    budget, _ = fed([Reading(0.2, 2.0, 0.4), Reading(0.2, 1.5, 0.1)], 0.25, on="ratio")
    assert budget.report("grass") == (
        f"the budget cannot be held: ratio of 'grass' is 1.500, budget 0.25, multiplier {budget.multiplier:.3g}; "
        "the concepts' share has fallen below half of its start. The concepts' share went from 0.400 to 0.100."
    )
    assert fed([share(1.0)] * 40)[0].report("x").endswith("the multiplier is at its end.")
    assert Budget(LIMIT).report("x") is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0.0,), "`budget` expects a number between 0 and 1, both excluded, got 0.0"),
        ((1,), "both excluded, got 1"),
        ((-0.1,), "got -0.1"),
        ((math.nan,), "got nan"),
        ((True,), "got True"),
        (("0.1",), "got '0.1'"),
        ((0.1, "shares"), "`budget_on='shares'` is none of share, ratio. Did you mean 'share'?"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    with pytest.raises(InterpError) as caught:
        Budget(*arguments)
    assert text in str(caught.value)


# --- state ------------------------------------------------------------------------------------------------------------


@given(SHARES, SHARES, st.booleans())
def test_state_goes_through_a_checkpoint(before, after, concepts):
    def told(values):
        return [share(v, v / 2 if concepts else None) for v in values]

    whole, _ = fed(told(before + after))
    half, _ = fed(told(before))
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    again = Budget(LIMIT)
    again.load_state_dict(torch.load(file, weights_only=True))
    for now in told(after):
        again.update(now)
    assert again.state_dict() == whole.state_dict()
    assert again.report("x") == whole.report("x")


# --- what an event says -----------------------------------------------------------------------------------------------


def test_a_reading_of_an_event():
    event = Event(
        1, 0, 10, "balanced", "val", "binary",
        contribution={"moo": Share(0.4, 0.35), "tail": Share(0.1, 0.05), "grass": Share(0.2, 0.15), "x": Share(None)},
        magnitude={"moo": -2.0, "tail": 0.5, "grass": -1.0},
    )  # fmt: skip
    found = reading(event, "grass", ["moo", "tail", "gone", "x"])
    assert found == pytest.approx((0.15, 0.5, 0.4))
    assert reading(event, "gone", ["moo"]) == (None, None, 0.35)
    assert reading(event, "grass", []) == (0.15, None, None)
    assert reading(event, "x", ["x"]) == (None, None, None)
