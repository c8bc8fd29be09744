"""Does it take the confounder out? Three tasks with a shortcut that was built in, four with one that nobody built.

Every method has one knob and four values of it, tried on one seed that is not reported. The rule, the same for all methods and
tasks: the value with the best worst-group accuracy on the validation part is taken (of the groups with ten samples in it); the
test part has no say. What is in the validation part: `demo` both backgrounds equally (group-balanced, as in Waterbirds);
`coloured` images of the two training environments only; `decoy` patches redrawn, as the intervention does; `caltech` pictures
as in training; `heart` patients of the hospitals of training; `adult` people as they are, where training is drawn; `reviews`
originals and their revisions, where training has originals only. Beside it, "oracle": the best test accuracy of the four
trials, what selection on the test part would have shown. On demo and coloured ContributionPenalty also has a row for every
weight and some batch sizes.

By hand, to compare with: JTT (shortcuts/jtt.py), DFR (dfr.py, on the validation part), RR-ClArC (clarc.py), IRM (irm.py);
"LEACE at the end" is the package of its authors on what feeds the head, "edit at the end" the library's, which balances groups.

"do" is the true effect of the confounder, in logits; "share" its debiased share of the output's variance; "sd" the output's
standard deviation over that of the ceiling, trained without the shortcut: a penalty must not win by shrinking the output.

    python benchmarks/suppression.py                                  # all tasks, 3 seeds, the demo 5
    python benchmarks/suppression.py --task demo --agreement 0.99
    python benchmarks/suppression.py --task coloured --methods plain ceiling --seeds 1
    python benchmarks/suppression.py --task coloured --full           # 25,000 images per environment, once, the best method
    python benchmarks/suppression.py --quick                          # does it all run? nothing is kept

The data sets are looked for in $LIGHTNING_INTERP_DATA. One JSON line per run in results/suppression.jsonl; what is there
already is not run again.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from shortcuts.adult import FILES, Adult
from shortcuts.caltech import FILE as CALTECH
from shortcuts.caltech import Caltech
from shortcuts.heart import FILE as HEART
from shortcuts.heart import SITES, Heart
from shortcuts.methods import BUILT, METHODS, SPREAD, Method
from shortcuts.report import TUNING_SEED, answers, at, chosen, hospitals, select, table
from shortcuts.reviews import FILE as REVIEWS
from shortcuts.reviews import Reviews
from shortcuts.runs import VERSION, key, run
from shortcuts.tasks import Coloured, Decoy, Demo, Task, data_file

RESULTS = Path(__file__).parent / "results" / "suppression.jsonl"
NEEDS = {
    "coloured": ("mnist.npz",), "decoy": ("mnist.npz",), "caltech": (CALTECH,), "heart": (HEART,), "adult": FILES,
    "reviews": (REVIEWS,),
}  # fmt: skip
SEEDS = {"demo": 5, "coloured": 3, "decoy": 3, "caltech": 3, "heart": 3, "adult": 3, "reviews": 3}


class Book:
    """The rows so far; a run that is among them is not run again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [r for r in map(json.loads, lines) if r.get("version") == VERSION]

    def run(self, task: Task, method: Method, value: float, batch_size: int, seed: int) -> None:
        """Run and write, if need be."""
        wanted = key(task, method.name, value, batch_size, seed)
        if any(wanted.items() <= r.items() for r in self.rows):
            return
        start = time.process_time()
        row = run(task, method, value, batch_size, seed)
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        found = row.get("error") or f"test {row['test_accuracy']:.3f}, worst {row['test_worst'] or 0:.3f}"
        spent = time.process_time() - start
        what = f"{task.name} {task.setting:g} {method.name} {value:g} batch {batch_size} seed {seed}"
        print(f"{what}: {found}, {spent:.0f} s", flush=True)


def tuned(book: Book, task: Task, methods: list[Method], seeds: int, trials: int) -> None:
    """Try the values, then run the one that is taken on every seed."""
    for method in methods:
        for value in method.values[:trials]:
            book.run(task, method, value, method.batch_size, TUNING_SEED)
        value = chosen(select(book.rows, task.name, task.setting), method)
        if value is None:
            continue  # every trial was refused; `answers` says why
        for seed in range(seeds):
            book.run(task, method, value, method.batch_size, seed)
    names = {m.name for m in methods}
    for seed in range(seeds):
        for name, value, size in SPREAD:
            if name in names and task.name in BUILT and task.separable:
                book.run(task, METHODS[name], value, size, seed)


def full(book: Book, names: list[str]) -> None:
    """The sizes of the IRM paper, once, with the values that were taken at the smaller size."""
    small, large = Coloured(), Coloured(25_000)
    mine = select(book.rows, small.name, small.setting)
    values = {name: chosen(mine, METHODS[name]) for name in METHODS}
    runs = {n: at(mine, n, v, METHODS[n].batch_size) for n, v in values.items() if not METHODS[n].ceiling}
    worst = {n: statistics.mean(r["val_worst"] for r in found) for n, found in runs.items() if found}
    for name in names or sorted(worst, key=worst.get)[-1:]:
        if values[name] is None:
            print(f"coloured 25000 {name}: skipped, its knob has not been tuned at the smaller size")
            continue
        book.run(large, METHODS[name], values[name], METHODS[name].batch_size, 0)
    for row in select(book.rows, large.name, large.setting):
        print(json.dumps(row))


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=list(SEEDS), default=list(SEEDS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=[], metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--seeds", type=int, help="instead of 3, of the demo 5")
    parser.add_argument("--agreement", type=float, default=0.95, help="of grass and label in the demo's training part")
    parser.add_argument("--full", action="store_true", help="coloured MNIST at the paper's size, once")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one epoch, two trials, one seed; nothing is kept")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if args.quick:
        tasks: list[Task] = [Demo(args.agreement, epochs=1), Coloured(500, 1, 500), Decoy(1_000, 1, 1_000)]
        tasks += [Caltech(1), Heart(0, 1), Adult(epochs=1), Reviews(1)]
    else:
        tasks = [Demo(args.agreement), Coloured(), Decoy(), Caltech(), *map(Heart, range(len(SITES))), Adult(), Reviews()]
    tasks = [t for t in tasks if t.name in args.task]
    with tempfile.TemporaryDirectory() as folder:
        book = Book(Path(folder) / "quick.jsonl" if args.quick else RESULTS)
        for task in tasks:
            missing = [name for name in NEEDS.get(task.name, ()) if data_file(name) is None]
            if missing:
                print(f"{task.name}: skipped, LIGHTNING_INTERP_DATA is not set or holds no {missing[0]}")
                continue
            if args.full:
                if isinstance(task, Coloured):
                    full(book, args.methods)
                continue
            methods = [METHODS[name] for name in args.methods or METHODS]
            methods = [m for m in methods if not m.tasks or task.name in m.tasks]
            tuned(book, task, methods, 1 if args.quick else args.seeds or SEEDS[task.name], 2 if args.quick else 4)
            seeds = sorted({r["seed"] for r in select(book.rows, task.name, task.setting)} - {TUNING_SEED})
            print(f"\n{task.name} {task.setting:g}, {task.epochs} epochs, {len(seeds)} seeds, test part, mean ± sd")
            print(hospitals(book.rows) if isinstance(task, Heart) else table(book.rows, task.name, float(task.setting)))
            print(*answers(book.rows, task.name, float(task.setting)), "", sep="\n")


if __name__ == "__main__":
    main()
