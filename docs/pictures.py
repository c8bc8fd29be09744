"""Makes every picture of the documentation from real runs of the demo, seeded: python docs/pictures.py (about two minutes).

A small network is trained twice on digits on grass, plain and with a budget on the grass; nothing is drawn by hand.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import lightning as L
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

import lightning_interp as interp
from lightning_interp.demo import GrassyDigits, GrassyDigitsData, GrassyDigitsModel
from lightning_interp.report.theme import COOL, GREY, LIGHT_GREY, WARM

HERE = Path(__file__).parent / "pictures"
SEED, EPOCHS, BUDGET = 0, 15, 0.02
DIGIT, GRASS = interp.Concept("digit"), interp.Confounder("grass", intervention="lightning_interp.demo:swap_background")
PLACES = {"output": "head", "target": "label", "inputs": "image", "cluster": "source"}
LAYERS = ["encoder.conv*", "encoder.flatten"]
COLOURS = {"digit": COOL[0], "grass": WARM[0], "unexplained": LIGHT_GREY, "stamp": WARM[2]}


class Runs:
    """The two runs, trained when they are first asked for."""

    @cached_property
    def data(self) -> GrassyDigitsData:
        return GrassyDigitsData(seed=SEED)

    @cached_property
    def plain(self) -> tuple[GrassyDigitsModel, interp.ConceptMonitor, None]:
        return self._train(["contribution", "groups", "intervention"], None)

    @cached_property
    def suppressed(self) -> tuple[GrassyDigitsModel, interp.ConceptMonitor, interp.SuppressConfounder]:
        return self._train(["contribution", "groups"], interp.SuppressConfounder("grass", given=["digit"], budget=BUDGET))

    def _train(self, measures: Sequence[str], suppress: interp.SuppressConfounder | None) -> tuple:
        L.seed_everything(SEED, verbose=False)
        model = GrassyDigitsModel()
        monitor = interp.ConceptMonitor([DIGIT, GRASS], measures=measures, summary=False, **PLACES)
        weights = Weights(suppress)
        callbacks = [monitor] if suppress is None else [monitor, suppress, weights]
        trainer = L.Trainer(
            max_epochs=EPOCHS, callbacks=callbacks, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu",
        )  # fmt: skip
        trainer.fit(model, datamodule=self.data)
        return model, monitor, weights if suppress else None

    def explained(self, model: GrassyDigitsModel, measures: Sequence[str], layers: Sequence[str] = ()) -> interp.Event:
        """One event on the test digits."""
        return interp.explain(model, self.data.test_dataloader(), [DIGIT, GRASS], layers, measures=measures, **PLACES)

    @cached_property
    def layers(self) -> dict[str, interp.Event]:
        """What the layers of both networks hold."""
        measures = ["contribution", "decodability", "sensitivity", "mediation"]
        return {
            name: self.explained(run[0], measures, LAYERS)
            for name, run in (("plain", self.plain), ("suppressed", self.suppressed))
        }


class Weights(L.Callback):
    """Keeps the multiplier of a budget, epoch by epoch."""

    def __init__(self, suppress: interp.SuppressConfounder | None) -> None:
        self.suppress, self.kept = suppress, []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.kept.append(float(trainer.callback_metrics.get("penalty_weight/grass", 0.0)))


def samples(runs: Runs) -> Figure:
    """Digits as training shows them, and the same digits on the other photograph."""
    fields = runs.data.train_dataloader().dataset.fields
    figure = Figure((7.2, 1.45))
    for row, key in enumerate(("image", "swapped")):
        for column in range(10):
            axes = figure.add_subplot(2, 10, row * 10 + column + 1)
            axes.imshow(fields[key][column, 0], cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
            if column == 0:
                axes.text(
                    -0.15, 0.5, "as they are" if row == 0 else "do(grass)", transform=axes.transAxes, ha="right", va="center"
                )
    figure.subplots_adjust(0.14, 0.01, 1, 0.99, 0.06, 0.06)
    return figure


def effect(runs: Runs) -> Figure:
    """The coefficients of the plain run, with their intervals, and the intervention as the check."""
    figure, (axes,) = _panels(1)
    events = runs.plain[1].history
    for name in ("digit", "grass"):
        found = [e.effect[name] for e in events]
        _band(axes, events, [f.value for f in found], [f.low for f in found], [f.high for f in found], name)
    axes.plot(
        [e.epoch for e in events],
        [e.intervention["grass"].value for e in events],
        "x",
        color="black",
        label="do(grass), the truth",
    )
    axes.set(xlabel="epoch", ylabel="effect, logits")
    axes.legend(frameon=False)
    return figure


def share(runs: Runs) -> Figure:
    """What the output's variance is made of, both runs."""
    figure, panels = _panels(2, sharey=True)
    for axes, (title, run) in zip(panels, (("plain", runs.plain), ("suppressed", runs.suppressed))):
        events = run[1].history
        parts = ("digit", "grass", "unexplained")
        values = [[e.contribution[name].value for e in events] for name in parts]
        axes.stackplot([e.epoch for e in events], values, labels=parts, colors=[COLOURS[name] for name in parts])
        axes.set(title=title, xlabel="epoch", xlim=(0, EPOCHS - 1), ylim=(0, 1))
    panels[0].set_ylabel("share of output variance")
    panels[1].legend(loc="lower right")
    return figure


