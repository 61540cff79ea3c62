"""What one image costs on this device: a few real steps of each architecture, and of each method once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import median

import torch
import torch.nn.functional as F

from kdbench.core.catalog import Cost, Costs
from kdbench.core.data import DataInfo
from kdbench.core.events import Checkpoint, Event, TrialEnd
from kdbench.core.jobs import CohortJob
from kdbench.core.record import Outcome
from kdbench.core.trial import PRETRAINED, Cohort, Plan, Recipe, TeacherSource
from kdbench.data.dataset import Dataset
from kdbench.models import build
from kdbench.train.cohort import CohortTrainer
from kdbench.train.cuda_graph import Accelerator, Plain, accelerator
from kdbench.train.device import on_device
from kdbench.train.evaluate import autocast
from kdbench.train.recorded_step import WARM_UP, RecordedStep, Work

REPETITIONS = 3

SLOW = 0.5
"""Seconds of a step, or of one of each of a group, from which on it is not repeated: an estimate must not take minutes
itself."""

GROUP = 8  # methods that are built and measured together
HARMLESS_RATE = 1e-6  # no method diverges with it under a random teacher


def measure_costs(
    plan: Plan, dataset: Dataset, device: torch.device, say: Callable[[str], None] = lambda text: None
) -> Costs:
    """Costs of architectures alone, and what each method adds to its student in the cheapest cohort that has it.

    `say` is told what has been measured.
    """
    first = plan.cohorts[0]
    archs = [trial.arch for trial in plan.pending] + [
        s.arch for cohort in plan.cohorts for s in cohort.sources.values()
    ]
    replayed = accelerator(device, first.data.train // first.recipe.batch_size)
    costs = architecture_costs(archs, first.data, first.recipe, device, first.precision, say, replayed)
    methods: dict[str, float] = {}
    pretrained: set[str] = set()
    checkpoint_bytes: dict[str, int] = {}
    tried: set[tuple[str, str]] = set()  # methods with pairs
    cheapest = sorted(plan.cohorts, key=lambda cohort: costs[cohort.trials[0].arch].train)
    for cohort in cheapest:
        new = [t for t in cohort.trials if t.method not in methods and (t.method, t.pair) not in tried and t.teachers]
        for group in (new[start : start + GROUP] for start in range(0, len(new), GROUP)):
            part = cohort.with_trials(group)
            cold = device.type == "cuda"
            measured = _method_costs(part, dataset, device, Plain(), steps=1, epochs=1 + cold)
            once = cohort.recipe.batch_size * sum(seconds for seconds, *_ in measured.values())
            if once < SLOW:
                steps = REPETITIONS + replayed.records * (WARM_UP + 1)
                measured = _method_costs(part, dataset, device, replayed, steps, epochs=2)
            tried |= {(trial.method, trial.pair) for trial in group}
            for trial in group:
                cost = costs[trial.arch]
                if trial.method in measured:
                    seconds, has_pretraining, size = measured[trial.method]
                    methods[trial.method] = max(0.0, seconds - cost.train)
                    say(f"  {trial.method} on {trial.arch}: {1000 * seconds:.3g} ms per image")
                    checkpoint_bytes[trial.method] = max(0, size - 2 * cost.size)
                    if has_pretraining:
                        pretrained.add(trial.method)
    return Costs(costs, methods, frozenset(pretrained), checkpoint_bytes)


def _method_costs(
    cohort: Cohort, dataset: Dataset, device: torch.device, on: Accelerator, steps: int, epochs: int
) -> dict[str, tuple[float, bool, int]]:
    """By a few real steps: seconds an image of each student under its method, whether that has a pretraining, and the
    bytes of its checkpoint.

    A random teacher costs what a trained one does. Only the last of the epochs is counted, and of its steps those that
    are replayed, where the run will replay them.
    """
    job = untrained(cohort, epochs)
    outcomes: list[Outcome] = []
    sizes: dict[str, int] = {}  # of checkpoints, by trial id

    def collect(event: Event) -> None:
        if isinstance(event, Checkpoint):
            sizes[event.id] = len(event.content)
        elif isinstance(event, TrialEnd) and isinstance(event.outcome, Outcome) and event.outcome.epochs:
            outcomes.append(event.outcome)

    CohortTrainer(job, dataset, device, collect, limit=steps, on=on).train()
    images = steps * cohort.recipe.batch_size
    return {
        outcome.trial.method: (
            outcome.epochs[-1].student_seconds / images,
            "pretraining_epochs" in outcome.extra_info,
            sizes[outcome.trial.id],
        )
        for outcome in outcomes
    }


def untrained(cohort: Cohort, epochs: int) -> CohortJob:
    """A cohort's job under random teachers, at a learning rate that harms no method."""
    data, recipe = cohort.data, replace(cohort.recipe, epochs=epochs)
    sources = {key: _untrained(source) for key, source in cohort.sources.items()}
    teachers = tuple(sources[source.key] for source in cohort.teachers)
    trials = tuple(
        replace(
            trial,
            recipe=recipe,
            lr=HARMLESS_RATE,
            teachers=teachers,
            arch=trial.arch.removesuffix(PRETRAINED),
            extra_teachers={name: sources[source.key] for name, source in trial.extra_teachers.items()},
        )
        for trial in cohort.trials
    )
    with torch.random.fork_rng(devices=[]):
        weights = {s.key: build(s.arch, data.classes, data.size).state_dict() for s in sources.values()}
    return CohortJob(replace(cohort, recipe=recipe, teachers=teachers, trials=trials), weights)


def _untrained(source: TeacherSource) -> TeacherSource:
    """Nothing is read or fetched for an estimate."""
    arch = source.arch.removesuffix(PRETRAINED)
    return TeacherSource(arch, trial=f"untrained {source.key}")


def architecture_costs(
    archs: Iterable[str],
    data: DataInfo,
    recipe: Recipe,
    device: torch.device,
    precision: str,
    say: Callable[[str], None] = lambda text: None,
    on: Accelerator | None = None,
) -> dict[str, Cost]:
    """Medians of a few steps after those that are not counted, on random images; replayed ones where `on` replays."""
    on = on or Plain()
    images = torch.rand(recipe.batch_size, 3, data.size, data.size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(recipe.batch_size, device=device) % data.classes
    costs = {}
    for arch in dict.fromkeys(archs):
        with torch.random.fork_rng(devices=[]):
            network = on_device(build(arch.removesuffix(PRETRAINED), data.classes, data.size), device)
        optimizer = torch.optim.SGD(network.parameters(), lr=HARMLESS_RATE, momentum=recipe.momentum, fused=True)

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
        spent = _median_seconds(train, device, on)
        network.eval()
        size = sum(tensor.nbytes for tensor in network.state_dict().values())
        costs[arch] = Cost(spent / recipe.batch_size, _median_seconds(forward, device, on) / recipe.batch_size, size)
        say(f"  {arch}: {1000 * costs[arch].train:.3g} ms per image")
    return costs


def _median_seconds(work: Callable[[], None], device: torch.device, on: Accelerator) -> float:
    step, times = RecordedStep("an architecture", on), list[float]()
    cold = device.type == "cuda"  # its libraries are loaded in the first step
    uncounted = 1 + on.records * WARM_UP
    while len(times) < uncounted + REPETITIONS:
        started = time.perf_counter()
        step(0, "cost", Work(work))
        step.join()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
        if len(times) > cold and times[-1] > SLOW:
            return times[-1]
    return median(times[uncounted:])
