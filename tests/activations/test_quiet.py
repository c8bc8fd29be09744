"""`quiet` leaves no trace: every line of the host's table of what an unguarded probe changes."""

import random

import nets
import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torchmetrics import CatMetric, MeanMetric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryPrecision, BinaryRecall

from lightning_interp.activations.quiet import compiled, eager, quiet, random_state

X = torch.linspace(-1, 1, 24).reshape(12, 2)


class Busy(nn.Module):
    """Writes to everything that a forward pass may write to."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.frozen = nn.BatchNorm1d(2)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("ema", torch.zeros(2))
        self.register_buffer("steps", torch.zeros(1, dtype=torch.long), persistent=False)
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("lazy", None)
        self.accuracy = BinaryAccuracy()
        self.mean = MeanMetric()
        self.seen = CatMetric()
        self.logged = []

    def log(self, name, value):
        self.logged.append((name, value))

    def log_dict(self, values):
        self.logged.append(values)

    def forward(self, x):
        h = self.drop(self.frozen(self.norm(self.lin(x))))
        with torch.no_grad():
            self.ema.mul_(0.9).add_(h.mean(0))
            self.steps += 1
            self.replaced = self.replaced * 0.5 + h.mean(0)
        random.random()
        np.random.rand()
        torch.rand(1)
        self.accuracy.update(h[:, 0].sigmoid().clamp(0, 1), torch.arange(len(x)) % 2)
        self.mean(h.mean())
        self.seen.update(h[:, 1].detach())
        self.log("loss", h.mean())
        self.log_dict({"a": 1})
        return h


def busy() -> Busy:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    net = Busy().train()
    net.frozen.eval()
    net(X)
    return net


def state(net: Busy):
    metrics = [
        (
            {k: [t.tolist() for t in v] if isinstance(v, list) else v.tolist() for k, v in m.metric_state.items()},
            m._update_count,
        )
        for m in (net.accuracy, net.mean, net.seen)
    ]
    return (
        nets.fingerprint(net), net.steps.tolist(), metrics, [id(b) for b in net.buffers()], len(net.logged),
        net.mean._forward_cache, sorted(vars(net)),
    )  # fmt: skip


@pytest.mark.parametrize("fails", [False, True])
def test_after_quiet_everything_is_as_it_was(fails):
    net = busy()
    values = [m.compute() for m in (net.accuracy, net.mean, net.seen)]
    before, streams = state(net), nets.random_streams()
    try:
        with quiet(net), torch.no_grad():
            net(X)
            net(X + 1)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert state(net) == before
    assert nets.random_streams() == streams
    for m, value in zip((net.accuracy, net.mean, net.seen), values):
        assert torch.equal(m.compute(), value)


def test_inside_quiet_the_forward_is_in_evaluation_mode_everywhere():
    net = busy()
    with quiet(net), torch.no_grad():
        assert not any(m.training for m in net.modules())
        assert torch.equal(net.drop(X), X)
        assert torch.equal(net.norm(X), net.norm(X))
    assert net.training
    assert net.norm.training
    assert not net.frozen.training


def test_a_forward_in_quiet_is_that_of_a_model_in_eval():
    net, twin = busy(), busy()
    with quiet(net), torch.no_grad():
        got = net(X)
    assert torch.equal(got, twin.eval()(X))


def test_what_comes_after_is_the_same_with_and_without_a_quiet_pass():
    outs = []
    for probed in (False, True):
        net = busy()
        if probed:
            with quiet(net), torch.no_grad():
                net(X * 3)
        out = net(X)
        outs.append((out.detach(), nets.fingerprint(net), nets.random_streams(), net.accuracy.compute(), net.seen.compute()))
    a, b = outs
    assert torch.equal(a[0], b[0])
    assert a[1:3] == b[1:3]
    assert torch.equal(a[3], b[3])
    assert torch.equal(a[4], b[4])


def test_a_buffer_that_was_none_is_none_again():
    net = nn.Linear(2, 2)
    net.register_buffer("cache", None)
    with quiet(net):
        net.cache = torch.ones(3)
    assert net.cache is None
    assert "cache" not in net.state_dict()


def test_a_buffer_that_is_replaced_by_one_of_another_shape_comes_back():
    net = nn.Linear(2, 2)
    net.register_buffer("cache", torch.arange(3.0))
    held = net.cache
    with quiet(net):
        net.cache = torch.ones(5)
    assert net.cache is held
    assert held.tolist() == [0, 1, 2]


def test_a_metric_collection_with_shared_states_goes_on_counting():
    def run(probed: bool):
        net = nn.Module()
        net.metrics = MetricCollection([BinaryPrecision(), BinaryRecall()])
        guess, truth = torch.tensor([1, 1, 0, 0, 1]), torch.tensor([1, 0, 0, 1, 1])
        for step in range(3):
            net.metrics.update(guess.roll(step), truth)
            if probed:
                with quiet(net):
                    net.metrics.update(1 - guess, truth)
                    net.metrics.compute()
        return {k: float(v) for k, v in net.metrics.compute().items()}

    assert run(probed=True) == run(probed=False)


@pytest.mark.parametrize("fails", [False, True])
def test_log_is_silent_inside_and_back_afterwards(fails):
    net = busy()
    mine = []
    net.log_dict = mine.append  # the user's own, on the instance
    count = len(net.logged)
    try:
        with quiet(net):
            net.log("a", 1)
            net.log_dict({"b": 2})
            assert len(net.logged) == count
            assert mine == []
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    net.log("a", 1)
    assert len(net.logged) == count + 1
    net.log_dict({"b": 2})
    assert mine == [{"b": 2}]
    assert "log" not in vars(net)


class LogUnit(nn.Module):
    """`log` is a layer here, and no logging at all."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Linear(2, 1)

    def forward(self, x):
        return self.log(x)


def test_a_submodule_that_is_called_log_runs():
    net = LogUnit()
    with quiet(net):
        assert torch.equal(net(X), net.log(X))
    assert torch.equal(net(X), nn.functional.linear(X, net.log.weight, net.log.bias))


def test_random_state_gives_back_every_stream_after_an_exception():
    streams = nets.random_streams()

    def seeded():
        with random_state():
            torch.manual_seed(1)
            np.random.seed(1)
            random.seed(1)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        seeded()
    assert nets.random_streams() == streams


def test_a_wrapped_module_counts_as_compiled():
    net = nn.Sequential(nn.Linear(2, 2))
    assert not compiled(net)
    net[0] = torch.compile(net[0], backend="eager")
    assert compiled(net)
    with eager(net):
        assert torch.compiler.is_compiling() is False
        net(X)


def test_eager_ends_when_the_last_of_several_ends_in_any_order():
    from torch._dynamo import eval_frame

    first, second = eager(nn.Linear(1, 1), True), eager(nn.Linear(1, 1), True)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert eval_frame._stance.stance == "force_eager"
    second.__exit__(None, None, None)
    assert eval_frame._stance.stance == "default"


def test_a_lightning_module_is_not_compiled_because_it_could_be():
    import torch._dynamo  # once it is there, modules are looked at

    assert not compiled(LightningModule())
    assert compiled(nn.Sequential(torch.compile(nn.Linear(1, 1), backend="eager")))
