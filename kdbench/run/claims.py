"""Divide the work of a results folder among several processes, so that every trial is trained once.

claims/PROCESS.json   the trials that a process is training; the file's time is updated every few seconds
claims/lock           held while a process reads the claims of the others and writes its own

A claim ends with its process. On the same machine that is known at once; on another machine its file is no longer
updated. The lock is filelock's: the operating system releases it with its process. File systems without such locks get
a marker file.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from kdbench.core import files, processes
from kdbench.core.errors import UserError
from kdbench.results import serialize
from kdbench.results.reading import UNREADABLE

G = TypeVar("G")

FOLDER = "claims"
CLAIM = "*-*-*.json"
"""Names of claims: `processes.process()` has two hyphens. Other files in the folder are not claims."""

_HEARTBEAT = 15.0  # seconds between two updates of a claim's time
_DEAD_AFTER = 300.0  # seconds without an update after which a process of another machine counts as dead
_LOCK_TIMEOUT = 120.0  # seconds to wait for the lock, which is held for milliseconds
_POLL = 1.0  # seconds between two checks of what other processes finished


@dataclass(frozen=True)
class Work(Generic[G]):
    """A group of trials by their names (fingerprints); those in `after` must be finished before."""

    group: G
    names: frozenset[str]
    after: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _ClaimFile:
    """The content of a claim's file."""

    names: tuple[str, ...]


class Claims:
    """The claims of this process on the trials of a results folder; a context manager."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER
        self._claimed: set[str] = set()
        self._stopped = threading.Event()

    def __enter__(self) -> Claims:
        self._file = self.folder / f"{processes.process()}.json"
        with self._locked():
            self._write()
            files.remove_stale(self.folder)
            self._claimed_elsewhere()  # removes the claims of dead processes
        threading.Thread(target=self._update_time, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with suppress(OSError):
            self._file.unlink(missing_ok=True)

    def share(
        self,
        work: Iterable[Work[G]],
        finished: Callable[[str], bool],
        waiting: Callable[[int, Sequence[str]], None],
    ) -> Iterator[tuple[G, frozenset[str]]]:
        """The groups, each with those of its names that this process must train now; other processes do the rest.

        A name counts as tried when the next group is requested. The iteration ends when every name was tried here or
        is `finished` elsewhere. While other processes have all that is left, `waiting` is called with the number of
        names and the processes. Raises DiskError.
        """
        remaining = list(work)
        while remaining:
            idle = True
            for item in list(remaining):
                unfinished = frozenset().union(*(group.names for group in remaining))
                if item.after & unfinished:
                    continue
                claimed, done = self._claim(item.names, finished)
                if claimed:
                    idle = False
                    yield item.group, claimed
                    self._release(claimed)
                remaining.remove(item)
                if rest := item.names - claimed - done:
                    remaining.append(Work(item.group, rest, item.after))
            if remaining and idle:
                waiting(sum(len(item.names) for item in remaining), self._other_processes())
                time.sleep(_POLL)

    def _claim(self, names: frozenset[str], finished: Callable[[str], bool]) -> tuple[frozenset[str], frozenset[str]]:
        """Names that are now claimed by this process, and those that are finished."""
        with self._locked():
            free = names - self._claimed_elsewhere()
            done = frozenset(name for name in free if finished(name))
            self._claimed |= free - done
            if free - done:
                self._write()
        return free - done, done

    def _release(self, names: Collection[str]) -> None:
        self._claimed -= set(names)
        self._write()

    def _write(self) -> None:
        files.write_atomic(self._file, serialize.dumps_checksummed({"names": sorted(self._claimed)}))

    def _other_processes(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob(CLAIM) if path != self._file)

    def _claimed_elsewhere(self) -> set[str]:
        """Names that other live processes have claimed. Claims of dead processes are removed."""
        names: set[str] = set()
        for path in self.folder.glob(CLAIM):
            if path == self._file:
                continue
            if not self._is_alive(path):
                path.unlink(missing_ok=True)
                continue
            with suppress(*UNREADABLE):
                names.update(serialize.build(_ClaimFile, serialize.load_checksummed(path)).names)
        return names

    def _is_alive(self, path: Path) -> bool:
        alive = processes.alive(path.stem)
        if alive is not None:
            return alive
        try:  # by the clock of the file system, which both machines share
            self._touch()
            return self._file.stat().st_mtime - path.stat().st_mtime < _DEAD_AFTER
        except OSError:
            return False

    def _touch(self) -> None:
        with suppress(OSError):
            os.utime(self._file)

    def _update_time(self) -> None:
        while not self._stopped.wait(_HEARTBEAT):
            self._touch()

    def _acquire(self) -> BaseFileLock:
        path = self.folder / "lock"
        try:
            lock: BaseFileLock = FileLock(path, timeout=_LOCK_TIMEOUT)
            lock.acquire()
        except NotImplementedError:  # no flock on this file system, and a filelock version that does not fall back
            lock = SoftFileLock(path.with_name("lock.soft"), timeout=_LOCK_TIMEOUT)
            lock.acquire()
        return lock

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = self._acquire()
        except Timeout:
            raise UserError(
                f"{self.folder / 'lock'} is held by a process that does not respond: end that process"
            ) from None
        except OSError as error:
            raise files.DiskError(f"{self.folder} cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()
