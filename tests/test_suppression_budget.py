"""`Suppression` by budget in a plain loop: the share falls under the limit, and the held-out form of the penalty does it."""

import io
import warnings

import pytest
import torch
from callbacks.boring import swap_grass
from nets import said
from torch import nn
from torch.nn import functional as F

from lightning_interp import Concept, Confounder, Monitor, Suppression
from lightning_interp.errors import InterpWarning
from lightning_interp.events import Event
from lightning_interp.functional.direction import told_apart
from lightning_interp.penalties import (
    ContributionPenalty,
    GradientPenalty,
    IndependencePenalty,
    InvariancePenalty,
    Step,
)
from lightning_interp.penalties.contribution import coefficients, halves
from lightning_interp.results import Effect, Groups, Share
from lightning_interp.running_pattern import RunningPattern

GRASS, MOO = Confounder("grass", intervention=swap_grass), Concept("moo")


def animals(n, agree, seed, noise=0):
    """Column 0 says moo, faintly, column 1 grass, clearly; `noise` more columns tell samples apart."""
    g = torch.Generator().manual_seed(seed)
    moo = torch.randint(2, (n,), generator=g)
    grass = torch.where(torch.rand(n, generator=g) < agree, moo, 1 - moo)
    x = torch.randn(n, 6 + noise, generator=g)
    x[:, 0] += 2 * moo - 1
    x[:, 1] = 2.0 * grass - 1
    return {"x": x, "moo": moo, "grass": grass}


def net(inputs=6, hidden=16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, 2))


