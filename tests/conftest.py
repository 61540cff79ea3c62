from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as the command line does; before torch is loaded
if "PYTEST_XDIST_WORKER" in os.environ:  # workers side by side: a thread each, here and in the processes they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from kdbench.distill import registry

registry.discover()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of development images beside the project; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"the development images are not at {folder}")
    return folder
