"""`Suppression` in a plain PyTorch loop: the weights are those of the same penalty written into the loop by hand."""

import copy
import io
import re
import warnings

import pytest
import torch
from callbacks.boring import Animals, hooks, swap_grass
from torch import nn
from torch.nn import functional as F

from lightning_interp import Concept, Confounder, Suppression
from lightning_interp.errors import InterpError, InterpWarning, LabelError, LayerError, VariableError
from lightning_interp.penalties import (
    BalancedReweighting,
    ContributionPenalty,
    GradientPenalty,
    GroupDRO,
    IndependencePenalty,
    InvariancePenalty,
    Penalty,
    Sum,
    contribution_penalty,
)
from lightning_interp.penalties.contribution import halves, windowed_penalty

GRASS, MOO = Confounder("grass", intervention=swap_grass), Concept("moo")


class Hand:
    """The penalties for binary grass and moo, written as a user would; `forward` runs the network again."""

    def __init__(self, kind="contribution", weight=1.0, balance=True, rows=256, eta=0.01, adjustment=0.0, forward=None):
        self.kind, self.weight, self.rows, self.forward = kind, weight, rows, forward
        self.balance = balance and kind in ("contribution", "invariance")
        self.eta, self.adjustment = eta, adjustment
        self.counts, self.past, self.q, self.seen = {}, [], None, None
        self.terms = []

    def __call__(self, logits, batch, loss):
        with torch.autocast("cpu", enabled=False):
            return self.added(logits, batch, loss)

    def added(self, raw, batch, loss):
        keys = list(zip(batch["grass"].tolist(), batch["moo"].tolist()))
        for key in sorted(set(keys)):
            self.counts[key] = self.counts.get(key, 0) + keys.count(key)
        place = {key: i for i, key in enumerate(self.counts)}
        self.cell = torch.tensor([place[key] for key in keys])
        z = torch.stack([batch["grass"], batch["moo"]], dim=1).double() - 0.5
        logits = raw if raw.dtype == torch.float64 else raw.float()
        o = logits.double()
        margin = o[:, 1:] - o[:, :1]
        past = list(self.past)
        if len(z) < self.rows and self.kind == "contribution":
            self.past.append((margin.detach(), z, self.cell))
            while sum(len(p[1]) for p in self.past[1:]) >= self.rows - len(z):
                self.past.pop(0)
        if any(len({key[j] for key in self.counts}) < 2 for j in range(2)):
            return 0.0
        losses = F.cross_entropy(logits, batch["moo"], reduction="none")
        frequency = torch.tensor(list(self.counts.values()), dtype=torch.float64)
        frequency = frequency / frequency.sum()
        weights = (1 / (len(frequency) * frequency[self.cell])).to(losses.dtype)
        extra = (weights * losses).mean() - losses.mean()
        term = getattr(self, self.kind)(margin, z, losses, extra, batch, past)
        if term is None:
            return extra if self.balance else 0.0
        self.terms.append(float(term.detach()))
        if self.kind in ("reweighting", "dro"):
            return term
        if self.kind == "contribution":
            task = loss + extra if self.balance else loss
            (own,) = torch.autograd.grad(task, raw, retain_graph=True)
            (ours,) = torch.autograd.grad(self.weight * term, raw, retain_graph=True)
            scale = (own.double().norm() / ours.double().norm().clamp_min(1e-30)).clamp(max=1.0)
            term = scale * self.weight * term
        else:
            term = self.weight * term
        return term + extra if self.balance else term

    def full(self, cell):
        return bool((torch.bincount(cell, minlength=len(self.counts)) > 0).all())

    def contribution(self, margin, z, losses, extra, batch, past):
        if len(z) >= self.rows:
            second = halves(self.cell)
            if not (self.full(self.cell[second]) and self.full(self.cell[~second])):
                return None
            return contribution_penalty(margin, z, 1, second)
        if not past:
            return None
        before, before_z, before_cell = (torch.cat(part) for part in zip(*past))
        if not (self.full(self.cell) and self.full(before_cell)):
            return None
        return windowed_penalty(margin, z, 1, before, before_z)

    def reweighting(self, margin, z, losses, extra, batch, past):
        return extra

    def dro(self, margin, z, losses, extra, batch, past):
        k = len(self.counts)
        if self.q is None or len(self.q) != k:
            self.q = torch.full((k,), 1 / k)
            old = torch.zeros(0, dtype=torch.int64) if self.seen is None else self.seen
            self.seen = F.pad(old, (0, k - len(old)))
        count = torch.bincount(self.cell, minlength=k)
        self.seen = self.seen + count
        means = torch.zeros(k).index_add(0, self.cell, losses) / count.clamp_min(1)
        adjusted = torch.where(count > 0, means + self.adjustment / self.seen.clamp_min(1).float().sqrt(), 0 * means)
        q = self.q * torch.where(count > 0, (self.eta * adjusted.detach()).exp(), torch.ones(k))
        self.q = q / q.sum()
        return (self.q * means).sum() - losses.mean()

    def invariance(self, margin, z, losses, extra, batch, past):
        other = self.forward(swap_grass(batch)).float().double()
        return ((margin - (other[:, 1:] - other[:, :1])) ** 2).sum(1).mean()