def train(model, s, events=15, n=512, size=128, lr=0.01, agree=0.9, noise=0, held_out=True):
    """Rounds of training, a measurement after each; the shares of the grass and the multipliers."""
    data, probe = animals(n, agree, 1, noise), animals(1024, 0.5, 2, noise)
    watcher = Monitor(model, [MOO, GRASS], target="moo", inputs="x", warn_above=float("inf"))
    optimizer = torch.optim.Adam(model.parameters(), lr)
    order = torch.Generator().manual_seed(3)
    shares, multipliers = [], []
    for step in range(events):
        for rows in torch.randperm(n, generator=order).split(size):
            batch = {k: v[rows] for k, v in data.items()}
            with s.watching(batch):
                loss = F.cross_entropy(model(batch["x"]), batch["moo"])
            loss = loss + s.penalty(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        watcher.run([probe])
        event = watcher.event(step)
        s.observe(event if held_out else Event.from_dict({**event.to_dict(), "coding": {}}))
        shares.append(event.contribution["grass"].debiased)
        multipliers.append(s.budget.multiplier if s.budget else s.weight)
    return shares, multipliers


def suppression(model, penalty=None, **options):
    options = {"inputs": "x", "target": "moo", **options}
    return Suppression(model, GRASS, [MOO], penalty, **options)


# --- every penalty ----------------------------------------------------------------------------------------------------

PENALTIES = {
    "contribution": (ContributionPenalty, {}),
    "invariance": (InvariancePenalty, {}),
    "correlation": (IndependencePenalty, {"layer": "1"}),
    "hsic": (lambda: IndependencePenalty("hsic"), {"layer": "1"}),
    "gradient": (GradientPenalty, {"layer": "1"}),
}


@pytest.mark.parametrize(("on", "limit"), [("share", 0.05), ("ratio", 0.2)])
@pytest.mark.parametrize("name", PENALTIES)
def test_the_multiplier_moves_and_the_share_falls(name, on, limit):
    penalty, options = PENALTIES[name]
    model, plain = net(), net()
    s = suppression(model, penalty(), budget=limit, budget_on=on, balance=False, **options)
    shares, multipliers = train(model, s, events=10)
    without, _ = train(plain, suppression(plain, weight=0.0, balance=False), events=10)
    assert without[-1] > 0.4
    assert len(set(multipliers)) > 5
    assert shares[-1] < 0.1 * without[-1]
    # an intervention takes it out at once, and the multiplier goes down to what is needed
    assert (multipliers[-1] > 1) == (name != "invariance")


# --- the held-out form ------------------------------------------------------------------------------------------------


def step(n=256, c=3, aim=None, window=None):
    g = torch.Generator().manual_seed(0)
    output = torch.randn(n, c, generator=g, dtype=torch.float64, requires_grad=True)
    z = torch.randint(2, (n, 3), generator=g).double() - 0.5
    return Step(output, z, 2, torch.zeros(n, dtype=torch.int64), 1, torch.ones(1), window, None, None, aim=aim)


AIM = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_with_an_aim_it_is_the_product_of_what_two_halves_lack_of_it():
    s = step(aim=AIM)
    second = halves(s.cell)
    a, b = (coefficients(s.output[rows], s.z[rows], 2, 0.0) for rows in (~second, second))
    term = ContributionPenalty(ridge=0.0)(s)
    assert float(term.detach()) == pytest.approx(float(((a - AIM) * (b - AIM)).sum().detach()), rel=1e-9)


def test_with_an_aim_small_batches_are_crossed_with_the_window_in_the_same_way():
    before = step(c=3)
    s = step(n=64, aim=AIM, window=(before.output.detach(), before.z, before.cell))
    now, past = coefficients(s.output, s.z, 2, 0.0), coefficients(before.output.detach(), before.z, 2, 0.0)
    term = ContributionPenalty(ridge=0.0)(s)
    assert float(term.detach()) == pytest.approx(float(((now - AIM) * (past - AIM)).sum().detach()), rel=1e-9)
    (found,) = torch.autograd.grad(term, s.output)
    (wanted,) = torch.autograd.grad((2 * now * (past - AIM)).sum(), s.output)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_columns_that_go_with_the_others_are_not_told_apart():
    z = step().z
    together, constant, given = z.clone(), z.clone(), z.clone()
    together[:, 1] = together[:, 2]
    constant[:, 0] = 0.5
    given[:, 2] = 0.5  # only a given variable shows one value: the confounder's columns are still their own
    for columns, wanted in ((z, True), (together, False), (constant, False), (given, True)):
        x = torch.cat([columns, torch.ones(len(z), 1)], dim=1)
        assert told_apart(x.T @ x, 2) == wanted


def memorised(held_out):
    """Few samples go against the rule, all have many columns to know them by, and the net learns them by heart.

    Returns:
        Shares on other samples, the accuracy in training, and the coefficient in training.
    """
    model = net(66, 64)
    s = suppression(model, ContributionPenalty(64), budget=0.05, balance=False)
    shares, _ = train(model, s, events=30, n=192, size=96, noise=60, held_out=held_out)
    data = animals(192, 0.9, 1, 60)
    output = model(data["x"]).double().detach()
    z = torch.stack([data["grass"], data["moo"]], dim=1).double() - 0.5
    right = (output.argmax(1) == data["moo"]).double().mean()
    return shares, float(right), float(coefficients(output[:, 1:] - output[:, :1], z, 1))


def test_held_out_data_sees_what_memorised_counter_examples_hide():
    """The coefficient in training is near zero where the net knows every counter-example; on other samples it is not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpWarning)  # that it cannot be held
        (held_out, known, _), (halves, known_too, coefficient) = memorised(True), memorised(False)
    assert known == known_too == 1
    assert abs(coefficient) < 1
    assert halves[-1] > 0.2 > halves[0]
    assert held_out[-1] < 0.5 * halves[-1]


# --- what it observes -------------------------------------------------------------------------------------------------


def event(share, step=1, mode="val", moo=0.4, **options):
    return Event(
        step, 0, 100, "balanced", mode, "binary",
        contribution={"moo": Share(moo, moo), "grass": Share(share, share)},
        effect={"moo": Effect(2.0), "grass": Effect(1.5)}, magnitude={"moo": 2.0, "grass": 1.5},
        groups=Groups({"a": 1.0}, {"a": 3}, "a", 1.0, 0.0),
        coding={"grass": {"kind": "binary", "levels": ["0", "1"], "values": [0.0, 1.0], "center": 0.0, "scale": 1.0}},
        **options,
    )  # fmt: skip


def act(s):
    """One step with the penalty in force."""
    batch = animals(64, 0.5, 3)
    with s.watching(batch):
        loss = F.cross_entropy(s.model(batch["x"]), batch["moo"])
    return s.penalty(loss)


def test_a_measurement_counts_only_while_the_penalty_is_in_force():
    s = suppression(net(), budget=0.1)
    for _ in range(3):
        s.observe(event(0.5))
    assert s.budget.multiplier == 1
    assert s.before == s.measured
    act(s)
    s.observe(event(0.5, 2))
    moved = s.budget.multiplier
    assert moved > 1
    s.observe(event(0.5, 3))
    assert s.budget.multiplier == moved
    assert (s.before.step, s.measured.step) == (1, 3)
    s.factor = 0.0
    act(s)
    s.observe(event(0.5, 4))
    assert s.budget.multiplier == moved


def test_only_above_before_and_after_the_first_measurement():
    s = suppression(net(), only_above=0.2, weight=3.0)
    assert s.weight == 3
    with pytest.warns(InterpWarning, match="`only_above` finds nothing"):
        s.observe(event(None))  # withheld: still not known
    assert s.weight == 3
    for share, weight in ((0.1, 0.0), (0.2, 0.0), (0.21, 3.0), (None, 3.0), (0.0, 0.0), (None, 0.0)):
        s.observe(event(share))
        assert s.weight == weight
    assert float(act(s)) == 0
    assert s.last == {"penalty_weight": 0.0}


@pytest.mark.parametrize(("mode", "known"), [("val", True), ("probe", True), ("train", False)])
def test_the_aim_is_by_what_data_that_is_not_trained_on_shows(mode, known):
    seen = []

    class Look(ContributionPenalty):
        def __call__(self, step):
            seen.append((step.aim, step.output.detach(), step.z))
            return super().__call__(step)

    for options in ({"budget": 0.1}, {"weight": 1.0}):
        s = suppression(net(), Look(), **options)
        act(s)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InterpWarning)
            s.observe(event(0.5, mode=mode))
        act(s)
        assert seen[-2][0] is None
        if known and s.budget:  # what was seen in training up to the measurement, less what was measured
            _, output, z = seen[-2]
            assert float(seen[-1][0]) == pytest.approx(float(coefficients(output, z, 1, 1e-6)) - 1.5, rel=1e-9)
        else:
            assert seen[-1][0] is None


def test_what_is_withheld_is_said_once():
    s = suppression(net(), budget=0.1)
    with said("`budget` finds nothing in the event at step 7: it has no share of 'grass'") as texts:
        s.observe(event(None, 7))
        s.observe(event(None, 8))
    assert len(texts) == 1
    with said("`only_above` finds nothing in the event at step 7: constant"):
        t = suppression(net(), only_above=0.1)
        t.observe(Event(7, 0, 9, "natural", "val", "binary", contribution={"grass": Share(None, note="constant")}))
    assert s.measured is None or s.measured.step == 8


def test_a_task_gradient_that_is_not_finite_does_not_stay():
    s = suppression(net(), ContributionPenalty(32), budget=0.1)
    act(s)
    batch = animals(64, 0.5, 3)
    with s.watching(batch):
        loss = F.cross_entropy(s.model(batch["x"]), batch["moo"])
    s.penalty(loss * float("nan"))
    assert bool(torch.isfinite(act(s)))
    assert bool(torch.isfinite(s._cap.reference))


def test_state_goes_through_a_checkpoint():
    s = suppression(net(), budget=0.1, only_above=0.05)
    s.observe(event(0.5, 0))
    act(s)
    s.observe(event(0.4, 1))
    act(s)
    file = io.BytesIO()
    torch.save(s.state_dict(), file)
    file.seek(0)
    again = suppression(s.model, budget=0.1, only_above=0.05)
    again.load_state_dict(torch.load(file, weights_only=True))
    for one in (s, again):
        one.observe(event(0.3, 2))
    assert again.certificate() == s.certificate()
    assert again.budget.state_dict() == s.budget.state_dict()
    assert again.weight == s.weight


# --- RunningPattern ---------------------------------------------------------------------------------------------------


def columns(n, g, width=2):
    z = torch.randint(2, (n, width + 1), generator=g).double() - 0.5
    return z, z @ torch.randn(width + 1, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_running_pattern_is_a_regression_with_weights_that_fade(momentum):
    g = torch.Generator().manual_seed(0)
    found = RunningPattern(momentum)
    assert found.directions(2) is None
    seen = []
    for n in (40, 30, 60, 50):
        z, h = columns(n, g)
        h = h + torch.randn(n, 5, generator=g, dtype=torch.float64)
        found.observe(h, z)
        seen.append((z, h, n))
    rows, wanted = [], []
    for i, (z, h, n) in enumerate(seen):  # of each batch: its share of the moments, over its samples
        weight = momentum ** (len(seen) - 1 - i) * (1.0 if i == 0 else 1 - momentum) / n
        rows.append(weight**0.5 * torch.cat([z, torch.ones(n, 1)], 1))
        wanted.append(weight**0.5 * h)
    solution = torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted)).solution[:2]
    assert torch.allclose(found.directions(2), solution, rtol=1e-4, atol=1e-4)


def test_the_running_pattern_begins_again_with_a_new_level_and_knows_what_goes_together():
    g = torch.Generator().manual_seed(0)
    found = RunningPattern(0.9)
    for _ in range(5):
        z, h = columns(50, g)
        found.observe(h, z)
    wide, _ = columns(50, g, 3)
    h = wide @ torch.eye(4, 5, dtype=torch.float64)
    found.observe(h, wide)
    assert torch.allclose(found.directions(3), torch.eye(3, 5, dtype=torch.float64), atol=1e-4)
    alone = RunningPattern(0.9)
    z, h = columns(50, g)
    z[:, 1] = z[:, 2]
    alone.observe(h, z)
    assert alone.directions(2) is None
    z, h = columns(50, g)
    alone.observe(h, z)  # now they differ
    assert alone.directions(2) is not None
    again = RunningPattern(0.9)
    again.load_state_dict(alone.state_dict())
    assert torch.equal(again.directions(2), alone.directions(2))


def test_with_an_aim_rows_need_not_be_in_every_cell_but_must_tell_the_confounder_from_the_rest():
    moo = torch.arange(256) % 2
    for counter, usable in (([], False), ([0, 1, 2, 4], True)):  # all on one side: one cell of four stays empty
        grass = moo.clone()
        grass[counter] = 1 - grass[counter]
        z = torch.stack([grass, moo], dim=1).double() - 0.5
        cell = (2 * grass + moo).unique(return_inverse=True)[1]
        output = torch.randn(256, 1, dtype=torch.float64, requires_grad=True)
        for aim in (None, torch.zeros(1, 1, dtype=torch.float64)):
            term = ContributionPenalty()(Step(output, z, 1, cell, 4, torch.ones(4) / 4, None, None, None, aim=aim))
            assert (term is not None) == (usable and aim is not None)
