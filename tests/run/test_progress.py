from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from kdbench.core.record import EpochMetrics, Outcome
from kdbench.core.trial import Plan
from kdbench.run import progress
from kdbench.run.progress import LiveProgress, PlainProgress
from tests.train.tiny_study import cohort, trial

TRIALS = trial("kd"), trial("icd+kd")
COHORT = cohort(*TRIALS)
PLAN = Plan((COHORT,), (), ())
EPOCH = EpochMetrics(3, 0.05, {"ce": 1.0, "kd": 0.25}, 61.5, 90.0, 2.0, 0.5)


def watch(terminal: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100)
    with progress.progress(console, PLAN) as display:
        assert isinstance(display, LiveProgress if terminal else PlainProgress)
        display.cohort(COHORT, 1, 1)
        for step in (1, 2, 3):
            display.step(COHORT, 3, step, 3)
        display.epoch(COHORT, 3, {TRIALS[0].id: EPOCH, TRIALS[1].id: replace(EPOCH, top1=47.25)})
        display.outcome(Outcome(TRIALS[0], "done"))
        display.outcome(Outcome(TRIALS[1], "diverged", "the loss [bold]exploded[/bold]"))
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
