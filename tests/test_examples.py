"""Variables by examples: against plain loops, scipy and scikit-learn; what needs labels is refused by name."""

import nets
import numpy as np
import pytest
import torch
from nets import UNEVEN, cut, feed, fingerprint, hooks, monitor_of, net_of_tanh, probe, random_streams, said
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_interp import (
    Concept,
    Confounder,
    Erasure,
    Suppression,
    edit,
    explain,
    to_records,
    zero_weight,
)  # fmt: skip
from lightning_interp.activations.pooling import Pooling
from lightning_interp.activations.select import select
from lightning_interp.batches import Inputs
from lightning_interp.errors import VariableError
from lightning_interp.events import Event
from lightning_interp.functional.entanglement import subspace_cosine
from lightning_interp.functional.probe import RIDGE
from lightning_interp.functional.sampling import content_key, uniform
from lightning_interp.functional.sensitivity import holm
from lightning_interp.passes import Caller, read_examples
from lightning_interp.penalties import (
    BalancedReweighting,
    ContributionPenalty,
    GradientPenalty,
    GroupDRO,
    IndependencePenalty,
    InvariancePenalty,
)  # fmt: skip

LAYERS = ["encoder.0", "encoder.1"]
MEASURES = ["contribution", "decodability", "groups", "sensitivity", "entanglement"]
NOTE = "'stripes' has examples, no labels: no contribution"


def sets(n=60, m=45, seed=0, apart=0.6):
    """Inputs that have stripes, more and noisier ones, and inputs that have not."""
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(k, 4, generator=generator, dtype=torch.float64) for k in (n, m))
    return 1.7 * one + apart * torch.tensor([1.0, 0, -1, 0.5], dtype=torch.float64), other


WITH, WITHOUT = sets()
SHOWN = ({"x": WITH}, {"x": WITHOUT})


class Items(Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i]}


def stripes(examples=SHOWN, kind=Confounder):
    return [Concept("moo"), Confounder("grass"), kind("stripes", examples=examples)]


def watched(model, which=None, times=1, say=NOTE, **options):
    """A monitor after so many events, the last of them and what was said."""
    monitor = monitor_of(model, stripes() if which is None else which, **{"layers": LAYERS, "measures": MEASURES, **options})
    with said(say) as texts:
        for step in range(times):
            feed(monitor, model, cut(probe(UNEVEN), 37))
            event = monitor.event(step)
    return monitor, event, texts


def caller_of(model):
    return Caller(model, Inputs("x"), None, Pooling("mean"), torch.no_grad)


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "examples",
    [
        SHOWN,
        [DataLoader(Items(WITH), 7, shuffle=True), Items(WITHOUT)],
        (lambda: SHOWN[0], lambda: DataLoader(Items(WITHOUT), 64)),
        ("nets:with_stripes", "nets:without_stripes"),
    ],
    ids=["batches", "loader and dataset", "functions", "paths"],
)
def test_the_direction_is_the_difference_of_mean_activations(examples):
    if examples[0] == "nets:with_stripes":
        one, other = nets.with_stripes()["x"], nets.without_stripes()["x"]
    else:
        one, other = WITH, WITHOUT
    model = net_of_tanh()
    found = read_examples(
        caller_of(model), select(model, LAYERS), Confounder("stripes", examples=examples), "binary", 4096, 0, True, {}
    )
    for layer in LAYERS:
        total = [torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)]
        for i, x in enumerate((one, other)):
            for row in x:  # one by one
                h = model.encoder[0](row)
                total[i] += (h if layer == "encoder.0" else model.encoder[1](h)).detach() / len(x)
        (direction,) = found.results[layer].directions["stripes"]
        torch.testing.assert_close(direction, total[0] - total[1], rtol=0, atol=1e-12)


def test_inputs_alone_serve_where_the_model_is_called_with_the_batch():
    model = net_of_tanh()
    for examples in ((WITH, WITHOUT), (TensorDataset(WITH), [WITHOUT])):
        caller = Caller(model, Inputs(None), None, Pooling("mean"), torch.no_grad)
        found = read_examples(
            caller, select(model, ["encoder.0"]), Confounder("s", examples=examples), "binary", 4096, 0, True, {}
        )
        expected = model.encoder[0](WITH).mean(0) - model.encoder[0](WITHOUT).mean(0)
        torch.testing.assert_close(found.results["encoder.0"].directions["s"][0], expected.detach())


