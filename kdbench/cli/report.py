"""Rebuild tables and charts from the records."""

from __future__ import annotations

import argparse

from kdbench.cli.common import Parser, add_results, show
from kdbench.spec import UserError


def parser() -> argparse.ArgumentParser:
    found = Parser(
        prog="python bench.py report",
        description="Rebuild tables/ and charts/ of a results folder from its records.",
        allow_abbrev=False,
    )
    add_results(found)
    return found


def carry(args: argparse.Namespace) -> int:
    from kdbench.store import Store

    store = Store(args.out)
    records = store.records()
    if not records:
        raise UserError(f"{args.out} holds no records; train something first, or name the folder with --out")
    store.require_writable()
    show(records, store, records)
    return 0
