"""How much faster a cohort is than the conventional loop: both side by side, in one process, in turns.

    python benchmarks/compare.py                                            minutes on a CPU
    python benchmarks/compare.py --methods all --growth 1,2,4,8,15 --warmup 20 --steps 200 --json FILE

Each repetition runs the conventional loop (`conventional.py`) method by method, then the same methods as kdbench trains
them: in the cohorts of its plan, by its executor. Whole training steps are timed, data included, after some that are
not; neither side evaluates. A method's first stage is taken one step far beforehand: what is timed is the main one.
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
os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as bench.py has it: threads that wait leave the workers their cores

import platformdirs
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.conventional import CONTRASTIVE, Run, wait
from kdbench.core.catalog import Catalog
from kdbench.core.data import DataInfo, DataRequest
from kdbench.core.errors import UserError
from kdbench.core.record import EpochMetrics, Outcome
from kdbench.core.trial import VANILLA, Cohort, Pair, Trial, Value
from kdbench.data.dataset import Dataset, Split
from kdbench.data.resident import Loader
from kdbench.data.sources import prepare
from kdbench.distill import Distiller, Shapes, registry
from kdbench.models import build, features, info
from kdbench.plan import pairs
from kdbench.plan.expand import Request, expand
from kdbench.plan.expressions import parse
from kdbench.plan.recipes import recipe
from kdbench.train.checkpoint import Checkpoints
from kdbench.train.cohort import LocalExecutor
from kdbench.train.device import (
    configure_torch,
    describe_environment,
    forget_peak,
    peak_mib,
    resolve_device,
    resolve_precision,
)
from kdbench.train.student import Student
from kdbench.train.teacher import Teacher

TEST_IMAGES = 10  # the executor evaluates the teacher once before it trains; that is not timed
CLASSES = 100  # of the synthetic images


class _Enough(Exception):
    """All steps that were asked for are done."""


class Watch:
    """An observer that times `steps` steps of the main stage after `warmup` others, and then ends the run."""

    def __init__(self, device: torch.device, warmup: int, steps: int) -> None:
        self.device, self.first, self.last = device, warmup, warmup + steps
        self.marks: list[float] = []

    def cohort(self, cohort: Cohort, number: int, of: int) -> None: ...
    def epoch(self, cohort: Cohort, epoch: int, latest: Mapping[str, EpochMetrics]) -> None: ...
    def outcome(self, outcome: Outcome) -> None: ...
    def waiting(self, trials: int, processes: Sequence[str]) -> None: ...

    def step(self, cohort: Cohort, epoch: int, step: int, steps: int) -> None:
        if epoch < 0 and steps > 1:
            raise RuntimeError("a whole first stage has begun: the state after its first step did not fit")
        if epoch > 0 and step in (self.first, self.last):
            wait(self.device)
            self.marks.append(time.perf_counter())
            if step == self.last:
                raise _Enough


class Bench:
    """Both sides on one pair, the same images and the same teacher."""

    def __init__(self, args: argparse.Namespace, images: Dataset, folder: Path, device: torch.device) -> None:
        self.args, self.images, self.device = args, images, device
        self.checkpoints = Checkpoints(folder)
        self.peaks = {"conventional": 0.0, "cohort": 0.0}  # MiB
        self.precision = resolve_precision(args.precision, device, args.size)
        pair = pairs.parse(args.pair, args.images)[0]
        schedule = replace(recipe("paper", epochs=1, size=args.size), batch_size=args.batch)
        methods = parse(args.methods, (catalog := _catalogue(images)))
        plan = expand(Request(images.info, schedule, methods, (pair,), (0,), self.precision, {}), catalog, ())
        self.left_out = {trial.method: reason for trial, reason in plan.not_applicable}
        named = VANILLA in (word.strip() for word in args.methods.split(","))
        alone = [trial for trial in plan.cohorts[0].trials if named and trial.arch == pair.student]
        self.cohorts = [each for each in (plan.cohorts[0].with_trials(alone), *plan.cohorts[1:]) if each.trials]
        self.trials = [trial for cohort in self.cohorts for trial in cohort.trials]
        if not self.trials:
            raise UserError(f"nothing to measure: {self.left_out or args.methods}")
        self.guide = build(pair.teacher, images.info.classes, args.size).to(device).eval().requires_grad_(False)
        self.weights = {name: tensor.cpu() for name, tensor in self.guide.state_dict().items()}

    def conventional(self, trial: Trial) -> float:
        """Seconds of one method under the conventional loop."""
        run, how = Run(trial, self.images, self.guide if trial.teacher else None, self.device), self.args
        return self._peak("conventional", lambda: run.seconds(how.workers, how.warmup, how.steps))

    def cohort(self, trials: Sequence[Trial]) -> list[float]:
        """Seconds of these trials in the cohorts of the plan, vanilla's first."""
        configure_torch(self.device, self.precision, self.args.threads)
        parts = [cohort.with_trials([trial for trial in trials if trial in cohort.trials]) for cohort in self.cohorts]
        return [self._peak("cohort", partial(self._timed, part)) for part in parts if part.trials]

    def _timed(self, cohort: Cohort) -> float:
        waiting = [trial for trial in cohort.trials if not self.checkpoints.exists(trial.id)]
        early = [each for each in waiting if registry.distiller(each.base).pretraining is not Distiller.pretraining]
        if early:  # one step on one batch; the run below goes on from the state that the executor keeps after it
            train = self.images.train
            batch = Split(train.images[: self.args.batch], train.labels[: self.args.batch])
            self._train(cohort.with_trials(early), replace(self.images, train=batch), Watch(self.device, 1, 0))
        watch = Watch(self.device, self.args.warmup, self.args.steps)
        self._train(cohort, self.images, watch)
        return watch.marks[1] - watch.marks[0]

    def _train(self, cohort: Cohort, images: Dataset, watch: Watch) -> None:
        executor = LocalExecutor(images, self.device, self.checkpoints)
        with suppress(_Enough):
            for outcome in executor.train(cohort, self.weights, watch):
                raise RuntimeError(f"{outcome.trial.method} {outcome.status}: {outcome.reason}")

    def parts(self) -> dict[str, float]:
        """Seconds a step of the last cohort's parts, each measured alone: what is shared, and all optimizers."""
        cohort, schedule = self.cohorts[-1], self.cohorts[-1].recipe
        guide = Teacher(cohort, self.weights, self.device)
        pre_activations = any(registry.distiller(trial.base).pre_activations for trial in cohort.trials)
        loader = Loader(self.images, batch_size=schedule.batch_size, pad=schedule.pad, device=self.device, seed=0)
        batches = loader.epoch(1)
        batch = next(batches)

        def seconds(work: Callable[[], object]) -> float:
            for number in range(self.args.warmup + self.args.steps):
                if number == self.args.warmup:
                    wait(self.device)
                    started = time.perf_counter()
                work()
            wait(self.device)
            return (time.perf_counter() - started) / float(self.args.steps)

        found = {"data": seconds(lambda: next(batches))}
        if cohort.teacher:
            found["teacher"] = seconds(lambda: guide(batch, pre_activations))
        optimizers = [self.student(trial).optimizer for trial in cohort.trials]
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        return found | {"optimizers": seconds(lambda: [optimizer.step() for optimizer in optimizers])}

    def student(self, trial: Trial) -> Student:
        """A student at the beginning of its first epoch."""
        data, info_of = trial.data, info(trial.arch)
        own = features(trial.arch, data.classes, data.size)
        seen = features(trial.teacher.arch, data.classes, data.size) if trial.teacher else own
        shapes = Shapes(own, seen, data.classes, self.images.train.labels.clone(), info_of.family)
        student = Student(trial, shapes, self.device)
        student.begin(1, replayed=False)
        return student

    def _peak(self, side: str, work: Callable[[], float]) -> float:
        """The work's result; notes the peak of memory during it."""
        gc.collect()  # what is left of the run before
        forget_peak(self.device)
        result = work()
        self.peaks[side] = max(self.peaks[side], peak_mib(self.device) or 0.0)
        return result


