"""Compare the speed of a cohort with that of the conventional loop: both in one process, in turns.

    python benchmarks/compare.py                                            minutes on a CPU
    python benchmarks/compare.py --methods all --growth 1,2,4,8,15 --warmup 20 --steps 200 --json FILE

Each repetition trains the methods one by one in the conventional loop (`conventional.py`), then the same methods in the
cohorts of kdbench's plan. Whole training steps are timed, data included, after some warm-up steps; neither side
evaluates. Pretraining is cut to one step beforehand, so that only the main stage is timed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as in kdbench: waiting threads leave their cores to the workers

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import conventional
from kdbench.core.catalog import Catalog
from kdbench.core.data import DataInfo, DataRequest
from kdbench.core.errors import UserError
from kdbench.core.events import Checkpoint, Event, StepEnd, TrialEnd
from kdbench.core.jobs import CohortJob
from kdbench.core.trial import VANILLA, Cohort, Pair, Trial, Value
from kdbench.data.dataset import Split
from kdbench.data.registry import default_data_dir
from kdbench.data.resident import ResidentDataset
from kdbench.data.sources import prepare
from kdbench.distill import Distiller, registry
from kdbench.models import build
from kdbench.plan import pairs
from kdbench.plan.expand import expand
from kdbench.plan.expressions import parse
from kdbench.plan.recipes import recipe
from kdbench.plan.study import Study
from kdbench.runner.catalog import build_catalog
from kdbench.train.checkpoint import Checkpoints
from kdbench.train.cohort import CohortTrainer, build_student
from kdbench.train.cuda_graph import Accelerator, Plain, accelerator
from kdbench.train.device import (
    configure_torch,
    describe_environment,
    peak_mib,
    reset_peak_memory,
    resolve_device,
    resolve_precision,
)
from kdbench.train.inputs_ahead import SLOTS
from kdbench.train.recorded_step import TIMED_STEPS, WARM_UP, RecordedStep, Work
from kdbench.train.student import Student

TEST_IMAGES = 10  # the trainer evaluates the teachers once before it trains; that is not timed
CLASSES = 100  # of the synthetic images


class _StepsDone(Exception):
    """All requested steps are done."""


class StepTimer:
    """Times `steps` steps of the main stage after `warmup` steps, from the events of a run, and then ends it."""

    def __init__(self, device: torch.device, warmup: int, steps: int, checkpoints: Checkpoints) -> None:
        self.device, self.first, self.last = device, warmup, warmup + steps
        self.checkpoints = checkpoints
        self.times: list[float] = []

    def __call__(self, event: Event) -> None:
        match event:
            case Checkpoint():
                self.checkpoints.save(event.id, event.content)
            case TrialEnd(outcome):
                raise RuntimeError(f"{outcome.item.id} {outcome.status}: {outcome.reason}")
            case StepEnd(_, epoch, _, steps) if epoch < 0 and steps > 1:
                raise RuntimeError("pretraining starts again: the checkpoint of its first step did not fit")
            case StepEnd(_, epoch, step) if epoch > 0 and step in (self.first, self.last):
                conventional.synchronize(self.device)
                self.times.append(time.perf_counter())
                if step == self.last:
                    raise _StepsDone
            case _:
                pass


class Bench:
    """Both sides on one pair, with the same images and the same untrained teachers."""

    def __init__(
        self, args: argparse.Namespace, dataset: ResidentDataset, catalog: Catalog, folder: Path, device: torch.device
    ) -> None:
        self.args, self.dataset, self.device = args, dataset, device
        self.checkpoints = Checkpoints(folder)
        self.peaks = {"conventional": 0.0, "cohort": 0.0}  # MiB
        self.precision = resolve_precision(args.precision, device, args.size)
        pair = pairs.parse(args.pair, args.images)[0]
        schedule = replace(recipe("paper", epochs=1, size=args.size), batch_size=args.batch)
        methods = parse(args.methods, catalog)
        study = Study(DataRequest(args.images, args.size), schedule, methods, (pair,), (0,), self.precision)
        plan = expand(study, dataset.info, catalog)
        self.left_out = {trial.method: reason for trial, reason in plan.not_applicable}
        vanilla_named = VANILLA in (name.strip() for name in args.methods.split(","))
        baselines = [trial for trial in plan.cohorts[0].trials if vanilla_named and trial.arch == pair.student]
        cohorts = (plan.cohorts[0].with_trials(baselines), *plan.cohorts[1:])
        self.cohorts = [cohort for cohort in cohorts if cohort.trials]
        self.trials = [trial for cohort in self.cohorts for trial in cohort.trials]
        if not self.trials:
            raise UserError(f"nothing to measure: {self.left_out or args.methods}")
        sources = {key: source for cohort in self.cohorts for key, source in cohort.sources.items()}
        networks = {key: build(source.arch, dataset.info.classes, args.size) for key, source in sources.items()}
        self.networks = {key: network.to(device).eval().requires_grad_(False) for key, network in networks.items()}
        self.weights = {
            key: {name: tensor.cpu() for name, tensor in network.state_dict().items()}
            for key, network in networks.items()
        }

    def conventional_seconds(self, trial: Trial) -> float:
        """Time the steps of one trial in the conventional loop."""
        teachers = [self.networks[source.key] for source in trial.teachers]
        trainer = conventional.ConventionalTrainer(trial, self.dataset, teachers, self.device)
        args = self.args
        return self._with_peak("conventional", lambda: trainer.seconds(args.workers, args.warmup, args.steps))

    def cohort_seconds(self, trials: Sequence[Trial]) -> list[float]:
        """Time the steps of these trials in the cohorts of the plan, the vanilla cohort first."""
        configure_torch(self.device, self.precision, self.args.threads)
        cohorts = [cohort.with_trials([trial for trial in cohort.trials if trial in trials]) for cohort in self.cohorts]
        return [self._with_peak("cohort", partial(self._timed, cohort)) for cohort in cohorts if cohort.trials]

    def _timed(self, cohort: Cohort) -> float:
        new = [trial for trial in cohort.trials if not self.checkpoints.exists(trial.id)]
        pretrained = [t for t in new if registry.distiller(t.base).pretraining is not Distiller.pretraining]
        if pretrained:  # one step of pretraining; the run below resumes from the checkpoint after it
            self._train(cohort.with_trials(pretrained), self._timer(warmup=1, steps=0), limit=1)
        timer = self._timer(self.args.warmup, self.args.steps)
        self._train(cohort, timer)
        return timer.times[1] - timer.times[0]

    def _train(self, cohort: Cohort, timer: StepTimer, limit: int | None = None) -> None:
        with suppress(_StepsDone):
            self.trainer(cohort, timer, limit).train()

    def _timer(self, warmup: int, steps: int) -> StepTimer:
        return StepTimer(self.device, warmup, steps, self.checkpoints)

    def trainer(
        self,
        cohort: Cohort,
        timer: StepTimer | None = None,
        limit: int | None = None,
        on: Accelerator | None = None,
    ) -> CohortTrainer:
        """The trainer of a cohort, before its students are built."""
        emit = timer or self._timer(self.args.warmup, self.args.steps)
        job = CohortJob(cohort, self.weights)
        return CohortTrainer(job, self.dataset, self.device, emit, load=self.checkpoints.load, limit=limit, on=on)

    def part_seconds(self) -> dict[str, float]:
        """Time a step of the last cohort's parts, one by one: the data, the teachers, all optimizers."""
        trainer = self.trainer(self.cohorts[-1])
        students = [self.student(trial, trainer) for trial in trainer.cohort.trials]
        pre_activations = any(student.requires.pre_activations for student in students)
        teachers, batches = trainer.teachers.teachers, trainer.loader.epoch(1)
        batch = next(trainer.loader.epoch(1))

        def seconds(work: Callable[[], object], on: Accelerator = trainer.accelerator) -> float:
            step = RecordedStep("a part", on)  # replayed where the run replays it
            uncounted = self.args.warmup + on.records * (WARM_UP + 1)
            for number in range(uncounted + self.args.steps):
                if number == uncounted:
                    conventional.synchronize(self.device)
                    started = time.perf_counter()
                step(0, "part", Work(work))
                step.join()
            conventional.synchronize(self.device)
            return (time.perf_counter() - started) / float(self.args.steps)

        parts = {"data": seconds(lambda: next(batches), Plain())}
        if teachers:
            parts["teacher"] = seconds(
                lambda: [teacher(batch, pre_activations=pre_activations) for teacher in teachers]
            )
        optimizers = [student.optimizer for student in students]
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        parts["optimizers"] = seconds(lambda: [optimizer.step() for optimizer in optimizers])
        return parts

    def student(self, trial: Trial, trainer: CohortTrainer) -> Student:
        """A student at the beginning of its first epoch, for the teachers and batches of this trainer."""
        student = build_student(trial, self.dataset, trainer.teachers, trainer.loader, trainer.accelerator)
        student.begin_epoch(1)
        return student

    def _with_peak(self, side: str, work: Callable[[], float]) -> float:
        """The result of `work`, whose peak memory is added to `peaks`."""
        gc.collect()  # of the previous run
        reset_peak_memory(self.device)
        result = work()
        self.peaks[side] = max(self.peaks[side], peak_mib(self.device) or 0.0)
        return result