def net(seed=0, *more):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2), *more)


def batches(n=192, size=32, epochs=3, seed=1):
    items = torch.utils.data.default_collate([Animals(n, seed)[i] for i in range(n)])
    g = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(n, generator=g)
        for rows in order.split(size):
            yield {k: v[rows] for k, v in items.items() if isinstance(v, torch.Tensor)}


def suppression(model, penalty=None, given=(MOO,), **options):
    options = {"inputs": "x", "target": "moo", **options}
    return Suppression(model, GRASS, given, penalty, **options)


def train(model, s=None, hand=None, **options):
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for batch in batches(**options):
        if s is None:
            logits = model(batch["x"])
            loss = F.cross_entropy(logits, batch["moo"])
            total = loss if hand is None else loss + hand(logits, batch, loss)
        else:
            with s.watching(batch):
                loss = F.cross_entropy(model(batch["x"]), batch["moo"])
            total = loss + s.penalty(loss)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


CASES = {
    "window": (lambda: ContributionPenalty(), {}, {}),
    "window, strong": (lambda: ContributionPenalty(), {}, {"weight": 30.0}),
    "window, no balance": (lambda: ContributionPenalty(), {}, {"balance": False, "weight": 0.1}),
    "short window": (lambda: ContributionPenalty(window_rows=70), {"rows": 70}, {}),
    "halves": (lambda: ContributionPenalty(window_rows=32), {"rows": 32}, {}),
    "halves, no balance": (lambda: ContributionPenalty(window_rows=32), {"rows": 32}, {"balance": False}),
    "reweighting": (BalancedReweighting, {"kind": "reweighting"}, {}),
    "dro": (lambda: GroupDRO(0.3), {"kind": "dro", "eta": 0.3}, {}),
    "dro, adjusted": (lambda: GroupDRO(0.3, 2.0), {"kind": "dro", "eta": 0.3, "adjustment": 2.0}, {}),
    "invariance": (InvariancePenalty, {"kind": "invariance"}, {"weight": 0.3}),
    "invariance, no balance": (InvariancePenalty, {"kind": "invariance"}, {"weight": 0.3, "balance": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_the_penalty_by_hand(case):
    penalty, hand_options, both = CASES[case]
    one, other, plain = net(), net(), net()
    s = suppression(one, penalty(), **both)
    hand = Hand(**hand_options, **both, forward=lambda batch: other(batch["x"]))
    found, wanted = train(one, s), train(other, hand=hand)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, train(plain))
    assert len(hand.terms) > 6
    assert s.last["penalty"] == pytest.approx(hand.terms[-1], rel=1e-9)
    assert hooks(one) == 0


def test_all_of_it_takes_the_confounder_out():
    model = net()
    options = {"n": 1024, "size": 256, "epochs": 60}
    train(model, suppression(model, weight=10.0), **options)
    plain = net()
    train(plain, **options)
    batch = next(batches(1024, 1024))

    def effect(m):
        change = (m(batch["x"]) - m(swap_grass(batch)["x"])).detach()
        return abs(float(((change[:, 1] - change[:, 0]) * (2 * batch["grass"] - 1)).mean()))

    assert effect(model) < 0.25 * effect(plain)


def test_weight_zero_without_balance_is_the_plain_run():
    one, other = net(), net()
    assert torch.equal(train(one, suppression(one, weight=0.0, balance=False)), train(other))


def test_factor_zero_adds_nothing():
    model = net()
    s = suppression(model)
    s.factor = 0.0
    other = net()
    assert torch.equal(train(model, s), train(other))


@pytest.mark.parametrize(("cap", "balance"), [(1.0, True), (1.0, False), (0.25, True)])
def test_the_cap_holds_the_gradient_at_the_output(cap, balance):
    model, factors = net(), []
    s = suppression(model, ContributionPenalty(window_rows=32), weight=100.0, cap=cap, balance=balance)
    for batch in batches():
        with s.watching(batch):
            loss = F.cross_entropy(model(batch["x"]), batch["moo"])
        (raw,) = s._watcher.step.outputs
        s.last = {}
        total = s.penalty(loss)
        if not s.last:
            continue
        task = loss
        if balance:
            keys = torch.stack([batch["grass"], batch["moo"]], dim=1)
            frequency = s.design.frequency
            cell = s.design.encode(keys.double(), s.design.factors()).cell
            losses = F.cross_entropy(raw, batch["moo"], reduction="none")
            extra = ((1 / (len(frequency) * frequency[cell])).float() * losses).mean() - losses.mean()
            task, total = loss + extra, total - extra
        own = torch.autograd.grad(task, raw, retain_graph=True)[0].norm()
        ours = torch.autograd.grad(total, raw, retain_graph=True)[0].norm()
        assert float(ours) <= cap * float(own) * (1 + 1e-4)
        factors.append(s.last["penalty_scale"])
    assert min(factors) < 0.5
    assert max(factors) <= 1


# --- where the output sits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [ContributionPenalty, InvariancePenalty])
def test_an_in_place_layer_after_the_output(penalty):
    kind = "contribution" if penalty is ContributionPenalty else "invariance"
    results = []
    for inplace in (True, False):
        model = net(0, nn.ReLU(inplace=inplace), nn.Linear(2, 2))
        results.append(train(model, suppression(model, penalty(), output="2")))
    assert torch.equal(*results)
    # and it is the penalty of what comes before the layer
    model = net(0, nn.ReLU(inplace=False), nn.Linear(2, 2))
    hand = Hand(kind, forward=lambda batch: model[:3](batch["x"]))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for batch in batches():
        logits = model[:3](batch["x"])
        loss = F.cross_entropy(model[3:](logits), batch["moo"])
        optimizer.zero_grad()
        (loss + hand(logits, batch, loss)).backward()
        optimizer.step()
    assert torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), results[0])


