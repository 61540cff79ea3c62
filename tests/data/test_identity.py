"""A published set is the same study whatever files it comes from, and one changed pixel makes it another."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR100

from kdbench.core.data import DataInfo
from kdbench.data import identity
from kdbench.data.dataset import Split
from kdbench.data.identity import Official, split_digest
from tests.data.build import cifar_archive, get, named, noise, png, rows, write

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar100"
CONSTANTS = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
LABELS = [0, 1, 2, 0, 1, 2]
NAMES = ("ant", "bee", "cat")


def split(seed: int) -> Split:
    return Split(torch.from_numpy(noise(6, 32, seed)), torch.tensor(LABELS))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A published set of six training and six test images: those of `cifar_archive`."""
    digests = split_digest(split(0)), split_digest(split(1))
    monkeypatch.setattr(identity, "OFFICIAL", [Official("toy", 32, (6, 6), digests, CONSTANTS)])


def as_parquet(folder: Path, classes: tuple[str, ...], *, shuffled: bool = True, spoil: bool = False) -> str:
    tables = {}
    for name, seed in (("train", 0), ("test", 1)):
        images = list(zip(noise(6, 32, seed), LABELS, strict=True))
        if shuffled:
            random.Random(seed).shuffle(images)
        if spoil and name == "test":
            images[3][0][5, 5, 1] ^= 1
        table = rows([label for _, label in images], size=32)
        content = [{"bytes": png(pixels), "path": None} for pixels, _ in images]
        position = table.schema.get_field_index("image")
        table = table.set_column(position, table.field(position), pa.array(content, table.field(position).type))
        tables[f"{name}-00000-of-00001.parquet"] = named(table, label=classes)
    return write(folder, tables)


def as_folder(root: Path) -> str:
    for name, seed in (("train", 0), ("val", 1)):
        for number, (pixels, label) in enumerate(zip(noise(6, 32, seed), LABELS, strict=True)):
            folder = root / name / NAMES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{9 - number}.png")
    return f"folder:{root}"


def without_request(info: DataInfo) -> dict[str, Any]:
    return {name: value for name, value in vars(info).items() if name != "request"}


@pytest.mark.parametrize("request_", [{}, {"size": 8}, {"classes": (0, 2)}, {"subset": 3}, {"val_fraction": 0.5}])
def test_a_folder_and_parquet_files_are_the_published_set(tmp_path: Path, toy: None, request_: dict[str, Any]) -> None:
    request_ = {"size": 32, **request_}
    here = get(as_parquet(tmp_path / "mirror", NAMES), tmp_path, **request_)
    there = get(as_folder(tmp_path / "pngs"), tmp_path, **request_)
    assert without_request(here.info) == without_request(there.info)
    assert here.info.label.partition("[")[0] == "toy"
    assert (here.info.mean, here.info.std) == CONSTANTS
    for left, right in ((here.train, there.train), (here.test, there.test)):
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.labels, right.labels)
    assert get(as_parquet(tmp_path / "again", NAMES, shuffled=False), tmp_path, **request_).info.content == (
        here.info.content
    )


def test_torchvisions_files_are_the_published_set(tmp_path: Path, toy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar_archive(tmp_path / "data-dir", CIFAR100, monkeypatch)
    classes = tuple(f"class {number}" for number in range(100))
    for size in (32, 8):
        here = get("cifar100", tmp_path, size=size)
        there = get(as_parquet(tmp_path / f"mirror{size}", classes), tmp_path, size=size)
        assert without_request(here.info) == without_request(there.info)
        assert torch.equal(here.train.images, there.train.images)


def test_one_changed_pixel_makes_another_set(tmp_path: Path, toy: None) -> None:
    published = get(as_parquet(tmp_path / "mirror", NAMES), tmp_path, size=32).info
    changed = get(as_parquet(tmp_path / "changed", NAMES, spoil=True), tmp_path, size=32).info
    assert changed.label == "parquet:changed"
    assert changed.content != published.content
    assert changed.mean != published.mean
    assert changed.encoded
    assert not published.encoded


def test_other_images_are_identified_by_their_encoded_bytes(tmp_path: Path) -> None:
    first = get(as_parquet(tmp_path / "first", NAMES), tmp_path, size=32).info
    copied = get(as_parquet(tmp_path / "copied", NAMES), tmp_path, size=32).info
    reordered = get(as_parquet(tmp_path / "reordered", NAMES, shuffled=False), tmp_path, size=32).info
    assert first.content == copied.content
    assert (
        len({first.content, reordered.content, get(as_folder(tmp_path / "pngs"), tmp_path, size=32).info.content}) == 3
    )
    assert get(f"parquet:{tmp_path / 'first'}", tmp_path, size=16).info.content != first.content
    assert get(f"parquet:{tmp_path / 'first'}", tmp_path, size=32, subset=3).info.content != first.content


@pytest.mark.data
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no CIFAR-100 in {SHARED}")
def test_cifar100_is_recognized(tmp_path: Path) -> None:
    info = get(f"parquet:{SHARED}", tmp_path, size=32).info
    assert (info.label, info.train, info.test, info.classes) == ("cifar100", 50_000, 10_000, 100)
    assert (info.mean, info.std) == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no CIFAR-100 in {SHARED}")
def test_cifar100_is_recognized_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As shared on the hub, as a folder of PNGs, as torchvision's files; and not with one changed pixel."""
    here = get(f"parquet:{SHARED}", tmp_path, size=32)
    by_folder, changed, raw = tmp_path / "pngs", tmp_path / "changed", tmp_path / "data-dir" / CIFAR100.base_folder
    raw.mkdir(parents=True)
    sums = {}
    for name, part in (("train", here.train), ("test", here.test)):
        order = np.random.default_rng(0).permutation(len(part))
        images, labels = part.images.numpy()[order], part.labels.numpy()[order]
        for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            folder = by_folder / name / here.class_names[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number}.png", compress_level=1)
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        data = pickle.dumps({"data": planes, "fine_labels": labels.tolist()})
        (raw / name).write_bytes(data)
        sums[name] = _md5(data)
    data = pickle.dumps({"fine_label_names": list(here.class_names)})
    (raw / "meta").write_bytes(data)
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR100, attribute, [[name, sums[name]] for name, _ in getattr(CIFAR100, attribute)])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": _md5(data)})
    for source in (f"folder:{by_folder}", "cifar100"):
        there = get(source, tmp_path, size=32)
        assert without_request(there.info) == without_request(here.info), source
        assert torch.equal(there.train.images, here.train.images)
        assert torch.equal(there.test.labels, here.test.labels)
    changed.mkdir()
    for path in SHARED.glob("*.parquet"):
        (changed / path.name).symlink_to(path)
    (test_file,) = (path for path in changed.iterdir() if path.name.startswith("test"))
    table = pq.read_table(test_file)
    test_file.unlink()
    content = table.column("img").to_pylist()
    content[0] = {**content[0], "bytes": _edited(content[0]["bytes"], lambda pixels: pixels[0, 0, 0] ^ 1)}
    position = table.schema.get_field_index("img")
    column = pa.array(content, table.field(position).type)
    pq.write_table(table.set_column(position, table.field(position), column), test_file)
    assert get(f"parquet:{changed}", tmp_path, size=32).info.label == "parquet:changed"


def _edited(encoded: bytes, value: Callable[[Any], int]) -> bytes:
    pixels = np.array(Image.open(BytesIO(encoded)).convert("RGB"))
    pixels[0, 0, 0] = value(pixels)
    return png(pixels)


def _md5(data: bytes) -> str:
    import hashlib

    return hashlib.md5(data).hexdigest()
