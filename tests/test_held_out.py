"""Coefficients of an event in the coding of training equal those of a regression in that coding."""

import itertools

import pytest
import torch
from nets import monitor_of
from torch import nn

from lightning_interp import Concept, Confounder
from lightning_interp.batches import text_key
from lightning_interp.events import Event
from lightning_interp.functional.coding import Factor
from lightning_interp.functional.outputs import explain_output
from lightning_interp.held_out import HeldOut, held_out_coefficients
from lightning_interp.results import Effect


def rows(n=240, levels=3, text=False, seed=0):
    """Every cell the same number of times, so that weights do not matter; `x` is what comes out."""
    g = torch.Generator().manual_seed(seed)
    cells = list(itertools.product(range(levels), range(2)))
    index = torch.tensor([cells[i % len(cells)] for i in range(n)])
    place, moo = index.unbind(1)
    age = torch.randn(n, generator=g, dtype=torch.float64)
    x = torch.randn(n, 4, generator=g, dtype=torch.float64)
    x += torch.stack([place == 1, place == 2, moo, age], 1) * torch.tensor([3.0, -1.0, 2.0, 0.7], dtype=torch.float64)
    names = ("meadow", "stable", "sea")
    return {"x": x, "place": [names[i] for i in place] if text else place, "moo": moo, "age": age}


def event_of(batch, confounder, outputs, given=("moo",)):
    """What a monitor finds, after a checkpoint."""
    net = nn.Linear(4, outputs).double()
    with torch.no_grad():
        net.weight.copy_(torch.linspace(-1, 2, 4 * outputs).view(outputs, 4))
    variables = [Confounder(confounder), *(Concept(name) for name in given)]
    found = monitor_of(net, variables, weights="natural", target=None, measures=("contribution",))
    with found.watching(batch), torch.no_grad():
        raw = net(batch["x"])
    return Event.from_dict(found.event(0).to_dict()), explain_output(raw, None).output


def regression(factor, values, given, output):
    """Least squares in the coding of training, the given variables held fixed."""
    z = torch.cat([factor.encode(values), given.double(), torch.ones(len(values), 1, dtype=torch.float64)], 1)
    return torch.linalg.lstsq(z, output).solution[: factor.width]


@pytest.mark.parametrize("outputs", [1, 2, 4])
@pytest.mark.parametrize("levels", [(0.0, 1.0), (1.0, 0.0)], ids=["in order", "turned round"])
def test_binary(outputs, levels):
    batch = rows(levels=2)
    event, output = event_of(batch, "place", outputs)
    factor = Factor("place", "binary", 0, levels, tuple(map(str, levels)))
    found = held_out_coefficients(event, factor, output.shape[1])
    assert found.shape == (1, output.shape[1])
    assert torch.allclose(found, regression(factor, batch["place"].double(), batch["moo"][:, None], output), rtol=1e-9)
    assert float(found.abs().max()) > 0.1


@pytest.mark.parametrize("outputs", [1, 2, 4])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("text", [False, True], ids=["numbers", "text"])
def test_categorical(outputs, order, text):
    batch = rows(text=text)
    event, output = event_of(batch, "place", outputs)
    raw = (text_key(batch["place"]) >> 12).double() if text else batch["place"].double()
    values = torch.unique(raw).tolist()
    factor = Factor("place", "categorical", 0, tuple(values[i] for i in order), tuple("abc"))
    found = held_out_coefficients(event, factor, output.shape[1])
    assert found.shape == (2, output.shape[1])
    assert torch.allclose(found, regression(factor, raw, batch["moo"][:, None], output), rtol=1e-9)


def test_training_has_seen_fewer_levels():
    batch = rows()
    event, output = event_of(batch, "place", 4)
    two = Factor("place", "binary", 0, (0.0, 2.0), ("0", "2"))
    values, kept = batch["place"].double(), batch["place"] != 1
    found = held_out_coefficients(event, two, 4)
    levels = torch.nn.functional.one_hot(batch["place"]).double()
    z = torch.cat([levels, batch["moo"][:, None].double()], 1)
    each = torch.linalg.lstsq(z, output).solution
    assert torch.allclose(found, (each[2] - each[0])[None], rtol=1e-9)
    near = regression(two, values[kept], batch["moo"][kept][:, None], output[kept])
    assert torch.allclose(found, near, rtol=0.3, atol=0.3)  # other rows, but the same question


def test_the_event_has_seen_fewer_levels():
    event, _ = event_of(rows(levels=2), "place", 1)
    assert held_out_coefficients(event, Factor("place", "categorical", 0, (0.0, 1.0, 2.0), tuple("abc")), 1) is None
    assert held_out_coefficients(event, Factor("place", "binary", 0, (0.0, 2.0), tuple("ac")), 1) is None


