"""Train the missing trials of a study and report."""

from __future__ import annotations

import argparse
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench import __version__
from kdbench.cli.options import (
    Parser,
    add_cluster,
    add_device,
    add_jobs,
    add_plugins,
    add_results,
    add_rules,
    add_selection,
    add_validation,
    console,
    load_plugins,
    show,
)
from kdbench.core.catalog import Catalog
from kdbench.core.events import Event, JobEnd, JobStarted
from kdbench.plan.study import KEEP_WEIGHTS, RunOptions, StudyOptions, read_options, resolve
from kdbench.runner.executors.worker_process import WorkerPool, early_workers
from kdbench.runner.signals import SIGNALS

if TYPE_CHECKING:
    from kdbench.runner.study_run import StudyRun


DESCRIPTION = """\
Compare knowledge-distillation methods for image classifiers: every method trained under one protocol, on the same
batches, from the same initial weights, over several seeds.

other commands (each has --help):
  list methods|pairs|datasets|models|recipes
  status           what is done, running and left in a results folder
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
        argument_default=argparse.SUPPRESS,  # what was not typed may stand in a study file
    )
    parser.add_argument("--version", action="version", version=f"kdbench {__version__}")
    about = "a study as TOML: [study], [run] and [recipe.NAME]; what is typed besides takes its place"
    parser.add_argument("--study", type=Path, metavar="FILE", help=about)
    what = parser.add_argument_group("what to compare")
    what.add_argument(
        "--methods", help="method expressions, comma-separated (default: all); `vanilla` is always included"
    )
    what.add_argument("--pairs", help="all, same, cross, or teacher:student,... (default: all)")
    what.add_argument("--seeds", help="how many (3, the default), or which (0,1,7)")
    what.add_argument("--recipe", help="training schedule (default: digits for digits, else paper)")
    what.add_argument("--epochs", type=int, help="shorten or lengthen the recipe; milestones are scaled with it")
    what.add_argument("--lr", type=float, help="initial learning rate of every network")
    what.add_argument("--max-grad-norm", type=float, metavar="N", help="scale larger gradients down to N (default: no)")
    data = parser.add_argument_group("images")
    data.add_argument("--dataset", help="a name from `list datasets` (default: cifar100)")
    data.add_argument("--size", type=int, help="pixels per side (default: the recipe's)")
    add_selection(data)
    add_validation(data)
    teachers = parser.add_argument_group("teachers (default: trained once, with seed 0)")
    teachers.add_argument("--teacher", type=Path, metavar="FILE", help="checkpoint of the one teacher architecture")
    teachers.add_argument("--teacher-dir", type=Path, metavar="DIR", help="checkpoints named after their architectures")
    how = parser.add_argument_group("how and where")
    add_results(how)
    how.add_argument(
        "--dry-run",
        action="store_true",
        default=False,
        help="show trials, cohorts and the estimated time; train nothing",
    )
    about = "compile networks with torch.compile: a slow start, and rounding differs"
    how.add_argument("--compile", action=argparse.BooleanOptionalAction, help=about)
    about = "save a checkpoint every N epochs (5) or at an interval (10min, 1h); default: every epoch, on GPUs 5min"
    how.add_argument("--checkpoint-every", metavar="N", help=about)
    about = "which final weights stay: all (default), teachers, none"
    how.add_argument("--keep-weights", choices=KEEP_WEIGHTS, help=about)
    about = "stop in an orderly way after this time: 50min, 2h (exit code 130)"
    how.add_argument("--time-limit", metavar="TIME", help=about)
    how.add_argument(
        "--rerun", metavar="STATUS", help="train trials of this status again: done, failed, diverged, n/a or all"
    )
    add_device(how)
    add_jobs(how, "cohorts")
    add_cluster(how)
    add_plugins(how)
    add_rules(parser.add_argument_group("tables"))
    return parser


def main(args: argparse.Namespace) -> int:
    options, run, own_recipes = read_options(vars(args), getattr(args, "study", None))
    own_recipes = {**load_plugins(run.plugins), **own_recipes}

    with closing(WorkerPool()) as pool:
        return _run(options, run, own_recipes, pool, args.dry_run)


def _run(
    options: StudyOptions,
    run: RunOptions,
    own_recipes: Mapping[str, Mapping[str, Any]],
    pool: WorkerPool,
    dry_run: bool,
) -> int:
    def catalog() -> Catalog:
        if not dry_run:
            pool.start(early_workers(options, run))  # they import torch beside this process
        from kdbench.runner.catalog import build_catalog  # imports torch

        return build_catalog()

    study = resolve(options, catalog, own_recipes)

    from kdbench.report import import_report
    from kdbench.results import Folders
    from kdbench.runner.study_run import prepare_study

    prepared = prepare_study(study, run, dry_run=dry_run, say=_say, pool=pool)
    _say(prepared.summary)
    if dry_run:
        return _estimate(prepared, run.out)

    from kdbench.runner.progress import progress

    idle = _WhenIdle(import_report)
    with SIGNALS.orderly(), progress(console(), prepared.jobs) as display:

        def watch(event: Event) -> None:
            display(event)
            if prepared.parallel.jobs > 1:
                idle(event)

        prepared.train(watch, SIGNALS.asked)
    records = prepared.store.records()
    requested = prepared.own_records(records)
    show(Folders([prepared.store]), requested, run.baseline, run.select)
    unfinished = any(record.status in ("failed", "diverged") for record in requested)
    return 1 if unfinished or prepared.missing(requested) else 0


class _WhenIdle:
    """Calls a function in a thread, once the last job has begun and another has ended: a processor has no more work."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function, self.last, self.done = function, False, False

    def __call__(self, event: Event) -> None:
        if isinstance(event, JobStarted):
            self.last = self.last or event.number == event.total
        elif isinstance(event, JobEnd) and self.last and not self.done:
            self.done = True
            threading.Thread(target=self.function, daemon=True).start()


