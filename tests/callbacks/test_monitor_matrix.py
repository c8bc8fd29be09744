"""`ConceptMonitor` where a net or a run is out of the ordinary: no bit changes, and the numbers are those of the plain one."""

from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import StochasticWeightAveraging
from ranks.resumed import WATCHERS, go, what
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from callbacks import boring
from callbacks.boring import ALL, Boring, BoringData, bits, fit, monitor
from callbacks.test_monitor import everything
from callbacks.test_suppress_matrix import half

pytestmark = [
    *boring.HOST_WARNINGS,
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True"),  # a checkpoint in validation
    pytest.mark.filterwarnings("ignore:'encoder.[13]' ran 2 times in one step"),
    pytest.mark.filterwarnings("ignore:sensitivity at layer 'encoder.[04]' withheld"),  # in a reentrant checkpoint: no gradient
]

INNER = {
    "": lambda: [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(8, 8), nn.Tanh()],
    "bare": lambda: [nn.Linear(6, 8), nn.Identity(), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(8, 8), nn.Tanh()],
    "new ReLU": lambda: [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8), nn.Tanh()],
    "conv": lambda: [
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 8, 2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ],
}  # fmt: skip


class Odd(Boring):
    """A net of which something is out of the ordinary.

    Args:
        how: what.
        learns: whether it does, and drops out.
    """

    def __init__(self, how="", learns=True, compiled=None) -> None:
        super().__init__(0.2, 0.01 if learns else 0.0)
        inner = next((name for name in INNER if name and name in how), "")
        self.how, self.encoder = how, nn.Sequential(*INNER[inner]())
        if how == "shared":
            again = nn.Linear(8, 8)
            self.encoder = nn.Sequential(nn.Linear(6, 8), again, nn.Tanh(), again)
        if how == "twice":  # the same weights in two modules
            once = nn.Linear(8, 8)
            self.encoder = nn.Sequential(nn.Linear(6, 8), once, nn.Tanh(), nn.Linear(8, 8))
            self.encoder[3].load_state_dict(once.state_dict())
        if "channels last" in how:
            self.encoder.to(memory_format=torch.channels_last)
        for m in self.modules():
            if isinstance(m, nn.Dropout) and not learns:
                m.p = 0.0
        self.automatic_optimization = how != "manual"

    def training_step(self, batch, batch_idx):
        if self.how == "functional_call":
            state = {**dict(self.named_parameters()), **dict(self.named_buffers())}
            return F.cross_entropy(functional_call(self, state, (batch["x"],)), batch["moo"])
        loss = super().training_step(batch, batch_idx)
        if not self.automatic_optimization:
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def forward(self, x):
        if "checkpoint" not in self.how:
            return super().forward(x)
        encoder = self.encoder
        reentrant = "reentrant" in self.how
        self._modules["encoder"] = _Checkpointed(encoder, reentrant)
        try:
            return super().forward(x.requires_grad_() if reentrant and torch.is_grad_enabled() else x)
        finally:
            self._modules["encoder"] = encoder


class _Checkpointed(nn.Module):
    """Calls what it is given inside an activation checkpoint."""

    def __init__(self, inner, reentrant):
        super().__init__()
        self.inner, self.reentrant = [inner], reentrant  # in a list: not a submodule

    def forward(self, x):
        return checkpoint(self.inner[0], x, use_reentrant=self.reentrant)


NETS = {
    "": ["encoder.1", "encoder.2"],
    "conv, channels last": ["encoder.1", "encoder.2"],
    "shared": ["encoder.1", "encoder.3"],
    "functional_call": ["encoder.0", "encoder.4"],
    "checkpoint": ["encoder.0", "encoder.4"],
    "checkpoint, reentrant": ["encoder.0", "encoder.4"],
    "manual": ["encoder.0", "encoder.4"],
}
SETTINGS = {
    "16-mixed": lambda: {"plugins": [half()]},
    "bf16-true": lambda: {"precision": "bf16-true"},
    "clipping": lambda: {"gradient_clip_val": 0.05},
    "16-mixed, accumulated, clipped": lambda: {"plugins": [half()], "accumulate_grad_batches": 3, "gradient_clip_val": 0.05},
}


@pytest.fixture(scope="module")
def unwatched():
    """`everything` of the run with no monitor, once per net and setting."""
    known = {}

    def find(net, setting):
        if (net, setting) not in known:
            known[net, setting] = everything(None, net=partial(Odd, net), **SETTINGS.get(setting, dict)())
        return known[net, setting]

    return find


def differing(one, other):
    return [name for name in one if one[name] != other[name]]