def test_hooks_are_gone_after_the_with_and_after_an_exception():
    model = net()
    s = suppression(model, output="2")
    batch = next(batches())
    with s.watching(batch):
        assert hooks(model) == 1
        model(batch["x"])
    assert hooks(model) == 0
    for problem in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(problem), s.watching(batch):
            raise problem
        assert hooks(model) == 0
    with pytest.raises(KeyError), suppression(model).watching(batch):
        raise KeyError
    assert hooks(model) == 0


def test_the_users_output_and_random_numbers_are_untouched():
    model = net(0, nn.Dropout(0.5), nn.Linear(2, 2))
    s = suppression(model, ContributionPenalty(window_rows=32))
    batch = next(batches())
    torch.manual_seed(5)
    plain = model(batch["x"])
    torch.manual_seed(5)
    with s.watching(batch):
        watched = model(batch["x"])
    s.penalty(F.cross_entropy(watched, batch["moo"]))
    after = torch.rand(1)
    torch.manual_seed(5)
    model(batch["x"])
    assert torch.equal(plain, watched)
    assert torch.equal(after, torch.rand(1))


def regression(model, batch):
    return F.mse_loss(model(batch["x"]), batch["x"][:, 2:4])


@pytest.mark.parametrize("penalty", [ContributionPenalty, InvariancePenalty])
def test_a_regression_on_two_outputs(penalty):
    model, batch = net(), next(batches(size=64))
    s = suppression(
        model, penalty(*([] if penalty is InvariancePenalty else [32])), balance=False, target=lambda b: b["x"][:, 2:4]
    )
    with s.watching(batch):
        loss = regression(model, batch)
    found = s.penalty(loss)
    if penalty is InvariancePenalty:
        with torch.no_grad():
            wanted = ((model(batch["x"]) - model(swap_grass(batch)["x"])).double() ** 2).sum(1).mean()
        assert float(found.detach()) == pytest.approx(float(wanted), rel=1e-5)
    assert s.last["penalty"] != 0


