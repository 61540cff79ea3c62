"""Files that are never half written, and that tell when they are damaged.

What a process that was killed leaves behind is a temporary file whose name says whose it was, so that the next one can
tell it from the work of a process that is still there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from kdbench.core.errors import UserError

log = logging.getLogger("kdbench")

QUARANTINE = "damaged"
"""Folder of a results folder into which damaged files are set aside."""

_FOREIGN_STALE = 24 * 3600  # seconds after which a temporary file of another machine has lost its writer
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.(.+)\.tmp")
_SEAL = re.compile(rb"sha256 ([0-9a-f]{64})\n")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class DiskError(UserError):
    """A file could not be written: no room, a broken or read-only disk. What was there before is still whole."""


class DamagedFile(ValueError):
    """A file is not what was written; the message says in what."""


@cache
def _machine() -> str:
    """This machine, or this container: where process numbers mean what they mean here."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()}/{space}".encode()).hexdigest()[:8]


def _started(pid: int) -> str | None:
    """When a process of this machine started, in a unit of its own; None if it is gone, `0` where that is unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
        state, *rest = stat.rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "0"


def process() -> str:
    """This process: a word for file names that no other process has, on any machine, before or after."""
    pid = os.getpid()
    return f"{_machine()}-{pid}-{_started(pid)}"


def alive(name: str) -> bool | None:
    """Whether the process with this `process()` is still there; None if it is, or was, on another machine."""
    machine, _, rest = name.partition("-")
    pid, _, started = rest.partition("-")
    if machine != _machine() or not pid.isdecimal():
        return None
    return _started(int(pid)) == started


def temporary(path: Path) -> Path:
    """Where this process may build what is to become `path`; `sweep` knows it."""
    name = hashlib.sha256(path.name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return path.with_name(f".{name}.{process()}.tmp")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of `path` when the block ends well.

    A reader sees the old file, the new one, or none, whatever happens meanwhile; once this returns the new one also
    survives a loss of power. Raises DiskError.
    """
    place = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield place
            with place.open("rb+") as file:
                os.fsync(file.fileno())
            place.replace(path)
            _sync(path.parent)
        finally:
            with suppress(OSError):
                place.unlink(missing_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DiskError(
            f"{path} could not be written ({reason}); what was finished is kept, and the same command goes on "
            "once that is mended"
        ) from error


def _sync(folder: Path) -> None:
    """Make a change of names in a folder last; where the system cannot, it lasts as well as the system's own."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomic(path: Path, content: bytes) -> Path:
    """Write a file `whole`. Raises DiskError."""
    with atomic(path) as place:
        place.write_bytes(content)
    return path


def write_checksummed(path: Path, content: bytes) -> Path:
    """Write a file `whole`, its first line the SHA-256 of all that follows. Raises DiskError."""
    with atomic(path) as place, place.open("wb") as file:
        file.write(b"sha256 " + hashlib.sha256(content).hexdigest().encode() + b"\n")
        file.write(content)
    return path


def read_checksummed(path: Path) -> bytes:
    """What `write_checksummed` was given. Raises DamagedFile or OSError."""
    with path.open("rb") as file:
        seal = _SEAL.fullmatch(file.readline(100))
        content = file.read()
    if not seal or hashlib.sha256(content).hexdigest().encode() != seal[1]:
        raise DamagedFile("its checksum does not agree")
    return content


def quarantine(path: Path, reason: object, then: str) -> None:
    """Move a damaged file from `ROOT/FOLDER/` to `ROOT/damaged/`, and say so; `then` is what follows from it."""
    target = path.parent.parent / QUARANTINE / path.name
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{path.name}.{number}")
    try:
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    except FileNotFoundError:  # another process was faster
        return
    except OSError as error:
        log.warning("%s is damaged (%s), and could not be set aside (%s): %s", path, reason, error.strerror, then)
        return
    log.warning("%s is damaged (%s), it was set aside in %s/: %s", path, reason, target.parent.name, then)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files (and folders) that processes which are gone left in a folder."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            match = _TEMPORARY.fullmatch(path.name)
            if not match or not _abandoned(path, match[1]):
                continue
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _abandoned(path: Path, owner: str) -> bool:
    there = alive(owner)
    if there is None:
        with suppress(OSError):
            return path.stat().st_mtime < time.time() - _FOREIGN_STALE
    return not there
