"""Options that choose networks of a results folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from kdbench.core.errors import UserError
from kdbench.core.record import Record
from kdbench.core.trial import VANILLA
from kdbench.plan import pairs
from kdbench.report.groups import Group, select


def add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--methods", help="only these methods (default: all that were trained)")
    parser.add_argument("--pairs", help="only these pairs: teacher:student,... (default: all)")
    parser.add_argument(
        "--from-dataset",
        metavar="LABEL",
        help="only networks trained on this data set, as tables name it (default: all)",
    )


def _source(group: Group) -> str | None:
    """The data set as it was requested, without its selection."""
    request = group.records[0].trial.data.request
    return request.source if request else None


def choose(args: argparse.Namespace, records: Sequence[Record]) -> list[Record]:
    """The finished networks that the tables show and the options of `add_choice` keep: students and teachers.

    Raises UserError if none is left.
    """
    if not records:
        raise UserError(f"{args.out} holds no records; train something first, or name the folder with --out")
    selection = select(records)
    groups = [group for group in selection.groups if group.teacher]
    labels = list(dict.fromkeys(group.dataset for group in groups))
    if args.from_dataset:
        groups = [group for group in groups if args.from_dataset in (group.dataset, _source(group))]
        if not groups:
            raise UserError(
                f"--from-dataset {args.from_dataset!r}: the records are of {', '.join(labels) or 'no pair'}"
            )
    if args.pairs:
        requested = {(pair.teacher, pair.student) for pair in pairs.parse(args.pairs, labels[0] if labels else "")}
        groups = [group for group in groups if (group.teacher, group.student) in requested]
        if not groups:
            raise UserError(f"--pairs {args.pairs}: no student of these pairs was trained in {args.out}")
    if args.methods:
        from kdbench.plan.expressions import parse
        from kdbench.runner.catalog import build_catalog

        methods = {VANILLA, *(method.expression for method in parse(args.methods, build_catalog(None)))}
        groups = [group for group in groups if group.method in methods]
        if absent := methods - {VANILLA} - {group.method for group in groups}:
            raise UserError(f"--methods: no student of {', '.join(sorted(absent))} was trained in {args.out}")
    networks = {record.trial.id: record for group in groups for record in group.done}
    taught = {source.trial for record in networks.values() for source in record.trial.teachers}
    networks |= {
        record.trial.id: record for record in records if record.trial.fingerprint in taught and record.status == "done"
    }
    if not networks:
        raise UserError(f"{args.out} holds no finished network of the chosen methods and pairs")
    return list(networks.values())
