"""From a study to its records: prepare the data, make the plan, train what is missing."""

from __future__ import annotations

import json
import logging
import time
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch

from kdbench import models
from kdbench.core.checkpoint import CheckpointInterval
from kdbench.core.errors import UserError
from kdbench.core.events import Emit, Executor
from kdbench.core.files import file_sha256, write_atomic
from kdbench.core.jobs import CohortJob
from kdbench.core.record import Outcome, Record
from kdbench.core.trial import PRETRAINED, VANILLA, Plan, TeacherSource, Trial
from kdbench.data.dataset import Dataset
from kdbench.data.registry import default_data_dir
from kdbench.data.sources import prepare
from kdbench.plan.expand import expand
from kdbench.plan.parsing import parse_duration, parse_interval
from kdbench.plan.study import RunOptions, Study, check_baseline
from kdbench.results import Store
from kdbench.results.plan_file import begin_rerun, end_rerun, write_plan
from kdbench.runner.catalog import build_catalog
from kdbench.runner.executors.worker_process import WorkerPool
from kdbench.runner.locks import TrialLocks
from kdbench.runner.parallel import Parallel, Work, split_cohorts
from kdbench.runner.placement import Placement, placement
from kdbench.runner.plugins import known_to_workers
from kdbench.runner.runner import remove_checkpoints, run_jobs
from kdbench.train.checkpoint import Checkpoints
from kdbench.train.device import configure_torch, describe_environment, resolve_precision

log = logging.getLogger("kdbench")

RERUN = ("done", "diverged", "failed", "n/a", "all")


