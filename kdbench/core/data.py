"""What is asked for and known of a data set, without its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of pixels scaled to [0, 1]."""


@dataclass(frozen=True)
class DataRequest:
    """Which images, before they are read."""

    source: str  # digits, cifar10, cifar100, folder:PATH, parquet:PATH
    size: int  # images are brought to size x size pixels
    classes: tuple[int, ...] | None = None  # original label numbers to keep, in ascending order
    subset: int | None = None  # training images kept, stratified
    val_fraction: float = 0.0  # of the training images, held out to choose an epoch by
    label_column: str | None = None  # parquet only


@dataclass(frozen=True)
class DataInfo:
    """A data set after selection, without its images."""

    label: str  # how tables name it: `cifar100`, `cifar10[n=10000]`, `parquet:pets[0-9]`
    content: str  # SHA-256 of the selected images and labels of both splits
    classes: int
    train: int  # images
    test: int
    size: int  # pixels a side
    mean: tuple[float, float, float]  # of pixels scaled to [0, 1]
    std: tuple[float, float, float]
    flip: bool  # whether a mirrored image keeps its meaning
    sources: Mapping[str, str] = field(default_factory=dict)  # file name -> SHA-256
    val: int = 0  # images held out from the training split
