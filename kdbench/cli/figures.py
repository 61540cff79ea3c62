"""Compare the students of a results folder with their teachers: plots and measures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdbench.cli.options import (
    Parser,
    add_device,
    add_plugins,
    add_results,
    add_rules,
    add_selection,
    add_validation,
    check_rules,
    data_request,
    load_plugins,
    print_sheets,
    rebuild_report,
    written,
)
from kdbench.cli.selection import add_choice, choose
from kdbench.core.errors import UserError
from kdbench.core.record import Record
from kdbench.data.registry import default_data_dir
from kdbench.plan.parsing import check_threads

if TYPE_CHECKING:
    from kdbench.data.dataset import Dataset

DESCRIPTION = """\
Compare students with their teacher on the test split: differences of logits by class (the paper's figure), t-SNE,
reliability diagrams, and a table of agreement, KL, CKA, calibration error and likelihood. Name the data as in training.
The report of the folder is written anew, with this table; --baseline and --select are those of `bench.py report`.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python bench.py figures",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_choice(parser)
    parser.add_argument(
        "--seed", type=int, help="seed that is drawn (default: the smallest); the table is over all seeds"
    )
    parser.add_argument("--samples", type=int, default=500, metavar="N", help="images in a t-SNE (default: 500)")
    data = parser.add_argument_group("images, as in training")
    data.add_argument("--dataset", help="default: that of the records, if it needs no path")
    add_selection(data)
    add_validation(data)
    how = parser.add_argument_group("how and where")
    add_results(how)
    add_device(how)
    add_plugins(how)
    add_rules(parser.add_argument_group("the report, which is written anew"))
    return parser


def main(args: argparse.Namespace) -> int:
    from kdbench.report.groups import table_of
    from kdbench.results import Folders, Store

    check_threads(args.threads)
    load_plugins(args.plugins)
    if args.samples < 3:
        raise UserError(f"--samples must be at least 3, got {args.samples}")
    store = Store(args.out)
    records = store.records()
    chosen = choose(args, records)
    check_rules(records, args.baseline, args.select)
    store.require_writable("tables", "charts")
    images = _images(args, chosen)

    from kdbench.analysis.figures import PairFigures
    from kdbench.analysis.predictions import ModelLoader
    from kdbench.report import write_picture, write_sheet
    from kdbench.report.charts.style import house_style
    from kdbench.report.tables.fidelity import sheet
    from kdbench.train.device import configure_torch, resolve_device

    mine = [record for record in chosen if record.trial.data.content == images.info.content]
    pairs: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in mine:
        if record.trial.teacher:
            pairs.setdefault((*table_of(record), record.trial.teacher, record.trial.arch), []).append(record)
    device = resolve_device(args.device)
    configure_torch(device, mine[0].trial.precision, args.threads)
    networks, measured, paths = ModelLoader(store, images, device), [], []
    for pair, students in pairs.items():
        seeds = sorted({record.trial.seed for record in students})
        seed = seeds[0] if args.seed is None else args.seed
        if seed not in seeds:
            known = ", ".join(map(str, seeds))
            raise UserError(f"--seed {seed}: the students of {pair[2]}:{pair[3]} have the seeds {known}")
        plain = [r for r in mine if not r.trial.teacher and (*table_of(r), r.trial.arch) == (*pair[:2], pair[3])]
        try:
            pair_figures = PairFigures(networks, pair, [*plain, *students], seed)
        except ValueError as error:  # weights that are missing, damaged or changed
            raise UserError(f"{error}; run the command that trained it again") from error
        measured += pair_figures.measured
        print(f"{pair[2]} → {pair[3]}, seed {seed}: drawing ...", flush=True)
        with house_style():
            for name, figure in pair_figures.draw(args.samples):
                paths += write_picture(figure, name, (*pair, f"s{seed}"), args.out)
    fidelity = sheet(measured)
    write_sheet(fidelity, "fidelity", args.out)
    print_sheets([fidelity])
    _, report = rebuild_report(Folders([store]), chosen, args.baseline, args.select)
    written([*report, *paths])
    return 0


def _images(args: argparse.Namespace, chosen: Sequence[Record]) -> Dataset:
    """The images on which some of the chosen networks were trained. Raises UserError."""
    from kdbench.data.sources import prepare

    taught = [record.trial.data for record in chosen if record.trial.teacher]
    labels = ", ".join(dict.fromkeys(data.label for data in taught))
    if not taught:
        raise UserError(f"{args.out} holds no finished student of the chosen methods and pairs")
    requested = [data.request for data in taught if data.request]
    if args.dataset is not None:
        requested = [data_request(args, args.dataset, size) for size in dict.fromkeys(data.size for data in taught)]
    elif not requested:
        raise UserError(f"the records are of {labels}: name these images with --dataset, as in training")
    for request in dict.fromkeys(requested):
        images = prepare(request, args.data_dir or default_data_dir())
        if any(data.content == images.info.content for data in taught):
            return images
    raise UserError(
        f"the records are of {labels}, and not of {images.info.label}: "
        "give --dataset, --classes and --subset as in training, or choose with --from-dataset"
    )