def test_decodability_is_that_of_scikit_learns_ridge_on_the_other_half_of_the_examples():
    linear_model, metrics = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.metrics")
    model = net_of_tanh()
    _, event, _ = watched(model, seed=5)
    x = torch.cat([WITH, WITHOUT])
    h, y = model.encoder(x).detach(), np.r_[np.ones(len(WITH)), np.zeros(len(WITHOUT))]
    second = uniform(content_key(x), 5, 0) >= 0.5
    r2, area, recall = [], [], []
    for fit_on in (~second, second):
        a, b = fit_on.numpy(), ~fit_on.numpy()
        alpha = RIDGE * float(torch.cov(h[fit_on].T, correction=0).trace()) / h.shape[1] * int(a.sum())
        made = linear_model.Ridge(alpha=alpha).fit(h.numpy()[a], y[a])
        r2.append(made.score(h.numpy()[b], y[b]))
        read = made.predict(h.numpy()[b])
        area.append(metrics.roc_auc_score(y[b], read))
        middle = made.predict(np.stack([h.numpy()[a & (y == v)].mean(0) for v in (0, 1)])).mean()
        recall.append(metrics.balanced_accuracy_score(y[b], read > middle))
    found = event.decodability["encoder.1"]["stripes"]
    assert found.value == pytest.approx(np.mean(r2), abs=1e-9)
    assert found.auroc == pytest.approx(np.mean(area))
    assert found.accuracy == pytest.approx(np.mean(recall))
    assert found.selectivity == pytest.approx(found.value, abs=0.2)
    assert event.decodability["encoder.1"].keys() == {"moo", "grass", "stripes"}


def test_sensitivity_is_that_of_a_plain_loop_and_its_test_is_welchs():
    model, batch = net_of_tanh(), probe(UNEVEN)
    _, event, _ = watched(model)
    for layer, above in (("encoder.0", model.encoder[1:]), ("encoder.1", nn.Identity())):
        below = model.encoder[:1] if layer == "encoder.0" else model.encoder
        h, one, other = (below(x).detach() for x in (batch["x"], WITH, WITHOUT))
        direction = one.mean(0) - other.mean(0)
        gradients = []
        for row in h:
            row = row.clone().requires_grad_()
            (g,) = torch.autograd.grad((model.head(above(row)) * torch.tensor([-1.0, 1.0])).sum(), row)
            gradients.append(g)
        g = torch.stack(gradients)
        found = event.sensitivity[layer]["stripes"][""]
        assert found.value == pytest.approx(float(direction @ g.mean(0)))
        assert found.tcav == pytest.approx(float((g @ direction > 0).double().mean()))
        welch = stats.ttest_ind((one @ g.mean(0)).numpy(), (other @ g.mean(0)).numpy(), equal_var=False)
        assert found.z == pytest.approx(welch.statistic)
        assert (found.note is not None) == (layer == "encoder.1")  # where all gradients are equal


def p_value(z):
    """Two-sided, with the degrees of freedom of Bell & McCaffrey (2002) for two groups: Welch's for equal variances."""
    n = np.array([len(WITH), len(WITHOUT)])
    df = (1 / n).sum() ** 2 / (1 / (n**2 * (n - 1))).sum()
    return 2 * stats.t.sf(abs(z), df)


def test_holm_counts_the_variables_by_examples_as_well():
    model = net_of_tanh()
    one = sets(apart=0.0)
    _, event, _ = watched(model, stripes(({"x": one[0]}, {"x": one[1]})), layers=["encoder.1"])
    found = event.sensitivity["encoder.1"]
    _, plain, _ = watched(model, [Concept("moo"), Confounder("grass")], layers=["encoder.1"], say=None)
    least, most = sorted(("moo", "grass"), key=lambda name: plain.sensitivity["encoder.1"][name][""].p)
    raw = {"stripes": p_value(found["stripes"][""].z), most: plain.sensitivity["encoder.1"][most][""].p}
    raw[least] = plain.sensitivity["encoder.1"][least][""].p / 2  # of two, Holm leaves the larger
    adjusted = holm(torch.tensor(list(raw.values()), dtype=torch.float64)).tolist()
    assert {name: found[name][""].p for name in raw} == pytest.approx(dict(zip(raw, adjusted)), rel=1e-9)
    assert found["stripes"][""].p == pytest.approx(raw["stripes"])


