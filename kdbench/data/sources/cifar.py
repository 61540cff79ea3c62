"""CIFAR-10 and CIFAR-100 from the authors' archives, read and checked by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdbench.core.data import DataRequest
from kdbench.data.dataset import Decoded, Source, Split, files_sha256
from kdbench.data.decode import resize
from kdbench.data.sources.archive import Archive, obtain

SOURCES = {
    "cifar10": "60,000 photographs of 32x32 pixels, 10 classes; downloaded when absent",
    "cifar100": "60,000 photographs of 32x32 pixels, 100 classes; downloaded when absent",
}

_SIDE = 32  # pixels, as published: plain arrays that need no cache


def find(request: DataRequest, data_dir: Path) -> Source:
    """The archive's files in `data_dir`, unpacked or downloaded when absent. Cached only where they are resized."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind: Any = {"cifar10": CIFAR10, "cifar100": CIFAR100}[request.source]

    def parts(root: Path) -> tuple[Any, Any] | None:
        """Training and test split, or None where a file is missing or its checksum differs."""
        try:
            return kind(root, train=True), kind(root, train=False)
        except RuntimeError:
            return None

    members = parts(data_dir)
    if members is None:
        archive = Archive(request.source, kind.url, kind.filename, kind.tgz_md5, kind.base_folder)
        obtain(archive, data_dir, lambda root: parts(root) is not None)
        members = parts(data_dir)
    assert members is not None  # `obtain` has looked
    opened = members

    def decode(size: int) -> Decoded:
        train, test = (
            Split(
                torch.from_numpy(resize(np.ascontiguousarray(part.data), size)),
                torch.tensor(part.targets, dtype=torch.int64),
            )
            for part in opened
        )
        return Decoded(train, test, dict(enumerate(opened[0].classes)))

    folder = data_dir / kind.base_folder
    files = [name for name, _ in kind.train_list + kind.test_list]
    digests = dict(zip(files, files_sha256(folder / name for name in files), strict=True))
    counts = len(opened[0]), len(opened[1])
    return Source(request.source, digests, decode, cached=request.size != _SIDE, counts=counts)
