"""The data classes of this package: a data set as it is found, decoded, selected and served in batches."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from kdbench.core.data import DataInfo, Normalization
from kdbench.core.files import file_sha256
from kdbench.data.augment import FixedAugmentation
from kdbench.data.decode import WORKERS
from kdbench.data.views import View

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Split:
    """Images and labels of one split, in a fixed order. A selection refers to the stored images and copies none."""

    stored: Tensor  # uint8 [M, H, W, 3], contiguous
    labels: Tensor  # int64 [N]
    rows: Tensor | None = None  # int64 [N], of `stored`; None: all of them

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, positions: slice = slice(None)) -> Tensor:
        """Images at these positions, uint8 [B, H, W, 3]."""
        return self.stored[positions] if self.rows is None else self.stored[self.rows[positions]]

    @property
    def images(self) -> Tensor:
        """All images, uint8 [N, H, W, 3]; a copy if this is a selection."""
        return self.pixels()

    def take(self, positions: Tensor, labels: Tensor | None = None) -> Split:
        """The images at these positions, int64 [K], under their labels or others [K]."""
        rows = positions if self.rows is None else self.rows[positions]
        return Split(self.stored, self.labels[positions] if labels is None else labels, rows)


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
    encoded: str = ""  # SHA-256 over label and SHA-256 of the encoded bytes of every image; empty if none are encoded


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
    notes: tuple[str, ...] = ()  # of the label, besides those of the selection
    ignored: int = 0  # files that are no images
    counts: tuple[int, int] | None = None  # training and test images, if they are known before decoding
    official: str = ""  # name of the published set that it was recognized as, see `identity.py`


class Loader(Protocol):
    """Serves the images of a data set in batches on one device, the same for every student."""

    steps: int
    """Batches per epoch; the last incomplete one is dropped."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (from 1) from step `start` (from 0) on: shuffled, randomly cropped and flipped.

        Equal for equal data, seed and epoch, whatever the device and the start.
        """

    def view(self, view: View, epoch: int, step: int, base: Batch) -> ViewBatch:
        """The images of a step's batch, `base`, under a view; equal for equal view, data, seed, epoch and step."""

    def training_images(self, batch_size: int, augmentation: FixedAugmentation | None = None) -> Iterator[Batch]:
        """The training split in order, as it is or under a fixed augmentation; the last batch may be smaller."""

    def evaluation(self, batch_size: int) -> Iterator[Batch]:
        """The test split in order, without augmentation; the last batch may be smaller."""

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """The held-out images in order, without augmentation; no batch if there are none."""


class Dataset(ABC):
    """A data set after selection: what is known of it, its labels, and a loader for its images.

    Whatever uses images gets them from a loader, so that they may reside in memory or be read when they are asked for.
    """

    info: DataInfo
    class_names: tuple[str, ...]
    ignored: int  # files of the source that are no images

    @property
    @abstractmethod
    def labels(self) -> Tensor:
        """Of the training images, int64 [N]."""

    @property
    @abstractmethod
    def test_labels(self) -> Tensor:
        """Of the test images, int64 [N]."""

    @abstractmethod
    def loader(
        self,
        *,
        batch_size: int,
        pad: int,
        device: torch.device,
        seed: int,
        normalizations: Collection[Normalization] = (),
        limit: int | None = None,
    ) -> Loader:
        """A loader on a device, whose batches hold the images also under each of the `normalizations`.

        `pad` is the number of black pixels added on each side before a random crop. `limit`, for measurements, shortens
        an epoch to so many batches, the training images in order to as many, and the test split to one image. Raises
        UserError if the training split is smaller than one batch.
        """

    @property
    def summary(self) -> str:
        """What was found, in one line."""
        info = self.info
        held_out = f", {info.val:,} held out" if info.val else ""
        ignored = f"; {self.ignored} file{'s' * (self.ignored > 1)} ignored" if self.ignored else ""
        images = f"{info.train:,} training and {info.test:,} test images{held_out}, {info.classes} classes"
        return f"{info.label}: {images} at {info.size}x{info.size} pixels{ignored}"


def encoded_digest(*splits: tuple[Tensor, list[bytes]]) -> str:
    """`Decoded.encoded` from the labels of each split and the SHA-256 of its encoded images, in order."""
    sha256 = hashlib.sha256()
    for labels, digests in splits:
        sha256.update(f"split {len(digests)}\n".encode())
        for label, content in zip(labels.tolist(), digests, strict=True):
            sha256.update(f"{label} {content.hex()}\n".encode())
    return sha256.hexdigest()


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