def test_several_outputs_are_named_by_class():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    monitor = monitor_of(model, stripes(), layers=["1"], measures=["sensitivity"])
    with said(NOTE):
        feed(monitor, model, cut(probe(UNEVEN), 37))
        event = monitor.event(1)
    assert event.sensitivity["1"]["stripes"].keys() == {"0", "1", "2"}
    assert event.scalars()["sensitivity/1/stripes"] > 0


def test_drift_is_that_of_the_direction_since_the_last_event_also_after_a_resume():
    model = net_of_tanh()
    monitor, event, _ = watched(model)
    assert event.decodability["encoder.1"]["stripes"].drift is None
    before = (model.encoder(WITH).mean(0) - model.encoder(WITHOUT).mean(0)).detach()
    with torch.no_grad():
        model.encoder[0].weight.add_(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).double() * 0.5)
    now = (model.encoder(WITH).mean(0) - model.encoder(WITHOUT).mean(0)).detach()
    expected = 1 - abs(float(torch.nn.functional.cosine_similarity(before, now, dim=0)))
    resumed = monitor_of(model, stripes(), layers=LAYERS, measures=MEASURES)
    resumed.load_state_dict(monitor.state_dict())
    for one in (monitor, resumed):
        feed(one, model, cut(probe(UNEVEN), 37))
        assert one.event(2).decodability["encoder.1"]["stripes"].drift == pytest.approx(expected)
    assert expected > 1e-3


def test_entanglement_has_its_cosines_with_labelled_variables():
    model = net_of_tanh()
    monitor, event, _ = watched(model)
    found = event.entanglement["encoder.1"]
    known = monitor._directions["encoder.1"]
    assert found.pairs["moo"].keys() == {"grass", "stripes"}
    assert found.pairs["grass"]["stripes"] == pytest.approx(subspace_cosine(known["grass"], known["stripes"]))
    assert found.cosine == pytest.approx(np.mean([c for row in found.pairs.values() for c in row.values()]))
    _, plain, _ = watched(model, [Concept("moo"), Confounder("grass")], say=None)
    assert found.collateral == plain.entanglement["encoder.1"].collateral
    assert found.participation == plain.entanglement["encoder.1"].participation
    _, alone, _ = watched(model, [Concept("moo"), stripes()[2]])
    assert alone.entanglement["encoder.1"].pairs.keys() == {"moo"}
    assert alone.entanglement["encoder.1"].collateral == {}


def test_at_most_so_many_examples_of_a_set_are_used():
    model, layers = net_of_tanh(), ["encoder.1"]
    for examples in (SHOWN, (Items(WITH), DataLoader(Items(WITHOUT), 8))):
        found = read_examples(
            caller_of(model), select(model, layers), Confounder("stripes", examples=examples), "binary", 50, 0, True, {}
        )
        expected = model.encoder(WITH[:50]).mean(0) - model.encoder(WITHOUT).mean(0)
        torch.testing.assert_close(found.results["encoder.1"].directions["stripes"][0], expected.detach())
        assert found.eq.n == 95
        assert found.notes == ("'stripes': only the first 50 examples of a set are used",)


# --- what it takes no part in -----------------------------------------------------------------------------------------


def test_the_equation_is_that_without_it_and_the_event_says_so_once():
    model = net_of_tanh()
    _, event, texts = watched(model, times=2, measures=[*MEASURES, "mediation", "intervention"], target="moo")
    _, plain, _ = watched(
        model, [Concept("moo"), Confounder("grass")], 2, None, measures=[*MEASURES, "mediation", "intervention"], target="moo"
    )
    for field in ("effect", "contribution", "magnitude", "intercept", "groups", "coding", "mediation", "intervention", "probe"):
        assert getattr(event, field) == getattr(plain, field), field
    assert event.notes == (NOTE, *plain.notes)
    assert texts.count(NOTE) == 1
    measures = {r["measure"] for r in to_records([event]) if r["variable"] == "stripes" or r["by"] == "stripes"}
    assert measures == {
        "decodability", "selectivity", "decodability_accuracy", "decodability_auroc", "drift", "sensitivity", "tcav",
        "entanglement",
    }  # fmt: skip
    assert Event.from_dict(event.to_dict()) == event


