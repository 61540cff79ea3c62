"""Rebuild tables and charts from records."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdbench.cli.options import Parser, add_rules, print_sheets, show, written
from kdbench.core.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python bench.py report",
        description="Rebuild tables/ and charts/ of a results folder from its records.",
        allow_abbrev=False,
    )
    about = "results folder (default: results); several are shown as one study, whose report is written to the first"
    parser.add_argument("--out", type=Path, nargs="+", default=[Path("results")], metavar="DIR", help=about)
    add_rules(parser)
    parser.add_argument("--against", type=Path, metavar="DIR", help="also compare with another results folder")
    return parser


def main(args: argparse.Namespace) -> int:
    from kdbench.results import Folders, Store

    first, *others = {folder.resolve(): folder for folder in args.out}.values()
    stores = [Store(first), *(Store(folder, quarantine=False) for folder in others)]
    for store in stores:
        if not store.records():
            raise UserError(f"{store.root} holds no records; train something first, or name the folder with --out")
    stores[0].require_writable()
    stores[0].remove_stale()
    folders = Folders(stores)
    records = folders.records()
    other = Store(args.against, quarantine=False).records() if args.against else []
    if args.against and not other:
        raise UserError(f"--against {args.against}: that folder holds no records")
    show(folders, records, args.baseline, args.select)
    if other:
        from kdbench.report import write_sheet
        from kdbench.report.results import StudyResults
        from kdbench.report.tables.against import against

        sheet = against(*(StudyResults(side, rule=args.select) for side in (records, other)))
        paths = write_sheet(sheet, "against", first)
        print_sheets([sheet])
        written(paths)
    return 0
