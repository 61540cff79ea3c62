"""What one image costs on this device: a few real steps of each architecture, and of each method once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F

from kdbench.core.catalog import Cost, Costs
from kdbench.core.data import DataInfo
from kdbench.core.record import EpochMetrics, Outcome
from kdbench.core.trial import PRETRAINED, Cohort, Plan, Recipe
from kdbench.data.dataset import ImageSet, Split
from kdbench.models import build
from kdbench.train.checkpoint import Checkpoints
from kdbench.train.cohort import LocalExecutor
from kdbench.train.device import on_device
from kdbench.train.evaluate import autocast

REPETITIONS = 3


class _Unwatched:
    """An observer that looks away."""

    def cohort(self, cohort: Cohort, number: int, of: int) -> None: ...
    def step(self, cohort: Cohort, epoch: int, step: int, steps: int) -> None: ...
    def epoch(self, cohort: Cohort, epoch: int, latest: Mapping[str, EpochMetrics]) -> None: ...
    def outcome(self, outcome: Outcome) -> None: ...
    def waiting(self, trials: int, processes: Sequence[str]) -> None: ...


def calibrate(plan: Plan, images: ImageSet, device: torch.device) -> Costs:
    """Architectures alone; what a method adds to its student comes from the first cohort that has it."""
    first = plan.cohorts[0]
    archs = [trial.arch for trial in plan.pending] + [each.teacher.arch for each in plan.cohorts if each.teacher]
    costs = architectures(archs, first.data, first.recipe, device, first.precision)
    methods: dict[str, float] = {}
    pretrain: set[str] = set()
    states: dict[str, int] = {}
    for cohort in plan.cohorts:
        new = [trial for trial in cohort.trials if trial.method not in methods]
        if cohort.teacher and new:
            own, early, kept = _methods(cohort.with_trials(new), images, device)
            train = {trial.method: costs[trial.arch].train for trial in new}
            methods |= {method: max(0.0, seconds - train[method]) for method, seconds in own.items()}
            pretrain |= early
            size = {trial.method: costs[trial.arch].size for trial in new}
            states |= {method: max(0, count - 2 * size[method]) for method, count in kept.items()}
    return Costs(costs, methods, frozenset(pretrain), states)


def _methods(
    cohort: Cohort, images: ImageSet, device: torch.device
) -> tuple[dict[str, float], set[str], dict[str, int]]:
    """By the real executor: seconds an image of each student under its method, which methods have a first stage, and
    the bytes of each one's training state.

    A random teacher costs what a trained one does. The first of two epochs of a few steps is not counted.
    """
    assert cohort.teacher is not None
    arch, data = cohort.teacher.arch.removesuffix(PRETRAINED), cohort.data  # nothing is fetched for an estimate
    teacher = replace(cohort.teacher, arch=arch, file=None, sha256=None)
    schedule = replace(cohort.recipe, epochs=2)
    trials = tuple(
        replace(trial, recipe=schedule, teacher=teacher, arch=trial.arch.removesuffix(PRETRAINED))
        for trial in cohort.trials
    )
    short = replace(cohort, recipe=schedule, teacher=teacher, trials=trials)
    few = replace(images, test=Split(images.test.images[:1], images.test.labels[:1]))
    with torch.random.fork_rng(devices=[]):
        weights = build(arch, data.classes, data.size).state_dict()
    with TemporaryDirectory() as folder:
        executor = LocalExecutor(few, device, Checkpoints(Path(folder)), limit=REPETITIONS)
        outcomes = [each for each in executor.train(short, weights, _Unwatched()) if each.epochs]
        kept = {each.trial.method: executor.checkpoints.size(each.trial.id) for each in outcomes}
    count = REPETITIONS * schedule.batch_size
    own = {each.trial.method: each.epochs[-1].student_seconds / count for each in outcomes}
    return own, {each.trial.method for each in outcomes if "pretraining_epochs" in each.extra_info}, kept


def architectures(
    archs: Iterable[str], data: DataInfo, recipe: Recipe, device: torch.device, precision: str
) -> dict[str, Cost]:
    """Medians of a few steps after one that is not counted, on random images."""
    images = torch.rand(recipe.batch_size, 3, data.size, data.size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(recipe.batch_size, device=device) % data.classes
    costs = {}
    for arch in dict.fromkeys(archs):
        with torch.random.fork_rng(devices=[]):
            network = on_device(build(arch.removesuffix(PRETRAINED), data.classes, data.size), device)
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=recipe.momentum, fused=True)

        def train(network: torch.nn.Module = network, optimizer: torch.optim.Optimizer = optimizer) -> None:
            with autocast(device, precision):
                logits = network(images).logits
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        def forward(network: torch.nn.Module = network) -> None:
            with torch.no_grad(), autocast(device, precision):
                network(images)

        network.train()
        spent = _median_seconds(train, device)
        network.eval()
        size = sum(tensor.nbytes for tensor in network.state_dict().values())
        costs[arch] = Cost(spent / recipe.batch_size, _median_seconds(forward, device) / recipe.batch_size, size)
    return costs


def _median_seconds(work: Callable[[], None], device: torch.device) -> float:
    times = []
    for _ in range(REPETITIONS + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return median(times[1:])
