"""digits and CIFAR."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100

from kdbench.core.errors import UserError
from kdbench.data.dataset import digest
from tests.data.build import cifar_archive, get, noise


def test_digits(tmp_path: Path) -> None:
    found = get("digits", tmp_path)
    info = found.info
    assert (info.label, info.train, info.test, info.classes, info.size) == ("digits", 1437, 360, 10, 8)
    assert not info.flip
    assert found.class_names == tuple("0123456789")
    assert found.train.images.shape == (1437, 8, 8, 3)
    assert found.train.images.dtype == torch.uint8
    assert (int(found.train.images.min()), int(found.train.images.max())) == (0, 255)
    shares = found.test.labels.bincount() / torch.cat([found.train.labels, found.test.labels]).bincount()
    assert ((shares - 0.2).abs() < 0.01).all()
    # Every image of scikit-learn's is in exactly one split.
    raw = sorted(map(bytes, np.rint(load_digits().images * 255 / 16).astype(np.uint8)))
    both = torch.cat([found.train.images, found.test.images])[..., 1].contiguous().numpy()
    assert sorted(map(bytes, both)) == raw


def test_digits_do_not_move(tmp_path: Path) -> None:
    # The split and the pixels are part of every result: a change to either must be seen here.
    found = get("digits", tmp_path)
    info, parts = found.info, (found.train, found.test)
    pixels = digest(*(tensor for part in parts for tensor in (part.images, part.labels)))
    assert pixels == "3637e314a2110508d74fc820f2f6fdaacea5b6d4dfd311afc38c934c0ee0ba6b"
    assert info.content == "d7b62e8cf5a0e436a713b1af36fcc48f7d7dadfa7118d6902cb77d7bbf035328"
    assert (info.mean, info.std) == ((0.3054,) * 3, (0.376,) * 3)


def test_digits_of_another_size(tmp_path: Path) -> None:
    assert get("digits", tmp_path, size=16).train.images.shape == (1437, 16, 16, 3)


@pytest.mark.parametrize(("name", "kind", "classes"), [("cifar10", CIFAR10, 10), ("cifar100", CIFAR100, 100)])
def test_cifar_from_an_archive(name: str, kind: Any, classes: int, tmp_path: Path, monkeypatch: Any) -> None:
    archive = cifar_archive(tmp_path / "data-dir", kind, monkeypatch)
    found = get(name, tmp_path, size=32)
    files = len(kind.train_list)
    assert (found.info.label, found.info.classes, found.info.train, found.info.test) == (name, classes, 6 * files, 6)
    assert found.info.flip
    np.testing.assert_array_equal(found.train.images[:6].numpy(), noise(6, 32, 0))
    np.testing.assert_array_equal(found.test.images.numpy(), noise(6, 32, files))
    assert found.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.class_names[-1] == f"class {classes - 1}"
    assert found.info.mean != (0.5071, 0.4867, 0.4408)  # the published constants belong to the published images
    # Unpacked once: the archive may go, nothing else is left behind.
    archive.unlink()
    assert get(name, tmp_path, size=32).info == found.info
    assert [path.name for path in (tmp_path / "data-dir").iterdir()] == [kind.base_folder]
    assert len(found.info.sources) == files + 1
    assert get(name, tmp_path, size=8).train.images.shape == (6 * files, 8, 8, 3)


def test_a_damaged_cifar_file_is_replaced_from_the_archive(tmp_path: Path, monkeypatch: Any) -> None:
    cifar_archive(tmp_path / "data-dir", CIFAR100, monkeypatch)
    content = get("cifar100", tmp_path, size=32).info.content
    damaged = tmp_path / "data-dir" / CIFAR100.base_folder / "test"
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert get("cifar100", tmp_path, size=32).info.content == content


def test_cifar_that_cannot_be_had(tmp_path: Path) -> None:
    folder = tmp_path / "data-dir"
    sentence = (
        f"cifar100 is not in {folder} and could not be had from {CIFAR100.url} (<urlopen error no network in tests>): "
        f"put cifar-100-python.tar.gz (md5 eb9058c3a382ffc7106e4002c42a8d85) into {folder} and run again"
    )
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        get("cifar100", tmp_path, size=32)
    assert not list(folder.iterdir())


def test_a_wrong_cifar_archive_is_left_alone(tmp_path: Path) -> None:
    archive = tmp_path / "data-dir" / CIFAR10.filename
    archive.parent.mkdir()
    archive.write_bytes(b"half of it")
    with pytest.raises(UserError, match=r"cifar-10-python.tar.gz is there, but is not the right one"):
        get("cifar10", tmp_path, size=32)
    assert archive.read_bytes() == b"half of it"
    assert list(archive.parent.iterdir()) == [archive]


def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    def half(url: str, filename: str, *_: Any) -> None:
        Path(filename).write_bytes(b"half")
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", half)
    with pytest.raises(UserError, match="reset by peer"):
        get("cifar10", tmp_path, size=32)
    assert not list((tmp_path / "data-dir").iterdir())


def test_a_data_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "data-dir").write_text("a file")
    with pytest.raises(UserError, match=r"put cifar-10-python\.tar\.gz"):
        get("cifar10", tmp_path, size=32)
