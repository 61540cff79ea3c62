"""Options and output that several commands share."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kdbench.core.catalog import Catalog
from kdbench.core.data import DataInfo, DataRequest
from kdbench.core.errors import UserError, unknown_name
from kdbench.core.record import Record
from kdbench.core.trial import Pair, Value
from kdbench.plan.parsing import parse_classes
from kdbench.report import BASELINE
from kdbench.report.epoch_rules import RULES

if TYPE_CHECKING:
    from kdbench.data.sources import Dataset
    from kdbench.results import Store


class Parser(argparse.ArgumentParser):
    """Reports an error as one sentence, with a suggestion for a misspelled option."""

    def error(self, message: str) -> NoReturn:
        words = message.rpartition("unrecognized arguments: ")[2].split()
        options = [option for action in self._actions for option in action.option_strings]
        if "unrecognized" in message and words and (near := difflib.get_close_matches(words[0], options, n=1)):
            message += f"; did you mean {near[0]}?"
        raise UserError(f"{message} (see `{self.prog} --help`)")


def add_results(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--out", type=Path, default=Path("results"), help="results folder (default: results)")


def add_selection(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Options that select images of a data set, and the folder of downloads."""
    parser.add_argument("--classes", help="label numbers to keep: 0-9 or 3,5,7")
    parser.add_argument("--subset", type=int, metavar="N", help="keep N training images, stratified")
    parser.add_argument("--label-column", help="parquet only: the column that holds the labels")
    parser.add_argument("--data-dir", type=Path, help="downloads and decoded images (default: ~/.cache/kdbench)")


def add_validation(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    help_text = "hold out this fraction of the training images to choose an epoch (0, the default, to below 1)"
    parser.add_argument("--val-fraction", type=float, metavar="F", help=help_text)


def add_rules(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Options that decide what the tables show."""
    about = f"the method that others are compared with (default: {BASELINE})"
    parser.add_argument("--baseline", default=BASELINE, metavar="METHOD", help=about)
    parser.add_argument("--select", default="last", choices=RULES, help="which epoch counts (default: last)")


def add_device(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice, one per physical core)")


def data_request(args: argparse.Namespace, source: str, size: int) -> DataRequest:
    """The data request from the options of `add_selection`. Raises UserError."""
    classes = parse_classes(args.classes) if args.classes else None
    held = getattr(args, "val_fraction", None) or 0.0
    return DataRequest(source, size, classes, args.subset, held, args.label_column)


def check_threads(args: argparse.Namespace) -> None:
    processors = os.cpu_count() or 1
    if args.threads is not None and not 1 <= args.threads <= processors:
        raise UserError(f"--threads must be between 1 and {processors}, the processors of this machine: {args.threads}")


def data_dir() -> Path:
    """The default of --data-dir."""
    import platformdirs

    return platformdirs.user_cache_path("kdbench")


def build_catalog(images: Dataset | None) -> Catalog:
    """The methods and models as the plan sees them; without images, no method has an incompatibility."""
    from kdbench import models
    from kdbench.distill import Shapes, registry

    infos = registry.infos()

    def incompatibility(name: str, settings: Mapping[str, Value], pair: Pair, data: DataInfo) -> str | None:
        assert images is not None
        student, *teachers = (models.features(arch, data.classes, data.size) for arch in (pair.student, *pair.teachers))
        family = models.info(pair.student).family
        shapes = Shapes(student, tuple(teachers), data.classes, images.train.labels, family)
        return registry.incompatibility(name, settings, shapes)

    return Catalog(infos, models.info, incompatibility, registry.discover())


def show(args: argparse.Namespace, records: Sequence[Record], store: Store, shown: Sequence[Record]) -> None:
    """Write the whole report of the folder's records; print the tables of the records in `shown`.

    Raises UserError if --baseline or --select names something that the records lack.
    """
    from kdbench.report import compare, cost, footnotes, tables, write_report, write_transfers
    from kdbench.report.epoch_rules import apply_rule
    from kdbench.report.terminal import render, render_comparison, render_costs
    from kdbench.results import ProbeStore

    baseline = _baseline(args.baseline, records)
    transfers = ProbeStore(store.root).records()
    requested = {record.trial.variant for record in shown}
    paths = write_report(records, store.epochs, store.root, requested, baseline, transfers, args.select).paths
    if transfers:
        paths += write_transfers(transfers, store.root)
    output, shown = console(), apply_rule(shown, args.select)
    notes = footnotes.footnotes(shown, rule=args.select)
    for part in (
        *render_costs(cost.costs(shown), output.width),
        *render_comparison(compare(shown, baseline)),
        *render(tables.accuracy(shown), notes, output.width),
    ):
        output.print(part)
    written(paths)


def _baseline(wanted: str, records: Sequence[Record]) -> str:
    """The baseline, if it was trained or is the default. Raises UserError."""
    known = dict.fromkeys(record.trial.method for record in records)
    if wanted not in known and wanted != BASELINE:
        raise unknown_name("baseline", wanted, known, f"trained are {', '.join(known)}")
    return wanted


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
