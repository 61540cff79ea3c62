"""Say what is done, running and left in a results folder; loads no torch, and may run beside the study."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from kdbench.cli.options import Parser, add_results
from kdbench.core.errors import UserError
from kdbench.core.record import Record
from kdbench.plan.estimate import format_duration
from kdbench.results import Store
from kdbench.results.plan_file import PlannedTrial, read_plan
from kdbench.runner.locks import Reached, TrialLocks

UNFINISHED = ("running", "interrupted", "waiting")
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
    reached = {
        trial: known
        for trial, state in states.items()
        if state in ("running", "interrupted") and (known := locks.reached(trial.fingerprint))
    }
    for state in ("running", "failed", "diverged"):
        for trial in (trial for trial, known in states.items() if known == state):
            print(f"  {state}: {trial.pair} {trial.method}, seed {trial.seed}{_more(trial, state, records, reached)}")
    left = {trial: reached.get(trial) for trial, state in states.items() if state in UNFINISHED}
    if left:
        jobs = plan.jobs or _jobs(records.values())
        seconds = _estimate(left, list(records.values()), jobs)
        text = "not known before an epoch has ended" if seconds is None else f"about {format_duration(seconds)}"
        print(f"left, by one command{f' with {jobs} jobs side by side' if jobs > 1 else ''}: {text}")
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


def _more(
    trial: PlannedTrial, state: str, records: Mapping[str, Record], reached: Mapping[PlannedTrial, Reached]
) -> str:
    """How far it is, or why it failed."""
    if state != "running":
        return f": {records[trial.fingerprint].reason}"
    return f", epoch {reached[trial].epoch}/{trial.epochs}" if trial in reached else ""


def _jobs(records: Iterable[Record]) -> int:
    """How many ran side by side when the latest record was made, for a plan that does not say it."""
    latest = max(records, key=lambda record: record.finished, default=None)
    jobs = latest.environment.get("jobs") if latest else None
    return jobs if isinstance(jobs, int) and jobs > 0 else 1


def _estimate(left: Mapping[PlannedTrial, Reached | None], records: Sequence[Record], jobs: int) -> float | None:
    """Seconds, from the medians of what has the same method and architecture, or else of all that was trained.

    What the students of a pair and seed share counts once. No time is shorter than that of the longest trial.
    """
    timed = [(r.trial.method, r.trial.arch, r.student_seconds, r.shared_seconds) for r in records if r.student_seconds]
    timed += [(trial.method, trial.arch, *reached[1:]) for trial, reached in left.items() if reached]
    if not timed:
        return None
    own, longest, shared = 0.0, 0.0, dict[tuple[str, int], float]()
    for trial, reached in left.items():
        alike = [one for one in timed if one[:2] == (trial.method, trial.arch)] or timed
        epochs = trial.epochs - (reached.epoch if reached else 0)
        student, together = (epochs * _median(seconds) for seconds in list(zip(*alike, strict=True))[2:])
        cohort = (trial.pair, trial.seed)
        own, longest = own + student, max(longest, student + together)
        shared[cohort] = max(shared.get(cohort, 0.0), together)
    return max((own + sum(shared.values())) / jobs, longest)


def _median(values: Iterable[float | None]) -> float:
    return median(value or 0.0 for value in values)