def _say(text: str) -> None:
    print(text, flush=True)


def _estimate(prepared: StudyRun, out: Path) -> int:
    from kdbench.plan.estimate import estimate_disk, estimate_seconds, format_bytes, format_duration
    from kdbench.report import published
    from kdbench.train.measure_costs import measure_costs

    plan = prepared.plan
    for number, cohort in enumerate(plan.cohorts, start=1):
        methods = ", ".join(trial.method if trial.teachers else trial.arch for trial in cohort.trials)
        print(f"  [{number}] {cohort.title}, seed {cohort.seed}: {methods}")
    for trial, reason in plan.not_applicable:
        print(f"  n/a {trial.pair} {trial.method}: {reason}")
    data, recipe = prepared.dataset.info, prepared.study.recipe
    comparable = published.comparable(data.label, recipe)
    verb = "are" if comparable else "are not"
    print(f"data and recipe {verb} those of the published results: {data.label}, {recipe.label}")
    if plan.cohorts:
        print("measuring a few steps of each network and each method ...", flush=True)
        costs = measure_costs(plan, prepared.dataset, prepared.placement.device, _say)
        seconds = estimate_seconds(prepared.jobs, costs, prepared.parallel.jobs)
        print(f"estimated time on this device: {format_duration(seconds)}")
        if prepared.parallel.compiles:
            networks = sum(len(job.cohort.trials) + len(job.cohort.sources) for job in prepared.jobs)
            print(f"not counted: the compiling of networks ({networks} times, up to a minute each), and what it saves")
        kept, checkpoint_bytes = estimate_disk(prepared.jobs, costs, prepared.parallel.jobs)
        existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
        free = shutil.disk_usage(existing).free
        print(
            f"disk needed: {format_bytes(kept)} for results, up to {format_bytes(checkpoint_bytes)} for checkpoints; "
            f"{format_bytes(free)} free" + (": too little" if kept + checkpoint_bytes > free else "")
        )
    return 0