def catalog_of_both(dataset: ResidentDataset) -> Catalog:
    """The catalog of methods that both sides can train."""
    catalog = build_catalog(dataset)

    def incompatibility(name: str, settings: Mapping[str, Value], pair: Pair, data: DataInfo) -> str | None:
        reason = catalog.incompatibility(name, settings, pair, data)
        return reason or conventional.incompatibility(name, settings)

    return replace(catalog, incompatibility=incompatibility)


def load(source: str, size: int) -> ResidentDataset:
    """`synthetic` or `synthetic:COUNT`: noise with balanced labels; otherwise a data set as bench.py names it."""
    kind, _, count = source.partition(":")
    if kind == "synthetic":
        number, generator = int(count or 50_000), torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (number, size, size, 3), dtype=torch.uint8, generator=generator)
        train, names = Split(pixels, torch.arange(number) % CLASSES), tuple(map(str, range(CLASSES)))
        data = DataInfo(source, source, CLASSES, number, number, size, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3), flip=True)
        dataset = ResidentDataset(data, train, train, names)
    else:
        dataset = prepare(DataRequest(source, size), default_data_dir())
    test = Split(dataset.test.images[:TEST_IMAGES], dataset.test.labels[:TEST_IMAGES])
    return replace(dataset, info=replace(dataset.info, test=len(test)), test=test)


