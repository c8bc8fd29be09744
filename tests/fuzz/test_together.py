"""Several cores on one model, entered and left in any order, with exceptions and events between: nothing stays, nothing changes."""

import copy
import warnings

import torch
from callbacks.boring import hooks
from faults.test_state_machines import BrokenError, Net, batch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch.nn import functional as F

from lightning_interp import Concept, Confounder, Erasure, Monitor, Suppression
from lightning_interp.discovery import Discovery
from lightning_interp.errors import InterpError, InterpWarning

MOO, GRASS = Concept("moo"), Confounder("grass")
PLACED = {"output": "head", "target": "moo", "inputs": "x"}
MADE = {
    "monitor": lambda: Monitor(None, [MOO, GRASS], ["encoder"], **PLACED),
    "second monitor": lambda: Monitor(None, [GRASS], ["encoder.0"], **PLACED),
    "suppression": lambda: Suppression(None, GRASS, [MOO], **PLACED),
    "erasure": lambda: Erasure(None, GRASS, "encoder", [MOO], start_rows=64, every_n_steps=2),
    "discovery": lambda: Discovery(None, "encoder", [MOO], **PLACED),
}
EVENTFUL = ("monitor", "second monitor", "discovery")
NAMES = st.sampled_from(sorted(MADE))


class Together(RuleBasedStateMachine):
    """Cores are bound and released, their watches opened and closed, last in not always first out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = Net()
        self.plain = copy.deepcopy(self.net)
        self.cores, self.open, self.seed = {}, {}, 0
        self.found = batch(0)
        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        warnings.simplefilter("ignore", InterpWarning)

    @rule(name=NAMES)
    def attach(self, name):
        if name not in self.cores:
            self.cores[name] = MADE[name]()
            self.cores[name].bind(self.net)

    @rule(name=NAMES)
    def detach(self, name):
        if name in self.cores and name not in self.open:
            core = self.cores.pop(name)
            if name == "suppression":
                core.release()

    @rule(name=NAMES)
    def enter(self, name):
        if name in self.cores and name not in self.open:
            watching = self.cores[name].watching(self.found)
            watching.__enter__()
            self.open[name] = watching

    @rule(name=NAMES, broken=st.booleans())
    def leave(self, name, broken):
        if name in self.open:
            problem = BrokenError() if broken else None
            self.close(name, problem)

    def close(self, name, problem=None):
        watching = self.open.pop(name)
        try:
            swallowed = watching.__exit__(type(problem) if problem else None, problem, None)
            assert not (problem and swallowed)  # an exception of the user's is never kept from them
        except BrokenError as same:
            assert same is problem
        except InterpError:
            assert problem is None

    @rule()
    def forward(self):
        """What comes out is what the plain network gives, to the bit."""
        out = self.net(self.found["x"])
        assert torch.equal(out, self.plain(self.found["x"]))
        F.cross_entropy(out, self.found["moo"]).backward()
        F.cross_entropy(self.plain(self.found["x"]), self.found["moo"]).backward()
        for mine, other in zip(self.net.parameters(), self.plain.parameters()):
            assert torch.equal(mine.grad, other.grad)
        self.net.zero_grad()
        self.plain.zero_grad()

    @precondition(lambda self: not self.open)
    @rule()
    def next_batch(self):
        self.seed += 1
        self.found = batch(self.seed)

    @rule(name=st.sampled_from(EVENTFUL))
    def event(self, name):
        if name in self.cores and name not in self.open:
            try:
                self.cores[name].event(self.seed)
            except InterpError as problem:
                assert str(problem)

    @invariant()
    def no_hook_without_a_watch(self):
        if not self.open:
            assert hooks(self.net) == 0
            assert torch._C._len_torch_function_stack() == 0
        assert torch.is_grad_enabled()

    def teardown(self):
        for name in list(self.open):
            self.close(name)
        assert hooks(self.net) == 0
        self.caught.__exit__(None, None, None)


TestTogether = Together.TestCase
TestTogether.settings = settings(max_examples=settings().max_examples // 2, stateful_step_count=30, deadline=None)
