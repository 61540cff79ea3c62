"""What a driver and its workers send each other, as bytes over a pipe."""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kdbench.core.checkpoint import CheckpointInterval
from kdbench.core.errors import DeviceLost, Interrupted
from kdbench.core.events import Emit, JobEnd, JobLost, TrialEnd
from kdbench.core.jobs import CohortJob, Job, ProbeJob
from kdbench.core.trial import Value

log = logging.getLogger("kdbench")


@dataclass(frozen=True)
class Setup:
    """A worker's part of the machine, and what it needs besides jobs, images and checkpoints."""

    device: str
    precision: str
    threads: int | None
    jobs: int  # that run side by side
    gpu_share: float  # of the GPU's memory
    interval: CheckpointInterval | None
    plugins: Path | None
    compiles: bool = False


@dataclass(frozen=True)
class Ready:
    """A worker has been set up."""

    environment: Mapping[str, Value]


@dataclass(frozen=True)
class Log:
    """What a worker has to say."""

    level: int
    text: str


@dataclass(frozen=True)
class Stopped:
    """The orderly stop of a worker: its job's checkpoints were sent."""


@dataclass(frozen=True)
class Raised:
    """An error that ends the whole run, such as a disk that cannot be read."""

    error: Exception


class Feed:
    """Takes jobs from the runner as they become ready; `more` is false once there are no more, or a stop has begun."""

    def __init__(self, jobs: Iterator[Job | None]) -> None:
        self.jobs, self.more = jobs, True

    def take(self) -> Job | None:
        """The next job; None if none is ready now."""
        if self.more:
            try:
                return next(self.jobs)
            except StopIteration:
                self.more = False
            except Interrupted:
                pass  # the executor's own `stop` says so in its next round
        return None


STOP, END = b"stop", b"end"
"""Messages to a worker that are no job."""


def dumps(message: Any, job: Job | None = None) -> bytes:
    """A message as bytes; `job`, the one under way, and its parts are only named, since they hold networks."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> tuple[str, ...] | None:
            if job is None or not isinstance(obj, CohortJob | ProbeJob):
                return None
            return () if obj is job else tuple(item.fingerprint for item in obj.items)

    buffer = io.BytesIO()
    Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(message)
    return buffer.getvalue()


def loader(job: Job) -> Callable[[bytes], Any]:
    """Reads the messages about a job that `dumps` made."""

    @cache
    def part(fingerprints: tuple[str, ...]) -> Job:
        return job.narrowed(fingerprints) if fingerprints else job

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: tuple[str, ...]) -> Job:
            return part(pid)

    return lambda content: Unpickler(io.BytesIO(content)).load()


class Remote:
    """Whoever runs jobs elsewhere, one at a time, as the driver sees it."""

    def __init__(self) -> None:
        self.job: Job | None = None  # that is under way
        self.environment: Mapping[str, Value] = {}
        self._read: Callable[[bytes], Any] = pickle.loads

    def accept(self, job: Job) -> None:
        """The messages from now on are about this job."""
        self.job, self._read = job, loader(job)

    def pass_on(self, content: bytes, emit: Emit) -> None:
        """Pass on a message; after the last one about the job, that is None. Raises what ends the run."""
        match self._read(content):
            case Ready(environment):
                self.ready(environment, emit)
            case Log(level, text):
                log.log(level, "%s", text)
            case Raised(DeviceLost() as error):
                lost, self.job = self.job, None
                assert lost is not None
                emit(JobLost(lost, str(error)))
            case Raised(error):
                raise error
            case Stopped():
                self.job = None
            case TrialEnd(outcome):
                emit(TrialEnd(outcome, self.environment))
            case JobEnd() as end:
                self.job = None
                emit(end)
            case event:
                emit(event)

    def ready(self, environment: Mapping[str, Value], emit: Emit) -> None:
        """It has been set up."""
        self.environment = environment


def receive(connection: Connection) -> bytes | None:
    """The next message; None if the other side is gone."""
    try:
        return connection.recv_bytes()
    except (EOFError, OSError):
        return None
