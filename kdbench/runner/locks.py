"""One lock per trial, so that several processes that work on one results folder train each trial once.

The operating system releases the locks of a process that ends, however it ends. Lock files stay in `locks/`.
"""

from __future__ import annotations

from contextlib import suppress
from math import inf
from pathlib import Path
from typing import NamedTuple

from filelock import BaseFileLock, FileLock, Timeout

from kdbench.core.errors import UserError
from kdbench.core.files import DiskError

FOLDER = "locks"


class Reached(NamedTuple):
    """How far a trial is, and what its last epoch took."""

    epoch: int
    student_seconds: float
    shared_seconds: float


class TrialLocks:
    """The locks that this process holds on trials of a results folder, by fingerprint."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER
        self._held: dict[str, BaseFileLock] = {}

    def acquire(self, fingerprint: str) -> bool:
        """Take a lock if no other process has it; does not wait. Raises UserError, DiskError."""
        if fingerprint in self._held:
            return True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = _lock(self.folder / fingerprint)
            lock.acquire(timeout=0)
        except Timeout:
            return False
        except NotImplementedError:
            raise UserError(f"{self.folder} is on a file system without file locks: choose another --out") from None
        except OSError as error:
            raise DiskError(f"{self.folder} cannot be written: {error.strerror}") from error
        self._held[fingerprint] = lock
        self.mark_queued(fingerprint, False)  # as a process that died may have left it
        return True

    def is_held_elsewhere(self, fingerprint: str) -> bool:
        """Whether another process holds the lock."""
        if fingerprint in self._held or not (self.folder / fingerprint).exists():
            return False
        try:
            if not self.acquire(fingerprint):
                return True
        except DiskError:  # another user's
            return False
        self.release(fingerprint)
        return False

    def any_held_elsewhere(self) -> bool:
        """Whether another process trains anything in the folder."""
        return any(self.is_held_elsewhere(path.name) for path in self.folder.glob("*") if not path.suffix)

    def mark_queued(self, fingerprint: str, queued: bool) -> None:
        """Say whether the trial, whose lock is held here, waits for a machine."""
        mark = self._queued(fingerprint)
        with suppress(OSError):  # only people read it
            if queued:
                mark.touch()
            else:
                mark.unlink(missing_ok=True)

    def mark_epoch(self, fingerprint: str, reached: Reached | None) -> None:
        """Say how far the trial is, whose lock is held here; None: it has ended."""
        mark = self._reached(fingerprint)
        with suppress(OSError):  # only people read it
            if reached:
                mark.write_text(" ".join(map(str, reached)))
            else:
                mark.unlink(missing_ok=True)

    def reached(self, fingerprint: str) -> Reached | None:
        """How far a trial was that has not ended; None: it is not known."""
        with suppress(OSError, ValueError):
            epoch, student, shared = self._reached(fingerprint).read_text().split()
            found = Reached(int(epoch), float(student), float(shared))
            return found if all(0 <= value < inf for value in found) else None
        return None

    def _reached(self, fingerprint: str) -> Path:
        return self.folder / f"{fingerprint}.epoch"

    def is_queued(self, fingerprint: str) -> bool:
        """Whether the process that holds the lock has said that the trial waits for a machine."""
        return self._queued(fingerprint).exists()

    def _queued(self, fingerprint: str) -> Path:
        return self.folder / f"{fingerprint}.queued"

    def release(self, fingerprint: str) -> None:
        if lock := self._held.pop(fingerprint, None):
            self.mark_queued(fingerprint, False)
            lock.release()

    def release_all(self) -> None:
        for fingerprint in list(self._held):
            self.release(fingerprint)


def _lock(path: Path) -> BaseFileLock:
    try:
        return FileLock(path, fallback_to_soft=False)
    except TypeError:  # filelock before 4: never falls back
        return FileLock(path)