# --- what goes wrong --------------------------------------------------------------------------------------------------


class Broken(Penalty):
    """NaN at every step but the first."""

    def __init__(self):
        self.calls = 0

    def __call__(self, step):
        self.calls += 1
        return step.output.mean() * (1.0 if self.calls == 1 else float("nan"))


@pytest.mark.parametrize("balance", [False, True])
def test_a_penalty_that_is_not_finite_is_dropped_counted_and_said_once(balance):
    model = net()
    s = suppression(model, Broken(), balance=balance)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = train(model, s)
    assert bool(torch.isfinite(found).all())
    assert [w.category for w in seen if "not finite" in str(w.message)] == [InterpWarning]
    assert s.skipped == 17


@pytest.mark.parametrize("balance", [False, True])
def test_a_batch_of_one_cell_is_skipped_and_counted(balance):
    model = net()
    s = suppression(model, ContributionPenalty(window_rows=8), balance=balance)
    everything = next(batches(size=192))
    one = {k: v[(everything["moo"] == 1) & (everything["grass"] == 1)] for k, v in everything.items()}

    def penalty(batch):
        with s.watching(batch):
            loss = F.cross_entropy(model(batch["x"]), batch["moo"])
        return s.penalty(loss)

    assert float(penalty(one)) == 0
    assert s.skipped == 1
    assert float(penalty(everything).detach()) != 0
    assert s.skipped == 1
    left = penalty(one)
    assert s.skipped == 2
    if not balance:
        assert float(left) == 0


def test_an_output_that_did_not_run_is_said():
    model = nn.ModuleDict({"a": net(), "b": net()})
    s = suppression(model, output="b")
    batch = next(batches())
    with s.watching(batch):
        loss = F.cross_entropy(model["a"](batch["x"]), batch["moo"])
    with pytest.warns(InterpWarning, match="the output 'b' did not run in the step"):
        assert float(s.penalty(loss)) == 0
    assert s.skipped == 1


def test_an_output_without_gradient_is_said():
    model = net()
    s = suppression(model)
    batch = next(batches())
    with s.watching(batch), torch.no_grad():
        model(batch["x"])
    with pytest.warns(InterpWarning, match="the output 'forward' carries no gradient"):
        assert float(s.penalty()) == 0


def test_a_loss_that_does_not_depend_on_the_output_is_said():
    model, other = net(), net(1)
    s = suppression(model, ContributionPenalty(window_rows=32), balance=False)
    batch = next(batches())
    with s.watching(batch):
        model(batch["x"])
        loss = F.cross_entropy(other(batch["x"]), batch["moo"])
    assert not s.depends(loss)
    with pytest.warns(InterpWarning, match="the loss does not depend on the output"):
        s.penalty(loss)
    assert s.last["penalty_scale"] == 1


