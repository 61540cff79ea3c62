"""A long life in one process; see soak.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.soak import soak


@pytest.mark.slow
def test_memory_and_open_files_do_not_grow(tmp_path: Path) -> None:
    """The first half of the cohorts has plain students only, the second those of a pair."""
    found = soak(tmp_path, 100)
    assert found["cohorts"] == 200
    first, second, third, fourth = found["resident_mib_by_quarter"]
    assert second < 1.03 * first
    assert fourth < 1.03 * third
    assert max(most for _, most in found["open_files_by_quarter"]) < 8
