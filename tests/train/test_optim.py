"""The learning rate as a function of the epoch."""

from __future__ import annotations

import pytest

from kdbench.plan.recipes import recipe
from kdbench.train.optim import learning_rate


def test_the_published_schedule() -> None:
    paper = recipe("paper")
    expected = {1: 0.05, 150: 0.05, 151: 5e-3, 180: 5e-3, 181: 5e-4, 210: 5e-4, 211: 5e-5, 240: 5e-5}
    rates = {epoch: learning_rate(paper, 0.05, epoch) for epoch in expected}
    assert rates == {epoch: pytest.approx(lr, rel=1e-12) for epoch, lr in expected.items()}


def test_a_short_schedule_drops_once_its_milestones_are_reached() -> None:
    short = recipe("paper", epochs=6)  # milestones 3.75, 4.5, 5.25
    rates = [learning_rate(short, 1.0, epoch) for epoch in range(1, 7)]
    assert rates == [pytest.approx(lr) for lr in (1, 1, 1, 1, 0.1, 0.01)]
    assert learning_rate(recipe("paper", epochs=1), 1.0, 1) == 1.0
