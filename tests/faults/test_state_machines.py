"""Whatever order the cores are used in: no hook stays, no row of a failed batch counts, events are as many as asked."""

import contextlib
import io
import warnings

import pytest
import torch
from callbacks.boring import bits, hooks
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import nn
from torch.nn import functional as F

from lightning_interp import Concept, Confounder, Erasure, Monitor, Suppression
from lightning_interp.errors import InterpError, InterpWarning, ProbeSetError

ROWS = 40
GOOD, BAD = "good", ("label missing", "rows lost", "forward raises", "NaN")
KINDS = st.sampled_from((GOOD, GOOD, *BAD))


class BrokenError(Exception):
    """The user's own."""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.encoder(x))


def batch(seed):
    i = torch.arange(ROWS)
    x = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "moo": i % 2, "grass": i // 2 % 2}


def spoiled(found, kind):
    if kind == "label missing":
        return {k: v for k, v in found.items() if k != "grass"}
    if kind == "rows lost":
        return {**found, "grass": found["grass"][1:]}
    return {**found, "x": found["x"] * torch.nan} if kind == "NaN" else found


class Core(RuleBasedStateMachine):
    """What the three machines share: a net, batches good and bad, checkpoints."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = Net()
        self.count = 0
        self.saved = None
        self.worked = False
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", InterpWarning)
        self.core = self.make()

    def step(self, kind):
        """Run a batch through the net within the core's watch; whether the core took it."""
        self.count += 1
        found = spoiled(batch(self.count), kind)
        before = torch.is_grad_enabled()
        try:
            with self.core.watching(found):
                loss = F.cross_entropy(self.net(found["x"]), found["moo"])
                if kind == "forward raises":
                    raise BrokenError
                self.inside(loss)
        except BrokenError:
            return False
        except (InterpError, LookupError):
            assert kind != GOOD
            assert not self.worked  # later it is a warning
            return False
        finally:
            assert torch.is_grad_enabled() == before
            self.net.zero_grad()
        self.after(loss)
        return kind == GOOD

    def inside(self, loss):
        """Within the watch."""

    def after(self, loss):
        """After it."""

    @rule()
    def save(self):
        buffer = io.BytesIO()
        torch.save(self.core.state_dict(), buffer)
        self.saved = buffer.getvalue(), self.memory()

    @precondition(lambda self: self.saved)
    @rule()
    def load(self):
        """Into a new core, as a resumed run does."""
        self.core = self.make()
        self.core.load_state_dict(torch.load(io.BytesIO(self.saved[0]), weights_only=True))
        self.recall(self.saved[1])
        again = io.BytesIO()
        torch.save(self.core.state_dict(), again)
        first, second = (torch.load(io.BytesIO(x), weights_only=True) for x in (self.saved[0], again.getvalue()))
        assert bits(first) == bits(second)

    @invariant()
    def no_hook_stays(self):
        assert hooks(self.net) == 0
        assert torch._C._len_torch_function_stack() == 0

    def teardown(self):
        self.stack.close()


class Monitoring(Core):
    """`Monitor`: watch, event, restart, bind, state."""

    def make(self):
        self.rows = 0
        self.events = 0
        found = Monitor(None, [Concept("moo"), Confounder("grass")], ["encoder"], output="head", target="moo", inputs="x")
        found.bind(self.net)
        return found

    def memory(self):
        return self.events, self.worked

    def recall(self, memory):
        self.rows = 0
        self.events, self.worked = memory

    @rule(kind=KINDS)
    def watch(self, kind):
        took = self.step(kind)
        self.rows += ROWS * took
        self.worked = self.worked or took or kind == "NaN"  # which is read when rows are summed

    @rule()
    def event(self):
        if self.rows:
            assert self.core.event(self.events).n == self.rows
            self.events += 1
        else:
            with pytest.raises(ProbeSetError):
                self.core.event(self.events)
        self.rows = 0

    @rule()
    def restart(self):
        self.core.restart()
        self.rows = 0

    @rule()
    def bind_again(self):
        self.core.bind(self.net)

    @rule()
    def replace_a_layer(self):
        self.net.encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh())

    @invariant()
    def events_are_as_many_as_were_asked_for(self):
        assert len(self.core.history) == self.events


class Suppressing(Core):
    """`Suppression`: watch, penalty, release and bind, observe, state."""

    def make(self):
        self.acted = self.skipped = 0
        s = Suppression(None, Confounder("grass"), [Concept("moo")], output="head", target="moo", inputs="x")
        s.bind(self.net)
        return s

    def memory(self):
        return self.acted, self.skipped, self.worked

    def recall(self, memory):
        self.acted, self.skipped, _ = memory
        self.worked = True

    def after(self, loss):
        acted = self.core.acted
        total = loss + self.core.penalty(loss)
        assert self.core.acted - acted in (0, 1)
        if bool(torch.isfinite(loss)):
            total.backward()
            assert all(bool(torch.isfinite(p.grad).all()) for p in self.net.parameters())

    @rule(kind=KINDS)
    def watch(self, kind):
        before = self.core.acted, self.core.skipped
        asked = kind != "forward raises" and not (kind != GOOD and kind != "NaN" and not self.worked)
        took = self.step(kind)
        self.worked = self.worked or took
        moved = self.core.acted - before[0], self.core.skipped - before[1]
        if kind != GOOD:
            assert moved[0] == 0
        assert sum(moved) == asked

    @rule()
    def release_and_bind(self):
        self.core.release()
        assert self.core.model is None
        self.core.bind(self.net)


class Erasing(Core):
    """`Erasure`: learn, apply within each other, refit, state."""

    def make(self):
        self.learned = 0
        e = Erasure(None, Confounder("grass"), "encoder", [Concept("moo")], start_rows=64, every_n_steps=2)
        e.bind(self.net)
        return e

    def memory(self):
        return self.learned

    def recall(self, memory):
        self.learned = memory
        self.worked = self.core._worked

    def inside(self, loss):
        with self.core.applied():  # one hook, however many are inside each other
            self.net(torch.zeros(2, 3))
        if bool(torch.isfinite(loss)):
            loss.backward()

    @rule(kind=KINDS)
    def watch(self, kind):
        before = self.core._steps - self.core.skipped
        took = self.step(kind)
        self.worked = self.worked or took
        assert self.core._steps - self.core.skipped - before == took
        self.learned += took

    @rule()
    def refit(self):
        self.core.refit()

    @rule()
    def replace_the_layer(self):
        self.net.encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh())

    @precondition(lambda self: self.core.eraser is not None)
    @rule()
    def apply(self):
        x = batch(1)["x"]
        plain = self.net(x)
        with self.core.applied():
            erased = self.net(x)
        assert bool(torch.isfinite(erased).all())
        assert torch.equal(self.net(x), plain)

    @invariant()
    def rows_are_those_of_good_batches(self):
        assert self.core._rows + sum(round(f.rows) for f in self.core._fresh if f is not None) <= ROWS * self.learned


few = settings(max_examples=12, stateful_step_count=15, deadline=None, derandomize=True)
TestMonitoring, TestSuppressing, TestErasing = Monitoring.TestCase, Suppressing.TestCase, Erasing.TestCase
TestMonitoring.settings = TestSuppressing.settings = TestErasing.settings = few