def test_a_loss_without_a_graph_is_not_an_error():
    model = net()
    s = suppression(model, ContributionPenalty(window_rows=32), balance=False)
    batch = next(batches())
    with s.watching(batch):
        loss = F.cross_entropy(model(batch["x"]), batch["moo"]).detach()
    with pytest.warns(InterpWarning, match="the loss does not depend on the output"):
        s.penalty(loss)


def test_outputs_that_are_not_finite_do_not_stay_in_the_window():
    model = net()
    s = suppression(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpWarning)
        for i, batch in enumerate(batches()):
            with s.watching(batch):
                loss = F.cross_entropy(model(batch["x"]) * (float("nan") if i == 4 else 1), batch["moo"])
                if i == 4:
                    outputs = s._watcher.step.outputs
                    outputs[:] = [r * float("nan") for r in outputs]
            s.penalty(loss)
            assert bool(s.last) == (i not in (0, 4))


def test_labels_that_are_not_finite_or_do_not_fit_are_skipped():
    model = net()
    s = suppression(model)
    batch = next(batches())
    with s.watching(batch):
        model(batch["x"][:20])
    with pytest.warns(InterpWarning, match="labels and outputs do not agree"):
        assert float(s.penalty()) == 0
    odd = {**batch, "grass": torch.where(torch.arange(32) == 3, torch.nan, batch["grass"].float())}
    with s.watching(odd):
        model(odd["x"])
    with pytest.warns(InterpWarning, match="labels that are not finite"):
        assert float(s.penalty()) == 0
    assert s.skipped == 2
    assert s.design.cells == 0


@pytest.mark.parametrize("penalty", [InvariancePenalty])
def test_an_output_that_the_second_pass_leaves_out_is_said(penalty):
    model = net()
    s = suppression(model, penalty(), output="2", inputs=lambda m, b: m[0](b["x"]))
    batch = next(batches())
    with s.watching(batch):
        loss = F.cross_entropy(model(batch["x"]), batch["moo"])
    with pytest.raises(InterpError, match="the output '2' did not run"):
        s.penalty(loss)


@pytest.mark.parametrize(("penalty", "layer"), [(InvariancePenalty, None), (GradientPenalty, "0")])
def test_a_second_pass_that_cannot_call_the_model_is_said(penalty, layer):
    model = net()
    s = suppression(model, penalty(), inputs=None, layer=layer)
    batch = next(batches())
    with s.watching(batch):
        loss = F.cross_entropy(model(batch["x"]), batch["moo"])
    with pytest.raises(InterpError, match=r"`inputs` expects what the model is called with.*Sequential.*a dict: TypeError"):
        s.penalty(loss)


def test_a_later_call_without_gradients_does_not_hide_the_output():
    one, other = net(), net()
    s, hand = suppression(one), Hand()
    for batch in batches(epochs=1):
        with s.watching(batch):
            loss = F.cross_entropy(one(batch["x"]), batch["moo"])
            with torch.no_grad():
                one(batch["x"])  # for an accuracy, say
        logits = other(batch["x"])
        wanted = F.cross_entropy(logits, batch["moo"])
        assert torch.equal(loss + s.penalty(loss), wanted + hand(logits, batch, wanted))
    assert s.skipped == 1


def test_an_output_that_is_detached_is_trained_by_the_penalty_alone():
    model = net()
    s = suppression(model, ContributionPenalty(window_rows=32), balance=False)
    batch = next(batches())
    with s.watching(batch):
        loss = F.cross_entropy(model(batch["x"]).detach(), batch["moo"])
    with pytest.warns(InterpWarning, match="the loss does not depend on the output: the penalty is not capped"):
        s.penalty(loss).backward()
    assert model[0].weight.grad.any()


@pytest.mark.parametrize("penalty", [BalancedReweighting, GroupDRO])
def test_a_penalty_that_needs_a_target_says_so(penalty):
    model = net()
    s = suppression(model, penalty(), target=None)
    with pytest.warns(InterpWarning, match="target"):
        train(model, s)


