"""STL-10 from the authors' binary files, read and checked by torchvision, without its 100,000 unlabelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdbench.core.data import DataRequest
from kdbench.core.errors import UserError
from kdbench.data.dataset import Decoded, Source, Split, files_sha256
from kdbench.data.decode import resize
from kdbench.data.sources.archive import Archive, obtain

SOURCES = {
    "stl10": "13,000 photographs of 96x96 pixels, 10 classes; downloaded when absent (2.6 GB)",
}

_CONSTANTS = ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2712))  # those of the published transfer study
_UNLABELLED = "unlabeled_X.bin"


def find(request: DataRequest, data_dir: Path) -> Source:
    """5,000 training and 8,000 test images of 96x96, from `data_dir`/stl10_binary, downloaded when absent."""
    from torchvision.datasets import STL10
    from torchvision.datasets.utils import check_integrity

    class Labelled(STL10):  # type: ignore[misc]  # torchvision has no types
        train_list = [item for item in STL10.train_list if item[0] != _UNLABELLED]  # noqa: RUF012

    folder = data_dir / STL10.base_folder
    sums = dict((*Labelled.train_list, *STL10.test_list))
    good = {name: check_integrity(folder / name, md5) for name, md5 in sums.items()}
    damaged = [name for name in sums if (folder / name).is_file() and not good[name]]
    archive = Archive("stl10", STL10.url, STL10.filename, STL10.tgz_md5, STL10.base_folder, frozenset({_UNLABELLED}))
    if damaged and not (data_dir / archive.filename).is_file():
        raise UserError(
            f"{folder / damaged[0]} is damaged (its md5 is not {sums[damaged[0]]}); remove it to have it fetched again"
        )

    def is_complete(root: Path) -> bool:
        return all(check_integrity(root / STL10.base_folder / name, md5) for name, md5 in sums.items())

    if not all(good.values()):
        obtain(archive, data_dir, is_complete)

    def decode(size: int) -> Decoded:
        train, test = (_split(Labelled(data_dir, split=name), size) for name in ("train", "test"))
        return Decoded(train, test, dict(enumerate(_names(folder / STL10.class_names_file))))

    digests = dict(zip(sums, files_sha256(folder / name for name in sums), strict=True))
    return Source("stl10", digests, decode, constants=_CONSTANTS)


def _split(part: Any, size: int) -> Split:
    pixels = np.ascontiguousarray(part.data.transpose(0, 2, 3, 1))
    return Split(torch.from_numpy(resize(pixels, size)), torch.from_numpy(part.labels.astype(np.int64)))


def _names(file: Path) -> list[str]:
    """The ten classes; their numbers where the list is missing."""
    words = file.read_text("utf-8").split() if file.is_file() else []
    return words if len(words) == 10 else [str(number) for number in range(10)]
