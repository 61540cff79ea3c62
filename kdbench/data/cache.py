"""Decoded data sets on disk, so that the second start takes seconds.

One safetensors file an entry, its name the hash of all that decides its content. A checksum over the tensors, the class
names and the key lies in its header: what does not agree with it is not there. Nothing here can stop a run.
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

log = logging.getLogger("kdbench")

DECODER = 1
"""Raised whenever `pixels` or a reader turns the same files into other pixels or labels."""

_FIELDS = ("train_images", "train_labels", "test_images", "test_labels")


def decoded(source: Source, size: int, data_dir: Path) -> Decoded:
    """The data set from the cache, else from its source. Raises UserError where the source cannot be decoded."""
    if not source.cached:
        return source.decode(size)
    key = digest(json.dumps([DECODER, sorted(source.files.items()), size, source.detail]))
    path = data_dir / "cache" / f"{key[:32]}.safetensors"
    found = _load(path, key, size)
    if found is None:
        log.info("decoding %s; the result is kept in %s", source.label, path)
        found = source.decode(size)
        _save(path, key, found)
    return found


def _split(images: Tensor, labels: Tensor, size: int, classes: Mapping[int, str]) -> Split:
    """Raises ValueError if it is not what `decode` gives: anybody can make a file whose checksum agrees."""
    good = images.dtype == torch.uint8 and images.shape == (len(labels), size, size, 3)
    if not good or labels.dtype != torch.int64 or not set(labels.unique().tolist()) <= classes.keys():
        raise ValueError("it does not hold images and their labels")
    return Split(images, labels)


def _load(path: Path, key: str, size: int) -> Decoded | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            # Copies: the file is mapped into memory, and what another process does to it must not reach a run.
            tensors = [file.get_tensor(name).clone() for name in _FIELDS]
        names = header["names"]
        if header["sha256"] != digest(key, names, *tensors):
            raise ValueError("its checksum does not agree")
        classes = {int(number): str(name) for number, name in json.loads(names)}
        train, test = (_split(tensors[place], tensors[place + 1], size, classes) for place in (0, 2))
        return Decoded(train, test, classes)
    except Exception as error:  # whatever is wrong with it, it can be built again
        log.warning("%s is damaged (%s): it is built again", path, error)
        return None


def _save(path: Path, key: str, content: Decoded) -> None:
    names = json.dumps(list(content.names.items()))
    train, test = content.train, content.test
    tensors: tuple[Tensor, ...] = (train.images, train.labels, test.images, test.labels)
    header = {"names": names, "sha256": digest(key, names, *tensors)}
    remove_stale(path.parent)
    try:
        with atomic(path) as place:
            save_file(dict(zip(_FIELDS, tensors, strict=True)), place, metadata=header)
    except (DiskError, SafetensorError) as error:
        why = error.__cause__ or error
        log.warning("the decoded images cannot be kept in %s (%s): the next start decodes again", path.parent, why)