def test_no_balance_without_a_target_is_said():
    model = net()
    s = suppression(model, target=None)
    with pytest.warns(InterpWarning, match="target"):
        train(model, s)


def test_another_loss_than_loss_fn_is_said():
    model = net()
    s = suppression(model, GroupDRO())
    batch = next(batches())
    with s.watching(batch):
        loss = F.cross_entropy(model(batch["x"]), batch["moo"], label_smoothing=0.2)
    with pytest.warns(InterpWarning, match=f"{float(loss.detach()):.3g}"):
        s.penalty(loss)


def test_a_binary_variable_with_three_values_is_named():
    s = Suppression(net(), Confounder("grass", kind="binary"), [MOO], inputs="x", target="moo")
    batch = next(batches())
    batch["grass"] = torch.arange(32) % 3
    with s.watching(batch):
        loss = F.cross_entropy(s.model(batch["x"]), batch["moo"])
    with pytest.raises(VariableError, match="variable 'grass': `kind='binary'` expects two values"):
        s.penalty(loss)


def test_text_labels_are_categorical():
    # A name's raw value is a hash: it must not make the variable continuous.
    s = Suppression(net(), Confounder("place"), [MOO], inputs="x", target="moo")
    batch = next(batches())
    batch["place"] = [("meadow", "stable", "sea")[i % 3] for i in range(32)]
    with s.watching(batch):
        loss = F.cross_entropy(s.model(batch["x"]), batch["moo"])
    s.penalty(loss)
    assert [f.kind for f in s.design.factors()] == ["categorical", "binary"]


@pytest.mark.parametrize(
    ("options", "problem", "text"),
    [
        ({"weight": -1.0}, InterpError, "`weight` expects 0 or more, got -1.0"),
        ({"weight": float("nan")}, InterpError, "`weight` expects 0 or more, got nan"),
        ({"cap": 0.0}, InterpError, "`cap` expects over 0, got 0.0"),
        ({"penalty": IndependencePenalty()}, InterpError, "`penalty=IndependencePenalty` needs a `layer`"),
        ({"penalty": GradientPenalty()}, InterpError, "`penalty=GradientPenalty` needs a `layer`"),
        ({"penalty": GradientPenalty(), "layer": "0", "pooling": torch.flatten}, InterpError, "`pooling` expects a name with"),
        ({"penalty": GradientPenalty(), "layer": "7"}, LayerError, "`layer='7'` is no submodule of Sequential"),
        (
            {"layer": "0"},
            InterpError,
            "`layer='0'` has no meaning with `penalty=ContributionPenalty`, which acts on the output",
        ),
        ({"weight": 1.0, "budget": 0.1}, InterpError, "`weight` and `budget` were both given .1.0 and 0.1.; give one"),
        ({"weight": 2.0, "penalty": GroupDRO()}, InterpError, "`weight` does not go with `penalty=GroupDRO`"),
        ({"budget": 0.1, "penalty": GroupDRO()}, InterpError, "`budget` does not go with `penalty=GroupDRO`"),
        ({"budget": 0.0}, InterpError, "`budget` expects a number between 0 and 1, both excluded, got 0.0"),
        ({"budget": 1.0}, InterpError, "`budget` expects a number between 0 and 1, both excluded, got 1.0"),
        ({"budget": float("nan")}, InterpError, "`budget` expects a number between 0 and 1"),
        ({"budget": 0.1, "budget_on": "ratios"}, InterpError, "`budget_on='ratios'` is none of .*Did you mean 'ratio'"),
        ({"budget_on": "ratios"}, InterpError, "`budget_on='ratios'` is none of .*Did you mean 'ratio'"),
        ({"budget": 0.1, "budget_on": "ratio", "given": []}, InterpError, "compares with the concepts: name them in `given`"),
        ({"only_above": 0.0}, InterpError, "`only_above` expects a share between 0 and 1, got 0.0"),
        ({"only_above": 1.5}, InterpError, "`only_above` expects a share between 0 and 1, got 1.5"),
        ({"output": "3"}, LayerError, "'3'"),
        (
            {"confounder": MOO, "given": [GRASS], "penalty": InvariancePenalty()},
            VariableError,
            "needs an `intervention` of 'moo'",
        ),
        ({"given": [GRASS]}, VariableError, "grass"),
        ({"loss_fn": "callbacks.boring:swap_gras"}, InterpError, "swap_grass"),
    ],
    ids=lambda case: re.sub(r" at 0x\w+", "", str(case)),  # the same in every process
)
def test_bad_arguments_are_named(options, problem, text):
    options = {"model": net(), "confounder": GRASS, "given": [MOO], **options}
    with pytest.raises(problem, match=text):
        Suppression(**options)


