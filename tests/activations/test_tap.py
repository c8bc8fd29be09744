"""`Tap`: what it reads is on the graph and stays as it is; what it puts is what the network goes on with."""

import copy
from typing import NamedTuple

import pytest
import torch
from callbacks.boring import hooks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_interp.activations.tap import Tap, fitting
from lightning_interp.errors import LayerError

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler's own


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Giving(nn.Module):
    def __init__(self, pack):
        super().__init__()
        self.pack = pack

    def forward(self, x):
        return self.pack(x)


def net(*more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), *more, nn.Linear(4, 2))


def x(n=5):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("inplace", [False, True])
def test_it_reads_on_the_graph_before_an_in_place_layer(inplace):
    model = net(nn.ReLU(inplace=inplace))
    tap, into = Tap(model, "0", "layer", output=False), []
    with tap.open(into):
        out = model(x())
    assert torch.equal(into[0], model[0](x()))
    assert torch.autograd.grad(out.sum(), into[0], retain_graph=True)[0].any()
    assert torch.equal(out, model(x()))
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("pack", "key", "unpack"),
    [
        (lambda h: (h, None), None, lambda o: o[0]),
        (lambda h: (None, h), "1", lambda o: o[1]),
        (lambda h: [h], None, lambda o: o[0]),
        (lambda h: {"other": -h, "hidden": h}, "hidden", lambda o: o["hidden"]),
        (lambda h: {"other": -h, "logits": h}, None, lambda o: o["logits"]),
        (lambda h: Pair(h, -h), None, lambda o: o.first),
    ],
)
def test_containers_are_rebuilt_with_what_is_put(pack, key, unpack):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 4), Giving(pack))

        def forward(self, x):
            out = self.inner(x)
            return type(out), unpack(out)

    model, into = Holder(), []
    tap = Tap(model, "inner" if key is None else f"inner:{key}", "output", output=True)
    with tap.open(into, lambda h: 2 * h):
        kind, found = model(x())
    assert kind is model(x())[0]
    assert torch.equal(found, 2 * model(x())[1])
    assert torch.equal(into[0], model(x())[1])


def test_each_run_is_read_and_an_inner_opening_leaves_the_outer_as_it_was():
    model, outer, inner = net(), [], []
    tap = Tap(model, "0", "layer", output=False)
    with tap.open(outer):
        model(x())
        with tap.open(inner, torch.zeros_like):
            shifted = model(x())
        model(x(7))
    assert [len(h) for h in outer] == [5, 7]
    assert [len(h) for h in inner] == [5]
    assert torch.equal(shifted, model[1](torch.zeros(5, 4)))
    model(x())
    assert len(outer) == 2


def test_it_closes_after_an_exception():
    model = net()
    tap = Tap(model, "0", "layer", output=False)
    for fixed in (False, True):
        if fixed:
            tap.fix()
        with pytest.raises(KeyboardInterrupt), tap.open([]):
            raise KeyboardInterrupt
        assert hooks(model) == fixed
        model(x())  # closed: nowhere to read to
    tap.release()
    assert hooks(model) == 0


def test_fix_and_release_may_be_called_twice_and_again():
    model, into = net(), []
    tap = Tap(model, None, "output", output=True)
    for _ in range(2):
        tap.fix()
        tap.fix()
        assert hooks(model) == 3  # the reader, and the two that watch the root's calls
        with tap.open(into):
            model(x())
        tap.release()
        tap.release()
        assert hooks(model) == 0
    assert len(into) == 2


def test_a_copy_of_the_model_is_not_read():
    model, into = net(), []
    tap = Tap(model, "0", "layer", output=False)
    with tap.open(into):
        copy.deepcopy(model)(x())
    assert not into


def test_blind_is_a_run_without_gradients_since_it_was_opened():
    model = net()
    tap = Tap(model, "0", "layer", output=False)
    for off in (False, True, False):
        with tap.open([]), torch.set_grad_enabled(not off):
            model(x())
        assert tap.blind == off


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputation_is_not_read(reentrant):
    model, into = net(nn.Tanh()), []
    tap = Tap(model, "0", "layer", output=False)
    with tap.open(into):
        checkpoint(model, x().requires_grad_(), use_reentrant=reentrant).sum().backward()
    assert len(into) == 1
    assert into[0].requires_grad != reentrant
    assert tap.blind == reentrant


@pytest.mark.parametrize("reached", [False, True])
def test_within_a_compiled_model(reached):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    inner = net(nn.ReLU(inplace=True))
    model, graphs = torch.compile(inner, backend="aot_eager"), []
    tap = Tap(model, "0", "output", output=True, reached=reached)
    tap.fix()
    with torch.no_grad():
        model.eval()(x())  # a validation before training
    assert not counters["graph_break"]
    model.train()
    for _ in range(4):
        into = []
        with tap.open(into):
            out = model(x())
        graphs.append(counters["stats"]["unique_graphs"])
        with torch.no_grad():
            model(x())
        found = torch.autograd.grad(out.sum(), into[0], allow_unused=True, retain_graph=True)[0]
        assert (found is not None) == reached
        assert torch.equal(into[0], inner[0](x()))
        assert into[0].requires_grad
    assert graphs[0] == graphs[-1]
    assert bool(counters["graph_break"]) == reached
    tap.release()
    assert hooks(model) == 0


def test_a_run_without_gradients_in_each_step_adds_no_graphs():
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model, graphs = torch.compile(net(), backend="eager"), []
    tap = Tap(model, "0", "layer", output=False)
    tap.fix()
    for _ in range(6):
        with tap.open([]):
            model(x())
            with torch.no_grad():
                model(x())
            model(x())
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1] == graphs[-1]


def test_fitting_takes_the_last_with_so_many_rows_and_with_a_gradient_if_any_has():
    a, b, c = torch.zeros(3, 1, requires_grad=True), torch.ones(3), torch.zeros(4)
    assert fitting([a, b, c], 3) is a
    assert fitting([b, c, torch.zeros(())], 3) is b
    assert fitting([b, b + 1], 3)[0] == 2
    assert fitting([c], 3) is None


def test_a_module_that_is_not_there_names_the_argument_and_the_nearest():
    with pytest.raises(LayerError, match="`layer='00'` is no submodule of Sequential"):
        Tap(net(), "00", "layer", output=False)
