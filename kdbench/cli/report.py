"""Rebuild tables and charts from records."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdbench.cli.options import Parser, add_results, add_rules, console, show, written
from kdbench.core.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python bench.py report",
        description="Rebuild tables/ and charts/ of a results folder from its records.",
        allow_abbrev=False,
    )
    add_results(parser)
    add_rules(parser)
    parser.add_argument("--against", type=Path, metavar="DIR", help="also compare with another results folder")
    return parser


def main(args: argparse.Namespace) -> int:
    from kdbench.results import Store

    store = Store(args.out)
    records = store.records()
    if not records:
        raise UserError(f"{args.out} holds no records; train something first, or name the folder with --out")
    store.require_writable()
    store.remove_stale()
    other = Store(args.against, quarantine=False).records() if args.against else []
    if args.against and not other:
        raise UserError(f"--against {args.against}: that folder holds no records")
    show(store, records, records, args.baseline, args.select)
    if other:
        from kdbench.report import write_versus_study
        from kdbench.report.results import StudyResults
        from kdbench.report.terminal import render_versus_study

        here, there = (StudyResults(side, rule=args.select) for side in (records, other))
        frame, notes, paths = write_versus_study(here, there, args.out)
        output = console()
        for part in render_versus_study(frame, notes, output.width):
            output.print(part)
        written(paths)
    return 0
