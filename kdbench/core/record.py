"""Results: the metrics of an epoch, how a trial ended, and the records that are stored."""

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
    """Metrics of one student after one epoch."""

    epoch: int  # from 1
    lr: float
    terms: Mapping[str, float]  # weighted loss terms, `ce` and `kd` included: mean over the epoch's steps
    top1: float  # %, on the whole test split
    top5: float  # %
    student_seconds: float  # the student's share of the epoch: forward, loss, backward, optimizer step
    shared_seconds: float  # batches and teacher outputs, computed once for the cohort
    val_top1: float | None = None  # %, on the held-out training images; None without any

    def __post_init__(self) -> None:
        _require_percent(self, "top1", "top5", "val_top1")


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    trial: Trial
    status: Status
    reason: str | None = None  # of any status but `done`
    epochs: tuple[EpochMetrics, ...] = ()
    teacher_top1: float | None = None  # %
    extra_info: Mapping[str, Value] = field(default_factory=dict)  # reported by the method, e.g. negatives drawn
    weights: Mapping[str, Any] | None = None  # the student's state dict of tensors
    cost: Mapping[str, Value] = field(default_factory=dict)
    """`extra_parameters` (trained in addition to the student), `extra_mib` (the method's parameters and buffers),
    `peak_mib` (of the process on its device while the cohort trained), `cohort_size` (students in that cohort) and
    `split_from` (students of the original cohort, if it was split because they did not fit into memory together)."""

    metrics: Mapping[str, float] = field(default_factory=dict)  # as in Record

    @property
    def item(self) -> Trial:
        return self.trial


@dataclass(frozen=True)
class ProbeOutcome:
    """How a linear probe ended."""

    probe: LinearProbe
    status: Status
    reason: str | None = None  # of any status but `done`
    top1: float | None = None  # %
    top5: float | None = None
    loss: float | None = None  # mean of the last epoch
    seconds: float | None = None  # the probe's share of the time, evaluation included

    @property
    def item(self) -> LinearProbe:
        return self.probe


def failed(item: Trial | LinearProbe, reason: str) -> Outcome | ProbeOutcome:
    """The outcome of an item that could not be trained."""
    return Outcome(item, "failed", reason) if isinstance(item, Trial) else ProbeOutcome(item, "failed", reason)


def _require_percent(record: object, *names: str) -> None:
    """Raise ValueError for a number that no accuracy is, as somebody's program may have written it."""
    for name in names:
        value = getattr(record, name)
        if value is not None and not 0 <= value <= 100:
            raise ValueError(f"{name} is no percentage: {value}")


@dataclass(frozen=True)
class Record:
    """The stored result of a trial, one JSON file each."""

    protocol: int
    trial: Trial
    status: Status
    reason: str | None
    top1: float | None  # %, last epoch: the headline
    top5: float | None
    best_top1: float | None  # %, best epoch on the test split: optimistic, never a headline
    best_epoch: int | None
    teacher_top1: float | None
    student_seconds: float | None  # per epoch, median
    shared_seconds: float | None
    extra_info: Mapping[str, Value]
    environment: Mapping[str, Value]  # versions, device, threads, host
    weights_sha256: str | None
    finished: str  # ISO 8601, UTC
    cost: Mapping[str, Value] = field(default_factory=dict)  # as in Outcome
    last10_top1: float | None = None  # %, mean of the last ten epochs
    validated_top1: float | None = None  # %, on the test split, of the epoch that was best on the held-out images
    validated_epoch: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """After the last epoch, on the test split: `nll` (nats) and `ece` (%), and to the teacher `agreement` (%) and `kl`
    (nats); see `train/evaluate.py`."""

    def __post_init__(self) -> None:
        _require_percent(self, "top1", "top5", "best_top1", "teacher_top1", "last10_top1", "validated_top1")

    @property
    def seconds_per_epoch(self) -> float | None:
        """Seconds per epoch if the student trained alone; None if they were not measured."""
        if self.student_seconds is None or self.shared_seconds is None:
            return None
        return self.student_seconds + self.shared_seconds


@dataclass(frozen=True)
class ProbeRecord:
    """The stored result of a linear probe, one JSON file each."""

    protocol: int
    probe: LinearProbe
    status: Status
    reason: str | None
    top1: float | None  # %, on the whole test split of the target, after the last epoch
    top5: float | None
    loss: float | None  # mean of the last epoch
    seconds: float | None  # the probe's share of the time, evaluation included
    environment: Mapping[str, Value]
    finished: str  # ISO 8601, UTC

    def __post_init__(self) -> None:
        _require_percent(self, "top1", "top5")
