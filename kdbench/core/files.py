"""Atomic and checksummed files: no file is ever half written, and damage to one is detected.

A file is first written under a temporary name that holds the identity of the writing process. When that process is
killed, `remove_stale` can tell its leftovers from the files of processes that are still running.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdbench.core.errors import UserError
from kdbench.core.processes import alive, process

log = logging.getLogger("kdbench")

QUARANTINE = "damaged"
"""Subfolder of a results folder into which damaged files are moved."""

_FOREIGN_STALE = 24 * 3600  # seconds after which a temporary file from another machine counts as stale
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.(.+)\.tmp")
_CHECKSUM = re.compile(rb"sha256 ([0-9a-f]{64})\n")


class DiskError(UserError):
    """A file could not be written, as on a full or read-only disk. Its previous content is intact."""


class DamagedFile(ValueError):
    """A file does not hold what was written to it; the message says how that shows."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` when the block ends without an exception.

    Readers see the old file, the new one or none, never a part. Once the block has ended, the new file also survives a
    power failure. Missing parent folders are created. Raises DiskError.
    """
    temporary_path = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary_path
            with temporary_path.open("rb+") as file:
                os.fsync(file.fileno())
            temporary_path.replace(path)
            _sync_folder(path.parent)
        finally:
            with suppress(OSError):
                temporary_path.unlink(missing_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DiskError(
            f"{path} could not be written ({reason}); finished work is kept, and the same command continues once "
            "this is fixed"
        ) from error


def write_atomic(path: Path, content: bytes) -> Path:
    """Write a file atomically and return its path. Raises DiskError."""
    with atomic(path) as temporary_path:
        temporary_path.write_bytes(content)
    return path


def write_checksummed(path: Path, content: bytes) -> Path:
    """Write a file atomically, preceded by a line with the content's SHA-256, and return its path. Raises DiskError."""
    with atomic(path) as temporary_path, temporary_path.open("wb") as file:
        file.write(b"sha256 " + hashlib.sha256(content).hexdigest().encode() + b"\n")
        file.write(content)
    return path


def read_checksummed(path: Path) -> bytes:
    """The content that `write_checksummed` wrote. Raises DamagedFile or OSError."""
    with path.open("rb") as file:
        checksum = _CHECKSUM.fullmatch(file.readline(100))
        content = file.read()
    if not checksum or hashlib.sha256(content).hexdigest().encode() != checksum[1]:
        raise DamagedFile("its checksum does not agree")
    return content


def temporary(path: Path) -> Path:
    """The temporary name under which this process writes `path`, in the same folder; `remove_stale` recognizes it."""
    name = hashlib.sha256(path.name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return path.with_name(f".{name}.{process()}.tmp")


def remove_stale(folder: Path) -> None:
    """Remove the temporary files and folders of processes that have ended. Errors are ignored."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            match = _TEMPORARY.fullmatch(path.name)
            if not match or not _is_stale(path, match[1]):
                continue
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def quarantine(path: Path, reason: object, then: str) -> None:
    """Move a damaged file from `ROOT/FOLDER/` to `ROOT/damaged/` and log a warning; `then` names the consequence."""
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
        log.warning("%s is damaged (%s) and could not be moved away (%s): %s", path, reason, error.strerror, then)
        return
    log.warning("%s is damaged (%s), it was moved to %s/: %s", path, reason, target.parent.name, then)


def _sync_folder(folder: Path) -> None:
    """Flush a renaming in a folder to disk, on systems that can open folders."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _is_stale(path: Path, owner: str) -> bool:
    owner_alive = alive(owner)
    if owner_alive is None:
        with suppress(OSError):
            return path.stat().st_mtime < time.time() - _FOREIGN_STALE
    return not owner_alive