def test_explain_takes_it_too():
    with said(NOTE):
        event = explain(net_of_tanh(), [probe(UNEVEN)], stripes(kind=Concept), LAYERS, inputs="x")
    assert event.decodability["encoder.0"]["stripes"].value is not None


def test_watching_leaves_no_trace():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)).double()
            self.head = nn.Linear(6, 2).double()

        def forward(self, x):
            return self.head(self.encoder(x))

    def drawn():
        torch.rand(3), np.random.rand(3)
        return {"x": WITH}

    model = Noisy()
    held, kept = fingerprint(model), WITHOUT.clone()
    examples = (drawn, DataLoader(Items(WITHOUT), 8, shuffle=True))
    monitor = monitor_of(model, stripes(examples), layers=["encoder.1"], measures=["decodability", "entanglement"])
    model.eval()
    feed(monitor, model, cut(probe(UNEVEN), 37))
    model.train()
    streams = random_streams()
    with said(NOTE):
        monitor.event(1)
    assert random_streams() == streams
    assert fingerprint(model) == held
    assert hooks(model) == 0
    assert torch.equal(WITHOUT, kept)
    assert (WITH < 0).any()  # the model's first layer writes to what it is given


def test_functions_are_called_once():
    calls = []

    def one():
        calls.append(1)
        return SHOWN[0]

    watched(net_of_tanh(), stripes((one, SHOWN[1])), times=3)
    assert calls == [1]


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"label": "x"}, "`examples` and `label` were both given"),
        ({"kind": "binary"}, "`examples` and `kind` were both given"),
        ({"intervention": nets.swap_grass}, "`examples` and `intervention` were both given"),
        ({"examples": (WITH,)}, r"`examples` of 'stripes' expects two sets, \(with, without\), got 1"),
        ({"examples": [WITH] * 3}, "expects two sets, .* got 3"),
        ({"examples": "nets:with_stripes"}, "expects two sets, .* got str"),
        ({"examples": WITH}, "expects two sets, .* got Tensor"),
        ({"examples": ("stripes", WITHOUT)}, "`examples` of 'stripes' expects 'pkg.mod:function', got 'stripes'"),
    ],
)
def test_what_is_no_pair_of_sets_is_refused(options, text):
    with pytest.raises(VariableError, match=text):
        Confounder("stripes", **{"examples": SHOWN, **options})


def test_a_path_that_leads_nowhere_names_the_nearest():
    with pytest.raises(ValueError, match=r"`examples of 'stripes'='nets:with_stripe'`.*Did you mean 'with_stripes'"):
        Confounder("stripes", examples=("nets:with_stripe", "nets:without_stripes"))


@pytest.mark.parametrize(
    ("examples", "text"),
    [
        ((lambda: None, WITHOUT), "`examples` of 'stripes' expects a batch, .* got None"),
        ((lambda: "x", WITHOUT), "expects a batch, .* got 'x'"),
        (({"x": WITH}, {"y": WITHOUT}), "`examples` of 'stripes': LabelError: `inputs='x'` is not in the batch"),
        (({"x": WITH[:, :3]}, {"x": WITHOUT}), "`examples` of 'stripes': RuntimeError"),
        (({"x": WITH[:4]}, {"x": WITHOUT}), "at least 5 finite examples in each set, got 4 with it and 45 without"),
        (({"x": WITH}, {"x": WITHOUT * torch.nan}), "at least 5 finite examples in each set, got 60 with it and 0 without"),
    ],
)
def test_examples_that_cannot_be_run_are_an_error_at_the_first_event(examples, text):
    model = net_of_tanh()
    monitor = monitor_of(model, stripes(examples), layers=LAYERS)
    feed(monitor, model, cut(probe(UNEVEN), 37))
    with pytest.raises(VariableError, match=text):
        monitor.event(1)


