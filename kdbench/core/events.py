"""The interface between the runner and executors: jobs go out, events come back.

An executor pushes events: nothing is trained because something is iterated. The runner alone writes; progress displays
read the same events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from kdbench.core.jobs import Job
from kdbench.core.record import EpochMetrics, Outcome, ProbeOutcome
from kdbench.core.trial import Value


@dataclass(frozen=True)
class JobStarted:
    """A job begins, as number `number` (from 1) of `total`."""

    job: Job
    number: int
    total: int


@dataclass(frozen=True)
class JobQueued:
    """The job waits for a machine, until it is `JobPlaced`."""

    job: Job


@dataclass(frozen=True)
class JobPlaced:
    """The job runs now, here: a device, or a machine and its device."""

    job: Job
    place: str


@dataclass(frozen=True)
class StepEnd:
    """Step `step` of `steps` of an epoch has ended. Epochs count from 1; those of pretraining are -1, -2, ..."""

    job: Job
    epoch: int
    step: int
    steps: int


@dataclass(frozen=True)
class EpochEnd:
    """`count` students or probes have finished an epoch; `latest` has the metrics of students by trial id."""

    job: Job
    epoch: int
    count: int
    latest: Mapping[str, EpochMetrics] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to continue an item, by its id, as `kdbench.train.checkpoint.serialize` makes it."""

    id: str
    content: bytes


@dataclass(frozen=True)
class TrialEnd:
    """An item of a job has ended."""

    outcome: Outcome | ProbeOutcome
    environment: Mapping[str, Value] | None = None  # where it was trained; None: in the runner's own process


@dataclass(frozen=True)
class JobEnd:
    """Every item of the job has ended."""

    job: Job


@dataclass(frozen=True)
class JobLost:
    """The job's process or machine is gone: the items that have not ended are run again."""

    job: Job
    reason: str


@dataclass(frozen=True)
class EndedElsewhere:
    """Another process has ended these items of a job."""

    job: Job


@dataclass(frozen=True)
class Waiting:
    """What is left, `items` trials or probes, is in the hands of other processes."""

    items: int


Event = (
    JobStarted
    | JobQueued
    | JobPlaced
    | StepEnd
    | EpochEnd
    | Checkpoint
    | TrialEnd
    | JobEnd
    | JobLost
    | EndedElsewhere
    | Waiting
)
Emit = Callable[[Event], None]


class Executor(Protocol):
    """Runs jobs, in this process or elsewhere."""

    def run(self, jobs: Iterator[Job | None], emit: Emit) -> None:
        """Run the jobs in the order in which they come, until there are no more.

        Each ends with a `TrialEnd` for every item and a `JobEnd`, or is `JobLost`. None means that no job is ready: ask
        again after a while. Raises what `emit` raises, and Interrupted.
        """
