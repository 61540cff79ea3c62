"""Compare whole epochs of a cohort with those of the conventional loop: both in one process, in turns.

    python benchmarks/epochs.py                                                minutes on a CPU
    python benchmarks/epochs.py --pair vgg13:vgg8 --images parquet:DIR --epochs 3 --json FILE

Where `compare.py` times steps, this times all that an epoch is: training, evaluation on the test images, and a
checkpoint. Of each side's epochs the first is not counted. Methods with a stage before the main one are left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.compare import Bench, build_parser, catalog_of_both, command, header, load, summary, write_json
from benchmarks.conventional import ConventionalTrainer, synchronize
from kdbench.core.data import DataRequest
from kdbench.core.events import Checkpoint, EpochEnd, Event, TrialEnd
from kdbench.core.jobs import CohortJob
from kdbench.core.trial import Cohort
from kdbench.data.registry import default_data_dir
from kdbench.data.resident import ResidentDataset
from kdbench.data.sources import prepare
from kdbench.distill import Distiller, registry
from kdbench.train.cohort import CohortTrainer
from kdbench.train.device import configure_torch, resolve_device, resolve_precision


class EpochTimer:
    """Times epochs from the events of a run, checkpoints written included."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.ends = bench, list[float]()

    def __call__(self, event: Event) -> None:
        match event:
            case Checkpoint():
                self.bench.checkpoints.save(event.id, event.content)
            case TrialEnd(outcome) if outcome.status != "done":
                raise RuntimeError(f"{outcome.item.id} {outcome.status}: {outcome.reason}")
            case EpochEnd():
                synchronize(self.bench.device)
                self.ends.append(time.perf_counter())
            case _:
                pass


def cohort_seconds(bench: Bench, cohort: Cohort, epochs: int) -> list[float]:
    """Of each counted epoch of a cohort."""
    configure_torch(bench.device, bench.precision, bench.args.threads)
    recipe = replace(cohort.recipe, epochs=1 + epochs)
    trials = [replace(trial, recipe=recipe) for trial in cohort.trials]
    whole = replace(cohort, recipe=recipe).with_trials(trials)
    timer = EpochTimer(bench)
    CohortTrainer(CohortJob(whole, bench.weights), bench.dataset, bench.device, timer).train()
    return [end - start for start, end in zip(timer.ends, timer.ends[1:], strict=False)]


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures. Raises UserError."""
    device = resolve_device(args.device)
    configure_torch(device, resolve_precision(args.precision, device, args.size), args.threads)
    bench = Bench(args, images(args), catalog_of_both(images(args)), folder, device)
    staged = {t.method for t in bench.trials if registry.distiller(t.base).pretraining is not Distiller.pretraining}
    bench.left_out |= dict.fromkeys(staged, "it has a stage before the main one")
    trials = [trial for trial in bench.trials if trial.method not in staged]
    cohorts = [cohort.with_trials([trial for trial in cohort.trials if trial in trials]) for cohort in bench.cohorts]
    separate: dict[str, list[float]] = {trial.method: [] for trial in trials}
    together: list[float] = []
    for _ in range(args.repetitions):
        for trial in trials:
            teachers = [bench.networks[source.key] for source in trial.teachers]
            trainer = ConventionalTrainer(trial, bench.dataset, teachers, device)
            separate[trial.method] += trainer.epoch_seconds(args.workers, args.epochs, folder)
            if args.json:  # what there is, should time end
                write_json(args.json, {**header(args, bench), "conventional_seconds_each": separate})
        each = [cohort_seconds(bench, cohort, args.epochs) for cohort in cohorts if cohort.trials]
        together += [sum(seconds) for seconds in zip(*each, strict=True)]
    conventional = [sum(seconds) for seconds in zip(*separate.values(), strict=True)]
    return {
        **header(args, bench),
        "images": {"train": len(bench.dataset.train), "test": len(bench.dataset.test)},
        "methods": [trial.method for trial in trials],
        "conventional_seconds": summary(conventional),
        "conventional_seconds_each": {method: summary(seconds) for method, seconds in separate.items()},
        "cohort_seconds": summary(together),
        "ratio": summary([left / right for left, right in zip(conventional, together, strict=True)]),
    }


def images(args: argparse.Namespace) -> ResidentDataset:
    """As `compare.load`, but with all test images; of noise as many as CIFAR has in proportion."""
    if not args.images.startswith("synthetic"):
        return prepare(DataRequest(args.images, args.size), default_data_dir())
    dataset = load(args.images, args.size)
    test = dataset.train.take(torch.arange(max(1, len(dataset.train) // 5)))
    return replace(dataset, info=replace(dataset.info, test=len(test)), test=test)


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Print the figures as a table."""
    table = Table("", "seconds an epoch, median", "min - max")
    rows = [(name, value) for name, value in figures["conventional_seconds_each"].items()]
    rows += [("all, conventional", figures["conventional_seconds"]), ("all, cohort", figures["cohort_seconds"])]
    for name, value in [*rows, ("ratio", figures["ratio"])]:
        table.add_row(name, f"{value['median']:,.2f}", f"{value['min']:,.2f} - {value['max']:,.2f}")
    console.print(table, figures["machine"], sep="\n", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison. Returns the exit code."""
    parser = build_parser(__doc__)
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each run that are counted")
    parser.set_defaults(images="synthetic:2560", repetitions=2)
    return command(parser.parse_args(argv), measure, show)


if __name__ == "__main__":
    sys.exit(main())
