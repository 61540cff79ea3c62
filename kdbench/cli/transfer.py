"""Train linear probes for other data sets on the networks of a results folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from kdbench.cli.options import (
    Parser,
    add_device,
    add_jobs,
    add_plugins,
    add_results,
    add_rules,
    add_selection,
    check_rules,
    console,
    data_request,
    load_plugins,
    print_sheets,
    rebuild_report,
    written,
)
from kdbench.cli.selection import add_choice, choose
from kdbench.core.linear_probe import LinearProbe
from kdbench.core.record import Record
from kdbench.data.registry import default_data_dir
from kdbench.plan.parsing import check_threads
from kdbench.plan.probe_protocols import PROTOCOLS, protocol, transfer
from kdbench.plan.study import RunOptions

if TYPE_CHECKING:
    from kdbench.data.dataset import Dataset
    from kdbench.results import Store

DESCRIPTION = """\
Freeze the backbone of every trained network (distilled students, vanilla students and teachers), train a linear
classifier on it for another data set, and tabulate the accuracy on that data set. The report of the folder is written
anew, with these tables; --baseline and --select are those of `bench.py report`.

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
    add_jobs(how, "groups of probes")
    add_plugins(how)
    add_rules(parser.add_argument_group("the report, which is written anew"))
    return parser


def main(args: argparse.Namespace) -> int:
    from kdbench.results import Folders, Store

    check_threads(args.threads)  # before anything heavy
    load_plugins(args.plugins)
    names = [word.strip() for word in args.protocol.split(",")]
    for name in names:
        protocol(name, epochs=args.epochs, size=32)  # raises UserError, before anything heavy
    store = Store(args.out)
    records = store.records()
    sources = choose(args, records)
    check_rules(records, args.baseline, args.select)

    from kdbench.core.jobs import ProbeJob
    from kdbench.runner.parallel import Work
    from kdbench.runner.placement import Machine
    from kdbench.runner.progress import progress
    from kdbench.runner.runner import remove_checkpoints, run_jobs
    from kdbench.runner.signals import SIGNALS
    from kdbench.train.checkpoint import Checkpoints
    from kdbench.train.device import configure_torch, describe_environment

    run = RunOptions(args.out, args.device, args.jobs, threads=args.threads, plugins=args.plugins)
    machine = Machine(run)
    device = machine.device
    store.require_writable("transfers", "checkpoints", "tables", "charts")
    datasets, groups = _probes(args, sources, names, device)
    everything = [probe for group in groups for probe in group]
    finished_at, completed = store.finished_at(), store.completed_probes()
    checkpoints = Checkpoints(args.out / "checkpoints")
    store.remove_stale()
    remove_checkpoints([probe for probe in everything if probe.fingerprint in completed], checkpoints, store.root)
    missing = [tuple(probe for probe in group if probe.fingerprint not in completed) for group in groups]
    jobs = [ProbeJob(group) for group in missing if group]
    waiting = sum(len(job.items) for job in jobs)
    print(f"{len(everything)} transfers: {len(everything) - waiting} already there, {waiting} to train", flush=True)
    work = Work(len(groups), sum(probe.recipe.epochs * probe.data.train for probe in everything))
    largest = max((images.info for images in datasets.values()), key=lambda data: data.train * data.size**2)
    parallel = machine.divide(work, largest)
    for line in machine.describe(parallel) if jobs else ():
        print(line, flush=True)
    environment = {**describe_environment(device), "jobs": parallel.jobs}
    for precision in dict.fromkeys(job.items[0].precision for job in jobs):
        configure_torch(device, precision, parallel.threads)
        chosen = [job for job in jobs if job.items[0].precision == precision]
        executor = machine.executor(parallel, precision, datasets, checkpoints, None, SIGNALS.asked)
        with SIGNALS.orderly(), progress(console(), chosen) as display:
            run_jobs(chosen, store, executor, checkpoints, display, environment, finished_at, SIGNALS.asked)
    status = _show(store, everything)
    _, paths = rebuild_report(Folders([store]), sources, args.baseline, args.select)
    written(paths)
    return status


def _probes(
    args: argparse.Namespace, sources: Sequence[Record], names: Sequence[str], device: Any
) -> tuple[dict[str, Dataset], list[list[LinearProbe]]]:
    """The target data sets by their content, and the probes by target, protocol and seed."""
    from kdbench import models
    from kdbench.data.augment import views
    from kdbench.data.sources import prepare
    from kdbench.train.device import resolve_precision

    datasets: dict[str, Dataset] = {}
    groups: list[list[LinearProbe]] = []
    sizes = sorted({source.trial.data.size for source in sources})
    for target, size in product(dict.fromkeys(args.to.split(",")), sizes):
        images = prepare(data_request(args, target.strip(), size), args.data_dir or default_data_dir())
        datasets[images.info.content] = images
        precision = resolve_precision(args.precision, device, size)
        for name in dict.fromkeys(names):
            how = protocol(name, epochs=args.epochs, size=size)
            if not how.bn_train_mode:
                views(args.views, how.recipe.pad, images.info.flip)  # raises UserError if there are not so many
            by_seed: dict[int, list[LinearProbe]] = {}
            for record in sources:
                if record.trial.data.size == size:
                    model, digest = models.info(record.trial.arch), record.weights_sha256 or ""
                    made = transfer(record.trial, digest, images.info, how, model, args.views, precision)
                    by_seed.setdefault(made.seed, []).append(made)
            groups += [group for _, group in sorted(by_seed.items())]
    return datasets, groups


def _show(store: Store, probes: Sequence[LinearProbe]) -> int:
    """Print their table. Returns the exit code."""
    from kdbench.report.tables.transfer import sheet

    wanted = {probe.fingerprint for probe in probes}
    mine = [record for record in store.probe_records() if record.probe.fingerprint in wanted]
    print_sheets([sheet(mine)])
    return 0 if len(mine) == len(wanted) and all(record.status == "done" for record in mine) else 1
