"""Reading what may be damaged, of another version, or somebody else's."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from kdbench.core.files import DamagedFile, quarantine
from kdbench.core.trial import PROTOCOL
from kdbench.results import serialize

R = TypeVar("R")

log = logging.getLogger("kdbench")

UNREADABLE = (OSError, ValueError, TypeError, AttributeError)
"""What reading a file that is missing, damaged or written by something else may raise."""


def read(path: Path, kind: type[R], identify: Callable[[R], str]) -> R | None:
    """A record of this protocol, None if it is of another. Raises one of UNREADABLE."""
    content = serialize.load_checksummed(path)
    if content.get("protocol") != PROTOCOL:
        return None
    name = content.pop("id", None)
    record = serialize.build(kind, content)
    if identify(record) != name:
        raise ValueError("its contents do not belong to its id")
    return record


def every(paths: Iterable[Path], reader: Callable[[Path], R | None], then: str | None) -> list[R]:
    """What `reader` finds, in the order of the names; it gives None for what is not of this protocol, which is kept.

    DamagedFile files are set aside, which leads to `then`; with None they stay. What does not fit for another reason is
    named and left where it is: a later version may have written it.
    """
    found = []
    for path in sorted(paths):
        try:
            record = reader(path)
        except DamagedFile as error:
            if then is None:
                log.warning("%s is damaged (%s) and is left out", path, error)
            else:
                quarantine(path, error, then)
        except UNREADABLE as error:
            log.warning("%s is not a record of this version and is left out (%s)", path, error)
        else:
            if record is not None:
                found.append(record)
    return found


class Stamped(Protocol):
    @property
    def finished(self) -> str: ...


def finished_since(find: Callable[[str], Stamped | None], finished_at: Mapping[str, str]) -> Callable[[str], bool]:
    """Whether something was finished after these finished_at were taken, by fingerprint."""

    def finished(fingerprint: str) -> bool:
        record = find(fingerprint)
        return record is not None and record.finished != finished_at.get(fingerprint)

    return finished


def contents(path: Path, sha256: str) -> bytes:
    """A file's bytes. Raises DamagedFile if their SHA-256 is another one, or OSError."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedFile("its SHA-256 is not the one in its record")
    return content
