"""Which process does what, where several work on one results folder: each piece of work is done once.

claims/PROCESS.json   what a process has in hand; its time is set anew every few seconds, as a sign of life
claims/lock           held for the moment in which a process looks at what the others have, and takes its own

A claim ends with its process: on the same machine that is seen at once, of another machine its sign of life stops. The
lock is filelock's: the system's own, which dies with its holder; where a file system has none, a marker file.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from kdbench.core import files
from kdbench.core.errors import UserError
from kdbench.results import serialize
from kdbench.results.reading import UNREADABLE

G = TypeVar("G")

FOLDER = "claims"
CLAIM = "*-*-*.json"
"""Names of claims: `files.process()` has two hyphens. Other files in the folder are somebody else's."""

_BEAT = 15.0  # seconds between two signs of life
_SILENCE = 300.0  # seconds without one after which a process of another machine is taken for dead
_PATIENCE = 120.0  # seconds to wait for the lock, which is held for milliseconds
_LOOK = 1.0  # seconds between two looks at what the others have done


@dataclass(frozen=True)
class Work(Generic[G]):
    """A group of pieces of work, by name; `after` are names of pieces that must be done before."""

    group: G
    names: frozenset[str]
    after: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Held:
    """What a claims file says."""

    names: tuple[str, ...]


class Claims:
    """This process's share of the work on a results folder; to be used as a context."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER
        self._mine: set[str] = set()
        self._over = threading.Event()

    def __enter__(self) -> Claims:
        self._file = self.folder / f"{files.process()}.json"
        with self._locked():
            files.remove_stale(self.folder)
            self._held_by_others()  # removes the files of dead processes
            self._write()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        with suppress(OSError):
            self._file.unlink(missing_ok=True)

    def share(
        self,
        work: Iterable[Work[G]],
        finished: Callable[[str], bool],
        waiting: Callable[[int, Sequence[str]], None],
    ) -> Iterator[tuple[G, frozenset[str]]]:
        """The groups, each with the names in it that this process is to do now; the others do the rest.

        What is yielded counts as tried when the next is asked for. Ends when every name was tried here or is `finished`
        elsewhere; while there is nothing to do but to wait for others, `waiting` hears for how many and for whom.
        Raises DiskError.
        """
        left = list(work)
        while left:
            idle = True
            for each in list(left):
                open_names = frozenset().union(*(other.names for other in left))
                if each.after & open_names:
                    continue
                taken, over = self._take(each.names, finished)
                if taken:
                    idle = False
                    yield each.group, taken
                    self._give_back(taken)
                left.remove(each)
                if rest := each.names - taken - over:
                    left.append(Work(each.group, rest, each.after))
            if left and idle:
                waiting(sum(len(each.names) for each in left), self._others())
                time.sleep(_LOOK)

    def _take(self, names: frozenset[str], finished: Callable[[str], bool]) -> tuple[frozenset[str], frozenset[str]]:
        """Names that are now this process's, and those that are finished."""
        with self._locked():
            free = names - self._held_by_others()
            over = frozenset(name for name in free if finished(name))
            self._mine |= free - over
            if free - over:
                self._write()
        return free - over, over

    def _give_back(self, names: Collection[str]) -> None:
        self._mine -= set(names)
        self._write()

    def _write(self) -> None:
        files.write_atomic(self._file, serialize.dumps_checksummed({"names": sorted(self._mine)}))

    def _others(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob(CLAIM) if path != self._file)

    def _held_by_others(self) -> set[str]:
        """What living processes have; the files of dead ones are removed."""
        found: set[str] = set()
        for path in self.folder.glob(CLAIM):
            if path == self._file:
                continue
            if not self._living(path):
                path.unlink(missing_ok=True)
                continue
            with suppress(*UNREADABLE):
                found.update(serialize.build(_Held, serialize.load_checksummed(path)).names)
        return found

    def _living(self, path: Path) -> bool:
        there = files.alive(path.stem)
        if there is not None:
            return there
        try:  # by the clock of the file system, which both machines share
            self._touch()
            return self._file.stat().st_mtime - path.stat().st_mtime < _SILENCE
        except OSError:
            return False

    def _touch(self) -> None:
        with suppress(OSError):
            os.utime(self._file)

    def _beat(self) -> None:
        while not self._over.wait(_BEAT):
            self._touch()

    def _acquire(self) -> BaseFileLock:
        place = self.folder / "lock"
        try:
            lock: BaseFileLock = FileLock(place, timeout=_PATIENCE)
            lock.acquire()
        except NotImplementedError:  # no flock on this file system, and a filelock that does not fall back by itself
            lock = SoftFileLock(place.with_name("lock.soft"), timeout=_PATIENCE)
            lock.acquire()
        return lock

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = self._acquire()
        except Timeout:
            raise UserError(f"{self.folder / 'lock'} is held by a process that does not go on: end it") from None
        except OSError as error:
            raise files.DiskError(f"{self.folder} cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()