def test_examples_that_fail_later_are_withheld_with_a_note():
    batch = {"x": WITH}
    model = net_of_tanh()
    monitor, _, _ = watched(model, stripes((batch, SHOWN[1])))
    batch["x"] = batch.pop("x") * torch.nan
    feed(monitor, model, cut(probe(UNEVEN), 37))
    with said("'stripes' withheld: `examples` of 'stripes' expects at least 5 finite examples"):
        event = monitor.event(2)
    assert event.decodability["encoder.0"].keys() == {"moo", "grass"}
    assert event.effect.keys() == {"moo", "grass"}


def test_a_layer_that_the_examples_do_not_run_is_withheld_with_a_note():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = (nn.Linear(4, k).double() for k in (4, 4, 2))

        def forward(self, x):
            h = self.a(x)
            return self.head(self.b(h) if len(x) <= 40 else h)

    model = Branching()
    text = "layer 'b' withheld for 'stripes': it did not run for all of the examples"
    _, event, _ = watched(model, say=text, layers=["a", "b"], measures=["decodability"])
    assert event.decodability["a"].keys() == {"moo", "grass", "stripes"}
    assert event.decodability["b"].keys() == {"moo", "grass"}


@pytest.mark.parametrize(
    ("which", "options", "text"),
    [
        ([stripes()[2]], {"layers": LAYERS}, "`variables` expects at least one with labels; 'stripes' has `examples`"),
        (stripes(), {}, "`layers` is empty: 'stripes' has `examples`"),
        (stripes(), {"layers": LAYERS, "measures": ["contribution", "groups"]}, "add one of decodability, sensitivity, enta"),
    ],
)
def test_a_monitor_in_which_they_would_do_nothing_is_refused(which, options, text):
    with pytest.raises(VariableError, match=text):
        monitor_of(net_of_tanh(), which, **options)


NEEDS = "needs a value of 'stripes' for every sample; it has `examples`, no labels. Give it a `label`; .* decodability"


@pytest.mark.parametrize(
    "penalty",
    [ContributionPenalty, InvariancePenalty, IndependencePenalty, BalancedReweighting, GroupDRO],
)
def test_penalties_refuse_it(penalty):
    with pytest.raises(VariableError, match=f"`penalty={penalty.__name__}` {NEEDS}"):
        Suppression(net_of_tanh(), stripes()[2], [Concept("moo")], penalty(), target="moo", inputs="x")
    with pytest.raises(VariableError, match=NEEDS):
        Suppression(net_of_tanh(), Confounder("grass"), [stripes(kind=Concept)[2]], penalty(), target="moo", inputs="x")


def test_what_is_given_must_have_labels():
    with pytest.raises(VariableError, match=f"`penalty=GradientPenalty` {NEEDS}"):
        Suppression(net_of_tanh(), Confounder("grass"), [stripes(kind=Concept)[2]], GradientPenalty(), layer="encoder.0")


def test_erasure_and_surgery_refuse_it():
    model, v = net_of_tanh(), stripes()[2]
    with pytest.raises(VariableError, match=f"an erasure {NEEDS}"):
        Erasure(model, v, "encoder.0")
    with pytest.raises(VariableError, match=f"an edit {NEEDS}"):
        edit(model, "encoder.0", v, [probe()], inputs="x")
    with pytest.raises(VariableError, match=f"an edit {NEEDS}"):
        zero_weight(model, "head", Confounder("grass"), [probe()], [v], inputs="x")
    with pytest.raises(VariableError, match=NEEDS):
        v.read(probe())


def test_an_edit_takes_the_two_sets_as_a_labelled_probe_set():
    model = net_of_tanh()

    def difference():
        return float((model(WITH).mean(0) - model(WITHOUT).mean(0)).detach().norm())

    assert difference() > 0.5
    shown = [{"x": x, "stripes": torch.full((len(x),), value)} for x, value in ((WITH, 1), (WITHOUT, 0))]
    found = edit(model, "encoder.1", Confounder("stripes"), shown, inputs="x")
    assert found.eraser.rank == 1
    assert difference() < 1e-9  # before the linear head, all of it
    found.undo()
    assert difference() > 0.5


def test_a_variable_with_labels_has_no_example_sets():
    with pytest.raises(VariableError, match="variable 'grass' has no `examples`"):
        Confounder("grass").example_sets()
