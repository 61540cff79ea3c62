"""Decoded data sets on disk, so that the second start takes seconds.

One safetensors file an entry, its name the hash of all that decides its content. A checksum over the tensors, the class
names and the key lies in its header: what does not agree with it is not there. Nothing here can stop a run.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdbench.data.imageset import Decoded, Source, Split, digest

log = logging.getLogger("kdbench")

DECODER = 1
"""Raised whenever `pixels` or a reader turns the same files into other pixels or labels."""

_FIELDS = ("train_images", "train_labels", "test_images", "test_labels")
_STALE = 24 * 3600  # seconds after which a temporary file has lost its writer


def decoded(source: Source, size: int, data_dir: Path) -> Decoded:
    """The data set from the cache, else from its source. Raises UserError where the source cannot be decoded."""
    if not source.cached:
        return source.decode(size)
    key = digest(json.dumps([DECODER, sorted(source.files.items()), size, source.detail]))
    path = data_dir / "cache" / f"{key[:32]}.safetensors"
    found = _load(path, key)
    if found is None:
        log.info("decoding %s; the result is kept in %s", source.label, path)
        found = source.decode(size)
        _save(path, key, found)
    return found


def _load(path: Path, key: str) -> Decoded | None:
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
        return Decoded(Split(tensors[0], tensors[1]), Split(tensors[2], tensors[3]), classes)
    except Exception as error:  # whatever is wrong with it, it can be built again
        log.warning("%s is damaged (%s): it is built again", path, error)
        return None


def _save(path: Path, key: str, content: Decoded) -> None:
    names = json.dumps(list(content.names.items()))
    train, test = content.train, content.test
    tensors: tuple[Tensor, ...] = (train.images, train.labels, test.images, test.labels)
    header = {"names": names, "sha256": digest(key, names, *tensors)}
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("*.tmp"):
            if old.stat().st_mtime < time.time() - _STALE:
                old.unlink()
        try:
            save_file(dict(zip(_FIELDS, tensors, strict=True)), temporary, metadata=header)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        log.warning("the decoded images cannot be kept in %s (%s): the next start decodes again", path.parent, error)
