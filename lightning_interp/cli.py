"""The command line: `lightning-interp report LOGDIR -o report.html`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase

from lightning_interp.errors import InterpError, InterpWarning, nearest
from lightning_interp.report.log_directory import read_log_directory
from lightning_interp.report.page import write_report
from lightning_interp.report.run import Run

REPORT = """Write one HTML file that says what the models of a TensorBoard log directory use.

The file opens offline, in any browser, and prints on A4. It is made from the event files that ConceptMonitor and
TensorBoardLogger wrote; neither the model nor the training code is needed. Several runs stand side by side."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line; None: those of this process.

    Returns:
        The exit code: 0, or 2 where something was asked for that cannot be had, said on standard error.
    """
    asked = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", InterpWarning)
            found = read_log_directory(asked.logdir)
        for warning in said:
            print(f"lightning-interp: {warning.message}", file=sys.stderr)
        path = write_report(_chosen(found, asked.run), asked.output, asked.title)
    except (InterpError, OSError) as problem:
        print(f"lightning-interp: {problem}", file=sys.stderr)
        return 2
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lightning-interp", description="What a model uses, from what its training logged.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser(
        "report",
        help="write an HTML report of a TensorBoard log directory",
        description=REPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.add_argument("logdir", metavar="LOGDIR", help="directory with event files, at any depth")
    one.add_argument("-o", "--output", metavar="FILE", default="report.html", help="the file, replaced if there (%(default)s)")
    one.add_argument("--run", metavar="NAME", action="append", default=[], help="only this run; a glob, may be repeated")
    one.add_argument("--title", default="What the model uses", help="at the top of the report (%(default)s)")
    return parser


def _chosen(found: dict[str, Run], patterns: Sequence[str]) -> dict[str, Run]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise InterpError(f"`--run {pattern}` matches none of the runs.{nearest(pattern, found)}")
    return {name: run for name, run in found.items() if not patterns or any(fnmatchcase(name, p) for p in patterns)}


if __name__ == "__main__":
    sys.exit(main())