def measure(args: argparse.Namespace, folder: Path, log: Callable[[str], None]) -> dict[str, Any]:
    """All figures; `folder` is for checkpoints after pretraining. Raises UserError."""
    device = resolve_device(args.device)
    configure_torch(device, resolve_precision(args.precision, device, args.size), args.threads)
    dataset = load(args.images, args.size)
    available = len(dataset.train) // args.batch
    if min(args.repetitions, args.warmup, args.steps) < 1 or args.warmup + args.steps > available:
        raise UserError(f"--warmup and --steps must be at least 1, and together fit into {len(dataset.train)} images")
    bench = Bench(args, dataset, catalog_of_both(dataset), folder, device)
    if accelerator(device, available).records:
        args.warmup = max(args.warmup, WARM_UP + SLOTS + TIMED_STEPS + 2)  # by then students run side by side
    for method, reason in bench.left_out.items():
        log(f"left out: {method}: {reason}")
    distilled = [trial for trial in bench.trials if trial.teachers]
    contrastive = [trial for trial in bench.trials if trial.base == conventional.CONTRASTIVE]
    groups = {"all": bench.trials}
    if 0 < len(contrastive) < len(bench.trials):
        groups["without crd"] = [trial for trial in bench.trials if trial not in contrastive]
    if not all(0 < size <= len(distilled) for size in args.growth):
        names = [trial.method for trial in distilled]
        raise UserError(f"--growth: cohorts here have 1 to {len(distilled)} methods: {names}")
    groups |= {f"first {size}": distilled[:size] for size in args.growth}

    separate: dict[str, list[float]] = {trial.method: [] for trial in bench.trials}
    together: dict[str, list[list[float]]] = {name: [] for name in groups}
    for repetition in range(1, args.repetitions + 1):
        for trial in bench.trials:
            separate[trial.method].append(bench.conventional_seconds(trial))
        for name, trials in groups.items():
            together[name].append(bench.cohort_seconds(trials))
        left, right = sum(seconds[-1] for seconds in separate.values()), sum(together["all"][-1])
        log(f"repetition {repetition}: conventional {left:.2f} s, cohort {right:.2f} s, ratio {left / right:.2f}")

    def comparison(name: str) -> dict[str, Any]:
        count = len(groups[name]) * args.batch * args.steps
        left = [sum(seconds) for seconds in zip(*(separate[trial.method] for trial in groups[name]), strict=True)]
        right = [sum(seconds) for seconds in together[name]]
        return {
            "methods": [trial.method for trial in groups[name]],
            "conventional_images_per_second": summary([count / seconds for seconds in left]),
            "cohort_images_per_second": summary([count / seconds for seconds in right]),
            "ratio": summary([a / b for a, b in zip(left, right, strict=True)]),
        }

    parts, step_seconds = bench.part_seconds(), median(seconds[-1] for seconds in together["all"]) / args.steps
    return {
        **header(args, bench),
        "groups": {name: comparison(name) for name in groups},
        "conventional_step_seconds": {
            method: summary([value / args.steps for value in seconds]) for method, seconds in separate.items()
        },
        "cohort_step_seconds": {"whole": step_seconds, **parts, "students": step_seconds - sum(parts.values())},
        "peak_memory_mib": bench.peaks,
    }


