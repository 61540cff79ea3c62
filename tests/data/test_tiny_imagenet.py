"""Tiny ImageNet in its official folder layout."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import pytest
from PIL import Image

from kdbench.core.errors import UserError
from kdbench.data.sources import tiny_imagenet
from tests.data.build import get, noise

WNIDS = ("n02123045", "n01443537", "n09999999")  # not in order, as in the official list


def jpeg(path: Path, seed: int, side: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(1, side, seed)[0]).save(path, quality=95)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes with two training and two validation images each; test/ has no labels."""
    root = tmp_path / "data-dir" / "tiny-imagenet-200"
    lines = []
    for number, wnid in enumerate(WNIDS):
        for row in range(2):
            jpeg(root / "train" / wnid / "images" / f"{wnid}_{row}.JPEG", 10 * number + row)
            name = f"val_{2 * number + row}.JPEG"
            jpeg(root / "val" / "images" / name, 10 * number + row + 5)
            lines.append(f"{name}\t{wnid}\t0\t0\t63\t63")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
    jpeg(root / "test" / "images" / "test_0.JPEG", 99)
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (root / "words.txt").write_text(
        "n01443537\tgoldfish, Carassius auratus\nn02123045\ttabby, tabby cat\nn00000001\tx\n"
    )
    return root


def test_the_official_layout(root: Path, tmp_path: Path) -> None:
    found = get("tiny-imagenet", tmp_path, size=32)
    info = found.info
    assert (info.label, info.classes, info.train, info.test, info.size) == ("tiny-imagenet", 3, 6, 6, 32)
    assert found.class_names == ("goldfish", "tabby", "n09999999")
    assert found.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.test.labels.tolist() == [1, 1, 0, 0, 2, 2]  # val_0 and val_1 are of the first in wnids.txt
    assert set(info.sources) == {"train", "val"}


def test_validation_images_sorted_into_class_folders_give_the_same_classes(root: Path, tmp_path: Path) -> None:
    content = sorted(map(bytes, get("tiny-imagenet", tmp_path, size=32).test.images.numpy()))
    for line in (root / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        (root / "val" / wnid / "images").mkdir(parents=True, exist_ok=True)
        shutil.move(root / "val" / "images" / name, root / "val" / wnid / "images" / name)
    (root / "val" / "images").rmdir()
    (root / "val" / "val_annotations.txt").unlink()
    found = get("tiny-imagenet", tmp_path, size=32)
    assert found.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert sorted(map(bytes, found.test.images.numpy())) == content


def test_every_defect_is_one_sentence(root: Path, tmp_path: Path) -> None:
    annotations, wnids = root / "val" / "val_annotations.txt", root / "wnids.txt"
    image = root / "train" / WNIDS[0] / "images" / f"{WNIDS[0]}_0.JPEG"

    def fails(why: str) -> None:
        with pytest.raises(UserError, match=why) as error:
            get("tiny-imagenet", tmp_path, size=32)
        assert "\n" not in str(error.value)

    whole = annotations.read_text()
    annotations.write_text("\n".join(whole.splitlines()[1:]))
    fails(r"val_0\.JPEG has no annotation in val_annotations\.txt \(1 such\)")
    annotations.write_text(whole + "val_9.JPEG\tn02123045\t0\t0\t1\t1\n")
    fails(r"val_9\.JPEG is annotated, but not there \(1 such\)")
    annotations.write_text(whole + "val_9.JPEG\tn00000007\n")
    fails(r"val_annotations\.txt: line 7 names no image or none of the 3 classes")
    annotations.write_text(whole)

    kept = image.read_bytes()
    image.write_bytes(kept[: len(kept) // 2])
    fails(r"n02123045_0\.JPEG: cannot be read as an image .*truncated")
    jpeg(image, 0, side=32)
    fails(r"n02123045_0\.JPEG: has 32x32 pixels and not 64x64")
    image.write_bytes(kept)

    wnids.write_text("\n".join((*WNIDS, "n00000007")))
    fails(r"n00000007 has no image of a class that wnids\.txt names")
    wnids.unlink()
    fails(r"wnids\.txt is missing")


def test_the_archive_is_unpacked(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = get("tiny-imagenet", tmp_path, size=32).info.content
    archive = Path(shutil.make_archive(str(root), "zip", root.parent, root.name))
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE", dataclasses.replace(tiny_imagenet.ARCHIVE, md5=md5))
    shutil.rmtree(root)
    assert get("tiny-imagenet", tmp_path, size=32).info.content == content
    shutil.rmtree(root)
    archive.unlink()
    with pytest.raises(UserError, match=rf"put tiny-imagenet-200\.zip \(md5 {md5}\) into"):
        get("tiny-imagenet", tmp_path, size=32)
    assert not root.exists()
