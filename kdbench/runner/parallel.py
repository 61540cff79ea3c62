"""How many jobs of a study run side by side on this machine, and what each of them has of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch

from kdbench.core.data import DataInfo
from kdbench.core.errors import UserError
from kdbench.core.jobs import CohortJob
from kdbench.core.trial import Cohort, Plan
from kdbench.plan.study import SMALL_PIXELS, RunOptions

SMALL_WORK = 100_000
"""Images times epochs times trials of a study that is done before a second process has loaded torch."""

JOB_BYTES = 1.5 * 2**30  # memory of a worker with small networks, without its images
IMAGE_COPIES = 3  # of the data set in a worker: as it was sent, padded, and while it is padded


@dataclass(frozen=True)
class Parallel:
    """`jobs` side by side, with so many threads each (None: torch's choice), on these devices in turn."""

    jobs: int
    threads: int | None
    devices: tuple[torch.device, ...]
    compiles: bool = False  # networks, by torch.compile

    @property
    def gpu_share(self) -> float:
        """How much of a GPU's memory a job may take."""
        return 1 / ceil(self.jobs / len(self.devices))


@dataclass(frozen=True)
class Work:
    """How much there is to train. What is done counts too, so that a run that continues has the threads it had."""

    widest: int  # items that may be trained at one time
    images: int  # times epochs times items

    @classmethod
    def of(cls, plan: Plan) -> Work:
        """Of a plan, whose trials with a teacher wait for those without."""
        excluded = {trial.fingerprint for trial, _ in plan.not_applicable}
        taught = [bool(trial.teachers) for trial in plan.trials if trial.fingerprint not in excluded]
        widest = max(1, taught.count(True), taught.count(False))
        return cls(widest, sum(trial.recipe.epochs * trial.data.train for trial in plan.trials))


def resolve_parallel(
    run: RunOptions, device: torch.device, work: Work, data: DataInfo, *, own_process: bool = False
) -> Parallel:
    """What `--jobs`, `--threads`, `--device` and `--gpus-per-job` mean for this work on this machine.

    Args:
        own_process: whether some methods are known to this process only, so that there can be no workers.

    Raises:
        UserError: if they are no numbers in range, or contradict each other.
    """
    most, cores, asked = work.widest, torch.get_num_threads(), _asked(run)
    if asked is not None and asked > 1 and own_process:
        raise UserError(
            "--jobs: a method that was registered in this process is not known to other processes; "
            "put it into a file for --plugins, or take --jobs 1"
        )
    if asked is not None and asked > 1 and os.name != "posix":
        raise UserError("--jobs: several jobs at once need Linux or macOS; take --jobs 1")
    alone = own_process or os.name != "posix"
    if device.type == "cuda":
        return _on_gpus(run, device, asked, most, cores, alone)
    if run.gpus_per_job is not None:
        raise UserError("--gpus-per-job needs a CUDA device")
    if asked is None:
        asked = 1
        if data.size <= SMALL_PIXELS and not alone and work.images > SMALL_WORK:
            image_bytes = 3 * data.size**2 * (data.train + data.test + data.val)
            free = int(_memory() // (JOB_BYTES + IMAGE_COPIES * image_bytes))
            asked = max(1, min(cores // (run.threads or 1), most, free))
    elif asked > (processors := os.cpu_count() or 1):
        raise UserError(f"--jobs must be at most {processors}, the processors of this machine: {asked}")
    threads = run.threads
    if threads is None and asked > 1:
        threads = max(1, cores // asked)
    return Parallel(asked, threads, (device,), run.compile)


def _asked(run: RunOptions) -> int | None:
    """The number of jobs that was asked for; None: auto. Raises UserError."""
    if run.jobs == "auto":
        return None
    if not run.jobs.isdecimal() or int(run.jobs) == 0:
        raise UserError(f"--jobs {run.jobs!r} is neither auto nor a whole number from 1")
    return int(run.jobs)


def _on_gpus(run: RunOptions, device: torch.device, asked: int | None, most: int, cores: int, alone: bool) -> Parallel:
    devices: tuple[torch.device, ...] = (device,)
    if run.device == "auto":
        devices = tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    share = 1.0 if run.gpus_per_job is None else run.gpus_per_job
    if not 0 < share <= 1:
        raise UserError(f"--gpus-per-job must be above 0 and at most 1: {share:g}")
    room = len(devices) * int(1 / share + 1e-9)
    if asked is not None and run.gpus_per_job is not None and asked > room:
        raise UserError(f"--jobs {asked} with --gpus-per-job {share:g} needs more than {len(devices)} GPU")
    jobs = asked or (1 if alone else max(1, min(room, most)))
    return Parallel(jobs, run.threads or (max(1, cores // jobs) if jobs > 1 else None), devices[:jobs], run.compile)


def on_cluster(run: RunOptions, rooms: Sequence[int], work: Work, threads: int, device: torch.device) -> Parallel:
    """As many jobs as the nodes of a cluster hold, if there is so much to train. Raises UserError."""
    asked = _asked(run)
    return Parallel(asked or max(1, min(sum(rooms), work.widest)), threads, (device,), run.compile)


def split_cohorts(cohorts: Sequence[Cohort], parts: int) -> list[CohortJob]:
    """Jobs for so many workers. A trial's result does not depend on the others of its cohort.

    Networks without a teacher share nothing but their batches, so each is a job; cohorts with a teacher stay whole
    where there are enough of them.
    """
    if parts == 1:
        return [CohortJob(cohort) for cohort in cohorts]
    taught = sum(bool(cohort.teachers) for cohort in cohorts)
    jobs = []
    for cohort in cohorts:
        count = min(len(cohort.trials), ceil(parts / taught) if cohort.teachers else len(cohort.trials))
        jobs += [CohortJob(replace(cohort, trials=cohort.trials[first::count])) for first in range(count)]
    return jobs


def _memory() -> float:
    """Bytes of memory that are free, where the system says so."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return float("inf")
