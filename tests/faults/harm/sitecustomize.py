"""Harms the process that it is loaded into, as the JSON in KDBENCH_HARM says. Python imports it before anything else.

Every file that is written whole goes through six events: its temporary file is opened, half of its content is there, it
is closed, it is synced, it is about to get its name, it has it. `{"folder": "runs", "number": 7, "how": "kill"}` kills
the process by SIGKILL at the seventh event in folders of that name (`""`: of any name); with the name of an errno
instead of `kill` that error is raised there and at every later event of the folder. `"log": FILE` notes every file that
got its name.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

HARM = json.loads(os.environ.get("KDBENCH_HARM", "{}"))
_seen = 0


def _event(path: str, half: Any = None) -> None:
    """Count an event; strike if it is the one."""
    global _seen
    folder = Path(path).parent.name
    if "how" not in HARM or HARM["folder"] not in ("", folder):
        return
    _seen += 1
    if HARM["how"] == "kill":
        if _seen == HARM["number"]:
            if half:
                half()
            os.kill(os.getpid(), signal.SIGKILL)
    elif _seen >= HARM["number"]:
        number = getattr(errno, HARM["how"])
        raise OSError(number, os.strerror(number), path)


class _Writer:
    """A file that is being written."""

    def __init__(self, file: Any, path: str) -> None:
        self._file, self._path = file, path

    def write(self, data: Any) -> Any:
        def half() -> None:
            self._file.write(bytes(data)[: len(data) // 2])
            self._file.flush()

        _event(self._path, half)
        return self._file.write(data)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        if error[0] is None:
            _event(self._path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


_open, _fsync, _replace = io.open, os.fsync, os.replace


def _harmful_open(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
    if isinstance(path, str | os.PathLike) and os.fspath(path).endswith(".tmp") and "w" in mode:
        _event(os.fspath(path))
        return _Writer(_open(path, mode, *args, **options), os.fspath(path))
    return _open(path, mode, *args, **options)


def _harmful_fsync(handle: int) -> None:
    _fsync(handle)
    try:
        path = os.readlink(f"/proc/self/fd/{handle}")
    except OSError:
        return
    if path.endswith(".tmp"):
        _event(path)


def _harmful_replace(source: Any, target: Any, **options: Any) -> None:
    if not os.fspath(source).endswith(".tmp"):
        _replace(source, target, **options)
        return
    _event(os.fspath(target))
    _replace(source, target, **options)
    if "log" in HARM:
        with _open(HARM["log"], "a") as log:
            log.write(f"{os.getpid()} {os.fspath(target)}\n")
    if HARM.get("how") == "kill":  # too late for an error
        _event(os.fspath(target))


if HARM:
    io.open = builtins.open = _harmful_open  # type: ignore[assignment]
    os.fsync, os.replace = _harmful_fsync, _harmful_replace  # type: ignore[assignment]
