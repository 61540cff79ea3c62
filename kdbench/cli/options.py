"""Options and output that several commands share."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kdbench.core.data import DataRequest
from kdbench.core.errors import UserError
from kdbench.core.record import Record
from kdbench.plan.parsing import parse_classes
from kdbench.plan.study import PRECISIONS, RunOptions, check_baseline
from kdbench.report.epoch_rules import RULES, apply_rule

if TYPE_CHECKING:
    from kdbench.report.model import Sheet
    from kdbench.report.results import StudyResults
    from kdbench.results import Folders


class Parser(argparse.ArgumentParser):
    """Reports an error as one sentence, with a suggestion for a misspelled option."""

    def error(self, message: str) -> NoReturn:
        words = message.rpartition("unrecognized arguments: ")[2].split()
        options = [option for action in self._actions for option in action.option_strings]
        if "unrecognized" in message and words and (near := difflib.get_close_matches(words[0], options, n=1)):
            message += f"; did you mean {near[0]}?"
        raise UserError(f"{message} (see `{self.prog} --help`)")


def given(default: object, parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> object:
    """The default of an option; none where the parser leaves out what was not given, for another source to decide."""
    return argparse.SUPPRESS if parser.argument_default is argparse.SUPPRESS else default


def add_results(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--out", type=Path, default=given(Path("results"), parser), help="results folder (default: results)"
    )


def add_selection(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Options that select images of a data set, and the folder of downloads."""
    parser.add_argument("--classes", help="label numbers to keep: 0-9 or 3,5,7")
    parser.add_argument("--subset", type=int, metavar="N", help="keep N training images, stratified")
    parser.add_argument("--label-column", help="parquet only: the column that holds the labels")
    about = "folder:PATH without a test part: test on this fraction of the images (0.2), stratified"
    parser.add_argument("--test-fraction", type=float, metavar="F", help=about)
    parser.add_argument("--data-dir", type=Path, help="downloads and decoded images (default: ~/.cache/kdbench)")


def add_plugins(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    about = "file or folder of your own methods, data sets and recipes"
    parser.add_argument("--plugins", type=Path, metavar="PATH", help=about)


def load_plugins(path: Path | None) -> Mapping[str, Mapping[str, Any]]:
    """The recipes of --plugins, whose methods and data sets are then known. Raises UserError."""
    if path is None:
        return {}
    from kdbench.runner import plugins  # imports torch

    return plugins.load_plugins(path)


def add_validation(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    help_text = "hold out this fraction of the training images to choose an epoch (0, the default, to below 1)"
    parser.add_argument("--val-fraction", type=float, metavar="F", help=help_text)


def add_rules(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Options that decide what the tables show."""
    baseline, rule = RunOptions.baseline, RunOptions.select
    about = f"the method that others are compared with (default: {baseline})"
    parser.add_argument("--baseline", default=given(baseline, parser), metavar="METHOD", help=about)
    parser.add_argument(
        "--select", default=given(rule, parser), choices=RULES, help=f"which epoch counts (default: {rule})"
    )


def add_device(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--device", default=given("auto", parser), help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--precision", default=given("auto", parser), choices=PRECISIONS)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice, one per physical core)")


def add_jobs(parser: argparse.ArgumentParser | argparse._ArgumentGroup, items: str) -> None:
    about = f"train N {items} side by side, each in its own process: auto (default) on one machine's cores or GPUs"
    parser.add_argument("--jobs", default=given(RunOptions.jobs, parser), metavar="N", help=about)


def add_cluster(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    about = "run the jobs on a Ray cluster: auto (the one this machine is part of), local (started here) or HOST:PORT"
    parser.add_argument("--cluster", metavar="ADDRESS", help=about)
    about = "share of a GPU that a job takes: 0.5 lets two share one (default: 1)"
    parser.add_argument("--gpus-per-job", type=float, metavar="F", help=about)


def data_request(args: argparse.Namespace, source: str, size: int) -> DataRequest:
    """The data request from the options of `add_selection`. Raises UserError."""
    classes = parse_classes(args.classes) if args.classes else None
    fraction = getattr(args, "val_fraction", None) or 0.0
    return DataRequest(source, size, classes, args.subset, fraction, args.label_column, args.test_fraction or 0.0)


def show(folders: Folders, shown: Sequence[Record], baseline: str, rule: str) -> None:
    """Write the whole report of the folders; print the tables of the records in `shown`. Raises UserError."""
    from kdbench.report import printed_sheets

    results, report = rebuild_report(folders, shown, baseline, rule)
    own = results if len(shown) == len(results.stored) else replace(results, stored=shown, read_epochs=None)
    print_sheets(printed_sheets(own))
    written(report)


def rebuild_report(
    folders: Folders, shown: Sequence[Record], baseline: str, rule: str
) -> tuple[StudyResults, list[Path]]:
    """Write the whole report of the folders; which files that are. Raises UserError, see `check_rules`."""
    from kdbench.report import load, write_report

    results = load(folders, shown, baseline, rule)
    return results, write_report(results, folders.root)


def check_rules(records: Sequence[Record], baseline: str, rule: str) -> None:
    """Raise UserError, before anything long, if the records lack the baseline or the accuracy of the rule."""
    check_baseline((record.trial.method for record in records), baseline)
    apply_rule(records, rule)


def print_sheets(sheets: Iterable[Sheet]) -> None:
    """Print tables."""
    from kdbench.report.renderers.terminal import render

    output = console()
    for sheet in sheets:
        for part in render(sheet, output.width):
            output.print(part)


def written(paths: Sequence[Path]) -> None:
    """Print the folders that were written to."""
    for where in dict.fromkeys(path if path.suffix == ".html" else path.parent for path in paths):
        print(f"written: {where}{'' if where.suffix == '.html' else '/'}")


def console() -> Any:
    """A console on standard output; 120 columns where it is not a terminal."""
    from rich.console import Console

    class Pipe(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with 1, which means a failed trial here

    pipe = Pipe()
    if not pipe.is_terminal:
        pipe.width = 120
    return pipe
