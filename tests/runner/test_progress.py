from __future__ import annotations

import io
import time
from dataclasses import replace

import pytest
from rich.console import Console

from kdbench.core.events import EpochEnd, JobEnd, JobStarted, StepEnd, TrialEnd, Waiting
from kdbench.core.jobs import CohortJob, ProbeJob
from kdbench.core.record import EpochMetrics, Outcome
from kdbench.runner import progress
from kdbench.runner.progress import LiveProgress, PlainProgress
from tests.analysis.tiny_probes import linear_probe
from tests.train.tiny_study import cohort, trial

TRIALS = trial("kd"), trial("icd+kd")
COHORT = cohort(*TRIALS)
JOB = CohortJob(COHORT)
EPOCH = EpochMetrics(3, 0.05, {"ce": 1.0, "kd": 0.25}, 61.5, 90.0, 2.0, 0.5)


def watch(terminal: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100)
    with progress.progress(console, [JOB]) as display:
        assert isinstance(display, LiveProgress if terminal else PlainProgress)
        display(JobStarted(JOB, 1, 1))
        for step in (1, 2, 3):
            display(StepEnd(JOB, 3, step, 3))
        display(EpochEnd(JOB, 3, 2, {TRIALS[0].id: EPOCH, TRIALS[1].id: replace(EPOCH, top1=47.25)}))
        display(TrialEnd(Outcome(TRIALS[0], "done")))
        display(TrialEnd(Outcome(TRIALS[1], "diverged", "the loss [bold]exploded[/bold]")))
        if isinstance(display, LiveProgress):
            display.live.refresh()
    return text.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_person_sees_cohort_epoch_accuracy_and_failure(terminal: bool) -> None:
    seen = watch(terminal)
    for words in ("[1/1]", "wrn_16_1 → resnet8, seed 0", "3/3", "61.5", "47.25"):
        assert words in seen
    assert "wrn_16_1:resnet8 icd+kd, seed 0: diverged: the loss [bold]exploded[/bold]" in seen


def test_plain_lines_are_few() -> None:
    assert len(watch(terminal=False).splitlines()) == 3


def test_probes_have_the_same_display() -> None:
    text = io.StringIO()
    job = ProbeJob((linear_probe(), linear_probe("wrn_16_1")))
    with progress.progress(Console(file=text, width=100), [job]) as display:
        display(JobStarted(job, 1, 1))
        display(EpochEnd(job, 1, 2))
        display(EpochEnd(job, 2, 2))
        display(JobEnd(job))
    first, last = text.getvalue().splitlines()
    assert first == "[1/1] toy, frozen@2, seed 0: 2 networks"
    assert last == "[1/1] epoch 2/2"


def test_waiting_is_said_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    text, now = io.StringIO(), 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress.progress(Console(file=text, width=100), [JOB]) as display:
        for items, later in ((2, 1), (2, 20), (2, 50), (1, 1)):
            now += later
            display(Waiting(items))
    assert text.getvalue().splitlines() == [
        "waiting for 2 trials that another process is training",
        "waiting for 2 trials that another process is training",
        "waiting for 1 trial that another process is training",
    ]
