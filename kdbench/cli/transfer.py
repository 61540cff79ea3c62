"""Train linear probes for other data sets on the networks of a results folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from kdbench.cli.options import (
    Parser,
    add_device,
    add_results,
    add_selection,
    check_threads,
    console,
    data_dir,
    data_request,
    written,
)
from kdbench.cli.selection import add_choice, choose
from kdbench.core.linear_probe import LinearProbe
from kdbench.plan.probe_protocols import PROTOCOLS, protocol, transfer

if TYPE_CHECKING:
    from kdbench.data.sources import Dataset
    from kdbench.results import ProbeStore

DESCRIPTION = """\
Freeze the backbone of every trained network (distilled students, vanilla students and teachers), train a linear
classifier on it for another data set, and tabulate the accuracy on that data set.

protocols:
""" + "\n".join(f"  {name:8} {how.summary}" for name, how in PROTOCOLS.items())


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python bench.py transfer",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--to", required=True, metavar="DATA", help="targets, comma-separated, e.g. stl10,tiny-imagenet"
    )
    add_choice(parser)
    parser.add_argument("--protocol", default="frozen", help=f"{', '.join(PROTOCOLS)}, or both (default: frozen)")
    parser.add_argument("--epochs", type=int, help="shorten or lengthen the protocol; milestones are scaled with it")
    parser.add_argument(
        "--views",
        type=int,
        default=1,
        metavar="N",
        help="frozen only: fixed augmentations per image (itself, mirrored, shifted)",
    )
    add_selection(parser.add_argument_group("target images"))
    how = parser.add_argument_group("how and where")
    add_results(how)
    add_device(how)
    return parser


def main(args: argparse.Namespace) -> int:
    from kdbench.results import ProbeStore, Store, finished_since
    from kdbench.results.probe_store import FOLDER
    from kdbench.run.claims import Claims, Work

    check_threads(args)
    names = [word.strip() for word in args.protocol.split(",")]
    for name in names:
        protocol(name, epochs=args.epochs, size=32)  # or one sentence, before anything heavy
    store, kept = Store(args.out), ProbeStore(args.out)
    sources = choose(args, store.records())

    from kdbench import models
    from kdbench.data.augment import views
    from kdbench.data.sources import prepare
    from kdbench.run.progress import ProbeProgress
    from kdbench.train.checkpoint import Checkpoints
    from kdbench.train.device import configure_torch, describe_environment, resolve_device, resolve_precision
    from kdbench.train.probe_group import train_probes

    device = resolve_device(args.device)
    store.require_writable(FOLDER, "checkpoints", "tables")
    wanted: list[tuple[Dataset, list[LinearProbe]]] = []
    for target, size in product(
        dict.fromkeys(args.to.split(",")), sorted({source.trial.data.size for source in sources})
    ):
        images = prepare(data_request(args, target.strip(), size), args.data_dir or data_dir())
        precision = resolve_precision(args.precision, device, size)
        for name in dict.fromkeys(names):
            how = protocol(name, epochs=args.epochs, size=size)
            if not how.bn_train_mode:
                views(args.views, how.recipe.pad, images.info.flip)  # or one sentence
            by_seed: dict[int, list[LinearProbe]] = {}
            for record in sources:
                if record.trial.data.size == size:
                    model, digest = models.info(record.trial.arch), record.weights_sha256 or ""
                    made = transfer(record.trial, digest, images.info, how, model, args.views, precision)
                    by_seed.setdefault(made.seed, []).append(made)
            wanted += [(images, of) for _, of in sorted(by_seed.items())]
    before = kept.finished_at()
    completed = kept.completed()
    groups = [(images, todo) for images, of in wanted if (todo := [t for t in of if t.fingerprint not in completed])]
    everything = [probe for _, of in wanted for probe in of]
    waiting = sum(len(todo) for _, todo in groups)
    print(f"{len(everything)} transfers: {len(everything) - waiting} already there, {waiting} to train", flush=True)
    records = {record.trial.fingerprint: record for record in sources}
    checkpoints = Checkpoints(args.out / "checkpoints")
    store.remove_stale()
    for probe in everything:
        if probe.fingerprint in completed:
            checkpoints.remove(probe.id)
    work = [Work(place, frozenset(probe.fingerprint for probe in todo)) for place, (_, todo) in enumerate(groups)]
    finished = finished_since(kept.find, before)
    with (
        Claims(args.out) as claims,
        ProbeProgress(console(), [transfers for _, transfers in groups]) as watcher,
    ):
        for place, mine in claims.share(work, finished, watcher.waiting):
            images, todo = groups[place]
            configure_torch(device, todo[0].precision, args.threads)
            described = describe_environment(device)
            for done in train_probes(
                [probe for probe in todo if probe.fingerprint in mine],
                images,
                lambda probe: store.weights(records[probe.source.fingerprint]),
                checkpoints,
                device,
                described,
                watcher,
            ):
                kept.save(done)
    return _show(args, kept, everything)


def _show(args: argparse.Namespace, kept: ProbeStore, asked: Sequence[LinearProbe]) -> int:
    from kdbench.report import linear_probes as table
    from kdbench.report import write_transfers
    from kdbench.report.terminal import render_transfers

    records = kept.records()
    paths = write_transfers(records, args.out)
    wanted = {probe.fingerprint for probe in asked}
    mine = [record for record in records if record.probe.fingerprint in wanted]
    frame, to = table.transfers(mine), console()
    for part in render_transfers(frame, table.notes(frame), to.width):
        to.print(part)
    written(paths)
    return 0 if len(mine) == len(wanted) and all(record.status == "done" for record in mine) else 1
