"""What a results folder is to hold: `plan.json`, written when a study begins, for `bench.py status`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
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
    jobs: int | None = None  # that run side by side; None: by a version that did not say it


def write_plan(folder: Path, trials: Sequence[Trial], jobs: int = 1) -> None:
    """Write the plan of a study that begins, with so many jobs side by side. Raises DiskError."""
    planned = tuple(
        PlannedTrial(trial.id, trial.fingerprint, trial.pair, trial.arch, trial.method, trial.seed, trial.recipe.epochs)
        for trial in trials
    )
    content = asdict(PlanFile(datetime.now(UTC).isoformat(timespec="milliseconds"), planned, jobs))
    write_atomic(folder / NAME, serialize.dumps_checksummed(content))


def begin_rerun(folder: Path, statuses: Collection[str]) -> str | None:
    """When the rerun of trials of these statuses began, so that an interrupted one continues; None: there is none.

    A run without a rerun ends one that was interrupted.
    """
    path, wanted = folder / "rerun.json", sorted(statuses)
    if not wanted:
        path.unlink(missing_ok=True)
        return None
    with suppress(DamagedFile, *UNREADABLE):
        known = serialize.build(_Rerun, serialize.load_checksummed(path))
        if sorted(known.statuses) == wanted:
            return known.begun
    begun = datetime.now(UTC).isoformat(timespec="milliseconds")
    write_atomic(path, serialize.dumps_checksummed({"statuses": wanted, "begun": begun}))
    return begun


def end_rerun(folder: Path) -> None:
    """All trials of a rerun have ended."""
    (folder / "rerun.json").unlink(missing_ok=True)


@dataclass(frozen=True)
class _Rerun:
    statuses: tuple[str, ...]
    begun: str


def read_plan(folder: Path) -> PlanFile | None:
    """The plan of the latest study; None if there is none that can be read."""
    try:
        return serialize.build(PlanFile, serialize.load_checksummed(folder / NAME))
    except (DamagedFile, *UNREADABLE):
        return None
