"""Files that are never half written, and whose they are."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from kdbench.core import files, processes
from kdbench.core.files import DamagedFile, DiskError


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.write_atomic(tmp_path / "new" / "file", b"first")
    assert path.read_bytes() == b"first"

    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(DiskError, match=r"file could not be written \(input/output error\); finished work is kept"):
        files.write_atomic(path, b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(path.parent) == ["file"]


def test_an_interrupted_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = files.write_atomic(tmp_path / "file", b"first")
    with suppress(KeyboardInterrupt), files.atomic(path) as place:
        place.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_every_flip_of_a_sealed_file_is_seen(tmp_path: Path) -> None:
    path = files.write_checksummed(tmp_path / "file", b"content")
    assert files.read_checksummed(path) == b"content"
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(DamagedFile):
            files.read_checksummed(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFile):
            files.read_checksummed(path)
    path.write_bytes(whole + b"\n")
    with pytest.raises(DamagedFile):
        files.read_checksummed(path)


def test_who_is_alive() -> None:
    me = processes.process()
    machine, pid, started = me.split("-")
    assert processes.alive(me)
    assert not processes.alive(f"{machine}-{pid}-{int(started) + 1}")  # another process that had this number
    assert not processes.alive(f"{machine}-99999999-{started}")
    assert processes.alive(f"00000000-{pid}-{started}") is None
    assert processes.alive("notes") is None
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    theirs = f"{machine}-{child.pid}-{processes._start_time(child.pid)}"
    assert processes.alive(theirs)
    child.kill()
    while processes._start_time(child.pid) is not None:  # a zombie is dead too
        pass
    assert not processes.alive(theirs)
    child.wait()
    assert not processes.alive(theirs)


def test_only_what_nobody_writes_any_more_is_swept(tmp_path: Path) -> None:
    machine, pid, started = processes.process().split("-")
    name = "0" * 16
    living = tmp_path / f".{name}.{machine}-{pid}-{started}.tmp"
    dead = tmp_path / f".{name}.{machine}-99999999-1.tmp"
    folder = tmp_path / f".{name}.{machine}-99999998-1.tmp"
    elsewhere = tmp_path / f".{name}.00000000-1-1.tmp"
    long_ago = tmp_path / f".{name}.00000000-2-1.tmp"
    theirs = tmp_path / "notes.tmp"
    folder.mkdir()
    (folder / "half").write_text("")
    for path in (living, dead, elsewhere, long_ago, theirs):
        path.write_text("half")
    os.utime(long_ago, (0, 0))
    files.remove_stale(tmp_path)
    assert set(tmp_path.iterdir()) == {living, elsewhere, theirs}
    files.remove_stale(tmp_path / "nowhere")


def test_what_cannot_be_set_aside_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    path = files.write_atomic(tmp_path / "runs" / "file", b"?")
    monkeypatch.setattr(Path, "rename", read_only)
    with caplog.at_level(logging.WARNING):
        files.quarantine(path, "why", "then this")
    assert path.exists()
    assert "could not be moved away (Read-only file system): then this" in caplog.text
