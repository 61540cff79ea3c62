"""Batches of a training run, made on the device: the same for every student, keyed by data, seed and epoch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdbench.core.data import DataInfo, Normalization
from kdbench.core.errors import UserError
from kdbench.core.seeding import derive_seed
from kdbench.data.dataset import ImageSet, Split


@dataclass(frozen=True)
class Batch:
    """What every student of a cohort sees in one step."""

    images: Tensor  # float32 [B, 3, H, W], channels-last, normalized
    labels: Tensor  # int64 [B]
    indices: Tensor  # int64 [B], rows of the training split (in evaluation: of the test split)
    normalizations: Mapping[Normalization, Tensor] = field(default_factory=dict)  # images as some models want them

    def images_for(self, normalization: Normalization | None) -> Tensor:
        """The images normalized as a model asks; None: with the mean and std of the data set."""
        return self.images if normalization is None else self.normalizations[normalization]

    def tensors(self) -> tuple[Tensor, ...]:
        """All that it holds, in an order of its own."""
        return (self.images, self.labels, self.indices, *self.normalizations.values())


class Loader:
    """Serves one data set on one device; each batch also under every one of the `normalizations`' means and deviations.

    `limit` is for measurements: an epoch ends after so many batches.
    Raises UserError if the training split is smaller than one batch.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        pad: int,
        device: torch.device,
        seed: int,
        normalizations: Collection[Normalization] = (),
        limit: int | None = None,
    ) -> None:
        count, height, width, _ = images.train.images.shape
        if count < batch_size:
            raise UserError(
                f"{images.info.label}: the training split has {count} images, less than one batch of {batch_size}; "
                f"take a larger --subset or more --classes"
            )
        self.info, self.batch_size, self.pad, self.device, self.seed = images.info, batch_size, pad, device, seed
        # Padded once, with black, so that a crop is nothing but a gather.
        self._train = torch.zeros(count, height + 2 * pad, width + 2 * pad, 3, dtype=torch.uint8, device=device)
        self._train[:, pad : pad + height, pad : pad + width] = images.train.images.to(device)
        self._train_labels = images.train.labels.to(device)
        self._test = Split(images.test.images.to(device), images.test.labels.to(device))
        self._val = images.val and Split(images.val.images.to(device), images.val.labels.to(device))
        self.steps = min(count // batch_size, limit or count)
        """Batches an epoch; the last incomplete one is dropped."""
        self._rows, self._columns = torch.arange(height, device=device), torch.arange(width, device=device)
        self._own = torch.tensor((images.info.mean, images.info.std)).to(device)  # [2, 3]
        self._normalizations = {each: torch.tensor(each).to(device) for each in normalizations}

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on: shuffled, cropped at random from the padded image, mirrored
        half of the time."""
        order, top, left, mirrored = self._draw(number).to(self.device)  # [N] each
        for step in range(start, self.steps):
            here = slice(step * self.batch_size, (step + 1) * self.batch_size)
            index = order[here]
            rows = top[here, None] + self._rows  # [B, H]
            columns = left[here, None] + torch.where(mirrored[here, None] > 0, self._columns.flip(0), self._columns)
            crops = self._train[index[:, None, None], rows[:, :, None], columns[:, None, :]]  # [B, H, W, 3]
            yield self._batch(crops, self._train_labels[index], index)

    def _draw(self, number: int) -> Tensor:
        """Order, crops and flips of an epoch, int64 [4, N]; drawn on the CPU, so that no device has its own."""
        stream = torch.Generator().manual_seed(derive_seed("batches", self.info.content, self.seed, number))
        count = len(self._train)
        order = torch.randperm(count, generator=stream)
        offsets = torch.randint(2 * self.pad + 1, (2, count), generator=stream)
        flips = torch.randint(2, (count,), generator=stream) * self.info.flip
        return torch.cat([order[None], offsets, flips[None]])

    def evaluation(self, batch_size: int) -> Iterator[Batch]:
        """The whole test split in its order, as it is; the last batch may be smaller."""
        return in_order(self._test, self.info, batch_size, self.device, self._normalizations)

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """The held-out images like the test split, where there are any."""
        if self._val is not None:
            yield from in_order(self._val, self.info, batch_size, self.device, self._normalizations)

    def _batch(self, pixels: Tensor, labels: Tensor, indices: Tensor) -> Batch:
        normalizations = {each: normalize(pixels, *values) for each, values in self._normalizations.items()}
        return Batch(normalize(pixels, *self._own), labels, indices, normalizations)


def in_order(
    split: Split, info: DataInfo, batch_size: int, device: torch.device, normalizations: Collection[Normalization] = ()
) -> Iterator[Batch]:
    """A split in its order, as it is; the last batch may be smaller."""
    for start in range(0, len(split), batch_size):
        here = slice(start, start + batch_size)
        pixels, labels = split.images[here].to(device), split.labels[here].to(device)
        indices = torch.arange(start, start + len(labels), device=device)
        found = {each: normalize(pixels, *each) for each in normalizations}
        yield Batch(normalize(pixels, info.mean, info.std), labels, indices, found)


def normalize(images: Tensor, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> Tensor:
    """Pixels uint8 [B, H, W, 3] -> float32 [B, 3, H, W], channels-last: (pixel / 255 - mean) / std.

    Tensors on the images' device cost no transfer.
    """
    mean = torch.as_tensor(mean, dtype=torch.float32, device=images.device).view(3, 1, 1)
    std = torch.as_tensor(std, dtype=torch.float32, device=images.device).view(3, 1, 1)
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(255).sub_(mean).div_(std)
