"""What does a penalty cost? CPU time of a penalised training step over a plain one, on a small CNN.

    python benchmarks/step_cost.py               # a few minutes on one core
    python benchmarks/step_cost.py --rounds 5    # a first look
    python benchmarks/step_cost.py --only Gradient   # some rows, printed and not kept

64 × 64 pixels, batch 128, one thread. Every arm has its own copy of the same net. A round is one step of every arm, in an order
that turns, so that a machine that warms up or slows down does not favour an arm; a ratio is within one round; the table gives
median and quartiles. "plain, again" shows the noise. Penalties that need a layer have a row at the one that feeds the head
and one at a layer in the middle; "examples" reads two sets of 64 anew every 10 steps, which a median leaves out: a reading
takes 0.35 plain steps. The second forward and backward pass of InvariancePenalty makes 2 its honest price.

Appends one JSON line to results/step_cost.jsonl.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_interp as interp
from lightning_interp import penalties

RESULTS = Path(__file__).parent / "results" / "step_cost.jsonl"
SIDE, BATCH, ROUNDS, WARM_UP = 64, 128, 25, 4  # the warm-up fills the penalties' windows
LAST, MIDDLE = "encoder.flatten", "encoder.conv2"
Step = Callable[[dict[str, Tensor]], None]


class Net(nn.Module):
    """Four convolutions and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential()
        for i, (c, d) in enumerate(((3, 16), (16, 32), (32, 64), (64, 64)), start=1):
            block = nn.Sequential(nn.Conv2d(c, d, 3, padding=1), nn.GroupNorm(4, d), nn.ReLU(), nn.MaxPool2d(2))
            self.encoder.add_module(f"conv{i}", block)
        self.encoder.add_module("flatten", nn.Flatten())
        self.head = nn.Linear(64 * (SIDE // 2**4) ** 2, 2)

    def forward(self, image: Tensor) -> Tensor:
        """Logits `[n, 2]`."""
        return self.head(self.encoder(image))


def mirrored(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stands in for an intervention: costs next to nothing of its own."""
    return {**batch, "image": batch["image"].flip(1), "grass": 1 - batch["grass"]}


def batches(number: int) -> list[dict[str, Tensor]]:
    """Noise, with labels that agree 80 % of the time."""
    made = []
    for _ in range(number):
        label = torch.randint(2, (BATCH,))
        grass = torch.where(torch.rand(BATCH) < 0.8, label, 1 - label)
        made.append({"image": torch.randn(BATCH, 3, SIDE, SIDE), "label": label, "grass": grass})
    return made


def arms() -> dict[str, tuple[penalties.Penalty | None, dict[str, object]]]:
    """{name: (penalty, further arguments)}."""
    found: dict[str, tuple[penalties.Penalty | None, dict[str, object]]] = {"plain": (None, {}), "plain, again": (None, {})}
    found["BalancedReweighting"] = (penalties.BalancedReweighting(), {})
    found["GroupDRO"] = (penalties.GroupDRO(), {})
    found["ContributionPenalty"] = (penalties.ContributionPenalty(), {})
    found["InvariancePenalty"] = (penalties.InvariancePenalty(), {"balance": False})
    for place, layer in (("last layer", LAST), ("middle layer", MIDDLE)):
        for measure in ("correlation", "hsic"):
            name = f"IndependencePenalty, {measure}, {place}"
            found[name] = (penalties.IndependencePenalty(measure=measure), {"layer": layer})
        found[f"GradientPenalty, {place}"] = (penalties.GradientPenalty(), {"layer": layer})
        found[f"GradientPenalty, examples, {place}"] = (penalties.GradientPenalty(), {"layer": layer})
    return found


def step(name: str, penalty: penalties.Penalty | None, arguments: dict[str, object]) -> Step:
    """A training step on a net of its own."""
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 1e-2)
    if penalty is None:

        def plain(batch: dict[str, Tensor]) -> None:
            optimizer.zero_grad()
            F.cross_entropy(net(batch["image"]), batch["label"]).backward()
            optimizer.step()

        return plain
    grass, given = interp.Confounder("grass", intervention=mirrored), [interp.Concept("digit", label="label", kind="binary")]
    if "examples" in name:
        shown = [{"image": torch.randn(64, 3, SIDE, SIDE) + shift} for shift in (0.5, 0.0)]
        grass, given = interp.Confounder("grass", examples=shown), []
    places = {"output": "head", "inputs": "image", "target": "label"}
    suppression = interp.Suppression(net, grass, given, penalty, **places, **arguments)

    def penalised(batch: dict[str, Tensor]) -> None:
        optimizer.zero_grad()
        with suppression.watching(batch):
            loss = F.cross_entropy(net(batch["image"]), batch["label"])
        (loss + suppression.penalty(loss)).backward()
        optimizer.step()

    return penalised


def measure(rounds: int, only: str) -> dict[str, object]:
    """Median seconds of a plain step, and the ratio to it of every arm whose name holds `only`."""
    steps = {name: step(name, *arm) for name, arm in arms().items() if only in name or name.startswith("plain")}
    names, data = list(steps), batches(8)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(WARM_UP + rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.process_time()
            steps[name](data[i % len(data)])
            seconds[name].append(time.process_time() - start)
    kept = {name: spent[WARM_UP:] for name, spent in seconds.items()}
    ratios = {name: [a / b for a, b in zip(spent, kept["plain"])] for name, spent in kept.items() if name != "plain"}
    return {
        "rounds": rounds,
        "seconds_plain": statistics.median(kept["plain"]),
        "ratio": {name: statistics.quantiles(values, n=4, method="inclusive") for name, values in ratios.items()},
        "torch": torch.__version__,
    }


def report(rows: list[dict]) -> None:
    """The table of the last measurement."""
    row = rows[-1]
    plain = 1e3 * row["seconds_plain"]
    print(f"a plain step takes {plain:.0f} ms of CPU time; {row['rounds']} rounds")
    print("| penalty | step / plain step | quartiles |")
    print("|---|---|---|")
    for name, (low, middle, high) in row["ratio"].items():
        print(f"| {name} | {middle:.2f} | {low:.2f}–{high:.2f} |")


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", default="", help="only rows whose name holds this; nothing is kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    row = measure(arguments.rounds, arguments.only)
    if not arguments.only:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
    report([row])


if __name__ == "__main__":
    main()
