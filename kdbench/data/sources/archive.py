"""Data sets that come as one published archive: unpacked where it lies, else downloaded by torchvision and checked."""

from __future__ import annotations

import os
import shutil
import socket
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from kdbench.core.errors import UserError
from kdbench.core.files import remove_stale, temporary

_PATIENCE = 60.0  # seconds without a byte before a download is given up


@dataclass(frozen=True)
class Archive:
    """What is published, and where it goes."""

    name: str  # of the data set
    url: str
    filename: str
    md5: str
    folder: str  # what it unpacks to
    leave: frozenset[str] = frozenset()  # what of it is not kept


def obtain(archive: Archive, data_dir: Path, is_complete: Callable[[Path], bool]) -> None:
    """Put the archive's folder into `data_dir`; nothing is moved there before `is_complete` has approved its new place.

    Raises UserError, one sentence that says what to put where.
    """
    from torchvision.datasets.utils import check_integrity, download_url

    packed = data_dir / archive.filename
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        remove_stale(data_dir)
        with _staging(data_dir, archive.name) as staging, _timeout(_PATIENCE):
            source = packed
            if not check_integrity(packed, archive.md5):
                download_url(archive.url, staging, archive.filename, archive.md5)
                source = Path(staging, archive.filename)
            _unpack(source, staging)
            for name in archive.leave:
                Path(staging, archive.folder, name).unlink(missing_ok=True)
            if not is_complete(Path(staging)):
                raise RuntimeError("the archive lacks files that it should hold")
            (data_dir / archive.folder).mkdir(exist_ok=True)
            for child in sorted(Path(staging, archive.folder).iterdir()):
                os.replace(child, data_dir / archive.folder / child.name)
        if not is_complete(data_dir):
            raise RuntimeError("its files were changed while they were unpacked")
    except (
        OSError,
        EOFError,
        RuntimeError,
        HTTPException,
        tarfile.TarError,
        zipfile.BadZipFile,
        shutil.Error,
    ) as error:
        present = f" ({packed.name} is there, but is not the right one)" if packed.is_file() else ""
        raise UserError(
            f"{archive.name} is not in {data_dir}{present} and could not be had from {archive.url} ({error}): "
            f"put {archive.filename} (md5 {archive.md5}) into {data_dir} and run again"
        ) from error


@contextmanager
def _staging(data_dir: Path, name: str) -> Iterator[str]:
    """A folder that is gone afterwards, at the latest with the next start after this process was killed."""
    folder = temporary(data_dir / name)
    folder.mkdir()
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(packed: Path, folder: str) -> None:
    """Nothing is written outside the folder, whatever the archive says."""
    if tarfile.is_tarfile(packed):
        with tarfile.open(packed) as tar:
            tar.extractall(folder, filter="data")
    else:
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(folder)


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """torchvision's downloads have no time limit of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
