"""Identities of processes, by which the owner of a file can be told to be alive or gone."""

from __future__ import annotations

import hashlib
import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path


def process() -> str:
    """The identity of this process, `MACHINE-PID-START`: fit for file names, unique over machines and reused PIDs."""
    pid = os.getpid()
    return f"{_machine()}-{pid}-{_start_time(pid)}"


def alive(identity: str) -> bool | None:
    """Whether the process with this identity still runs; None if it is unknown, as on another machine."""
    machine, _, rest = identity.partition("-")
    pid, _, start_time = rest.partition("-")
    if machine != _machine() or not pid.isdecimal():
        return None
    return _start_time(int(pid)) == start_time


@cache
def _machine() -> str:
    """Hash of the host name and the PID namespace: PIDs mean the same only within one container."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()}/{namespace}".encode()).hexdigest()[:8]


def _start_time(pid: int) -> str | None:
    """Start time of a local process in clock ticks since boot; None if it has ended, `0` if the time is unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
        state, *fields = stat.rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:  # no /proc, as on macOS
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "0"
