"""A cache of decoded data sets, so that only the first start decodes.

One safetensors file per entry, named by a hash of everything that decides its content. Its header holds a checksum of
tensors, class names and key; an entry that fails it counts as missing. Cache errors never abort a run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdbench.core.files import DiskError, atomic, remove_stale
from kdbench.data.dataset import Decoded, Source, Split, digest
from kdbench.data.decode import DECODER

log = logging.getLogger("kdbench")

_TENSORS = ("train_images", "train_labels", "test_images", "test_labels")


def load_or_decode(source: Source, size: int, data_dir: Path) -> Decoded:
    """The data set at `size` pixels per side, from the cache if it is there. Raises UserError if decoding fails."""
    if not source.cached:
        return source.decode(size)
    key = digest(json.dumps([DECODER, sorted(source.files.items()), size, source.detail]))
    path = data_dir / "cache" / f"{key[:32]}.safetensors"
    dataset = _load(path, key, size)
    if dataset is None:
        log.info("decoding %s; the result is kept in %s", source.label, path)
        dataset = source.decode(size)
        _save(path, key, dataset)
    return dataset


def _load(path: Path, key: str, size: int) -> Decoded | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            # Cloned: the file is memory-mapped, and later changes to it by other processes must not reach a run.
            tensors = [file.get_tensor(name).clone() for name in _TENSORS]
        names, encoded = header["names"], header["encoded"]
        if header["sha256"] != digest(key, names, encoded, *tensors):
            raise ValueError("its checksum does not agree")
        classes = {int(number): str(name) for number, name in json.loads(names)}
        train_images, train_labels, test_images, test_labels = tensors
        train, test = _split(train_images, train_labels, size, classes), _split(test_images, test_labels, size, classes)
        return Decoded(train, test, classes, encoded)
    except Exception as error:  # whatever is wrong with the entry, it can be decoded again
        log.warning("%s is damaged (%s): it is built again", path, error)
        return None


def _split(images: Tensor, labels: Tensor, size: int, classes: Mapping[int, str]) -> Split:
    """A split, checked: a valid checksum does not prove that kdbench wrote the file. Raises ValueError."""
    valid_images = images.dtype == torch.uint8 and images.shape == (len(labels), size, size, 3)
    if not valid_images or labels.dtype != torch.int64 or not set(labels.unique().tolist()) <= classes.keys():
        raise ValueError("it does not hold images and their labels")
    return Split(images, labels)


def _save(path: Path, key: str, dataset: Decoded) -> None:
    names = json.dumps(list(dataset.names.items()))
    train, test = dataset.train, dataset.test
    tensors: tuple[Tensor, ...] = (train.images, train.labels, test.images, test.labels)
    checksum = digest(key, names, dataset.encoded, *tensors)
    header = {"names": names, "encoded": dataset.encoded, "sha256": checksum}
    remove_stale(path.parent)
    try:
        with atomic(path) as temporary_path:
            save_file(dict(zip(_TENSORS, tensors, strict=True)), temporary_path, metadata=header)
    except (DiskError, SafetensorError) as error:
        reason = error.__cause__ or error
        log.warning("the decoded images cannot be kept in %s (%s): the next start decodes again", path.parent, reason)
