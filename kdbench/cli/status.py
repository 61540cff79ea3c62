"""Say what is done, running and left in a results folder; loads no torch, and may run beside the study."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from kdbench.cli.options import Parser, add_results
from kdbench.core.errors import UserError
from kdbench.core.record import Record
from kdbench.plan.estimate import format_duration
from kdbench.results import Store
from kdbench.results.plan_file import PlannedTrial, read_plan
from kdbench.runner.locks import TrialLocks

ORDER = ("done", "n/a", "diverged", "failed", "running", "interrupted", "waiting")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python bench.py status",
        description="Show what is done, running and left of the latest study in a results folder, and its transfers.",
        allow_abbrev=False,
    )
    add_results(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    plan = read_plan(args.out)
    if plan is None:
        raise UserError(f"{args.out} holds no plan; start a study first, or name its folder with --out")
    store = Store(args.out, quarantine=False)
    records = {record.trial.fingerprint: record for record in store.records()}
    locks = TrialLocks(args.out)
    states = {trial: _state(trial, records, locks, args.out) for trial in plan.trials}
    counts = Counter(states.values())
    print(f"{len(states)} trials: {', '.join(f'{counts[state]} {state}' for state in ORDER if counts[state])}")
    for state in ("running", "failed", "diverged"):
        for trial in (trial for trial, known in states.items() if known == state):
            reason = f": {records[trial.fingerprint].reason}" if state != "running" else ""
            print(f"  {state}: {trial.pair} {trial.method}, seed {trial.seed}{reason}")
    left = [trial for trial, state in states.items() if state in ("running", "interrupted", "waiting")]
    if left:
        seconds = _estimate(left, list(records.values()), plan.jobs)
        text = "not known before a trial has ended" if seconds is None else f"about {format_duration(seconds)}"
        workers = f"{plan.jobs} jobs side by side begin" if plan.jobs > 1 else "one process begins"
        print(f"left, if {workers} anew with these trials: {text}")
    if transfers := Counter(str(record.status) for record in store.probe_records()):
        print(f"transfers: {', '.join(f'{transfers[state]} {state}' for state in ORDER if transfers[state])}")
    return 0


def _state(trial: PlannedTrial, records: dict[str, Record], locks: TrialLocks, out: Path) -> str:
    held = locks.is_held_elsewhere(trial.fingerprint)
    if held and not locks.is_queued(trial.fingerprint):
        return "running"
    if not held and (record := records.get(trial.fingerprint)):
        return record.status
    return "interrupted" if (out / "checkpoints" / f"{trial.id}.pt").exists() else "waiting"


def _estimate(left: Sequence[PlannedTrial], records: Sequence[Record], jobs: int) -> float | None:
    """Seconds, from the medians of records with the same method and architecture, or else of all.

    Students of a pair and seed are one job, each network without a teacher another: no job is divided.
    """
    timed = [record for record in records if record.student_seconds is not None]
    if not timed:
        return None
    shared = _median(record.shared_seconds for record in timed)
    seconds: dict[tuple[str, str, int], float] = {}
    for trial in left:
        alike = [r for r in timed if (r.trial.method, r.trial.arch) == (trial.method, trial.arch)] or timed
        job = (trial.pair, "" if ":" in trial.pair else trial.arch, trial.seed)
        own = trial.epochs * _median(record.student_seconds for record in alike)
        seconds[job] = seconds.get(job, trial.epochs * shared) + own
    return max(sum(seconds.values()) / jobs, max(seconds.values()))


def _median(values: Iterable[float | None]) -> float:
    return median(value or 0.0 for value in values)
