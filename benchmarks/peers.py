"""What does it cost beside what people use today? CPU time in alternating pairs, and whether the answers agree.

Sensitivity: ten concepts (marks on the demo's digits, each there or not by a coin) at four layers, on the same images: captum's
TCAV with its default classifier, FastCAV by hand, and ours; ours once by labels, once by the same sets of examples. Erasure:
concept-erasure's LeaceFitter and ours on the same rows, of 64 to 2,048 units, from the rows to the eraser.

    python benchmarks/peers.py             # about 6 minutes on one core
    python benchmarks/peers.py --quick     # a pair each; nothing is kept
    python benchmarks/peers.py --profile   # where the time of our sensitivity goes

captum, concept-erasure and scikit-learn are the extra `bench`. A ratio is over one pair; the tables show median and quartiles.
CPU time of the process, one thread. One JSON line per row in results/peers.jsonl.
"""

import argparse
import cProfile
import json
import logging
import pstats
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from measures import missing
from measures.marks import LAYERS, MARKS, images, trained, without_mark
from measures.tcav import captum_tcav, fast_cav, tcav_score
from tabular import table as markdown
from torch import Tensor, nn

import lightning_interp as interp
from lightning_interp.functional.erasure import Eraser, leace, natural
from lightning_interp.functional.moments import moments

RESULTS = Path(__file__).parent / "results" / "peers.jsonl"
VERSION, PAIRS, N, BATCH, SET = 1, 3, 1_000, 125, 100
ROWS, WIDTHS = 10_000, (64, 256, 512, 1024, 2048)
OURS = ("ours", "ours, flattened", "ours, by examples")
KEYS = {"output": "head", "target": "label", "inputs": "image"}


def seconds(work: Callable[[], object]) -> tuple[float, object]:
    """CPU seconds, and what came of it."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def paired(works: dict[str, Callable[[], object]], pairs: int) -> tuple[dict[str, list[float]], dict[str, object]]:
    """Seconds of every contender, run in turns in an order that rotates; the first round is not counted."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    found: dict[str, object] = {}
    names = list(works)
    for i in range(pairs + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            took, found[name] = seconds(works[name])
            if i:
                spent[name].append(took)
    return spent, found


def batches(fields: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The probe set in batches."""
    parts = {key: values.split(BATCH) for key, values in fields.items()}
    return [dict(zip(parts, together)) for together in zip(*parts.values())]


def split(fields: dict[str, Tensor], j: int, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Images with a mark, and without."""
    return tuple(fields["image"][fields[f"mark{j}"] == value][:most] for value in (1, 0))


def by_labels(net: nn.Module, layers: Sequence[str], fields: dict[str, Tensor], pooling: str = "mean") -> np.ndarray:
    """Our sensitivity `[layers, concepts]`, every image with all its labels."""
    variables, how = [interp.Concept(f"mark{j}", kind="binary") for j in range(MARKS)], {"pooling": pooling, "progress": False}
    event = interp.explain(net, batches(fields), variables, layers, measures=["sensitivity"], **how, **KEYS)
    return np.array([[event.sensitivity[layer][v.name][""].value for v in variables] for layer in layers])


def by_examples(net: nn.Module, layers: Sequence[str], fields: dict[str, Tensor]) -> np.ndarray:
    """Our sensitivity by sets of images with and without, as TCAV has them."""
    sets = [split(fields, j) for j in range(MARKS)]
    variables = [interp.Concept(f"mark{j}", examples=[{"image": one} for one in pair]) for j, pair in enumerate(sets)]
    anchor = interp.Concept("label", kind="binary")  # an event has at least one variable with labels
    event = interp.explain(net, batches(fields), [anchor, *variables], layers, measures=["sensitivity"], progress=False, **KEYS)
    return np.array([[event.sensitivity[layer][v.name][""].value for v in variables] for layer in layers])


def by_captum(net: nn.Module, layers: Sequence[str], fields: dict[str, Tensor], most: int | None = None) -> np.ndarray:
    """captum's mean derivative along each vector."""
    random.seed(0)
    np.random.seed(0)
    pairs = [split(fields, j, most) for j in range(MARKS)]
    found = captum_tcav(net, layers, pairs, fields["image"])
    return np.array([[derivative for _, derivative in found[layer]] for layer in layers])


def by_fast_cav(net: nn.Module, layers: Sequence[str], fields: dict[str, Tensor]) -> np.ndarray:
    """FastCAV by hand: one pass forward and back over the images serves all concepts and layers."""
    kept: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    slopes: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for image in fields["image"].split(BATCH):
        logits, h = outputs(net, layers, image)
        for layer, one, g in zip(layers, h, torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), h)):
            kept[layer].append(one.detach().flatten(1))
            slopes[layer].append(g.flatten(1))
    found = np.empty((len(layers), MARKS))
    for i, layer in enumerate(layers):
        h, g = torch.cat(kept[layer]), torch.cat(slopes[layer])
        for j in range(MARKS):
            has = fields[f"mark{j}"] == 1
            direction = fast_cav(h[has], h[~has])
            tcav_score(g, direction)
            found[i, j] = float(g.mean(0) @ direction)
    return found


