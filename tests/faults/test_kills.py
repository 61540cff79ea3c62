"""Processes that are killed at any instant; see kills.py."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults import kills
from tests.faults.fault_study import digits_as_parquet

FORMS = [(8, 1, 4), pytest.param(50, 6, 10, marks=pytest.mark.slow)]


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("count", "seeds", "epochs"), FORMS)
def test_a_study_that_is_killed_again_and_again_ends_as_one_that_is_not(
    tmp_path: Path, count: int, seeds: int, epochs: int
) -> None:
    images = digits_as_parquet(tmp_path / "digits")
    harassed, undisturbed = (
        kills.study(tmp_path / name, images, seeds=seeds, epochs=epochs) for name in ("kills", "undisturbed")
    )
    undisturbed.run()
    found = kills.harass(harassed, count, random.Random(20261124))
    assert sum(found["kills"].values()) == count
    assert found["most_writes"] == 1
    assert kills.compare(harassed, undisturbed) == {"records_equal": True, "stray_files": []}
