"""Train the missing trials of a study and report."""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.cli.options import (
    Parser,
    add_device,
    add_results,
    add_rules,
    add_selection,
    add_validation,
    build_catalog,
    check_threads,
    console,
    data_dir,
    data_request,
    show,
)
from kdbench.cli.signals import SIGNALS
from kdbench.core.catalog import Catalog
from kdbench.core.data import DataInfo
from kdbench.core.errors import UserError
from kdbench.core.files import file_sha256
from kdbench.core.trial import PRETRAINED, Pair, Plan, TeacherSource
from kdbench.plan import pairs, recipes
from kdbench.plan.parsing import parse_interval, parse_seeds

if TYPE_CHECKING:
    from kdbench.data.sources import Dataset

DESCRIPTION = """\
Compare knowledge-distillation methods for image classifiers: every method trained under one protocol, on the same
batches, from the same initial weights, over several seeds.

other commands (each has --help):
  list methods|pairs|datasets|models|recipes
  report           rebuild tables and charts from the records of a results folder
  transfer         train linear classifiers for another data set on the trained networks
  figures          compare students with their teacher: plots, agreement, calibration
  verify           check the methods against values computed with the authors' code
"""

EXAMPLES = """\
examples:
  python bench.py --methods kd,crd,icd --pairs all --dataset digits       minutes on a CPU, nothing to download
  python bench.py --methods all,all+kd --pairs all --seeds 5              the paper's study on CIFAR-100
  python bench.py --methods "kd,kd(kd_temperature=2),icd(alpha=0.1)+kd" --pairs resnet56:resnet20
  python bench.py --methods kd,icd --pairs resnet20:resnet8 --dataset parquet:PATH --subset 10000 --epochs 6

The same command again continues where it stopped and trains only what is missing.
Exit code 0: all done; 1: a trial failed or diverged; 2: bad input; 130/143: interrupted.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python bench.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to compare")
    what.add_argument(
        "--methods", default="all", help="method expressions, comma-separated; `vanilla` is always included"
    )
    what.add_argument("--pairs", default="all", help="all, same, cross, or teacher:student,... (default: all)")
    what.add_argument("--seeds", default="3", help="how many (3, the default), or which (0,1,7)")
    what.add_argument("--recipe", help="training schedule (default: digits for digits, else paper)")
    what.add_argument("--epochs", type=int, help="shorten or lengthen the recipe; milestones are scaled with it")
    what.add_argument("--lr", type=float, help="initial learning rate of every network")
    what.add_argument("--max-grad-norm", type=float, metavar="N", help="scale larger gradients down to N (default: no)")
    data = parser.add_argument_group("images")
    data.add_argument("--dataset", default="cifar100", help="a name from `list datasets` (default: cifar100)")
    data.add_argument("--size", type=int, help="pixels per side (default: the recipe's)")
    add_selection(data)
    add_validation(data)
    teachers = parser.add_argument_group("teachers (default: trained once, with seed 0)")
    teachers.add_argument("--teacher", type=Path, metavar="FILE", help="checkpoint of the one teacher architecture")
    teachers.add_argument("--teacher-dir", type=Path, metavar="DIR", help="checkpoints named after their architectures")
    how = parser.add_argument_group("how and where")
    add_results(how)
    how.add_argument(
        "--dry-run", action="store_true", help="show trials, cohorts and the estimated time; train nothing"
    )
    about = "save a checkpoint every N epochs (1, the default) or minutes (10min)"
    how.add_argument("--checkpoint-every", default="1", metavar="N", help=about)
    how.add_argument(
        "--rerun", metavar="STATUS", help="train trials of this status again: done, failed, diverged, n/a or all"
    )
    add_device(how)
    add_rules(parser.add_argument_group("tables"))
    return parser


def main(args: argparse.Namespace) -> int:
    source = args.dataset
    recipe = recipes.recipe(
        args.recipe or recipes.default(source),
        epochs=args.epochs,
        lr=args.lr,
        size=args.size,
        max_grad_norm=args.max_grad_norm,
    )
    seeds, chosen_pairs = parse_seeds(args.seeds), pairs.parse(args.pairs, source)
    rerun, interval = _rerun(args.rerun), parse_interval(args.checkpoint_every)
    check_threads(args)
    images = data_request(args, source, recipe.size)

    from kdbench import models  # torch from here on
    from kdbench.data.sources import prepare
    from kdbench.plan.expand import Request, expand
    from kdbench.plan.expressions import parse
    from kdbench.results import Store
    from kdbench.run.executors.local import LocalExecutor
    from kdbench.run.runner import run_plan
    from kdbench.train.checkpoint import Checkpoints
    from kdbench.train.device import configure_torch, describe_environment, resolve_device, resolve_precision

    device = resolve_device(args.device)
    precision = resolve_precision(args.precision, device, recipe.size)
    catalog = build_catalog(None)
    methods = parse(args.methods, catalog)
    canonical = [
        Pair(tuple(catalog.model(arch).name for arch in pair.teachers), catalog.model(pair.student).name)
        for pair in chosen_pairs
    ]
    chosen_pairs = tuple(dict.fromkeys(canonical))
    store = Store(args.out)
    if not args.dry_run:
        store.require_writable()
        store.remove_stale()
    dataset = prepare(images, args.data_dir or data_dir())
    catalog = build_catalog(dataset)
    for arch in dict.fromkeys(arch for pair in chosen_pairs for arch in pair.archs):
        models.features(arch, dataset.info.classes, dataset.info.size)  # raises UserError if the model does not fit
    files = _teacher_files(args, chosen_pairs, dataset.info)
    finished_at = store.finished_at()  # read first: what another process finishes from now on is not trained again
    request = Request(dataset.info, recipe, methods, chosen_pairs, seeds, precision, files)
    completed = store.completed(rerun, needed=())
    plan = expand(request, catalog, completed)
    if needed := plan.teachers & completed:  # teachers need their weights too
        plan = expand(request, catalog, store.completed(rerun, needed))
    if not args.dry_run:
        for arch in dict.fromkeys(trial.arch for trial in plan.pending if trial.arch.endswith(PRETRAINED)):
            print(f"weights of {arch}: loading from the cache, or downloading ...", flush=True)
            models.fetch(arch, dataset.info.classes, dataset.info.size)
    configure_torch(device, precision, args.threads)
    checkpoints = Checkpoints(args.out / "checkpoints", interval)
    _announce(plan, catalog, sum(checkpoints.exists(trial.id) for trial in plan.pending))
    if args.dry_run:
        return _estimate(plan, dataset, device, args.out)
    if plan.cohorts or plan.not_applicable:
        from kdbench.run.progress import progress

        stop = SIGNALS.asked
        executor = LocalExecutor(dataset, device, checkpoints, stop=stop)
        environment = describe_environment(device)
        with SIGNALS.orderly(), progress(console(), plan) as observer:
            run_plan(plan, store, executor, checkpoints, observer, environment, finished_at, stop)
    wanted = {trial.fingerprint for trial in plan.trials}
    records = store.records()
    requested = [record for record in records if record.trial.fingerprint in wanted]
    show(args, records, store, requested)
    missing = wanted - {record.trial.fingerprint for record in requested}
    return 1 if missing or any(record.status in ("failed", "diverged") for record in requested) else 0


def _rerun(text: str | None) -> frozenset[str]:
    known = ("done", "diverged", "failed", "n/a", "all")
    words = [word.strip() for word in text.split(",")] if text else []
    for word in words:
        if word not in known:
            raise UserError(f"--rerun {word!r} is not one of {', '.join(known)}")
    return frozenset(known if "all" in words else words)


def _teacher_files(args: argparse.Namespace, chosen: Sequence[Pair], data: DataInfo) -> dict[str, TeacherSource]:
    archs = list(dict.fromkeys(arch for pair in chosen for arch in pair.teachers))
    if args.teacher is None and args.teacher_dir is None:
        return {}
    if args.teacher and args.teacher_dir:
        raise UserError("give --teacher FILE or --teacher-dir DIR, not both")
    if args.teacher and len(archs) > 1:
        raise UserError(
            f"--teacher FILE is for one architecture, and the pairs have {', '.join(archs)}: use --teacher-dir"
        )
    from kdbench.models import find_checkpoint, load_checkpoint

    sources = {}
    for arch in archs:
        path = args.teacher or find_checkpoint(args.teacher_dir, arch)
        load_checkpoint(path, arch, data.classes, data.size)
        sources[arch] = TeacherSource(arch, file=str(path.resolve()), sha256=file_sha256(path))
    return sources


def _announce(plan: Plan, catalog: Catalog, resumed: int) -> None:
    for module, reason in catalog.broken.items():
        logging.getLogger("kdbench").warning("%s is left out, it failed to import: %s", module, reason)
    print(
        f"{len(plan.trials)} trials: {len(plan.completed)} already there, {len(plan.pending)} to train in "
        f"{len(plan.cohorts)} cohorts, {len(plan.not_applicable)} not applicable"
        + (f"; {resumed} resume from checkpoints" if resumed else ""),
        flush=True,
    )


def _estimate(plan: Plan, dataset: Dataset, device: Any, out: Path) -> int:
    from kdbench.plan.estimate import estimate_disk, estimate_seconds, format_bytes, format_duration
    from kdbench.train.measure_costs import measure_costs

    for number, cohort in enumerate(plan.cohorts, start=1):
        methods = (
            ", ".join(trial.method for trial in cohort.trials) if cohort.teachers else f"{len(cohort.trials)} networks"
        )
        print(f"  [{number}] {cohort.title}, seed {cohort.seed}: {methods}")
    for trial, reason in plan.not_applicable:
        print(f"  n/a {trial.pair} {trial.method}: {reason}")
    if plan.cohorts:
        print("measuring a few steps of each network and each method ...", flush=True)
        costs = measure_costs(plan, dataset, device)
        print(f"estimated time on this device: {format_duration(estimate_seconds(plan, costs))}")
        kept, checkpoint_bytes = estimate_disk(plan, costs)
        existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
        free = shutil.disk_usage(existing).free
        print(
            f"disk needed: {format_bytes(kept)} for results, up to {format_bytes(checkpoint_bytes)} for checkpoints; "
            f"{format_bytes(free)} free" + (": too little" if kept + checkpoint_bytes > free else "")
        )
    return 0
