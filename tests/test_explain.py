"""`explain`: the same Event as a Monitor's, from any kind of data, and the model none the wiser."""

import math

import nets
import pytest
import torch
from nets import UNEVEN, Equation, cut, monitor_of, probe, said, variables
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

from lightning_interp import Concept, Confounder, explain
from lightning_interp.errors import InterpError, LayerError, ProbeSetError, VariableError
from lightning_interp.loaders import probe_loader

COEFFICIENTS = [[2.0, -1.0, 0.5, 0.7]]
ALL = ("contribution", "decodability", "groups", "sensitivity", "intervention")
OPTIONS = {"layers": ["encoder.0"], "inputs": "x", "target": "moo"}


class Rows(Dataset):
    """A probe set sample by sample."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return len(self.batch["x"])

    def __getitem__(self, i):
        return {k: v[i] for k, v in self.batch.items()}


class Stream(IterableDataset):
    """The same without a length."""

    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        rows = Rows(self.batch)
        return (rows[i] for i in range(len(rows)))


def close(a, b):
    """Events equal to rounding, but for the time they took."""
    from test_monitor import assert_close, plain

    assert_close(plain(a), plain(b))


def truth(batch, **options):
    model = Equation(COEFFICIENTS)
    monitor = monitor_of(model, **{**OPTIONS, **options})
    nets.feed(monitor, model, [batch])
    return monitor.event(0)


@pytest.mark.parametrize("measures", [("contribution", "decodability", "groups"), ALL])
def test_explain_equals_a_monitor_on_the_same_batches(measures):
    batch = probe(UNEVEN)
    which = [Concept("moo"), Confounder("grass", intervention="nets:swap_grass")]
    model = Equation(COEFFICIENTS)
    monitor = monitor_of(model, which, measures=measures, **OPTIONS)
    nets.feed(monitor, model, cut(batch, 37))
    event = explain(model, list(cut(batch, 37)), which, measures=measures, **OPTIONS)
    close(event, monitor.event(0))
    assert event.effect["grass"].value == pytest.approx(0.5, rel=1e-9) or event.weights == "balanced"
    assert event.mode == "probe"


def loaders(batch):
    rows = Rows(batch)
    return {
        "a list of batches": list(cut(batch, 30)),
        "a generator": cut(batch, 30),
        "a data set": rows,
        "a loader": DataLoader(rows, batch_size=30),
        "a shuffled loader": DataLoader(rows, batch_size=30, shuffle=True),
        "a loader that drops the last": DataLoader(rows, batch_size=30, drop_last=True, shuffle=True),
        "a loader with a generator of its own": DataLoader(rows, batch_size=7, shuffle=True, generator=torch.Generator()),
        "a loader of an iterable": DataLoader(Stream(batch), batch_size=30),
        "a loader with a batch sampler": DataLoader(rows, batch_sampler=BatchSampler(range(len(rows)), 11, drop_last=False)),
    }


@pytest.mark.parametrize("form", list(loaders(probe(1))))
def test_any_form_of_data_gives_the_same_event_and_draws_nothing(form):
    batch = probe(UNEVEN)
    data, model = loaders(batch)[form], Equation(COEFFICIENTS)
    streams = nets.random_streams()
    event = explain(model, data, variables(), **OPTIONS)
    assert nets.random_streams() == streams
    close(event, truth(batch))


def test_a_loader_with_a_generator_leaves_it_where_it_was():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    explain(
        Equation(COEFFICIENTS),
        DataLoader(Rows(probe(20)), batch_size=30, shuffle=True, generator=generator),
        variables(),
        **OPTIONS,
    )
    assert torch.equal(generator.get_state(), before)


def test_a_sampler_of_a_part_gives_that_part():
    batch = probe(40)
    part = torch.arange(0, 320, 2).tolist()
    loader = DataLoader(Rows(batch), batch_size=30, sampler=SubsetRandomSampler(part))
    model = Equation(COEFFICIENTS)
    streams = nets.random_streams()
    event = explain(model, loader, variables(), **OPTIONS)
    assert nets.random_streams() == streams
    close(event, truth({k: v[part] for k, v in batch.items()}))


def test_a_tuple_data_set_needs_no_inputs_and_no_target():
    batch = probe(20)
    data = TensorDataset(batch["x"], batch["moo"], batch["grass"])
    event = explain(Equation(COEFFICIENTS), data, [Concept("moo", 1), Confounder("grass", 2)])
    assert event.effect["moo"].value == pytest.approx(2.0)
    assert event.effect["grass"].value == pytest.approx(0.5)
    assert event.groups.count == {f"moo={a},grass={b}": 40 for a in (0, 1) for b in (0, 1)}


# --- the model afterwards ---------------------------------------------------------------------------------------------


class Training(nn.Module):
    """Caught in the middle of training: dropout, batch norm, a frozen part, gradients half accumulated."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4).double()
        self.frozen = nn.BatchNorm1d(4).double()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 1).double()
        self.register_buffer("calls", torch.zeros(1, dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return self.head(self.drop(self.frozen(self.norm(x))))


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_the_random_streams_are_left_as_they_were(fails):
    model, batch = Training().train(), probe(20)
    model.frozen.eval()
    for p in model.norm.parameters():
        p.requires_grad = False
    model(batch["x"]).sum().backward()
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    before, streams = nets.fingerprint(model), nets.random_streams()

    def swap(b):
        if fails:
            raise KeyboardInterrupt
        return nets.swap_grass(b)

    which = [Concept("moo"), Confounder("grass", intervention=swap)]
    options = {"layers": ["norm", "drop"], "inputs": "x", "measures": ALL}
    if fails:
        with pytest.raises(KeyboardInterrupt):
            explain(model, Rows(batch), which, **options)
    else:
        event = explain(model, Rows(batch), which, **options)
        assert event.intervention["grass"].value == pytest.approx(event.effect["grass"].value)
        assert event.sensitivity["drop"]["grass"][""].value is not None
    assert nets.fingerprint(model) == before
    assert nets.random_streams() == streams
    assert nets.hooks(model) == 0
    assert torch.is_grad_enabled()
    for n, p in model.named_parameters():
        assert (p.grad is None) if grads[n] is None else torch.equal(p.grad, grads[n])


def test_the_model_is_explained_in_evaluation_mode():
    model, batch = Training().train(), probe(20)
    event = explain(model, [batch], variables(), inputs="x")
    twin = Training()
    twin.load_state_dict(model.state_dict())
    twin.eval()
    with torch.no_grad():
        o = twin(batch["x"])[:, 0]
    cell = {k: batch[k] == 1 for k in nets.NAMES}
    for name in nets.NAMES:
        want = float(o[cell[name]].mean() - o[~cell[name]].mean())
        assert event.effect[name].value == pytest.approx(want, rel=1e-9)


def test_inside_inference_mode_it_works_too():
    batch = probe(20)
    which = [Concept("moo"), Confounder("grass", intervention="nets:swap_grass")]
    options = {**OPTIONS, "measures": ALL}
    model = Equation(COEFFICIENTS)
    outside = explain(model, [batch], which, **options)
    with torch.inference_mode():
        inside = explain(model, [probe(20)], which, **options)
    close(inside, outside)


# --- arguments --------------------------------------------------------------------------------------------------------


def test_a_function_calls_the_model_as_it_likes():
    batch = probe(20)
    event = explain(
        Equation(COEFFICIENTS), [batch], variables(), inputs=lambda model, b: {"hidden": b["x"], "logits": model(b["x"]) * 3}
    )
    assert event.effect["moo"].value == pytest.approx(6.0)


def test_step_and_epoch_are_those_given():
    event = explain(Equation(COEFFICIENTS), [probe(20)], variables(), inputs="x", step=12, epoch=3)
    assert (event.step, event.epoch) == (12, 3)
    assert event.cost_seconds > 0


def test_no_alarm_is_given():
    # the numbers are looked at right away: nobody needs a warning, which would be an error here
    event = explain(Equation([[0.0, 0.0, 5.0, 0.1]]), [probe(20)], variables(), inputs="x")
    assert event.contribution["grass"].debiased > 0.9


@pytest.mark.parametrize("data", ["val", {"x": 1}, 3, None])
def test_what_is_no_data_is_an_error(data):
    with pytest.raises(ProbeSetError, match=f"`data` expects a DataLoader, a Dataset or batches, got {type(data).__name__}"):
        explain(Equation(COEFFICIENTS), data, variables(), inputs="x")


def test_an_empty_probe_set_is_an_error():
    with pytest.raises(ProbeSetError, match="the probe set is empty"):
        explain(Equation(COEFFICIENTS), [], variables(), inputs="x")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"layers": ["encoder.9"]}, LayerError, "'encoder.9' matches no submodule of Equation. Did you mean 'encoder"),
        ({"output": "haed"}, LayerError, "Did you mean 'head'"),
        ({"measures": ["contributions"]}, InterpError, "Did you mean 'contribution'"),
        ({"inputs": "image"}, InterpError, "`inputs='image'` is not in the batch"),
        ({"target": "cow"}, InterpError, "`target='cow'` is not in the batch"),
        ({"sample_id": "id"}, InterpError, "`sample_id='id'` is not in the batch"),
        ({"cluster": "herd"}, InterpError, "`cluster='herd'` is not in the batch"),
    ],
)
def test_a_bad_argument_is_an_error_that_names_it(options, error, text):
    with pytest.raises(error, match=text):
        explain(Equation(COEFFICIENTS), [probe(20)], variables(), **{"inputs": "x", **options})