def test_two_levels_that_are_declared_categorical():
    batch = rows(levels=2)
    net = nn.Linear(4, 1).double()
    found = monitor_of(net, [Confounder("place", kind="categorical"), Concept("moo")], weights="natural")
    with found.watching(batch), torch.no_grad():
        output = net(batch["x"])
    factor = Factor("place", "binary", 0, (0.0, 1.0), ("0", "1"))
    wanted = regression(factor, batch["place"].double(), batch["moo"][:, None], output)
    assert torch.allclose(held_out_coefficients(found.event(0), factor, 1), wanted, rtol=1e-9)


@pytest.mark.parametrize("outputs", [1, 2, 4])
@pytest.mark.parametrize(("center", "scale"), [(0.0, 1.0), (5.0, 0.01), (-3.0, 40.0)])
def test_continuous_with_another_spread(outputs, center, scale):
    batch = rows()
    event, output = event_of(batch, "age", outputs)
    factor = Factor("age", "continuous", 0, center=center, scale=scale)
    found = held_out_coefficients(event, factor, output.shape[1])
    assert torch.allclose(found, regression(factor, batch["age"], batch["moo"][:, None], output), rtol=1e-8)


@pytest.mark.parametrize(
    ("factor", "outputs"),
    [
        (Factor("gone", "binary", 0, (0.0, 1.0), ("0", "1")), 4),
        (Factor("place", "continuous", 0), 4),  # another kind
        (Factor("age", "binary", 0, (0.0, 1.0), ("0", "1")), 4),
        (Factor("place", "binary", 0, (0.0, 7.0), ("0", "7")), 4),  # a level of its own
        (Factor("place", "categorical", 0, (0.0, 1.0, 2.0), tuple("abc")), 1),  # other outputs
        (Factor("place", "categorical", 0, (0.0, 1.0, 2.0), tuple("abc")), 2),
        (Factor("place", "categorical", 0, (0.0, 1.0, 2.0), tuple("abc")), 12),
        (Factor("place", "categorical", 0, (0.0, 1.0, 2.0), tuple("abc")), 5),
        (Factor("age", "continuous", 0), 2),
    ],
)
def test_none_where_they_do_not_fit(factor, outputs):
    event, _ = event_of(rows(), "place", 4, ["moo", "age"])
    assert held_out_coefficients(event, factor, outputs) is None


@pytest.mark.filterwarnings("ignore:effects withheld")
def test_none_where_the_event_withheld_them():
    batch = {k: v[:2] if k != "place" else torch.tensor([0, 1]) for k, v in rows().items()}
    event, _ = event_of(batch, "place", 1, [])  # two rows, two parameters
    assert event.effect["place"].value is None
    assert held_out_coefficients(event, Factor("place", "binary", 0, (0.0, 1.0), ("0", "1")), 1) is None


# --- HeldOut ----------------------------------------------------------------------------------------------------------


def training(coefficient, n=400, seed=0):
    """A batch whose output goes up by so much from grass 0 to grass 1."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randint(2, (n, 2), generator=g).double() - 0.5
    return coefficient * z[:, :1] + 2 * z[:, 1:] + 0.01 * torch.randn(n, 1, generator=g, dtype=torch.float64), z


def measured(value, step=0):
    coding = {"grass": {"kind": "binary", "levels": ["0", "1"], "values": [0.0, 1.0], "center": 0.0, "scale": 1.0}}
    return Event(step, 0, 100, "balanced", "val", "binary", effect={"grass": Effect(value)}, coding=coding)


GRASS = Factor("grass", "binary", 0, (0.0, 1.0), ("0", "1"))


def test_the_aim_makes_up_for_the_gap_between_training_and_held_out_data():
    h = HeldOut()
    assert h.aim(GRASS, *training(0.5)) is None
    h.take(measured(3.0))
    assert float(h.aim(GRASS, *training(0.5, seed=1))) == pytest.approx(0.5 - 3.0, abs=0.01)
    for seed in range(2, 12):  # it stands until the next measurement, whatever training does
        assert float(h.aim(GRASS, *training(-2.0, seed=seed))) == pytest.approx(-2.5, abs=0.01)
    h.take(measured(1.0))
    assert float(h.aim(GRASS, *training(-2.0))) == pytest.approx(-3.0, abs=0.1)


def test_the_aim_goes_on_after_a_resume_and_stands_where_an_event_holds_nothing():
    whole, half, resumed = HeldOut(), HeldOut(), HeldOut()
    for h in (whole, half):
        h.aim(GRASS, *training(0.5))
        h.take(measured(3.0))
    resumed.load_state_dict(half.state_dict())
    for seed in range(3):
        one, other = (h.aim(GRASS, *training(0.0, seed=seed)) for h in (whole, resumed))
        assert torch.equal(one, other)
    whole.take(measured(None))
    assert torch.equal(whole.aim(GRASS, *training(0.0)), one)
    assert whole.aim(GRASS, training(0.0)[0].repeat(1, 3), training(0.0)[1]) is None  # another number of outputs
