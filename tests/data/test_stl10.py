"""STL-10 in the authors' binary format."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import STL10

from kdbench.core.errors import UserError
from tests.data.build import get, noise

NAMES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`stl10_binary` in small, and torchvision's checksums changed to fit it; no unlabelled images."""
    folder = tmp_path / "data-dir" / str(STL10.base_folder)
    folder.mkdir(parents=True)
    for split, count in (("train", 20), ("test", 10)):
        planes = noise(count, 96, count).transpose(0, 3, 2, 1)  # a channel after the other, each column by column
        (folder / f"{split}_X.bin").write_bytes(planes.tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes(1 + row % 10 for row in range(count)))  # classes from 1
    (folder / "class_names.txt").write_text("\n".join(NAMES) + "\n")

    def summed(name: str) -> list[str]:
        path = folder / name
        return [name, hashlib.md5(path.read_bytes() if path.is_file() else b"").hexdigest()]

    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(STL10, attribute, [summed(name) for name, _ in getattr(STL10, attribute)])
    return folder


def test_labelled_images_are_read_without_the_unlabelled(folder: Path, tmp_path: Path) -> None:
    found = get("stl10", tmp_path, size=96)
    info = found.info
    assert (info.label, info.classes, info.train, info.test, info.flip) == ("stl10", 10, 20, 10, True)
    assert (info.mean, info.std) == ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2712))
    np.testing.assert_array_equal(found.train.images.numpy(), noise(20, 96, 20))
    np.testing.assert_array_equal(found.test.images.numpy(), noise(10, 96, 10))
    assert found.test.labels.tolist() == list(range(10))
    assert found.class_names == tuple(NAMES)
    assert set(info.sources) == {"train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"}
    assert get("stl10", tmp_path, size=32).train.images.shape == (20, 32, 32, 3)


def test_a_truncated_file_is_named(folder: Path, tmp_path: Path) -> None:
    damaged = folder / "test_X.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"test_X\.bin is damaged \(its md5 is not \w+\); remove it") as error:
        get("stl10", tmp_path)
    assert "\n" not in str(error.value)


def test_the_archive_is_unpacked_and_its_unlabelled_images_left_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = get("stl10", tmp_path).info.content
    (folder / "unlabeled_X.bin").write_bytes(b"many")
    archive = folder.parent / STL10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, STL10.base_folder)
    monkeypatch.setattr(STL10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    for file in folder.iterdir():
        file.unlink()
    (folder / "train_X.bin").write_bytes(b"damaged, and the archive mends it")
    assert get("stl10", tmp_path).info.content == content
    assert {path.name for path in folder.iterdir()} == {
        *("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt")
    }


def test_where_it_is_not_and_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^stl10 is not in .* put stl10_binary\.tar\.gz \(md5 \w{32}\) into"):
        get("stl10", tmp_path)
    assert not list((tmp_path / "data-dir").iterdir())
