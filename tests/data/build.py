"""Small data sets as tests need them, written in the formats of the world."""

from __future__ import annotations

import hashlib
import json
import pickle
import tarfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from kdbench.core.data import DataInfo, DataRequest
from kdbench.data.dataset import Split, digest
from kdbench.data.resident import ResidentDataset
from kdbench.data.sources import prepare


def noise(count: int, size: int = 8, seed: int = 0) -> NDArray[np.uint8]:
    """Random RGB images [count, size, size, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def png(pixels: NDArray[Any]) -> bytes:
    """One image, stored without loss."""
    target = BytesIO()
    Image.fromarray(pixels).save(target, format="PNG")
    return target.getvalue()


def get(source: str, tmp_path: Path, size: int = 8, **request: Any) -> ResidentDataset:
    """`prepare` with a data folder inside tmp_path."""
    return prepare(DataRequest(source, size, **request), tmp_path / "data-dir")


def image_set(count: int, size: int = 8, classes: int = 2, flip: bool = True, seed: int = 0) -> ResidentDataset:
    """An image set made of nothing: noise, labels in turn."""
    train = Split(torch.from_numpy(noise(count, size, seed)), torch.arange(count) % classes)
    test = Split(torch.from_numpy(noise(7, size, seed + 1)), torch.arange(7) % classes)
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.25, 0.5)
    content = digest(train.images, train.labels, test.images, test.labels)
    info = DataInfo("noise", content, classes, count, 7, size, mean, std, flip)
    return ResidentDataset(info, train, test, tuple(str(number) for number in range(classes)))


def rows(
    labels: Sequence[int | None], *, size: int = 8, seed: int = 0, nested: bool = True, **columns: Sequence[Any]
) -> pa.Table:
    """A parquet table of random images in the hub's layout; further columns as given."""
    encoded: list[Any] = [png(image) for image in noise(len(labels), size, seed)]
    if nested:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        images = pa.array([{"bytes": data, "path": f"{row}.png"} for row, data in enumerate(encoded)], kind)
    else:
        images = pa.array(encoded, pa.binary())
    return pa.table({"image": images, "label": pa.array(labels, pa.int64()), **columns})


def named(table: pa.Table, **classes: Sequence[str]) -> pa.Table:
    """The table with the hub's metadata: columns of class labels and their names."""
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features |= {column: {"names": list(names), "_type": "ClassLabel"} for column, names in classes.items()}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(folder: Path, tables: Mapping[str, pa.Table]) -> str:
    """Writes parquet files, and returns the folder as a source."""
    for name, table in tables.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, write_page_checksum=True)
    return f"parquet:{folder}"


def folder_tree(root: Path, splits: Sequence[str] = ("train", "test"), per_class: int = 3) -> str:
    """PNG images of the classes cat and dog, and returns the folder as a source."""
    for seed, split in enumerate(splits):
        for number, name in enumerate(("dog", "cat")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for row, image in enumerate(noise(per_class, 8, 10 * seed + number)):
                Image.fromarray(image).save(folder / f"{row}.png")
    return f"folder:{root}"


def cifar_archive(folder: Path, kind: Any, monkeypatch: Any, *, per_file: int = 6) -> Path:
    """The authors' archive in small, and torchvision's checksums changed to fit it."""
    label_key, names_key = ("fine_labels", "fine_label_names") if "100" in kind.filename else ("labels", "label_names")
    classes = 100 if "100" in kind.filename else 10
    folder.mkdir(parents=True, exist_ok=True)
    archive: Path = folder / kind.filename
    sums: dict[str, str] = {}
    with tarfile.open(archive, "w:gz") as tar:

        def add(name: str, content: Any) -> None:
            data = pickle.dumps(content)
            member = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            member.size = len(data)
            tar.addfile(member, BytesIO(data))
            sums[name] = hashlib.md5(data).hexdigest()

        files = [name for name, _ in kind.train_list + kind.test_list]
        for seed, name in enumerate(files):
            planes = noise(per_file, 32, seed).transpose(0, 3, 1, 2).reshape(per_file, -1)  # channels first, flat
            add(name, {"data": planes, label_key: [row % 3 for row in range(per_file)]})
        add(kind.meta["filename"], {names_key: [f"class {number}" for number in range(classes)]})
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(kind, attribute, [[name, sums[name]] for name, _ in getattr(kind, attribute)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return archive
