"""What a data set is, whatever files it comes from: official sets are recognized by their pixels.

The digest of a split does not depend on the order of its images: SHA-256 of the concatenation of the sorted SHA-256
digests of (pixels [H, W, 3], then the label as one byte) of its images, all at the published size.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch

from kdbench.core.data import Normalization
from kdbench.data.dataset import Decoded, Source, Split
from kdbench.data.decode import resize


@dataclass(frozen=True)
class Official:
    """A published data set."""

    name: str
    side: int  # pixels
    counts: tuple[int, int]  # training and test images
    digests: tuple[str, str]  # of both splits
    constants: Normalization | None = None  # published mean and deviation; None: computed from the images
    flip: bool = True


OFFICIAL: list[Official] = [
    Official(
        "cifar100",
        32,
        (50_000, 10_000),
        (
            "640c97a4012a8aebfcaf57fd82a33dd43b37d2e397a02cb9b0a3d89e6d6d936d",
            "a6a97df7b61bc7420bc44268696e8963d33129bc050978f2a63d8fe3420989fa",
        ),
        # Those of every published study of the family; nearly, but not quite, what the images give.
        ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    ),
]
"""The sets that can be recognized; the digests of CIFAR-100 were taken from the complete set."""


def candidate(source: Source) -> Official | None:
    """The published set that a source may be, by the number of its images."""
    return next((official for official in OFFICIAL if official.counts == source.counts), None)


def recognize(source: Source, decoded: Decoded, official: Official) -> tuple[Source, Decoded] | None:
    """The source under its published name, and its images in ascending order of (SHA-256 of the pixels, label).

    `decoded` are the images at the published size. None if they are others.
    """
    splits = (decoded.train, decoded.test)
    if max(decoded.names) > 255 or tuple(map(split_digest, splits)) != official.digests:
        return None
    train, test = map(_ordered, splits)
    named = replace(
        source,
        label=official.name,
        official=official.name,
        constants=official.constants,
        flip=official.flip,
        notes=(),
        files=dict(zip(("train", "test"), official.digests, strict=True)),
        detail="",
        cached=True,
        decode=lambda size: Decoded(_resized(train, size), _resized(test, size), decoded.names),
    )
    return named, replace(decoded, train=train, test=test)


def split_digest(split: Split) -> str:
    """See above; labels must be below 256."""
    digests = []
    for pixels, label in zip(split.images.numpy(), split.labels.tolist(), strict=True):
        digests.append(hashlib.sha256(pixels.tobytes() + bytes([label])).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _ordered(split: Split) -> Split:
    keys = [
        (hashlib.sha256(pixels.tobytes()).digest(), label)
        for pixels, label in zip(split.images.numpy(), split.labels.tolist(), strict=True)
    ]
    order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))
    return Split(split.images[order], split.labels[order])


def _resized(split: Split, size: int) -> Split:
    return Split(torch.from_numpy(resize(split.images.numpy(), size)), split.labels)
