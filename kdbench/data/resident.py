"""Batches of images that reside on the device: the same for every student, keyed by data, seed and epoch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kdbench.core.data import DataInfo, Normalization
from kdbench.core.errors import UserError
from kdbench.core.seeding import derive_seed
from kdbench.data.augment import FixedAugmentation, show
from kdbench.data.dataset import Batch, Dataset, Loader, Split, ViewBatch
from kdbench.data.views import MIXED, View, mixing_coefficients, rectangle


@dataclass(frozen=True)
class ResidentDataset(Dataset):
    """A data set whose images are all in memory."""

    info: DataInfo
    train: Split
    test: Split
    class_names: tuple[str, ...]
    val: Split | None = None  # held out from training to choose an epoch
    ignored: int = 0

    @property
    def labels(self) -> Tensor:
        return self.train.labels

    @property
    def test_labels(self) -> Tensor:
        return self.test.labels

    def loader(self, **arguments: Any) -> Loader:
        """See `Dataset.loader`."""
        return ResidentLoader(self, **arguments)


class ResidentLoader:
    """Serves a resident data set; see `Loader` and `Dataset.loader`."""

    def __init__(
        self,
        dataset: ResidentDataset,
        *,
        batch_size: int,
        pad: int,
        device: torch.device,
        seed: int,
        normalizations: Collection[Normalization] = (),
        limit: int | None = None,
    ) -> None:
        count = len(dataset.train)
        if count < batch_size:
            raise UserError(
                f"{dataset.info.label}: the training split has {count} images, less than one batch of {batch_size}; "
                f"take a larger --subset or more --classes"
            )
        self.info, self.batch_size, self.pad, self.device, self.seed = dataset.info, batch_size, pad, device, seed
        self._split = dataset.train
        self._train_labels = dataset.train.labels.to(device)
        self._test = dataset.test.take(torch.arange(1)) if limit else dataset.test
        self._val = dataset.val
        self.steps = min(count // batch_size, limit or count)
        self._in_training_order = dataset.train.take(torch.arange(self.steps * batch_size)) if limit else dataset.train
        height, width = dataset.train.stored.shape[1:3]
        self._rows, self._columns = torch.arange(height, device=device), torch.arange(width, device=device)
        self._mean_std = torch.tensor((dataset.info.mean, dataset.info.std)).to(device)  # [2, 3]
        self._normalizations = {key: torch.tensor(key).to(device) for key in normalizations}
        self._view_crops: dict[View, tuple[int, Tensor]] = {}  # the latest epoch and its crops

    @cached_property
    def _train(self) -> Tensor:
        """The training images on the device, padded once, so that a crop is a single gather: uint8 [N, H', W', 3]."""
        height, width, pad = len(self._rows), len(self._columns), self.pad
        shape = len(self._split), height + 2 * pad, width + 2 * pad, 3
        padded = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        padded[:, pad : pad + height, pad : pad + width] = self._split.pixels().to(self.device)
        return padded

    @cached_property
    def _resident_test(self) -> Split:
        return Split(self._test.pixels().to(self.device), self._test.labels.to(self.device))

    @cached_property
    def _resident_val(self) -> Split | None:
        return self._val and Split(self._val.pixels().to(self.device), self._val.labels.to(self.device))

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on: shuffled, randomly cropped and flipped."""
        order, crops = self._draw_epoch(number)
        for step in range(start, self.steps):
            positions = self._positions(step)
            indices = order[positions]
            yield self._batch(self._crop(indices, crops[:, positions]), self._train_labels[indices], indices)

    def view(self, view: View, epoch: int, step: int, base: Batch) -> ViewBatch:
        """The images of a step's batch, `base`, under a view; keyed by view, data, seed and epoch."""
        key = ("view", str(view), self.info.content, self.seed, epoch)
        if view.name in MIXED:
            return self._mixed(view, key, step, base)
        crops_epoch, crops = self._view_crops.get(view, (None, None))
        if crops_epoch != epoch or crops is None:
            crops = self._draw_crops(torch.Generator().manual_seed(derive_seed(*key)))
            self._view_crops[view] = epoch, crops
        pixels = self._crop(base.indices, crops[:, self._positions(step)])
        if view.name == "strong":
            from kdbench.data.strong_augmentation import strong_augmentation

            pixels = torch.stack(
                [
                    strong_augmentation(image, view, torch.Generator().manual_seed(derive_seed(*key, index)))
                    for image, index in zip(pixels.cpu(), base.indices.tolist(), strict=True)
                ]
            ).to(self.device)
        return ViewBatch(self._batch(pixels, base.labels, base.indices))

    def training_images(self, batch_size: int, augmentation: FixedAugmentation | None = None) -> Iterator[Batch]:
        return self._in_order(self._in_training_order, batch_size, augmentation)

    def evaluation(self, batch_size: int) -> Iterator[Batch]:
        return self._in_order(self._resident_test, batch_size)

    def validation(self, batch_size: int) -> Iterator[Batch]:
        if self._resident_val is not None:
            yield from self._in_order(self._resident_val, batch_size)

    def _in_order(
        self, split: Split, batch_size: int, augmentation: FixedAugmentation | None = None
    ) -> Iterator[Batch]:
        """The images of a split in order; the last batch may be smaller."""
        for start in range(0, len(split), batch_size):
            positions = slice(start, start + batch_size)
            pixels, labels = split.pixels(positions).to(self.device), split.labels[positions].to(self.device)
            if augmentation is not None:
                pixels = show(pixels, augmentation)
            yield self._batch(pixels, labels, torch.arange(start, start + len(labels), device=self.device))

    def _mixed(self, view: View, key: tuple[object, ...], step: int, base: Batch) -> ViewBatch:
        """Mixup or cutmix of a batch with a random permutation of itself."""
        stream = torch.Generator().manual_seed(derive_seed(*key, step))
        count, _, height, width = base.images.shape
        partner = torch.randperm(count, generator=stream).to(self.device)
        lam = float(mixing_coefficients(view["alpha"], 1, derive_seed(*key, step, "lam")))
        if view.name == "mixup":

            def mix(images: Tensor) -> Tensor:
                return lam * images + (1 - lam) * images[partner]
        else:
            rows, columns, lam = rectangle(lam, height, width, stream)

            def mix(images: Tensor) -> Tensor:
                mixed = images.clone()
                mixed[:, :, rows, columns] = images[partner][:, :, rows, columns]
                return mixed

        normalized = {key: mix(images) for key, images in base.normalized.items()}
        batch = Batch(mix(base.images), base.labels, base.indices, normalized)
        return ViewBatch(batch, partner, torch.full((count,), lam, device=self.device))

    def _positions(self, step: int) -> slice:
        """Where the images of a step are in the order of the epoch."""
        return slice(step * self.batch_size, (step + 1) * self.batch_size)

    def _draw_epoch(self, number: int) -> tuple[Tensor, Tensor]:
        """The order of the images in an epoch, int64 [N], and their crops [3, N]."""
        stream = torch.Generator().manual_seed(derive_seed("batches", self.info.content, self.seed, number))
        order = torch.randperm(len(self._train), generator=stream).to(self.device)
        return order, self._draw_crops(stream)

    def _draw_crops(self, stream: torch.Generator) -> Tensor:
        """Top, left and flip for each position of an epoch, int64 [3, N]; drawn on the CPU, the same for any device."""
        offsets = torch.randint(2 * self.pad + 1, (2, len(self._train)), generator=stream)
        flips = torch.randint(2, (len(self._train),), generator=stream) * self.info.flip
        return torch.cat([offsets, flips[None]]).to(self.device)

    def _crop(self, indices: Tensor, crops: Tensor) -> Tensor:
        """Crops [3, B] of the padded training images `indices` [B] -> uint8 [B, H, W, 3]."""
        top, left, flip = crops
        rows = top[:, None] + self._rows  # [B, H]
        columns = left[:, None] + torch.where(flip[:, None] > 0, self._columns.flip(0), self._columns)  # [B, W]
        return self._train[indices[:, None, None], rows[:, :, None], columns[:, None, :]]

    def _batch(self, pixels: Tensor, labels: Tensor, indices: Tensor) -> Batch:
        normalized = {key: normalize(pixels, *mean_std) for key, mean_std in self._normalizations.items()}
        return Batch(normalize(pixels, *self._mean_std), labels, indices, normalized)


def normalize(images: Tensor, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> Tensor:
    """(pixel / 255 - mean) / std per channel: uint8 [B, H, W, 3] -> float32 [B, 3, H, W], channels-last.

    A mean and deviation given as tensors on the images' device avoid a transfer.
    """
    mean = torch.as_tensor(mean, dtype=torch.float32, device=images.device).view(3, 1, 1)
    std = torch.as_tensor(std, dtype=torch.float32, device=images.device).view(3, 1, 1)
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(255).sub_(mean).div_(std)
