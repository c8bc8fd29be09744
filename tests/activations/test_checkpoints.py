"""`kept`: an activation checkpoint computes once."""

import pytest
import torch
from torch import nn
from torch.utils import checkpoint as checkpoints
from torch.utils.checkpoint import checkpoint

from lightning_interp.activations.checkpoints import ENTRIES, kept


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.calls = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Dropout(0.5)), 0

    def forward(self, x):
        self.calls += 1
        return self.inner(x)


def run(model, *contexts):
    torch.manual_seed(1)
    x = torch.ones(4, 3, requires_grad=True)
    for context in contexts:
        with context:
            out = checkpoint(model, x, use_reentrant=False)
    if not contexts:
        out = checkpoint(model, x, use_reentrant=False)
    out.sum().backward()
    return torch.cat([x.grad.flatten(), *(p.grad.flatten() for p in model.parameters())])


def here() -> list[object]:
    """The entries as they are now; each torch has one or both of them."""
    found = [getattr(checkpoints, name) for name in ENTRIES if hasattr(checkpoints, name)]
    assert found
    return found


def test_it_is_not_run_again_and_has_the_same_gradients():
    before = here()
    one, other = Counted(), Counted()
    assert torch.equal(run(one, kept()), run(other))
    assert (one.calls, other.calls) == (1, 2)
    assert here() == before


def test_an_exception_comes_through_and_leaves_nothing():
    def fail(x):
        raise KeyError("the user's own")

    before = here()
    with pytest.raises(KeyError, match="the user's own"), kept():
        checkpoint(fail, torch.ones(1, requires_grad=True), use_reentrant=False)
    assert here() == before


def test_without_the_private_entry_a_checkpoint_is_refused_and_nothing_else(monkeypatch):
    entry = here()
    monkeypatch.setattr("lightning_interp.activations.checkpoints.ENTRIES", ("gone",))
    model = Counted()
    with kept():
        model(torch.ones(4, 3)).sum().backward()
    with pytest.raises(RuntimeError, match="leave the checkpoint out, or take another penalty"):
        run(model, kept())
    assert here() == entry
