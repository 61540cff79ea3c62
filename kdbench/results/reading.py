"""Read files that may be damaged, of another version, or written by another program."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from kdbench.core.files import DamagedFile, quarantine
from kdbench.core.trial import PROTOCOL
from kdbench.results import serialize

R = TypeVar("R")

log = logging.getLogger("kdbench")

UNREADABLE = (OSError, ValueError, TypeError, AttributeError)
"""What reading a file may raise that is missing, damaged or written by another program."""


def read_record(path: Path, kind: type[R], identify: Callable[[R], str]) -> R | None:
    """The record in a file, None if it is of another protocol. Raises one of UNREADABLE."""
    content = serialize.load_checksummed(path)
    if content.get("protocol") != PROTOCOL:
        return None
    name = content.pop("id", None)
    record = serialize.build(kind, content)
    if identify(record) != name:
        raise ValueError("its contents do not belong to its id")
    return record


class RecordReader(Generic[R]):
    """Reads records with `parse`, each file once until it changes."""

    def __init__(self, parse: Callable[[Path], R | None]) -> None:
        self._parse = parse
        self._known: dict[Path, tuple[tuple[int, int, int], R | None]] = {}

    def read(self, paths: Iterable[Path], consequence: str | None) -> list[R]:
        """The records in these files, in ascending order of their paths.

        Damaged files are quarantined, and the message names the consequence; None: they stay. Files that cannot be
        read for another reason are named and stay: a later version may have written them.
        """
        records = (self._record(path, consequence) for path in sorted(paths))
        return [record for record in records if record is not None]

    def _record(self, path: Path, consequence: str | None) -> R | None:
        try:
            status = path.stat()
            state = status.st_ino, status.st_mtime_ns, status.st_size  # files are replaced, never changed
            if path not in self._known or self._known[path][0] != state:
                self._known[path] = state, self._parse(path)
            return self._known[path][1]
        except DamagedFile as error:
            if consequence is None:
                log.warning("%s is damaged (%s) and is left out", path, error)
            else:
                quarantine(path, error, consequence)
        except UNREADABLE as error:
            log.warning("%s cannot be used and is left out (%s)", path, error)
        return None


def read_verified(path: Path, sha256: str) -> bytes:
    """A file's bytes. Raises DamagedFile if they have another SHA-256, or OSError."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedFile("its SHA-256 is not the one in its record")
    return content
