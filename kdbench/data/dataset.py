"""The data classes of this package: a data set as it is found, decoded, selected and served in batches."""

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
    """One batch of images, the same for every student of a cohort."""

    images: Tensor  # float32 [B, 3, H, W], channels-last, normalized with the mean and deviation of the data set
    labels: Tensor  # int64 [B]
    indices: Tensor  # int64 [B], rows of the training split (in evaluation: of the test split)
    normalized: Mapping[Normalization, Tensor] = field(default_factory=dict)  # the same images, normalized otherwise

    def images_for(self, normalization: Normalization | None) -> Tensor:
        """The images under a normalization; None: that of the data set. Raises KeyError if it was not prepared."""
        return self.images if normalization is None else self.normalized[normalization]

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in a fixed order."""
        return (self.images, self.labels, self.indices, *self.normalized.values())


@dataclass(frozen=True)
class ViewBatch:
    """A batch under a view. Mixed views also hold how images were mixed."""

    batch: Batch
    partner: Tensor | None = None  # int64 [B], row of the batch that was mixed into each image
    lam: Tensor | None = None  # float32 [B], share of the original image, in [0, 1]

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in a fixed order."""
        return (*self.batch.tensors(), *(tensor for tensor in (self.partner, self.lam) if tensor is not None))


@dataclass(frozen=True)
class Decoded:
    """All images of a data set, before classes or a subset are selected."""

    train: Split
    test: Split
    names: Mapping[int, str]  # label number -> class name, in ascending order; numbers may have gaps


@dataclass(frozen=True)
class Source:
    """A data set that was found and identified, but not decoded yet."""

    label: str  # name of the full data set in tables
    files: Mapping[str, str]  # file name -> SHA-256
    decode: Callable[[int], Decoded]  # takes the pixels per side; raises UserError
    flip: bool = True  # whether mirroring an image preserves its class
    constants: tuple[Triple, Triple] | None = None  # published mean and deviation; None: computed from the images
    cached: bool = True  # whether decoding is slow enough to keep its result on disk
    detail: str = ""  # what else decides the result of `decode`, such as the chosen columns


@dataclass(frozen=True)
class Dataset:
    """A data set after selection, ready for a `Loader`."""

    info: DataInfo
    train: Split
    test: Split
    class_names: tuple[str, ...]
    val: Split | None = None  # held out from training to choose an epoch


def digest(*parts: Tensor | str) -> str:
    """SHA-256 of strings and of the types, shapes and values of CPU tensors."""
    sha256 = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            data = part.encode()
            sha256.update(f"text {len(data)}\n".encode() + data)
        else:
            sha256.update(f"{part.dtype} {tuple(part.shape)}\n".encode())
            sha256.update(part.contiguous().numpy().data)
    return sha256.hexdigest()


def files_sha256(paths: Iterable[Path]) -> list[str]:
    """SHA-256 of each file, in order; read in parallel. Raises OSError."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(file_sha256, paths))