def _catalogue(images: Dataset) -> Catalog:
    def incompatibility(name: str, settings: Mapping[str, Value], pair: Pair, data: DataInfo) -> str | None:
        own, seen = (features(arch, data.classes, data.size) for arch in (pair.student, pair.teacher))
        shapes = Shapes(own, seen, data.classes, images.train.labels, info(pair.student).family)
        return registry.incompatibility(name, settings, shapes)

    return Catalog(registry.infos(), info, incompatibility, registry.discover())


def load(source: str, size: int) -> Dataset:
    """`synthetic` or `synthetic:COUNT`: noise, the labels balanced; else a data set as bench.py names it."""
    kind, _, count = source.partition(":")
    if kind == "synthetic":
        number, seeded = int(count or 50_000), torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (number, size, size, 3), dtype=torch.uint8, generator=seeded)
        train, names = Split(pixels, torch.arange(number) % CLASSES), tuple(map(str, range(CLASSES)))
        about = DataInfo(source, source, CLASSES, number, number, size, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3), flip=True)
        found = Dataset(about, train, train, names)
    else:
        found = prepare(DataRequest(source, size), platformdirs.user_cache_path("kdbench"))
    test = Split(found.test.images[:TEST_IMAGES], found.test.labels[:TEST_IMAGES])
    return replace(found, info=replace(found.info, test=len(test)), test=test)


