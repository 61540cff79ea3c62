"""Disks that are full, broken or read-only at each kind of write; and that are mended afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbench.results import Store
from tests.faults.fault_study import Study, digits_as_parquet

WORDS = ["--methods", "kd", "--pairs", "wrn_16_1:resnet8", "--recipe", "digits", "--subset", "256"]
WORDS += ["--seeds", "1", "--epochs", "2"]

PLACES = {  # folder and number of the event, see harm/sitecustomize.py: the second of a file is half of its content
    "the study file": ("results", 2),
    "a training state": ("checkpoints", 2),
    "a later training state": ("checkpoints", 22),
    "weights": ("runs", 2),
    "epochs": ("runs", 7),
    "a record": ("runs", 12),
    "a record's name": ("runs", 15),
    "a table": ("tables", 2),
    "a chart": ("charts", 2),
    "the page": ("results", 8),
}
SHORT = {("a training state", "ENOSPC"), ("a record", "EIO"), ("a chart", "EROFS")}
CASES = [
    pytest.param(what, error, marks=() if (what, error) in SHORT else pytest.mark.slow, id=f"{what}: {error}")
    for what in PLACES
    for error in ("ENOSPC", "EIO", "EROFS")
]
REASONS = {"ENOSPC": "no space left", "EIO": "input/output error", "EROFS": "read-only file system"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_as_parquet(tmp_path_factory.mktemp("images") / "digits")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Study:
    study = Study(tmp_path_factory.mktemp("undisturbed"), [*WORDS, "--dataset", f"parquet:{images}"])
    study.run()
    return study


def in_one_sentence(printed: str, reason: str) -> None:
    last = printed.strip().splitlines()[-1]
    assert last.startswith("kdbench: ")
    assert "could not be written" in last
    assert reason in last
    assert "the same command continues" in last


def goes_on(study: Study, undisturbed: Study) -> None:
    """All that was finished is whole, and the same command ends as if nothing had been."""
    before = study.finished_at()
    finished = len(Store(study.out, quarantine=False).records())
    assert finished == sum(not name.endswith(".epochs.json") for name in before)
    assert f"{finished} already there" in study.run()
    assert study.trials() == undisturbed.trials()
    assert study.files() == undisturbed.files()


@pytest.mark.parametrize(("what", "error"), CASES)
def test_errors_of_the_disk(tmp_path: Path, images: Path, undisturbed: Study, what: str, error: str) -> None:
    study = Study(tmp_path, undisturbed.words)
    folder, number = PLACES[what]
    in_one_sentence(study.run({"folder": folder, "number": number, "how": error}, code=2), REASONS[error])
    goes_on(study, undisturbed)


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, undisturbed: Study) -> None:
    study = Study(tmp_path, undisturbed.words)
    printed = study.run({"folder": "cache", "number": 1, "how": "ENOSPC"})
    assert "the decoded images cannot be kept" in printed
    assert study.trials() == undisturbed.trials()


# Real file systems ---------------------------------------------------------------------------------------------------


class Mount:
    """A small file system in memory."""

    def __init__(self, folder: Path, options: str) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    def change(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)

    def end(self) -> None:
        subprocess.run(["umount", self.folder], check=False)


@pytest.fixture
def mounts() -> Iterator[list[Mount]]:
    made: list[Mount] = []
    yield made
    for mount in made:
        mount.end()


ROOMS = {  # a folder, and a size in which what is named does not fit any more; an inode is the folder's own
    "training states": ("checkpoints", "size=16k"),
    "the second training state": ("checkpoints", "nr_inodes=2"),
    "weights": ("runs", "size=16k"),
    "epochs": ("runs", "nr_inodes=2"),
    "records": ("runs", "nr_inodes=3"),
    "tables": ("tables", "nr_inodes=4"),
    "charts": ("charts", "size=8k"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", ROOMS)
def test_a_full_file_system(tmp_path: Path, undisturbed: Study, mounts: list[Mount], what: str) -> None:
    study = Study(tmp_path, undisturbed.words)
    folder, options = ROOMS[what]
    mounts.append(Mount(study.out / folder, options))
    in_one_sentence(study.run(code=2), "no space left")
    mounts[0].change("size=64m,nr_inodes=10000")
    goes_on(study, undisturbed)


@pytest.mark.slow
def test_a_file_system_that_becomes_read_only(tmp_path: Path, undisturbed: Study, mounts: list[Mount]) -> None:
    study = Study(tmp_path, undisturbed.words)
    mounts.append(Mount(study.out, "size=64m"))
    process = study.start()
    while not list(study.out.glob("checkpoints/*.pt")):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGSTOP)  # so that no file is open for writing
    subprocess.run(["mount", "-o", "remount,ro", study.out], check=False)
    os.kill(process.pid, signal.SIGCONT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 2, printed
    in_one_sentence(printed, "read-only file system")
    mounts[0].change("rw")
    goes_on(study, undisturbed)
