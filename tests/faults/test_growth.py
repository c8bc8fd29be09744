"""What a callback keeps does not grow with the run; benchmarks/growth.py measures the same for longer."""

import importlib.util
from pathlib import Path

import pytest
from callbacks import boring

pytestmark = [*boring.HOST_WARNINGS, pytest.mark.filterwarnings("ignore::lightning_interp.errors.InterpWarning")]
FILE = Path(__file__).parents[2] / "benchmarks" / "growth.py"
EVENT = 4096  # bytes; one event is more
NAMES = ["monitor", "penalty", *(pytest.param(name, marks=pytest.mark.slow) for name in ("discovery", "erasure"))]


@pytest.fixture(scope="module")
def growth():
    spec = importlib.util.spec_from_file_location("growth", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(growth, name, events):
    found = growth.measure(name, events)
    assert found["low"] < EVENT / 4, found
    assert found["bytes_per_event"] < EVENT, found
    middle, last = found["tensors"]
    assert last <= middle + 8, found
    assert found["hooks"] == 0
    if name in ("monitor", "discovery"):
        assert events // 20 <= found["kept"] <= max(4, events // 10)
        assert found["first_and_last"] == [1, events]  # thinned out, not cut off
    return found


@pytest.mark.parametrize("name", NAMES)
def test_two_hundred_events_leave_memory_flat(growth, name):
    found = check(growth, name, 200)
    middle, last = found["state_bytes"]
    assert last < 1.5 * middle, found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["monitor", "discovery", "penalty", "erasure"])
def test_two_thousand_events_leave_memory_flat(growth, name):
    found = check(growth, name, 2000)
    middle, last = found["state_bytes"]
    assert last < 1.1 * middle, found


def test_a_leak_is_noticed(growth, monkeypatch):
    kept = []
    state = growth.Samples.on_train_batch_end

    def leaks(self, trainer, model, *args):
        kept.append([growth.torch.ones(1000) for _ in range(8)])
        state(self, trainer, model, *args)

    monkeypatch.setattr(growth.Samples, "on_train_batch_end", leaks)
    with pytest.raises(AssertionError):
        check(growth, "penalty", 60)