@dataclass
class StudyRun:
    """A study made ready: its data, its plan, and where its results go."""

    study: Study
    plan: Plan
    dataset: Dataset
    store: Store
    checkpoints: Checkpoints
    interval: CheckpointInterval | None
    keep_weights: str
    deadline: float | None  # of time.monotonic()
    placement: Placement
    parallel: Parallel
    takes_all_cores: bool  # by default: nobody gave a number of threads
    finished_at: Mapping[str, str] = field(repr=False)
    """When each trial of the folder was finished, read before the plan was made: what another process finishes from
    then on is not trained again."""

    @property
    def summary(self) -> str:
        """How many trials are done, to train, resumed and not applicable."""
        plan = self.plan
        resumed = sum(self.checkpoints.exists(trial.id) for trial in plan.pending)
        cohorts, jobs = len(plan.cohorts), len(self.jobs)
        return (
            f"{len(plan.trials)} trial{'s' * (len(plan.trials) != 1)}: {len(plan.completed)} already there, "
            f"{len(plan.pending)} to train in {cohorts} cohort{'s' * (cohorts != 1)}"
            + (f" ({jobs} parts)" if jobs != cohorts else "")
            + f", {len(plan.not_applicable)} not applicable"
            + (f"; {resumed} resume from checkpoints" if resumed else "")
        )

    @property
    def jobs(self) -> list[CohortJob]:
        """The cohorts to train, or parts of them."""
        return split_cohorts(self.plan.cohorts, self.parallel.jobs)

    def train(self, watch: Emit, stop: Callable[[], bool] = lambda: False, executor: Executor | None = None) -> None:
        """Train what is missing; `watch` receives the events. `stop`, or the time limit, begin an orderly stop.

        The executor is by default that of `parallel`. Raises DiskError, Interrupted.
        """

        def stop_now() -> bool:
            return stop() or (self.deadline is not None and time.monotonic() >= self.deadline)

        remove_checkpoints(self.plan.completed, self.checkpoints, self.store.root)
        if self.plan.cohorts or self.plan.not_applicable:
            executor = executor or self._executor(stop_now)
            environment = {**describe_environment(self.placement.device), "jobs": self.parallel.jobs}
            known = [Outcome(trial, "n/a", reason) for trial, reason in self.plan.not_applicable]
            try:
                run_jobs(
                    self.jobs,
                    self.store,
                    executor,
                    self.checkpoints,
                    watch,
                    environment,
                    self.finished_at,
                    stop_now,
                    known,
                    self.keep_weights,
                    self._company,
                )
            finally:
                self.placement.close()
        end_rerun(self.store.root)
        if self.keep_weights == "none":
            if TrialLocks(self.store.root).any_held_elsewhere():
                log.warning("the weights of teachers stay, since another process trains in %s", self.store.root)
            else:
                for trial in self.plan.trials:
                    self.store.remove_weights(trial.id)

    @property
    def _company(self) -> str:
        """What to say when another command trains in the folder, if each takes all processors."""
        if not self.takes_all_cores:
            return ""
        share = max(1, torch.get_num_threads() // 2)
        return f"another process trains in {self.store.root}: on one machine, give each of two --threads {share}"

    def _executor(self, stop: Callable[[], bool]) -> Executor:
        datasets, precision = {self.dataset.info.content: self.dataset}, self.study.precision
        return self.placement.executor(self.parallel, precision, datasets, self.checkpoints, self.interval, stop)

    def own_records(self, records: Sequence[Record]) -> list[Record]:
        """Those of a folder's records that belong to the study."""
        wanted = {trial.fingerprint for trial in self.plan.trials}
        return [record for record in records if record.trial.fingerprint in wanted]

    def missing(self, records: Sequence[Record]) -> list[Trial]:
        """The study's trials without a record."""
        known = {record.trial.fingerprint for record in records}
        return [trial for trial in self.plan.trials if trial.fingerprint not in known]


def prepare_study(
    study: Study,
    run: RunOptions,
    *,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
    pool: WorkerPool | None = None,
) -> StudyRun:
    """Prepare the images of a study and make its plan. Raises UserError.

    `dry_run` writes nothing but downloads and decoded images. `say` is told what was found. `pool` may have workers
    that were started before.
    """
    rerun, interval = _parse_rerun(run.rerun), parse_interval(run.checkpoint_every)
    deadline = time.monotonic() + parse_duration(run.time_limit) if run.time_limit else None
    place = placement(run, pool)
    study = replace(study, precision=resolve_precision(study.precision, place.job_device, study.recipe.size))
    store = Store(run.out, quarantine=not dry_run)
    if run.baseline != RunOptions.baseline:
        stored = [record.trial.method for record in store.records()]
        check_baseline([*(method.expression for method in study.methods), *stored], run.baseline)
    if not dry_run:
        store.require_writable()
        store.remove_stale()
    dataset = prepare(study.data, run.data_dir or default_data_dir())
    say(dataset.summary)
    catalog = build_catalog(dataset)
    for module, reason in catalog.broken.items():
        log.warning("%s is left out, it failed to import: %s", module, reason)
    for arch in dict.fromkeys(arch for pair in study.pairs for arch in pair.archs):
        models.features(arch, dataset.info.classes, dataset.info.size)  # raises UserError if the model does not fit
    files = _teacher_files(study, dataset)
    finished_at = store.finished_at()
    since = None if dry_run else begin_rerun(run.out, rerun)

    def plan(needed: Collection[str] = ()) -> Plan:
        return expand(study, dataset.info, catalog, store.completed(rerun, needed, since), files)

    planned = plan()
    if needed := planned.teachers & {trial.fingerprint for trial in planned.completed}:  # these need their weights too
        planned = plan(needed)
    by_hand = not all(known_to_workers(method.name) for method in study.methods if method.name != VANILLA)
    parallel = place.divide(Work.of(planned), dataset.info, by_hand=by_hand)
    checkpoints = Checkpoints(run.out / "checkpoints")
    if not dry_run:
        for arch in dict.fromkeys(trial.arch for trial in planned.pending if trial.arch.endswith(PRETRAINED)):
            say(f"weights of {arch}: loading from the cache, or downloading ...")
            models.fetch(arch, dataset.info.classes, dataset.info.size)
        _write_study(run, study, parallel, resumes=any(checkpoints.exists(trial.id) for trial in planned.pending))
        write_plan(run.out, planned.trials, parallel.jobs)
    compiles = parallel.compiles and not dry_run
    configure_torch(place.device, study.precision, parallel.threads, compiles)
    for line in place.describe(parallel):
        say(line)
    if compiles and planned.pending:
        say("networks are compiled in their first steps, each for up to a minute")
    return StudyRun(
        study,
        planned,
        dataset,
        store,
        checkpoints,
        interval,
        run.keep_weights,
        deadline,
        place,
        parallel,
        parallel.jobs == 1 and run.threads is None and place.job_device.type == "cpu",
        finished_at,
    )


def _write_study(run: RunOptions, study: Study, parallel: Parallel, resumes: bool) -> None:
    """Write the resolved study; say so if checkpoints go on with other threads, which change the last bits on a CPU."""
    path = run.out / "study.toml"
    threads = parallel.threads or torch.get_num_threads()
    table = {
        "threads": threads,
        "compile": run.compile or None,  # which changes the last bits, as threads do
        "plugins": run.plugins and str(run.plugins.resolve()),
    }
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in table.items() if value is not None)
    before: dict[str, object] = {}
    with suppress(OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        before = tomllib.loads(path.read_text("utf-8")).get("run", {})
    on_cpu = parallel.devices[0].type == "cpu"
    if resumes and on_cpu and before.get("threads", threads) != threads:
        log.warning(
            "checkpoints were made with --threads %s and go on with %s: the last bits of results may differ",
            before["threads"],
            threads,
        )
    if resumes and before and bool(before.get("compile")) != run.compile:
        log.warning(
            "checkpoints were made %s --compile and go on %s it: the last bits of results may differ",
            *(("without", "with") if run.compile else ("with", "without")),
        )
    write_atomic(path, (study.toml() + (f"\n[run]\n{lines}" if lines else "")).encode())


def _parse_rerun(text: str | None) -> frozenset[str]:
    words = [word.strip() for word in text.split(",")] if text else []
    for word in words:
        if word not in RERUN:
            raise UserError(f"--rerun {word!r} is not one of {', '.join(RERUN)}")
    return frozenset(RERUN if "all" in words else words)


def _teacher_files(study: Study, dataset: Dataset) -> dict[str, TeacherSource]:
    """The checkpoints that the user named, by architecture; each is loaded once to check that it fits."""
    archs = list(dict.fromkeys(arch for pair in study.pairs for arch in pair.teachers))
    file, folder = study.options.teacher, study.options.teacher_dir
    if file and folder:
        raise UserError("give --teacher FILE or --teacher-dir DIR, not both")
    if file and len(archs) > 1:
        raise UserError(
            f"--teacher FILE is for one architecture, and the pairs have {', '.join(archs)}: use --teacher-dir"
        )
    sources = {}
    for arch in archs if file or folder else ():
        path = models.find_checkpoint(folder, arch) if folder else file
        assert path is not None
        models.load_checkpoint(path, arch, dataset.info.classes, dataset.info.size)
        sources[arch] = TeacherSource(arch, file=str(path.resolve()), sha256=file_sha256(path))
    return sources
