"""Results: what is measured after each epoch, how a trial ended, and the records that are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kdbench.core.linear_probe import LinearProbe
from kdbench.core.trial import Trial, Value

Status = Literal["done", "diverged", "failed", "n/a"]
FINAL: frozenset[str] = frozenset({"done", "diverged", "n/a"})
"""Statuses that are final; a `failed` trial runs again."""


@dataclass(frozen=True)
class EpochMetrics:
    """What is known of one student after one epoch."""

    epoch: int  # from 1
    lr: float
    terms: Mapping[str, float]  # mean over the epoch's steps of each weighted term of the loss, `ce` and `kd` included
    top1: float  # %, whole test split
    top5: float
    student_seconds: float  # its forward, loss, backward, step
    shared_seconds: float  # batch and teacher, once a cohort
    val_top1: float | None = None  # %, held-out training images, where there are any


@dataclass(frozen=True)
class Outcome:
    """How a trial ended. `weights` holds tensors and is opaque here."""

    trial: Trial
    status: Status
    reason: str | None = None
    epochs: tuple[EpochMetrics, ...] = ()
    teacher_top1: float | None = None
    extra_info: Mapping[str, Value] = field(
        default_factory=dict
    )  # what the method says of itself, e.g. negatives drawn
    weights: Mapping[str, Any] | None = None
    cost: Mapping[str, Value] = field(default_factory=dict)
    """extra_parameters (trained beside the student), extra_mib (the method's parameters and buffers), peak_mib (of the
    process on its device while the cohort trained), cohort_size (the students that this is the peak of), and split_from
    (how many students memory had no room for at once) where a cohort had to be split."""


@dataclass(frozen=True)
class Record:
    """A trial's result as it is stored, one JSON file each."""

    protocol: int
    trial: Trial
    status: Status
    reason: str | None
    top1: float | None  # %, last epoch: the headline
    top5: float | None
    best_top1: float | None  # best epoch on the test split: optimistic, never a headline
    best_epoch: int | None
    teacher_top1: float | None
    student_seconds: float | None  # a training epoch, median
    shared_seconds: float | None
    extra_info: Mapping[str, Value]
    environment: Mapping[str, Value]  # versions, device, threads, host
    weights_sha256: str | None
    finished: str  # ISO 8601, UTC
    cost: Mapping[str, Value] = field(default_factory=dict)  # as in Outcome
    last10_top1: float | None = None  # %, mean of the last ten epochs
    validated_top1: float | None = None  # %, test split, of the epoch that was best on the held-out images
    validated_epoch: int | None = None

    @property
    def seconds_per_epoch(self) -> float | None:
        """What this student would cost alone."""
        return (
            None
            if self.student_seconds is None or self.shared_seconds is None
            else self.student_seconds + self.shared_seconds
        )


@dataclass(frozen=True)
class ProbeRecord:
    """A transfer's result as it is stored, one JSON file each."""

    protocol: int
    probe: LinearProbe
    status: Status
    reason: str | None
    top1: float | None  # %, whole test split of the target, after the last epoch
    top5: float | None
    loss: float | None  # mean of the last epoch
    seconds: float | None  # its own part of the time, evaluation included
    environment: Mapping[str, Value]
    finished: str  # ISO 8601, UTC
