"""What a results folder is to hold: `plan.json`, written when a study begins, for `bench.py status`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from kdbench.core.files import DamagedFile, write_atomic
from kdbench.core.trial import Trial
from kdbench.results import serialize
from kdbench.results.reading import UNREADABLE

NAME = "plan.json"


@dataclass(frozen=True)
class PlannedTrial:
    """A trial of the latest study, as far as a status needs it."""

    id: str
    fingerprint: str
    pair: str
    arch: str
    method: str
    seed: int
    epochs: int


@dataclass(frozen=True)
class PlanFile:
    """The latest study of a folder."""

    begun: str  # ISO 8601, UTC
    trials: tuple[PlannedTrial, ...]


def write_plan(folder: Path, trials: Sequence[Trial]) -> None:
    """Write the plan of a study that begins. Raises DiskError."""
    planned = tuple(
        PlannedTrial(trial.id, trial.fingerprint, trial.pair, trial.arch, trial.method, trial.seed, trial.recipe.epochs)
        for trial in trials
    )
    content = asdict(PlanFile(datetime.now(UTC).isoformat(timespec="milliseconds"), planned))
    write_atomic(folder / NAME, serialize.dumps_checksummed(content))


def read_plan(folder: Path) -> PlanFile | None:
    """The plan of the latest study; None if there is none that can be read."""
    try:
        return serialize.build(PlanFile, serialize.load_checksummed(folder / NAME))
    except (DamagedFile, *UNREADABLE):
        return None