def test_no_variable_is_an_error():
    with pytest.raises(VariableError, match="`variables` expects at least one Concept or Confounder"):
        explain(Equation(COEFFICIENTS), [probe(20)], [])


def test_a_bad_batch_after_good_ones_is_left_out():
    batch = probe(20)
    with said("a batch was left out: `label of 'grass'"):
        event = explain(
            Equation(COEFFICIENTS), [batch, {k: v for k, v in batch.items() if k != "grass"}, batch], variables(), inputs="x"
        )
    assert event.skipped == 1
    assert event.n == 2 * len(batch["x"])


def test_max_samples_bounds_the_samples_of_its_own_passes():
    batch = probe(20)
    seen = []

    def count(b):
        seen.append(len(b["x"]))
        return nets.swap_grass(b)

    event = explain(Equation(COEFFICIENTS), list(cut(batch, 20)), [Concept("moo"), Confounder("grass", intervention=count)],
                    inputs="x", measures=ALL, max_samples=60)  # fmt: skip
    assert sum(seen) == 60
    assert event.n == 160
    assert event.intervention["grass"].value == pytest.approx(0.5)


# --- the loader's share -----------------------------------------------------------------------------------------------


def test_a_rebuilt_loader_keeps_what_makes_the_batches():
    batch = probe(2)

    def collate(rows):
        return {"x": torch.stack([r["x"] for r in rows]), "n": len(rows)}

    found = list(probe_loader(DataLoader(Rows(batch), batch_size=5, shuffle=True, collate_fn=collate)))
    assert [b["n"] for b in found] == [5, 5, 5, 1]
    assert torch.equal(torch.cat([b["x"] for b in found]), batch["x"])


def test_a_batch_that_is_all_one_value_of_nan_labels_is_left_out():
    batch = probe(20)
    batch["moo"] = batch["moo"].double()
    nothing = {**batch, "moo": torch.full_like(batch["moo"], math.nan)}
    event = explain(Equation(COEFFICIENTS), [nothing, batch], variables(), inputs="x")
    assert event.n == len(batch["x"])
