"""Decoded data set + request -> the images that are used, and what is said of them."""

from __future__ import annotations

import json
import logging
import re

import torch
from torch import Tensor

from kdbench.core.data import DataInfo, DataRequest, format_ranges
from kdbench.core.errors import UserError
from kdbench.core.seeding import derive_seed
from kdbench.data.dataset import Decoded, Source, Split, Triple, digest
from kdbench.data.decode import DECODER
from kdbench.data.resident import ResidentDataset

log = logging.getLogger("kdbench")


def select(source: Source, decoded: Decoded, request: DataRequest) -> ResidentDataset:
    """Classes first (both splits, labels renumbered in ascending order), then the subset, then what is held out.

    Raises UserError.
    """
    numbers = _classes(source, decoded, request.classes)
    train = _keep_classes(decoded.train, numbers)
    test = _keep_classes(decoded.test, numbers)
    for name, split in (("training", train), ("test", test)):
        if not len(split):
            raise UserError(f"{source.label}: the {name} split has no image of the classes {format_ranges(numbers)}")
    empty = len(numbers) - len(train.labels.unique())
    if empty:
        log.warning("%s: %d of the %d classes have no training image", source.label, empty, len(numbers))
    mean, std = source.constants or channel_statistics(
        train.images
    )  # of all training images: the subset does not move them

    notes = [*source.notes] + ([] if len(numbers) == len(decoded.names) else [format_ranges(numbers)])
    if request.subset is not None and request.subset != len(train):
        if not 1 <= request.subset < len(train):
            raise UserError(
                f"--subset {request.subset}: {source.label} has {len(train)} training images"
                f"{' of these classes' if len(numbers) < len(decoded.names) else ''}; ask for 1 to {len(train)}"
            )
        rows = stratified(train.labels, request.subset)
        train = train.take(rows)
        notes.append(f"n={request.subset}")

    val = None
    if request.val_fraction:
        count = round(request.val_fraction * len(train)) if 0 < request.val_fraction < 1 else 0
        if not 1 <= count < len(train):
            raise UserError(f"--val-fraction must leave images on both sides, got {request.val_fraction:g}")
        held = torch.zeros(len(train), dtype=torch.bool)
        held[stratified(train.labels, count)] = True
        val, train = train.take(held.nonzero().flatten()), train.take((~held).nonzero().flatten())
        notes.append(f"val={request.val_fraction:g}")

    info = DataInfo(
        label=source.label + (f"[{','.join(notes)}]" if notes else ""),
        content=_content(source, decoded, request, numbers, train, val),
        classes=len(numbers),
        train=len(train),
        test=len(test),
        size=request.size,
        mean=mean,
        std=std,
        flip=source.flip,
        sources=source.files,
        val=len(val) if val else 0,
        encoded=bool(decoded.encoded) and not source.official,
        request=request,
    )
    names = tuple(decoded.names[number] for number in numbers)
    return ResidentDataset(info, train, test, names, val, source.ignored)


def _content(
    source: Source, decoded: Decoded, request: DataRequest, numbers: list[int], train: Split, val: Split | None
) -> str:
    """The identity of the selected images: of the whole set, and of the selection and size.

    A published set is what its name says. Other encoded images are identified by their bytes and `DECODER`, so that it
    does not matter which version of a library decodes them; files of arrays by their SHA-256; and images that are made
    by code by their pixels.
    """
    if source.official:
        whole: object = source.official
    elif decoded.encoded:
        whole = [decoded.encoded, DECODER]
    elif source.files:
        whole = [sorted(source.files.items()), source.detail]
    else:
        whole = digest(*(part for split in (decoded.train, decoded.test) for part in (split.images, split.labels)))
    held_out = len(val) if val else 0
    selection = [numbers, len(train) + held_out, held_out, request.test_fraction, request.size]
    return digest(json.dumps([whole, *selection]))


def _classes(source: Source, decoded: Decoded, wanted: tuple[int, ...] | None) -> list[int]:
    numbers = sorted(set(decoded.names if wanted is None else wanted))
    missing = [number for number in numbers if number not in decoded.names]
    if missing:
        raise UserError(
            f"--classes: {source.label} has no class {format_ranges(missing)}; "
            f"its classes are {format_ranges(list(decoded.names))}"
        )
    if len(numbers) < 2:
        raise UserError(f"{source.label}: {len(numbers)} class is left; a classifier needs at least two")
    return numbers


def _keep_classes(split: Split, numbers: list[int]) -> Split:
    known = torch.tensor(numbers)  # [C], ascending
    kept = torch.isin(split.labels, known)  # [N]
    if kept.all():
        return Split(split.stored, torch.searchsorted(known, split.labels), split.rows)
    return split.take(kept.nonzero().flatten(), torch.searchsorted(known, split.labels[kept]))


def stratified(labels: Tensor, count: int) -> Tensor:
    """Rows of `count` of the labels [N], ascending: each class in proportion, leftovers to the largest remainders.

    Which images of a class are taken depends on its number alone: its smaller share lies in its larger one.
    """
    sizes = labels.bincount()  # [C]
    shares = sizes * count // len(labels)
    remainders = sizes * count % len(labels)
    shares[remainders.argsort(descending=True, stable=True)[: count - int(shares.sum())]] += 1
    chosen = []
    for number, share in enumerate(shares.tolist()):
        rows = (labels == number).nonzero().flatten()
        stream = torch.Generator().manual_seed(derive_seed("subset", number))
        chosen.append(rows[torch.randperm(len(rows), generator=stream)[:share]])
    return torch.cat(chosen).sort().values


def hold_out_test(split: Split, fraction: float, label: str) -> tuple[Split, Split]:
    """Training and test images of data that has no test split: stratified, always the same. Raises UserError."""
    count = round(fraction * len(split)) if 0 < fraction < 1 else 0
    if not 1 <= count < len(split):
        raise UserError(f"--test-fraction must leave images of {label} on both sides, got {fraction:g}")
    held = torch.zeros(len(split), dtype=torch.bool)
    held[stratified(split.labels, count)] = True
    kept, test = (~held).nonzero().flatten(), held.nonzero().flatten()
    return Split(split.images[kept], split.labels[kept]), Split(split.images[test], split.labels[test])


def channel_statistics(images: Tensor) -> tuple[Triple, Triple]:
    """Mean and standard deviation of each channel of uint8 images [N, H, W, 3] scaled to [0, 1], to four digits.

    From the exact histogram, so that neither the order of addition nor the number of threads shows. A channel without
    any contrast gets the deviation 1, which leaves zeros.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(3):
        weights = images[..., channel].flatten().bincount(minlength=256).double()
        weights /= weights.sum()
        mean = (weights * values).sum()
        deviation = (weights * (values - mean) ** 2).sum().sqrt()
        means.append(round(mean.item(), 4))
        deviations.append(round(deviation.item(), 4) or 1.0)
    return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])


def safe_label(kind: str, name: str) -> str:
    """`folder:my pets/` -> `folder:my-pets`: what a table, a file name and a shell take as it is."""
    return f"{kind}:{re.sub(r'[^A-Za-z0-9._+=@-]+', '-', name).strip('-') or 'images'}"