@pytest.mark.parametrize(("net", "setting"), [*((net, "") for net in NETS), *(("", setting) for setting in SETTINGS)])
@pytest.mark.parametrize("data", ["val", "train", pytest.param("loader", marks=pytest.mark.slow)])
def test_a_watched_run_has_the_same_bits(unwatched, net, setting, data):
    source = boring.probe_loader() if data == "loader" else data
    watcher = monitor(data=source, layers=NETS[net], measures=ALL, prefix="watch")
    watched = everything(watcher, net=partial(Odd, net), **SETTINGS.get(setting, dict)())
    assert len(watcher.history) == 2
    assert list(watcher.latest.decodability) == NETS[net]
    assert sorted(watcher.latest.sensitivity) == ([] if "reentrant" in net else NETS[net])
    assert differing(watched, unwatched(net, setting)) == []


def test_a_watched_run_with_averaged_weights_has_the_same_bits():
    def run(*watchers):
        swa = StochasticWeightAveraging(1e-3, swa_epoch_start=1)
        _, model = fit(*watchers, swa, model=Odd, max_epochs=3)
        return bits(model.state_dict()), boring.streams()

    watcher = monitor(measures=ALL)
    assert run(watcher) == run()
    assert len(watcher.history) >= 3  # and one more, in which statistics of batch norm are gathered


class Whole(LightningModule):
    """Without `self.log`, which torch cannot compile."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.encoder(x))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch["x"]), batch["moo"])

    def validation_step(self, batch, batch_idx):
        self(batch["x"])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


@pytest.mark.parametrize("data", ["val", "train"])
def test_a_watched_run_of_a_compiled_lightning_module_has_the_same_bits(data):
    ends = []
    for watchers in ([monitor(layers=["encoder.1"], data=data, measures=ALL)], []):
        torch.compiler.reset()
        seed_everything(0, verbose=False)
        model = Whole()
        loaders = BoringData().train_dataloader(), BoringData().val_dataloader()
        boring.trainer(*watchers).fit(torch.compile(model, backend="aot_eager"), *loaders)
        ends.append([bits(model.state_dict()), boring.streams()])
        assert not watchers or [len(e.decodability) for e in watchers[0].history] == [1, 1]
    torch.compiler.reset()
    assert ends[0] == ends[1]


# --- the numbers ------------------------------------------------------------------------------------------------------


def events(net, layers, data="val", **options):
    watcher = monitor(data=data, layers=layers, measures=ALL)
    fit(watcher, model=partial(Odd, net, False), data=BoringData(shuffle=False), max_epochs=1, **options)
    return watcher.latest


@pytest.mark.parametrize("data", ["val", "train"])
@pytest.mark.parametrize(
    ("odd", "plain", "layers"),
    [
        ("", "new ReLU", ["encoder.1", "encoder.2"]),  # what stands before an in-place layer is not what that made of it
        ("conv, channels last", "conv", ["encoder.1", "encoder.2"]),
        ("shared", "twice", ["encoder.3"]),
        ("functional_call", "", ["encoder.0", "encoder.4"]),
        ("bare, checkpoint", "bare", ["encoder.0", "encoder.4"]),  # batch norm counts a batch twice
        ("bare, checkpoint, reentrant", "bare", ["encoder.0", "encoder.4"]),
        ("manual", "", ["encoder.0", "encoder.4"]),
    ],
)
def test_the_numbers_are_those_of_the_plain_net(odd, plain, layers, data):
    one, other = events(odd, layers, data), events(plain, layers, data)
    assert one.n == other.n
    assert list(one.decodability) == layers
    found, wanted = one.scalars(), other.scalars()
    if "reentrant" in odd:
        wanted = {k: v for k, v in wanted.items() if not k.startswith(("sensitivity", "tcav"))}
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("setting", ["16-mixed", "bf16-true", "bf16-mixed"])
def test_the_numbers_of_half_precision_are_near(setting):
    options = SETTINGS.get(setting, lambda: {"precision": setting})()
    one, other = events("", ["encoder.0", "encoder.4"], **options), events("", ["encoder.0", "encoder.4"])
    assert one.n == other.n
    for name in ("moo", "grass"):
        assert one.contribution[name].value == pytest.approx(other.contribution[name].value, abs=0.02)
        assert one.effect[name].value == pytest.approx(other.effect[name].value, rel=0.05, abs=0.01)
        found, wanted = (e.decodability["encoder.4"][name].value for e in (one, other))
        assert found == pytest.approx(wanted, abs=0.1)


# --- resume -----------------------------------------------------------------------------------------------------------

PRECISION = {
    "bf16-mixed": lambda: {"precision": "bf16-mixed"},
    "bf16-true": SETTINGS["bf16-true"],
    "16-mixed": SETTINGS["16-mixed"],
}


@pytest.mark.parametrize("precision", PRECISION)
@pytest.mark.parametrize("name", ["monitor", "contribution", "erasure", pytest.param("budget", marks=pytest.mark.slow)])
def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path, name, precision):
    whole, weights, _ = go(name, 4, 1, **PRECISION[precision]())
    go(name, 2, 1, tmp_path, **PRECISION[precision]())
    ours, again, _ = go(name, 4, 1, path=str(tmp_path / "last.ckpt"), **PRECISION[precision]())
    assert again == weights
    assert [what(c) for c in ours] == [what(c) for c in whole]
    assert name in WATCHERS
