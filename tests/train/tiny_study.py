"""A study small enough for tests: random images, tiny networks, the real trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kdbench.core.catalog import Catalog
from kdbench.core.data import DataInfo
from kdbench.core.events import Checkpoint, EpochEnd, Event, TrialEnd
from kdbench.core.jobs import CohortJob, Weights
from kdbench.core.record import Outcome
from kdbench.core.trial import SELF, VANILLA, CheckpointInterval, Cohort, TeacherSource, Trial
from kdbench.data.dataset import Dataset, Split
from kdbench.data.resident import ResidentDataset
from kdbench.distill import Distiller, Hyper, registry
from kdbench.models import build
from kdbench.plan.expressions import parse
from kdbench.plan.recipes import recipe
from kdbench.runner.executors.local import LocalExecutor
from kdbench.train.checkpoint import Checkpoints

CPU = torch.device("cpu")
EPOCHS = 3
RECIPE = recipe("digits", epochs=EPOCHS)


def dataset(train: int = 200, test: int = 50, classes: int = 4) -> ResidentDataset:
    """Noise around one random pattern a class."""
    stream = torch.Generator().manual_seed(1)
    patterns = torch.randint(0, 200, (classes, 8, 8, 3), generator=stream)

    def split(count: int) -> Split:
        labels = torch.arange(count) % classes
        noise = torch.randint(0, 56, (count, 8, 8, 3), generator=stream)
        return Split((patterns[labels] + noise).to(torch.uint8), labels)

    mean_std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    info = DataInfo("toy", "0" * 64, classes, train, test, 8, *mean_std, flip=True)
    return ResidentDataset(info, split(train), split(test), tuple(map(str, range(classes))))


DATASET = dataset()


@contextmanager
def registered(methods: Mapping[str, type[Distiller[Hyper]]]) -> Iterator[None]:
    """Methods by name, for as long as this lasts."""
    for name, cls in methods.items():
        registry.register(name, Hyper, paper="-")(cls)
    try:
        yield
    finally:
        for name in methods:
            del registry._METHODS[name]


class Quiet:
    """Collects events, and can stop the run after an epoch, as Ctrl-C would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.trained: list[tuple[int, int]] = []  # epoch, students
        self.outcomes: list[Outcome] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, TrialEnd) and isinstance(event.outcome, Outcome):
            self.outcomes.append(event.outcome)
        elif isinstance(event, EpochEnd):
            self.trained.append((event.epoch, event.count))
            if event.epoch == self.stop_after:
                raise KeyboardInterrupt


def source(arch: str) -> TeacherSource:
    return TeacherSource(arch, trial=f"vanilla {arch}")


def trial(expression: str, *, arch: str = "resnet8", teacher: str | None = "wrn_16_1", seed: int = 0) -> Trial:
    """A trial of the tiny study; `teacher` may be several, `wrn_16_1+resnet14`, or None for vanilla trials."""
    methods = registry.infos()
    catalog = Catalog(methods, lambda name: None, lambda *_: None)  # type: ignore[arg-type, return-value]
    (method,) = [m for m in parse(expression, catalog) if (m.expression == VANILLA) == (expression == VANILLA)]
    needs_itself = SELF in methods[method.name].extra_teachers(method.settings)
    return Trial(
        data=DATASET.info,
        recipe=RECIPE,
        arch=arch,
        lr=RECIPE.lr,
        teachers=tuple(source(name) for name in sorted(teacher.split("+"))) if teacher else (),
        method=method.expression,
        base=method.name,
        settings=method.settings,
        code=methods[method.name].code,
        seed=seed,
        precision="fp32",
        extra_teachers={SELF: source(arch)} if needs_itself else {},
    )


def cohort(*trials: Trial) -> Cohort:
    first = trials[0]
    return Cohort(first.data, first.recipe, first.seed, first.precision, first.teachers, trials)


def network_weights(arch: str) -> dict[str, Tensor]:
    """Those of an untrained network, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return dict(build(arch, DATASET.info.classes, DATASET.info.size).state_dict())


def network_state(arch: str) -> dict[str, Tensor]:
    """`network_weights` as a student's outcome has them."""
    return {f"network.{name}": tensor for name, tensor in network_weights(arch).items()}


def teacher_weights(cohort: Cohort) -> dict[str, dict[str, Tensor]]:
    """Of every network that teaches in the cohort, by the key of its source."""
    return {key: network_weights(source.arch) for key, source in cohort.sources.items()}


def train(
    folder: Path,
    *trials: Trial,
    stop_after: int | None = None,
    observer: Quiet | None = None,
    stop: Callable[[], bool] = lambda: False,
    interval: CheckpointInterval | None = None,
) -> dict[str, Outcome]:
    """Outcomes by method and architecture; a run that is stopped gives those that had ended by then."""
    together, observer = cohort(*trials), observer or Quiet(stop_after)
    try:
        run_cohort(folder, together, observer=observer, stop=stop, interval=interval)
    except KeyboardInterrupt:
        assert stop_after is not None or stop()
    return {f"{outcome.trial.method}/{outcome.trial.arch}": outcome for outcome in observer.outcomes}


def run_cohort(
    folder: Path,
    cohort: Cohort,
    weights: Weights | None = None,
    *,
    dataset: Dataset | None = None,
    device: torch.device = CPU,
    observer: Quiet | None = None,
    stop: Callable[[], bool] = lambda: False,
    interval: CheckpointInterval | None = None,
) -> list[Outcome]:
    """The outcomes of a cohort under the local executor; checkpoints are written to `folder`."""
    dataset, observer, checkpoints = dataset or DATASET, observer or Quiet(), Checkpoints(folder)

    def emit(event: Event) -> None:
        if isinstance(event, Checkpoint):
            checkpoints.save(event.id, event.content)
        observer(event)

    job = CohortJob(cohort, teacher_weights(cohort) if weights is None else weights)
    LocalExecutor({dataset.info.content: dataset}, device, checkpoints, interval, stop).run(iter([job]), emit)
    return observer.outcomes


def longer(trial: Trial, epochs: int) -> Trial:
    """The same trial under a longer schedule."""
    return replace(trial, recipe=replace(RECIPE, epochs=epochs))


def equal(left: Outcome, right: Outcome) -> bool:
    """Bit for bit: weights, and everything measured but the time."""
    assert left.weights is not None
    assert right.weights is not None
    same = left.weights.keys() == right.weights.keys() and all(
        torch.equal(left.weights[name], right.weights[name]) for name in left.weights
    )
    measured = [[(e.epoch, e.lr, dict(e.terms), e.top1, e.top5) for e in outcome.epochs] for outcome in (left, right)]
    return same and measured[0] == measured[1]
