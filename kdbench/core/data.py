"""Descriptions of data sets: what is requested and what was selected. The images themselves are in `kdbench.data`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Per-channel mean and standard deviation of pixels scaled to [0, 1]."""


@dataclass(frozen=True)
class DataRequest:
    """Which images to prepare."""

    source: str  # digits, cifar10, cifar100, ..., folder:PATH, parquet:PATH; see `list datasets`
    size: int  # images are resized to size x size pixels
    classes: tuple[int, ...] | None = None  # original label numbers to keep; None: all
    subset: int | None = None  # number of training images to keep, stratified by class; None: all
    val_fraction: float = 0.0  # share of the training images to hold out for choosing an epoch
    label_column: str | None = None  # parquet only
    test_fraction: float = 0.0  # share of the images to test on, for data without a test split


@dataclass(frozen=True)
class DataInfo:
    """A prepared data set without its images."""

    label: str  # name in tables: `cifar100`, `cifar10[n=10000]`, `parquet:pets[0-9]`
    content: str  # SHA-256 of the selected images and labels of all splits
    classes: int  # number of classes
    train: int  # number of images
    test: int
    size: int  # pixels per side
    mean: tuple[float, float, float]  # of pixels scaled to [0, 1]
    std: tuple[float, float, float]
    flip: bool  # whether mirroring an image preserves its class
    sources: Mapping[str, str] = field(default_factory=dict)  # file name -> SHA-256
    val: int = 0  # number of images held out from the training split
    encoded: bool = False  # decoded by Pillow and not a recognized set: another version may give other pixels
    request: DataRequest | None = None  # as which it was prepared; None in tests and benchmarks


def format_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as `--classes` takes them, such as `0-4,7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(str(end) for end in run) for run in runs)
