"""A study small enough for tests: random images, tiny networks, real harness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kdbench.core.catalog import Catalog
from kdbench.core.data import DataInfo
from kdbench.core.record import EpochMetrics, Outcome
from kdbench.core.trial import VANILLA, CheckpointInterval, Cohort, TeacherSource, Trial
from kdbench.data.dataset import Dataset, Split
from kdbench.distill import registry
from kdbench.plan.expressions import parse
from kdbench.plan.recipes import recipe
from kdbench.train.checkpoint import Checkpoints
from kdbench.train.cohort import LocalExecutor

CPU = torch.device("cpu")
EPOCHS = 3
RECIPE = recipe("digits", epochs=EPOCHS)


def images(train: int = 200, test: int = 50, classes: int = 4) -> Dataset:
    """Noise around one random pattern a class."""
    stream = torch.Generator().manual_seed(1)
    patterns = torch.randint(0, 200, (classes, 8, 8, 3), generator=stream)

    def split(count: int) -> Split:
        labels = torch.arange(count) % classes
        noise = torch.randint(0, 56, (count, 8, 8, 3), generator=stream)
        return Split((patterns[labels] + noise).to(torch.uint8), labels)

    stats = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    info = DataInfo("toy", "0" * 64, classes, train, test, 8, *stats, flip=True)
    return Dataset(info, split(train), split(test), tuple(map(str, range(classes))))


IMAGES = images()


class Quiet:
    """An observer that can stop the run after an epoch, as Ctrl-C would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.trained: list[tuple[int, int]] = []  # epoch, students

    def cohort(self, cohort: Cohort, number: int, of: int) -> None: ...
    def step(self, cohort: Cohort, epoch: int, step: int, steps: int) -> None: ...
    def outcome(self, outcome: Outcome) -> None: ...
    def waiting(self, trials: int, processes: Sequence[str]) -> None: ...

    def epoch(self, cohort: Cohort, epoch: int, latest: Mapping[str, EpochMetrics]) -> None:
        self.trained.append((epoch, len(latest)))
        if epoch == self.stop_after:
            raise KeyboardInterrupt


def trial(expression: str, *, arch: str = "resnet8", teacher: str | None = "wrn_16_1", seed: int = 0) -> Trial:
    known = registry.infos()
    catalog = Catalog(known, lambda name: None, lambda *_: None)  # type: ignore[arg-type, return-value]
    (method,) = [m for m in parse(expression, catalog) if (m.expression == VANILLA) == (expression == VANILLA)]
    source = TeacherSource(teacher, trial="teacher") if teacher else None
    return Trial(
        data=IMAGES.info,
        recipe=RECIPE,
        arch=arch,
        lr=RECIPE.lr,
        teacher=source,
        method=method.expression,
        settings=method.settings,
        code=known[method.name].code,
        seed=seed,
        precision="fp32",
    )


def cohort(*trials: Trial) -> Cohort:
    first = trials[0]
    return Cohort(first.data, first.recipe, first.seed, first.precision, first.teacher, trials)


def teacher_weights() -> dict[str, Tensor]:
    from kdbench.models import build

    torch.manual_seed(5)
    return dict(build("wrn_16_1", IMAGES.info.classes, IMAGES.info.size).state_dict())


def train(
    folder: Path,
    *trials: Trial,
    stop_after: int | None = None,
    observer: Quiet | None = None,
    stop: Callable[[], bool] = lambda: False,
    interval: CheckpointInterval | None = None,
) -> dict[str, Outcome]:
    """Outcomes by method and architecture; a run that is stopped gives what had ended by then."""
    executor = LocalExecutor(IMAGES, CPU, Checkpoints(folder, interval), stop=stop)
    weights = teacher_weights() if trials[0].teacher else None
    found: dict[str, Outcome] = {}
    try:
        for outcome in executor.train(cohort(*trials), weights, observer or Quiet(stop_after)):
            found[f"{outcome.trial.method}/{outcome.trial.arch}"] = outcome
    except KeyboardInterrupt:
        assert stop_after is not None or stop()
    return found


def equal(left: Outcome, right: Outcome) -> bool:
    """Bit for bit: weights, and everything measured but the time."""
    assert left.weights is not None
    assert right.weights is not None
    same = left.weights.keys() == right.weights.keys() and all(
        torch.equal(left.weights[name], right.weights[name]) for name in left.weights
    )
    measured = [[(e.epoch, e.lr, dict(e.terms), e.top1, e.top5) for e in outcome.epochs] for outcome in (left, right)]
    return same and measured[0] == measured[1]
