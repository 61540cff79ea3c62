"""Batches of images that reside on the device: the same for every student, keyed by data, seed and epoch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from kdbench.core.data import DataInfo, Normalization
from kdbench.core.errors import UserError
from kdbench.core.seeding import derive_seed
from kdbench.data.dataset import Batch, Dataset, Split, ViewBatch
from kdbench.data.views import MIXED, View, mixing_coefficients, rectangle


class Loader:
    """Serves one data set on one device, each batch also under each of the `normalizations`.

    `pad` is the number of black pixels added on each side before a random crop. `limit` ends an epoch after that many
    batches; it is for measurements. Raises UserError if the training split is smaller than one batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        pad: int,
        device: torch.device,
        seed: int,
        normalizations: Collection[Normalization] = (),
        limit: int | None = None,
    ) -> None:
        count, height, width, _ = dataset.train.images.shape
        if count < batch_size:
            raise UserError(
                f"{dataset.info.label}: the training split has {count} images, less than one batch of {batch_size}; "
                f"take a larger --subset or more --classes"
            )
        self.info, self.batch_size, self.pad, self.device, self.seed = dataset.info, batch_size, pad, device, seed
        # Padded once, so that a crop is a single gather.
        self._train = torch.zeros(count, height + 2 * pad, width + 2 * pad, 3, dtype=torch.uint8, device=device)
        self._train[:, pad : pad + height, pad : pad + width] = dataset.train.images.to(device)
        self._train_labels = dataset.train.labels.to(device)
        self._test = Split(dataset.test.images.to(device), dataset.test.labels.to(device))
        self._val = dataset.val and Split(dataset.val.images.to(device), dataset.val.labels.to(device))
        self.steps = min(count // batch_size, limit or count)
        """Batches per epoch; the last incomplete one is dropped."""
        self._rows, self._columns = torch.arange(height, device=device), torch.arange(width, device=device)
        self._mean_std = torch.tensor((dataset.info.mean, dataset.info.std)).to(device)  # [2, 3]
        self._normalizations = {key: torch.tensor(key).to(device) for key in normalizations}
        self._view_crops: dict[View, tuple[int, Tensor]] = {}  # the latest epoch and its crops

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

    def training_images(self, batch_size: int) -> Iterator[Batch]:
        """The training split in order, without augmentation; the last batch may be smaller."""
        height, width = len(self._rows), len(self._columns)
        images = self._train[:, self.pad : self.pad + height, self.pad : self.pad + width]
        split = Split(images, self._train_labels)
        return sequential_batches(split, self.info, batch_size, self.device, self._normalizations)

    def evaluation(self, batch_size: int) -> Iterator[Batch]:
        """The test split in order, without augmentation; the last batch may be smaller."""
        return sequential_batches(self._test, self.info, batch_size, self.device, self._normalizations)

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """The held-out images in order, without augmentation; no batch if there are none."""
        if self._val is not None:
            yield from sequential_batches(self._val, self.info, batch_size, self.device, self._normalizations)

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


def sequential_batches(
    split: Split, info: DataInfo, batch_size: int, device: torch.device, normalizations: Collection[Normalization] = ()
) -> Iterator[Batch]:
    """The images of a split in order, without augmentation; the last batch may be smaller."""
    for start in range(0, len(split), batch_size):
        positions = slice(start, start + batch_size)
        pixels, labels = split.images[positions].to(device), split.labels[positions].to(device)
        indices = torch.arange(start, start + len(labels), device=device)
        normalized = {key: normalize(pixels, *key) for key in normalizations}
        yield Batch(normalize(pixels, info.mean, info.std), labels, indices, normalized)


def normalize(images: Tensor, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> Tensor:
    """(pixel / 255 - mean) / std per channel: uint8 [B, H, W, 3] -> float32 [B, 3, H, W], channels-last.

    A mean and deviation given as tensors on the images' device avoid a transfer.
    """
    mean = torch.as_tensor(mean, dtype=torch.float32, device=images.device).view(3, 1, 1)
    std = torch.as_tensor(std, dtype=torch.float32, device=images.device).view(3, 1, 1)
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(255).sub_(mean).div_(std)