def outputs(net: nn.Module, layers: Sequence[str], image: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and what the layers give, by plain hooks."""
    found: list[Tensor] = []
    hooks = [net.get_submodule(name).register_forward_hook(lambda m, a, out: found.append(out)) for name in layers]
    logits = net(image)
    for hook in hooks:
        hook.remove()
    return logits, found


@torch.no_grad()
def effects(net: nn.Module, fields: dict[str, Tensor]) -> np.ndarray:
    """do(mark) of each, in logits."""
    found = []
    for j in range(MARKS):
        one, other = (net(without_mark(fields, j, there)).double() for there in (True, False))
        found.append(float((one[:, 1] - one[:, 0] - other[:, 1] + other[:, 0]).mean()))
    return np.array(found)


def sensitivity(kind: str, pairs: int) -> dict:
    """One row: seconds of each, and signs."""
    net, layers, fields = trained(kind), LAYERS[kind], images(N, "test", 1)
    do = effects(net, fields)
    works = {
        "ours": lambda: by_labels(net, layers, fields),
        "ours, flattened": lambda: by_labels(net, layers, fields, "flatten"),
        "ours, by examples": lambda: by_examples(net, layers, fields),
        "captum TCAV": lambda: by_captum(net, layers, fields),
        f"captum TCAV, sets of {SET}": lambda: by_captum(net, layers, fields, SET),
        "FastCAV by hand": lambda: by_fast_cav(net, layers, fields),
        "a pass forward": lambda: forward(net, fields),
    }
    spent, found = paired(works, pairs)
    signs = {name: np.sign(values).tolist() for name, values in found.items() if values is not None}
    return {"what": "sensitivity", "net": kind, "n": N, "do": do.tolist(), "seconds": spent, "signs": signs}


@torch.no_grad()
def forward(net: nn.Module, fields: dict[str, Tensor]) -> None:
    """The floor."""
    for image in fields["image"].split(BATCH):
        net(image)


def our_eraser(h: Tensor, z: Tensor) -> Eraser:
    """Our LEACE from rows to eraser, all weighted alike: as the library does it, in float64 by way of its moments."""
    found = moments(h, h.new_empty(len(h), 0), z.long() + 1, groups=3)
    second = natural(found, torch.tensor([[-0.5], [0.5]], dtype=torch.float64))
    return leace(second.hh, second.zh.T, second.h)


def erasure(d: int, pairs: int) -> dict:
    """One row: seconds in float64 and float32, and the largest difference of what is left."""
    from concept_erasure import LeaceFitter

    g = torch.Generator().manual_seed(d)
    z = (torch.rand(ROWS, 1, generator=g) < 0.5).double()
    mix = torch.randn(d, d, generator=g, dtype=torch.float64) / d**0.5
    h = torch.randn(ROWS, d, generator=g, dtype=torch.float64) @ mix + z @ torch.randn(1, d, generator=g, dtype=torch.float64)
    exact = {"shrinkage": False, "constrain_cov_trace": False}  # the theorem's; the defaults leave it on purpose
    small, label = h.float(), z.float()
    works = {
        "ours": lambda: our_eraser(h, z),
        "theirs": lambda: LeaceFitter.fit(h, z).eraser,
        "theirs, exact": lambda: LeaceFitter.fit(h, z, **exact).eraser,
        "ours, float32 rows": lambda: our_eraser(small, label),
        "theirs, float32": lambda: LeaceFitter.fit(small, label).eraser,
    }
    spent, found = paired(works, pairs)
    left = found["theirs, exact"](h)
    scale = float(h.std())
    off = {name: float((found[name](h if "32" not in name else small).double() - left).abs().max()) / scale for name in works}
    return {"what": "erasure", "d": d, "n": ROWS, "seconds": spent, "off": off}


def ratio(row: dict, over: str, under: str, digits: int = 1) -> str:
    """Median and quartiles of one contender's seconds over another's, pair by pair."""
    found = [a / b for a, b in zip(row["seconds"][over], row["seconds"][under])]
    if len(found) < 2:
        return f"{found[0]:.{digits}f}"
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def sensitivity_table(rows: list[dict]) -> str:
    """Markdown."""
    heads = [
        "net",
        "contender",
        "CPU ms",
        *(f"over {own}" for own in OURS),
        "signs as do",
        "signs as ours, flattened",
    ]
    lines: list[list[str]] = []
    for row in (r for r in rows if r["what"] == "sensitivity"):
        do = np.sign(row["do"])
        for name, spent in row["seconds"].items():
            cells = [row["net"], name, f"{1e3 * statistics.median(spent):.0f}"]
            cells += [ratio(row, name, own) for own in OURS]
            signs = np.array(row["signs"].get(name, np.nan))
            known = signs.ndim > 0
            base = np.array(row["signs"]["ours, flattened"])
            cells += [f"{int((signs == other).sum())} of {signs.size}" if known else "–" for other in (do, base)]
            lines.append(cells)
    return markdown(heads, lines) if lines else ""


def erasure_table(rows: list[dict]) -> str:
    """Markdown."""
    heads = [
        "units",
        "ours, ms",
        "theirs / ours",
        "theirs, exact / ours",
        "theirs in float32 / ours",
        "largest difference to theirs, exact",
    ]
    lines: list[list[str]] = []
    for row in (r for r in rows if r["what"] == "erasure"):
        cells = [str(row["d"]), f"{1e3 * statistics.median(row['seconds']['ours']):.0f}"]
        cells += [ratio(row, name, "ours") for name in ("theirs", "theirs, exact")]
        cells += [ratio(row, "theirs, float32", "ours, float32 rows"), f"{row['off']['ours']:.0e}"]
        lines.append(cells)
    return markdown(heads, lines) if lines else ""


def profile(kind: str) -> None:
    """Where the time of our sensitivity goes."""
    net, layers, fields = trained(kind), LAYERS[kind], images(N, "test", 1)
    for work in (by_labels, by_examples):
        work(net, layers, fields)
        profiler = cProfile.Profile(time.process_time)
        profiler.runcall(work, net, layers, fields)
        print(f"\n{kind}, {work.__name__}")
        pstats.Stats(profiler).sort_stats("cumtime").print_stats(40)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pair each, up to 256 units; nothing is kept")
    parser.add_argument("--profile", action="store_true", help="of our sensitivity; nothing is kept")
    args = parser.parse_args()
    if why := missing():
        print(why)
        return
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if args.profile:
        for kind in LAYERS:
            profile(kind)
        return
    pairs, widths = (1, WIDTHS[:2]) if args.quick else (PAIRS, WIDTHS)
    rows = [sensitivity(kind, pairs) for kind in (["mlp"] if args.quick else LAYERS)]
    rows += [erasure(d, pairs) for d in widths]
    rows = [{"version": VERSION, **row} for row in rows]
    if not args.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(sensitivity_table(rows), erasure_table(rows), sep="\n\n")


if __name__ == "__main__":
    main()
