"""CIFAR-10 and CIFAR-100 from the authors' archives, fetched and checked by torchvision."""

from __future__ import annotations

import os
import shutil
import socket
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdbench.data.imageset import Decoded, Source, Split, file_digests
from kdbench.data.pixels import resize
from kdbench.spec import DataRequest, UserError

# Those of every published study of the family; nearly, but not quite, what the images give.
_CIFAR100_CONSTANTS = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
_SIDE = 32  # pixels, as published: plain arrays that need no cache
_PATIENCE = 60.0  # seconds without a byte before a download is given up


def find(request: DataRequest, data_dir: Path) -> Source:
    """The archive's files in `data_dir`, unpacked or downloaded when absent. Cached only where they are resized."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind: Any = {"cifar10": CIFAR10, "cifar100": CIFAR100}[request.source]
    parts = _open(kind, data_dir) or _obtain(kind, request.source, data_dir)

    def decode(size: int) -> Decoded:
        train, test = (
            Split(
                torch.from_numpy(resize(np.ascontiguousarray(part.data), size)),
                torch.tensor(part.targets, dtype=torch.int64),
            )
            for part in parts
        )
        return Decoded(train, test, dict(enumerate(parts[0].classes)))

    folder = data_dir / kind.base_folder
    files = [name for name, _ in kind.train_list + kind.test_list]
    digests = dict(zip(files, file_digests(folder / name for name in files), strict=True))
    constants = _CIFAR100_CONSTANTS if request.source == "cifar100" else None
    return Source(request.source, digests, decode, constants=constants, cached=request.size != _SIDE)


def _open(kind: Any, folder: Path) -> tuple[Any, Any] | None:
    """Training and test split, or None where a file is missing or its checksum differs."""
    try:
        return kind(folder, train=True), kind(folder, train=False)
    except RuntimeError:
        return None


def _obtain(kind: Any, name: str, data_dir: Path) -> tuple[Any, Any]:
    """Unpack the archive that lies in `data_dir`, or download it; only checked files are moved to their place."""
    from torchvision.datasets.utils import check_integrity, extract_archive

    archive = data_dir / kind.filename
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=data_dir) as staging, _timeout(_PATIENCE):
            if check_integrity(archive, kind.tgz_md5):
                extract_archive(str(archive), staging)
            else:
                kind(staging, download=True)
            if _open(kind, Path(staging)) is None:
                raise RuntimeError("the archive lacks files that it should hold")
            (data_dir / kind.base_folder).mkdir(exist_ok=True)
            for file in sorted((Path(staging) / kind.base_folder).iterdir()):
                os.replace(file, data_dir / kind.base_folder / file.name)
        if parts := _open(kind, data_dir):
            return parts
        raise RuntimeError("its files were changed while they were unpacked")
    except (OSError, EOFError, RuntimeError, HTTPException, tarfile.TarError, shutil.Error) as error:
        present = f" ({archive.name} is there, but is not the right one)" if archive.is_file() else ""
        raise UserError(
            f"{name} is not in {data_dir}{present} and could not be had from {kind.url} ({error}): "
            f"put {kind.filename} (md5 {kind.tgz_md5}) into {data_dir} and run again"
        ) from error


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """torchvision's downloads have no time limit of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
