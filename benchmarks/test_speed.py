"""What a change may slow down, measured by pytest-benchmark: see docs/performance.md.

pytest benchmarks --benchmark-autosave                       before the change
pytest benchmarks --benchmark-compare                        after it
pytest benchmarks -k step --methods every --pairs resnet56:resnet20,vgg13:vgg8
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.compare import Bench, load
from benchmarks.conventional import synchronize
from benchmarks.floor import endless
from kdbench.core.data import DataRequest
from kdbench.core.trial import Trial
from kdbench.plan import pairs, recipes
from kdbench.plan.expand import expand
from kdbench.plan.expressions import parse
from kdbench.plan.study import Study
from kdbench.report.results import StudyResults
from kdbench.runner.catalog import build_catalog
from kdbench.train.checkpoint import serialize
from kdbench.train.cohort import CohortTrainer
from kdbench.train.cuda_graph import Plain
from kdbench.train.evaluate import evaluate, evaluation_batch
from kdbench.train.student import Student
from tests.report.factory import CIFAR100, trained

ROOT = Path(__file__).resolve().parents[1]
STUDENTS = 15


def measure(benchmark: BenchmarkFixture, work: Callable[[], object], device: torch.device) -> None:
    """Whole work, that of the device included."""

    def whole() -> None:
        work()
        synchronize(device)

    benchmark.pedantic(whole, rounds=10, warmup_rounds=3)


@pytest.fixture(scope="session")
def trainer(bench: Bench) -> CohortTrainer:
    return bench.trainer(bench.cohorts[-1])


def student_of(bench: Bench, trainer: CohortTrainer, method: str) -> Student:
    trials = {trial.method: trial for trial in bench.trials}
    if method not in trials:
        pytest.skip(f"{method}: {bench.left_out.get(method, 'of the same settings as another')}")
    return bench.student(trials[method], trainer)


@pytest.mark.benchmark(group="a student's step")
def test_step(benchmark: BenchmarkFixture, bench: Bench, trainer: CohortTrainer, method: str) -> None:
    student = student_of(bench, trainer, method)
    inputs = next(endless(trainer, [student.requires]))
    measure(benchmark, lambda: student.step(inputs), bench.device)


@pytest.mark.benchmark(group="the batch and the teacher")
def test_shared_inputs(benchmark: BenchmarkFixture, bench: Bench, trainer: CohortTrainer) -> None:
    steps = endless(trainer, [bench.student(bench.trials[-1], trainer).requires])
    measure(benchmark, lambda: next(steps), bench.device)


@pytest.mark.benchmark(group="the batch")
def test_batch(benchmark: BenchmarkFixture, bench: Bench, trainer: CohortTrainer) -> None:
    batches = (batch for epoch in cycle((1, 2)) for batch in trainer.loader.epoch(epoch))
    measure(benchmark, lambda: next(batches), bench.device)


@pytest.mark.benchmark(group="evaluation of a student")
def test_evaluation(benchmark: BenchmarkFixture, bench: Bench, trainer: CohortTrainer) -> None:
    student = bench.student(bench.trials[-1], trainer)
    student.eval()
    size = evaluation_batch(bench.device, bench.dataset.info.size)
    batches = list(trainer.loader.training_images(size))
    measure(benchmark, lambda: evaluate({"student": student.predict}, batches, bench.device), bench.device)


@pytest.mark.benchmark(group="a checkpoint")
def test_checkpoint(benchmark: BenchmarkFixture, bench: Bench, trainer: CohortTrainer, method: str) -> None:
    student = student_of(bench, trainer, method)
    student.step(next(endless(trainer, [student.requires])))
    measure(benchmark, lambda: bench.checkpoints.save("measured", serialize(student.state())), bench.device)


@pytest.mark.benchmark(group="the loop without work: 10 steps of 15 students")
def test_loop_overhead(benchmark: BenchmarkFixture, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step costs beside the work of its STUDENTS students: an epoch of 10 steps."""
    monkeypatch.setattr(Student, "_train_step", lambda self, inputs: None)
    cohort = bench.cohorts[0] if not bench.cohorts[0].teachers else bench.cohorts[-1]
    trainer = CohortTrainer(
        bench.trainer(cohort).job, bench.dataset, bench.device, lambda event: None, on=Plain(), limit=None
    )
    trial: Trial = cohort.trials[0]
    students = [bench.student(trial, trainer) for _ in range(STUDENTS)]
    batch = next(iter(trainer.loader.epoch(1)))
    monkeypatch.setattr(trainer.loader, "epoch", lambda number, start=0: iter([batch] * trainer.loader.steps))
    monkeypatch.setattr(trainer.inputs, "_outputs", lambda batch: ())
    benchmark.extra_info["student_steps"] = STUDENTS * trainer.loader.steps
    measure(benchmark, lambda: trainer._train_epoch(1, list(students)), bench.device)


@pytest.mark.benchmark(group="a plan of thousands of trials")
def test_plan(benchmark: BenchmarkFixture) -> None:
    """Three methods in all pairs of the paper, with enough seeds."""
    catalog = build_catalog(load("synthetic:640", 32))
    request = DataRequest("cifar100", 32)
    study = Study(
        request,
        recipes.recipe("paper"),
        parse("kd,crd,icd", catalog),
        pairs.parse("all", "cifar100"),
        tuple(range(60)),
        "fp32",
    )
    plan = benchmark.pedantic(lambda: expand(study, CIFAR100, catalog), rounds=3, warmup_rounds=1)
    assert len(plan.pending) > 2000


@pytest.mark.benchmark(group="a report of 195 records")
def test_report(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    from kdbench.report import write_report

    records = [
        trained(method, 70 + seed / 10 + len(method) / 20, seed, pair=(pair.teacher, pair.student))
        for pair in pairs.parse("all", "cifar100")
        for method in ("kd", "crd", "icd")
        for seed in range(5)
    ]
    benchmark.pedantic(lambda: write_report(StudyResults(records), tmp_path), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("command", ["--help", "list methods", "report --help"])
@pytest.mark.benchmark(group="start of a command")
def test_start(benchmark: BenchmarkFixture, command: str) -> None:
    argv = [sys.executable, "bench.py", *command.split()]
    benchmark.pedantic(
        lambda: subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.DEVNULL), rounds=3, warmup_rounds=1
    )