def decodability(runs: Runs) -> Figure:
    """How well each layer tells the variables, in both networks, beside what they do to the output."""
    figure, panels = _panels(2, sharey=True)
    for axes, (title, event) in zip(panels, runs.layers.items()):
        names = list(event.decodability)
        for name in ("digit", "grass"):
            axes.plot(
                _short(names), [event.decodability[layer][name].value for layer in names], "o-", color=COLOURS[name], label=name
            )
        axes.set(title=f"{title}: effect of grass {event.effect['grass'].value:.1f} logits", ylim=(0, 1.05))
        axes.tick_params(axis="x", labelrotation=25)
    panels[0].set_ylabel("decodability, R²")
    panels[0].legend(frameon=False)
    return figure


def sensitivity(runs: Runs) -> Figure:
    """How the output answers to a step along each direction, at every layer of the plain network."""
    event = runs.layers["plain"]
    found = {
        name: [next(iter(event.sensitivity[layer][name].values())).value for layer in event.sensitivity]
        for name in ("digit", "grass")
    }
    figure, (axes,) = _panels(1)
    _bars(axes, _short(list(event.sensitivity)), found)
    axes.set_ylabel("sensitivity, logits per unit of z")
    return figure


def mediation(runs: Runs) -> Figure:
    """What is gone of each effect when the grass is erased at one layer, beside a random subspace."""
    event = runs.layers["plain"]
    names = list(event.mediation)
    found = {name: [event.mediation[layer]["grass"].gone[name] for layer in names] for name in ("grass", "digit")}
    found["grass, random subspace"] = [event.mediation[layer]["grass"].random["grass"] for layer in names]
    figure, (axes,) = _panels(1)
    _bars(axes, _short(names), found, {**COLOURS, "grass, random subspace": GREY})
    axes.set_ylabel("fraction of the effect gone")
    axes.set_title("grass erased at …")
    return figure


def intervention(runs: Runs) -> Figure:
    """What goes with the grass in the training images, against what the grass does."""
    model = runs.plain[0]
    margins, grass, changed = [], [], []
    with torch.no_grad():
        for batch in runs.data.train_dataloader():
            logits, swapped = model(batch["image"]), model(batch["swapped"])
            margins.append(logits[:, 1] - logits[:, 0])
            changed.append((swapped[:, 1] - swapped[:, 0] - margins[-1]) * (1 - 2 * batch["grass"]))
            grass.append(batch["grass"])
    margin, on, moved = (torch.cat(part) for part in (margins, grass, changed))
    event = runs.explained(model, ["contribution", "intervention"])
    bars = {
        "training images:\non grass − on brick": (margin[on == 1].mean() - margin[on == 0].mean()).item(),
        "training images:\ndo(grass)": moved.mean().item(),
        "balanced test images:\nequation": event.effect["grass"].value,
        "balanced test images:\ndo(grass)": event.intervention["grass"].value,
    }
    figure, (axes,) = _panels(1)
    axes.bar(list(bars), list(bars.values()), color=[GREY, WARM[0], WARM[1], WARM[0]], width=0.6)
    for i, value in enumerate(bars.values()):
        axes.text(i, value, f"{value:.1f}", ha="center", va="bottom")
    axes.set_ylabel("logits")
    return figure


def hidden_factor(runs: Runs) -> Figure:
    """A stamp that the images do not show and that goes with the grass four times in five: grass hidden, and named."""
    batches = [{**b, "stamp": _stamp(b["grass"], b["source"])} for b in runs.data.test_dataloader()]
    stamp = interp.Confounder("stamp", intervention=lambda batch: {**batch, "stamp": 1 - batch["stamp"]})
    measures = ["contribution", "intervention"]
    events = {
        "grass not named": interp.explain(runs.plain[0], batches, [DIGIT, stamp], measures=measures, **PLACES),
        "grass named": interp.explain(runs.plain[0], batches, [DIGIT, GRASS, stamp], measures=measures, **PLACES),
    }
    figure, panels = _panels(2, sharey=True)
    for axes, (title, event) in zip(panels, events.items()):
        names = [name for name in ("digit", "grass", "stamp") if name in event.effect]
        values = [event.effect[name] for name in names]
        reach = [[e.value - e.low for e in values], [e.high - e.value for e in values]]
        axes.bar(names, [e.value for e in values], yerr=reach, color=[COLOURS[n] for n in names], width=0.6, capsize=4)
        axes.plot(["stamp"], [event.intervention["stamp"].value], "x", color="black", label="do(stamp), the truth")
        axes.set_title(title)
    panels[0].set_ylabel("effect, logits")
    panels[0].legend(frameon=False, loc="upper center")
    return figure


