from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.core.errors import UserError
from tests.data.build import folder_tree, get, noise


def test_a_tree_of_images(tmp_path: Path) -> None:
    found = get(folder_tree(tmp_path / "my pets"), tmp_path)
    assert found.info.label == "folder:my-pets"
    assert found.class_names == ("cat", "dog")  # sorted, whatever the order on disk
    assert found.train.labels.tolist() == found.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(found.train.images.numpy(), np.concatenate([noise(3, 8, 1), noise(3, 8, 0)]))
    np.testing.assert_array_equal(found.test.images.numpy(), np.concatenate([noise(3, 8, 11), noise(3, 8, 10)]))
    assert set(found.info.sources) == {"train", "test"}


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation", "Val"])
def test_names_of_the_test_split(name: str, tmp_path: Path) -> None:
    assert get(folder_tree(tmp_path / "pets", ("train", name)), tmp_path).info.test == 6


def test_test_goes_before_val_unless_it_has_no_labels(tmp_path: Path) -> None:
    source = folder_tree(tmp_path / "pets", ("train", "test", "val"))
    assert set(get(source, tmp_path).info.sources) == {"train", "test"}
    shutil.rmtree(tmp_path / "pets/test/cat")
    (tmp_path / "pets/test/dog").rename(tmp_path / "pets/test/images")
    assert set(get(source, tmp_path).info.sources) == {"train", "val"}


def test_what_is_no_image_is_ignored(tmp_path: Path) -> None:
    source = folder_tree(tmp_path / "pets")
    before = get(source, tmp_path).info
    for name in ("Thumbs.db", "labels.txt", "._0.png", ".hidden.jpg", ".DS_Store"):
        (tmp_path / "pets/train/cat" / name).write_bytes(b"?")
    for name in (".git", "empty", "__MACOSX"):
        (tmp_path / "pets/train" / name).mkdir()
    (tmp_path / "pets/train/__MACOSX/._0.png").write_bytes(b"?")
    found = get(source, tmp_path)
    assert found.info == before
    assert found.ignored == 2  # hidden files are not worth a word
    assert found.summary == "folder:pets: 6 training and 6 test images, 2 classes at 8x8 pixels; 2 files ignored"


def test_images_lie_at_any_depth_and_in_capitals(tmp_path: Path) -> None:
    source = folder_tree(tmp_path / "pets")
    (tmp_path / "pets/train/cat/images").mkdir()
    Image.fromarray(noise(1, 20)[0]).save(tmp_path / "pets/train/cat/images/A.JPEG")
    assert get(source, tmp_path).train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_content_and_names_decide_the_digest(tmp_path: Path) -> None:
    source = folder_tree(tmp_path / "pets")
    first = get(source, tmp_path).info
    (tmp_path / "pets/train/cat/0.png").rename(tmp_path / "pets/train/cat/9.png")
    second = get(source, tmp_path).info
    assert first.sources["train"] != second.sources["train"]
    assert first.sources["test"] == second.sources["test"]
    assert first.content != second.content  # another order


@pytest.mark.parametrize(
    ("remove", "sentence"),
    [
        (".", "{root} is not a folder; expected train/CLASS/IMAGE"),
        ("train", "{root} has no folder train; expected"),
        ("test", "{root} has no folder test, val, valid or validation; expected"),
        ("train/cat", "{root}/train has no image of the class cat; both splits need the same class folders"),
        ("test/dog", "{root}/test has no image of the class dog; both splits need the same class folders"),
    ],
)
def test_what_is_missing_is_named(remove: str, sentence: str, tmp_path: Path) -> None:
    root = tmp_path / "pets"
    source = folder_tree(root)
    shutil.rmtree(root / remove)
    with pytest.raises(UserError, match="^" + re.escape(sentence.format(root=root))):
        get(source, tmp_path)


def test_images_outside_class_folders(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    source = folder_tree(root)
    shutil.rmtree(root / "train")
    (root / "train").mkdir()
    Image.fromarray(noise(1)[0]).save(root / "train/0.png")
    with pytest.raises(UserError, match=r"pets/train holds no folder with images; expected train/CLASS/IMAGE"):
        get(source, tmp_path)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    source = folder_tree(tmp_path / "pets")
    bad = tmp_path / "pets/test/dog/1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(UserError, match=rf"^{re.escape(str(bad))}: cannot be read as an image"):
        get(source, tmp_path)
    assert not list((tmp_path / "data-dir").rglob("*.*"))  # no half-written cache


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    source = folder_tree(tmp_path / "pets")
    for split in ("train", "test"):
        shutil.rmtree(tmp_path / "pets" / split / "cat")
    with pytest.raises(UserError, match="folder:pets: 1 class is left; a classifier needs at least two"):
        get(source, tmp_path)


def test_all_unreadable_images_are_named_at_once(tmp_path: Path) -> None:
    source = folder_tree(tmp_path / "pets")
    for path in (tmp_path / "pets").rglob("*.png"):
        path.write_bytes(b"?")
        for copy in range(3):
            shutil.copy(path, path.with_stem(f"{path.stem}{copy}"))
    with pytest.raises(UserError) as caught:
        get(source, tmp_path)
    sentence = str(caught.value)
    assert sentence.startswith(f"24 images cannot be used: {tmp_path / 'pets/train/cat/0.png'}: cannot be read")
    assert sentence.endswith("; and 14 more")
    assert sentence.count("cannot be read as an image") == 10


def test_a_part_can_be_held_out_for_the_test(tmp_path: Path) -> None:
    source = folder_tree(tmp_path / "pets")
    with pytest.raises(UserError, match="has the test part test: leave out --test-fraction"):
        get(source, tmp_path, test_fraction=0.5)
    shutil.rmtree(tmp_path / "pets/test")
    with pytest.raises(UserError, match=r"or give --test-fraction 0\.2 to test on a fifth of the images"):
        get(source, tmp_path)
    found = get(source, tmp_path, test_fraction=1 / 3)
    assert found.info.label == "folder:pets[test=0.333333]"
    assert (found.train.labels.bincount().tolist(), found.test.labels.bincount().tolist()) == ([2, 2], [1, 1])
    whole = {image.numpy().tobytes() for part in (found.train, found.test) for image in part.images}
    assert whole == {image.tobytes() for seed in (0, 1) for image in noise(3, 8, seed)}
    again = get(source, tmp_path, test_fraction=1 / 3)  # from the cache
    assert again.info == found.info
    assert get(source, tmp_path, test_fraction=0.5).info.content != found.info.content
    with pytest.raises(UserError, match=r"--test-fraction must leave images of folder:pets on both sides, got 0\.01"):
        get(source, tmp_path, test_fraction=0.01)
    with pytest.raises(UserError, match="--test-fraction is for folder:PATH; digits has a test split"):
        get("digits", tmp_path, test_fraction=0.2)


def test_links_are_followed_once(tmp_path: Path) -> None:
    source = folder_tree(tmp_path / "pets")
    more = tmp_path / "more"
    more.mkdir()
    Image.fromarray(noise(1, 20)[0]).save(more / "a.png")
    (tmp_path / "pets/train/cat/linked").symlink_to(more)
    (more / "again").symlink_to(more)  # a circle
    assert get(source, tmp_path).info.train == 7