def measure(args: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """All figures; `folder` is for the states after first stages. Raises UserError."""
    device = resolve_device(args.device)
    configure_torch(device, resolve_precision(args.precision, device, args.size), args.threads)
    images = load(args.images, args.size)
    if min(args.repetitions, args.warmup, args.steps) < 1 or args.warmup + args.steps > len(images.train) // args.batch:
        raise UserError(f"--warmup and --steps must be at least 1, and together fit into {len(images.train)} images")
    bench = Bench(args, images, folder, device)
    for method, reason in bench.left_out.items():
        say(f"left out: {method}: {reason}")
    guided = [trial for trial in bench.trials if trial.teacher]
    groups = {"all": bench.trials, "without crd": [each for each in bench.trials if each.base != CONTRASTIVE]}
    if len(groups["without crd"]) in (0, len(bench.trials)):
        del groups["without crd"]
    if not all(0 < size <= len(guided) for size in args.growth):
        raise UserError(f"--growth: cohorts here have 1 to {len(guided)} methods: {[each.method for each in guided]}")
    groups |= {f"first {size}": guided[:size] for size in args.growth}

    own: dict[str, list[float]] = {trial.method: [] for trial in bench.trials}
    ours: dict[str, list[list[float]]] = {name: [] for name in groups}
    for repetition in range(1, args.repetitions + 1):
        for trial in bench.trials:
            own[trial.method].append(bench.conventional(trial))
        for name, group in groups.items():
            ours[name].append(bench.cohort(group))
        left, right = sum(spent[-1] for spent in own.values()), sum(ours["all"][-1])
        say(f"repetition {repetition}: conventional {left:.2f} s, cohort {right:.2f} s, ratio {left / right:.2f}")

    def compared(name: str) -> dict[str, Any]:
        count = len(groups[name]) * args.batch * args.steps
        left = [sum(spent) for spent in zip(*(own[trial.method] for trial in groups[name]), strict=True)]
        right = [sum(spent) for spent in ours[name]]
        return {
            "methods": [trial.method for trial in groups[name]],
            "conventional_images_per_second": summary([count / seconds for seconds in left]),
            "cohort_images_per_second": summary([count / seconds for seconds in right]),
            "ratio": summary([a / b for a, b in zip(left, right, strict=True)]),
        }

    parts, whole = bench.parts(), median(spent[-1] for spent in ours["all"]) / args.steps
    return {
        "machine": {name: value for name, value in describe_environment(device).items() if name != "host"},
        "date": time.strftime("%Y-%m-%d"),
        "settings": {**vars(args), "json": None, "precision": bench.precision},
        "left_out": bench.left_out,
        "groups": {name: compared(name) for name in groups},
        "conventional_step_seconds": {name: summary([each / args.steps for each in own[name]]) for name in own},
        "cohort_step_seconds": {"whole": whole, **parts, "students": whole - sum(parts.values())},
        "peak_memory_mib": bench.peaks,
    }


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, least, most, and the values themselves."""
    return {"median": median(values), "min": min(values), "max": max(values), "each": list(values)}


def show(figures: dict[str, Any], console: Console) -> None:
    """The figures as tables."""
    table = Table("", "students", "conventional", "cohort", "ratio", title="student-images/s, median (min - max)")
    for name, group in figures["groups"].items():
        cells = [each for each in group.values() if isinstance(each, dict)]
        texts = (f"{each['median']:,.2f} ({each['min']:,.2f} - {each['max']:,.2f})" for each in cells)
        table.add_row(name, str(len(group["methods"])), *texts)
    steps = Table("conventional", "ms", "cohort", "ms", title="a step, median")
    left = [(name, spent["median"]) for name, spent in figures["conventional_step_seconds"].items()]
    for sides in zip_longest(left, figures["cohort_step_seconds"].items()):
        steps.add_row(*(text for side in sides for text in ((side[0], f"{1e3 * side[1]:,.1f}") if side else ("", ""))))
    peaks = ", ".join(f"{side} {mib:,.0f} MiB" for side, mib in figures["peak_memory_mib"].items())
    console.print(table, steps, f"peak memory: {peaks}", figures["machine"], sep="\n", highlight=False)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--pair", default="resnet32x4:resnet8x4", help="teacher:student")
    found.add_argument("--methods", default="vanilla,kd,crd,icd", help="as for bench.py, but vanilla only where named")
    found.add_argument("--growth", type=_sizes, default=(), metavar="1,2", help="also cohorts of the first N methods")
    found.add_argument("--repetitions", type=int, default=5)
    found.add_argument("--warmup", type=int, default=3, help="steps before those that are timed")
    found.add_argument("--steps", type=int, default=10, help="steps that are timed, of every run")
    found.add_argument("--batch", type=int, default=64)
    found.add_argument("--images", default="synthetic", help="synthetic, synthetic:COUNT, parquet:PATH, ...")
    found.add_argument("--size", type=int, default=32, help="pixels a side")
    found.add_argument("--workers", type=int, default=2, help="processes of the conventional DataLoader; 0: none")
    found.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    found.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"), help="of the cohort")
    found.add_argument("--threads", type=int, help="CPU threads of both sides")
    found.add_argument("--json", type=Path, metavar="FILE", help="where the figures are written")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The whole program. Returns the exit code."""
    args, console = parser().parse_args(argv), Console()
    try:
        with TemporaryDirectory() as folder:
            figures = measure(args, Path(folder), partial(console.print, highlight=False))
    except UserError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    show(figures, console)
    return 0


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