def _stamp(grass: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    draw = torch.rand(len(grass), generator=torch.Generator().manual_seed(int(source.sum())))
    return torch.where(draw < 0.8, grass, 1 - grass)


def probe_set(runs: Runs) -> Figure:
    """The same network, explained on probe sets in which grass and digit agree half of the time, or nearly always."""
    figure, (axes,) = _panels(1)
    found: dict[str, list[float]] = {"digit": [], "grass": []}
    titles = []
    for agreement, weights in ((0.5, "balanced"), (0.9, "balanced"), (0.9, "natural")):
        loader = DataLoader(GrassyDigits("test", agreement=agreement, crops=4, seed=SEED), 128)
        event = interp.explain(runs.plain[0], loader, [DIGIT, GRASS], measures=["contribution"], weights=weights, **PLACES)
        titles.append(f"agreement {agreement:.0%},\n{event.weights} weights")
        for name in found:
            found[name].append(event.contribution[name].value)
    _bars(axes, titles, found)
    axes.set(ylabel="share of output variance", ylim=(0, 0.85))
    return figure


def budget(runs: Runs) -> Figure:
    """The share that is held under its budget, and the multiplier that holds it."""
    _, monitor, weights = runs.suppressed
    figure, (axes,) = _panels(1)
    epochs = [e.epoch for e in monitor.history]
    axes.plot(epochs, [e.contribution["grass"].debiased for e in monitor.history], "o-", color=WARM[0], label="share of grass")
    axes.axhline(BUDGET, color="black", linestyle="--", linewidth=1, label="budget")
    axes.set(xlabel="epoch", ylabel="debiased share")
    right = axes.twinx()
    right.plot(epochs, weights.kept, "s-", color=GREY, markersize=4, label="penalty weight (right)")
    right.set_ylabel("penalty weight")
    lines = [*axes.get_lines(), *right.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], frameon=False)
    return figure


def edit(runs: Runs) -> Figure:
    """Effects and groups of the plain network before and after the grass is cut out of its weights."""
    model = runs.plain[0]
    before = runs.explained(model, ["contribution", "groups"])
    done = interp.edit(model, "encoder.flatten", GRASS, runs.data.val_dataloader(), [DIGIT], progress=False, **PLACES)
    after = runs.explained(model, ["contribution", "groups"])
    done.undo()
    figure, (left, right) = _panels(2)
    _bars(left, ["before", "after the edit"], {n: [e.effect[n].value for e in (before, after)] for n in ("digit", "grass")})
    left.set_ylabel("effect, logits")
    cells = list(before.groups.accuracy)
    found = {"before": [before.groups.accuracy[c] for c in cells], "after the edit": [after.groups.accuracy[c] for c in cells]}
    _bars(right, [c.replace(",", "\n") for c in cells], found, {"before": LIGHT_GREY, "after the edit": COOL[2]})
    right.set_ylabel("accuracy")
    right.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2)
    return figure


PICTURES: dict[str, Callable[[Runs], Figure]] = {
    "samples.png": samples,
    "effect.png": effect,
    "share.png": share,
    "decodability.png": decodability,
    "sensitivity.png": sensitivity,
    "mediation.png": mediation,
    "intervention.png": intervention,
    "hidden-factor.png": hidden_factor,
    "probe-set.png": probe_set,
    "budget.png": budget,
    "edit.png": edit,
}


def _panels(count: int, **options: object) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure((7.2, 2.9), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False, **options)[0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _band(axes: Axes, events: Sequence[interp.Event], value: Sequence, low: Sequence, high: Sequence, name: str) -> None:
    epochs = [e.epoch for e in events]
    axes.plot(epochs, value, color=COLOURS[name], label=name)
    axes.fill_between(epochs, low, high, color=COLOURS[name], alpha=0.2, linewidth=0)


def _bars(axes: Axes, at: Sequence[str], found: dict[str, list[float]], colours: dict[str, str] = COLOURS) -> None:
    width = 0.8 / len(found)
    for k, (name, values) in enumerate(found.items()):
        places = [i - 0.4 + width * (k + 0.5) for i in range(len(at))]
        axes.bar(places, values, width, color=colours[name], label=name)
    axes.set_xticks(range(len(at)), at)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.legend(frameon=False)


def _short(names: Sequence[str]) -> list[str]:
    return [name.removeprefix("encoder.") for name in names]


def main() -> None:
    """Draw all of them."""
    HERE.mkdir(exist_ok=True)
    runs = Runs()
    for name, draw in PICTURES.items():
        draw(runs).savefig(HERE / name, dpi=100)
        print(f"{name}: {(HERE / name).stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
