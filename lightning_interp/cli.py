"""The command line: `lightning-interp demo`, `explain CHECKPOINT --config FILE` and `report LOGDIR -o report.html`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from lightning_interp import __version__
from lightning_interp.errors import InterpError, InterpWarning, nearest
from lightning_interp.report.log_directory import read_log_directory
from lightning_interp.report.page import write_report
from lightning_interp.report.run import Run

ABOUT = "Shows what a model uses: how much each concept and each confounder contributes to its output."
DEMO = """Train a small network on digits before photographs of grass and brick: plain, and with the grass suppressed.

Prints the equation after every epoch, then both runs side by side on test digits, and the line that opens TensorBoard.
The data comes inside scikit-learn and scikit-image (the extra `demo`); nothing is downloaded. It takes about a minute on two
CPU cores. The suppression begins in the third epoch."""
EXPLAIN = """Print the equation of a checkpoint: what its output is made of, on the validation data.

Model, data and the ConceptMonitor are built from the config.yaml that LightningCLI wrote beside the checkpoint; what it names
is imported and run, as in a `fit`, so give it only files that you trust. It runs in one process, writes nothing but the
report, and leaves out all callbacks but ConceptMonitor and EraseConfounder. Needs the extra `cli`."""
REPORT = """Write one HTML file that says what the models of a TensorBoard log directory use.

The file opens offline, in any browser, and prints on A4. It is made from the event files that ConceptMonitor and
TensorBoardLogger wrote; neither the model nor the training code is needed. Several runs stand side by side."""

_AsWritten = argparse.RawDescriptionHelpFormatter


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line; None: those of this process.

    Returns:
        The exit code: 0, or 2 where something was asked for that cannot be had, said on standard error.
    """
    asked = parser().parse_args(arguments)
    try:
        asked.command(asked)
    except (InterpError, OSError, ModuleNotFoundError) as problem:
        print(f"lightning-interp: {problem}", file=sys.stderr)
        return 2
    return 0


def _report(asked: argparse.Namespace) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", InterpWarning)
        found = read_log_directory(asked.logdir)
    for warning in said:
        print(f"lightning-interp: {warning.message}", file=sys.stderr)
    path = write_report(_chosen(found, asked.runs), asked.output, asked.title)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def _demo(asked: argparse.Namespace) -> None:
    from lightning_interp.demo.walk import walk  # here, for it needs torch, which a report does not

    walk(asked.epochs, asked.seed, asked.agreement, asked.log_dir)


def _explain(asked: argparse.Namespace) -> None:
    from lightning_interp.callbacks.experiment import explain_checkpoint  # likewise

    events = explain_checkpoint(asked.checkpoint, asked.config)
    print("\n\n".join(f"{prefix}:\n{event}".removeprefix(":\n") for prefix, event in events.items()))
    if asked.output is not None:
        path = write_report({prefix or "checkpoint": [event] for prefix, event in events.items()}, asked.output)
        print(f"\n{path}: {path.stat().st_size / 1e6:.1f} MB")


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    made = argparse.ArgumentParser(prog="lightning-interp", description=ABOUT, formatter_class=_AsWritten)
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = made.add_subparsers(required=True, metavar="COMMAND", title="commands")
    _add_demo(commands)
    _add_explain(commands)
    _add_report(commands)
    return made


def _add_demo(commands: Any) -> None:
    one = commands.add_parser("demo", help="train the demo plain and suppressed", description=DEMO, formatter_class=_AsWritten)
    one.set_defaults(command=_demo)
    one.add_argument("--epochs", metavar="N", type=int, default=15, help="of each of the two runs (%(default)s)")
    one.add_argument("--seed", metavar="N", type=int, default=0, help="of weights, crops and batches (%(default)s)")
    one.add_argument(
        "--agreement", metavar="P", type=float, default=0.95, help="of grass and label in training, 0 to 1 (%(default)s)"
    )
    one.add_argument("--log-dir", metavar="DIR", default="runs", help="for TensorBoard (%(default)s)")


def _add_explain(commands: Any) -> None:
    one = commands.add_parser("explain", help="say what a checkpoint uses", description=EXPLAIN, formatter_class=_AsWritten)
    one.set_defaults(command=_explain)
    one.add_argument("checkpoint", metavar="CHECKPOINT", help="of Lightning's, such as last.ckpt")
    one.add_argument("--config", metavar="FILE", required=True, help="config.yaml, as LightningCLI wrote it")
    one.add_argument("-o", "--output", metavar="FILE", help="write an HTML report, too")


def _add_report(commands: Any) -> None:
    one = commands.add_parser(
        "report",
        help="write an HTML report of a TensorBoard log directory",
        description=REPORT,
        formatter_class=_AsWritten,
    )
    one.set_defaults(command=_report)
    one.add_argument("logdir", metavar="LOGDIR", help="directory with event files, at any depth")
    one.add_argument("-o", "--output", metavar="FILE", default="report.html", help="the file, replaced if there (%(default)s)")
    one.add_argument(
        "--run", dest="runs", metavar="NAME", action="append", default=[], help="only this run; a glob, may be repeated"
    )
    one.add_argument("--title", metavar="TEXT", default="What the model uses", help="at the top of the report (%(default)s)")


def _chosen(found: dict[str, Run], patterns: Sequence[str]) -> dict[str, Run]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise InterpError(f"`--run {pattern}` matches none of the runs.{nearest(pattern, found)}")
    return {name: run for name, run in found.items() if not patterns or any(fnmatchcase(name, p) for p in patterns)}


if __name__ == "__main__":
    sys.exit(main())
