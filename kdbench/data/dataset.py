"""What a data set is while it is on its way: found, decoded, selected."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from kdbench.core.data import DataInfo, Normalization
from kdbench.core.files import file_sha256
from kdbench.data.decode import WORKERS

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Split:
    """Images and labels of one split, in a fixed order."""

    images: Tensor  # uint8 [N, H, W, 3], contiguous
    labels: Tensor  # int64 [N]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Batch:
    """What every student of a cohort sees in one step."""

    images: Tensor  # float32 [B, 3, H, W], channels-last, normalized with the data set's mean and deviation
    labels: Tensor  # int64 [B]
    indices: Tensor  # int64 [B], rows of the training split (in evaluation: of the test split)
    normalized: Mapping[Normalization, Tensor] = field(default_factory=dict)  # the images as some models want them

    def images_for(self, normalization: Normalization | None) -> Tensor:
        """The images normalized as a model asks; None: with the mean and deviation of the data set."""
        return self.images if normalization is None else self.normalized[normalization]

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in a fixed order."""
        return (self.images, self.labels, self.indices, *self.normalized.values())


@dataclass(frozen=True)
class ViewBatch:
    """A batch under a view; mixed views say what was mixed in."""

    batch: Batch
    partner: Tensor | None = None  # int64 [B], rows of the batch
    lam: Tensor | None = None  # float32 [B], the share of the own image

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in a fixed order."""
        return (*self.batch.tensors(), *(tensor for tensor in (self.partner, self.lam) if tensor is not None))


@dataclass(frozen=True)
class Decoded:
    """A whole data set as its source has it, before any selection."""

    train: Split
    test: Split
    names: Mapping[int, str]  # label number as the source has it -> class name, in ascending order


@dataclass(frozen=True)
class Source:
    """A data set that has been found and identified, but not decoded yet."""

    label: str  # how tables name the whole set
    files: Mapping[str, str]  # file name -> SHA-256
    decode: Callable[[int], Decoded]  # pixels a side -> everything; raises UserError
    flip: bool = True
    constants: tuple[Triple, Triple] | None = None  # published mean and std; None: computed
    cached: bool = True  # whether decoding takes so long that its result is kept
    detail: str = ""  # what else decides the result of `decode`


@dataclass(frozen=True)
class Dataset:
    """A data set after selection."""

    info: DataInfo
    train: Split
    test: Split
    class_names: tuple[str, ...]
    val: Split | None = None  # held out from training, to choose an epoch by


def digest(*parts: Tensor | str) -> str:
    """SHA-256 of texts and of tensors' types, shapes and values."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            data = part.encode()
            found.update(f"text {len(data)}\n".encode() + data)
        else:
            found.update(f"{part.dtype} {tuple(part.shape)}\n".encode())
            found.update(part.contiguous().numpy().data)
    return found.hexdigest()


def files_sha256(paths: Iterable[Path]) -> list[str]:
    """SHA-256 of many files, in their order."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(file_sha256, paths))