def header(args: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    """What was measured, on what and when."""
    return {
        "machine": machine(bench.device),
        "date": time.strftime("%Y-%m-%d"),
        "settings": {**vars(args), "json": None, "precision": bench.precision},
        "left_out": bench.left_out,
    }


def machine(device: torch.device) -> dict[str, Any]:
    """The environment without the host's name."""
    return {name: value for name, value in describe_environment(device).items() if name != "host"}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest, largest, and the values themselves."""
    return {"median": median(values), "min": min(values), "max": max(values), "each": list(values)}


def write_json(path: Path, figures: Mapping[str, Any]) -> None:
    """Write the figures; missing folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Print the figures as tables."""
    table = Table("", "students", "conventional", "cohort", "ratio", title="student-images/s, median (min - max)")
    for name, group in figures["groups"].items():
        summaries = [value for value in group.values() if isinstance(value, dict)]
        cells = (f"{value['median']:,.2f} ({value['min']:,.2f} - {value['max']:,.2f})" for value in summaries)
        table.add_row(name, str(len(group["methods"])), *cells)
    steps = Table("conventional", "ms", "cohort", "ms", title="a step, median")
    left = [(name, seconds["median"]) for name, seconds in figures["conventional_step_seconds"].items()]
    for sides in zip_longest(left, figures["cohort_step_seconds"].items()):
        steps.add_row(*(text for side in sides for text in ((side[0], f"{1e3 * side[1]:,.1f}") if side else ("", ""))))
    peaks = ", ".join(f"{side} {mib:,.0f} MiB" for side, mib in figures["peak_memory_mib"].items())
    console.print(table, steps, f"peak memory: {peaks}", figures["machine"], sep="\n", highlight=False)


def build_parser(description: str | None = __doc__) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="resnet32x4:resnet8x4", help="teacher:student")
    parser.add_argument("--methods", default="vanilla,kd,crd,icd", help="as for bench.py, but vanilla only where named")
    parser.add_argument("--growth", type=_sizes, default=(), metavar="1,2", help="also cohorts of the first N methods")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=3, help="steps before the timed ones")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of every run")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", default="synthetic", help="synthetic, synthetic:COUNT, parquet:PATH, ...")
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--workers", type=int, default=2, help="processes of the conventional DataLoader; 0: none")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"), help="of the cohort")
    parser.add_argument("--threads", type=int, help="CPU threads of both sides")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures are written")
    return parser


def command(
    args: argparse.Namespace,
    measure: Callable[[argparse.Namespace, Path], Mapping[str, Any]],
    show: Callable[[Mapping[str, Any], Console], None],
) -> int:
    """Measure, write the figures where that is asked for, and print them. Returns the exit code."""
    try:
        with TemporaryDirectory() as folder:
            figures = measure(args, Path(folder))
    except UserError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        return 2
    if args.json:
        write_json(args.json, figures)
    show(figures, Console())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison. Returns the exit code."""
    log = partial(Console().print, highlight=False)
    return command(build_parser().parse_args(argv), lambda args, folder: measure(args, folder, log), show)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