def test_an_unknown_output_names_the_nearest():
    model = nn.ModuleDict({"encoder": net(), "head": net()})
    with pytest.raises(LayerError, match="Did you mean 'head'"):
        suppression(model, output="haed")


def test_no_model_and_no_label_are_named():
    s = suppression(None)
    with pytest.raises(InterpError, match=r"call `bind\(model\)`"), s.watching({}):
        pass
    s.bind(net())
    batch = next(batches())
    del batch["grass"]

    def penalty():
        with s.watching(batch):
            s.model(batch["x"])
        return s.penalty()

    with pytest.raises(LabelError, match="grass"):
        penalty()


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["window", "halves", "dro, adjusted", "reweighting"])
def test_state_goes_through_a_checkpoint(case):
    penalty, _, options = CASES[case]
    model = net()
    s = suppression(model, penalty(), **options)
    train(model, s, epochs=1)
    file = io.BytesIO()
    torch.save(s.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(model)
    again = suppression(other, penalty(), **options)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(train(model, s, seed=5), train(other, again, seed=5))
    assert again.skipped == s.skipped


def test_a_label_that_is_missing_once_training_runs_costs_that_batch_its_penalty_and_no_more():
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    batch = {"x": torch.randn(300, 3), "moo": torch.arange(300) % 2, "grass": torch.arange(300) // 2 % 2}
    s = Suppression(net, GRASS, [MOO], target="moo")
    for broken in (False, True):
        seen = {k: v for k, v in batch.items() if not (broken and k == "grass")}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with s.watching(seen):
                loss = F.cross_entropy(net(seen["x"]), seen["moo"])
            term = s.penalty(loss).detach()
        assert (float(term) == 0) == broken
        assert s.skipped == broken
        assert any("a batch has no penalty: `label of 'grass'" in str(w.message) for w in caught) == broken


def test_a_label_that_is_missing_from_the_start_is_an_error():
    s = Suppression(nn.Linear(3, 2), Confounder("gras"), [MOO], target="moo")
    with pytest.raises(LabelError, match="Did you mean 'grass'"), s.watching({"grass": torch.zeros(4), "moo": torch.zeros(4)}):
        pass


@pytest.mark.parametrize("make", [ContributionPenalty, lambda: Sum([ContributionPenalty()])])
def test_a_confounder_that_is_a_function_of_what_is_given_is_named_and_left_alone(make):
    model = net()
    s = suppression(model, make(), balance=False)
    batch = {**next(batches(n=600, size=600)), "grass": torch.arange(600) % 2, "moo": 1 - torch.arange(600) % 2}
    with s.watching(batch):
        loss = F.cross_entropy(model(batch["x"]), batch["moo"])
    with pytest.warns(InterpWarning, match=r"no sample in 600 tells 'grass' from what is given \('moo'\)"):
        assert not s.penalty(loss).requires_grad
    with s.watching(batch):
        loss = F.cross_entropy(model(batch["x"]), batch["moo"])
    assert not s.penalty(loss).requires_grad  # said once
    assert s.skipped == 2
    told = {**batch, "grass": torch.arange(600) % 2 ^ (torch.arange(600) % 20 < 2).long()}  # counter-examples in all cells
    with s.watching(told):
        loss = F.cross_entropy(model(told["x"]), told["moo"])
    assert s.penalty(loss).requires_grad
