from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kdbench.core.errors import UserError
from tests.data.build import get, named, noise, rows, write

TRAIN, TEST = "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"
LABELS = [0, 1, 1, 0, 1]


def test_the_hub_s_layout(tmp_path: Path) -> None:
    tables = {
        "data/train-00000-of-00002.parquet": named(rows(LABELS, seed=0), label=["cat", "dog"]),
        "data/train-00001-of-00002.parquet": named(rows([1, 0], seed=1), label=["cat", "dog"]),
        "data/test-00000-of-00001.parquet": named(rows([1, 0, 0], seed=2), label=["cat", "dog"]),
        "README.md": rows([0]),  # not read
    }
    found = get(write(tmp_path / "pets", tables), tmp_path)
    assert (found.info.label, found.class_names) == ("parquet:pets", ("cat", "dog"))
    assert found.train.labels.tolist() == [*LABELS, 1, 0]
    assert found.test.labels.tolist() == [1, 0, 0]
    np.testing.assert_array_equal(found.train.images.numpy(), np.concatenate([noise(5), noise(2, seed=1)]))
    np.testing.assert_array_equal(found.test.images.numpy(), noise(3, seed=2))
    assert list(found.info.sources) == [name for name in tables if name.startswith("data")]


@pytest.mark.parametrize(
    "files",
    [
        ("train.parquet", "test.parquet"),
        ("train/0000.parquet", "test/0000.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
        ("data/Train_a.parquet", "data/TEST_a.parquet"),
    ],
)
def test_other_ways_to_name_splits(files: tuple[str, str], tmp_path: Path) -> None:
    source = write(tmp_path / "pets", {files[0]: rows(LABELS), files[1]: rows([0, 1])})
    assert (get(source, tmp_path).info.train, get(source, tmp_path).info.test) == (5, 2)


def test_plain_bytes_and_large_types(tmp_path: Path) -> None:
    table = rows(LABELS, nested=False)
    large = table.set_column(0, "picture", table.column(0).cast(pa.large_binary()))
    small = large.set_column(1, "label", large.column(1).cast(pa.uint8()))
    found = get(write(tmp_path / "pets", {TRAIN: small, TEST: small}), tmp_path)
    np.testing.assert_array_equal(found.train.images.numpy(), noise(5))
    assert found.train.labels.tolist() == LABELS


@pytest.mark.parametrize("labels", [[-1, -1], [None, None]])
@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_test_split_without_labels_gives_way(labels: list[int | None], name: str, tmp_path: Path) -> None:
    tables = {TRAIN: rows(LABELS), TEST: rows(labels), f"{name}.parquet": rows([1, 0, 1])}
    found = get(write(tmp_path / "pets", tables), tmp_path)
    assert found.info.test == 3
    assert TEST not in found.info.sources


def test_a_labelled_test_split_goes_before_the_others(tmp_path: Path) -> None:
    tables = {TRAIN: rows(LABELS), TEST: rows([1, 0]), "val.parquet": rows([1, 0, 1])}
    assert get(write(tmp_path / "pets", tables), tmp_path).info.test == 2


def test_a_test_split_without_label_column_gives_way(tmp_path: Path) -> None:
    tables = {TRAIN: rows(LABELS), TEST: rows([0]).drop_columns("label"), "val.parquet": rows([1, 0, 1])}
    assert get(write(tmp_path / "pets", tables), tmp_path).info.test == 3


def test_a_single_file_is_a_training_split(tmp_path: Path) -> None:
    first, second = "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"
    source = write(tmp_path / "pets", {first: rows(LABELS), second: rows(LABELS), TEST: rows([0, 1])})
    info = get(f"{source}/{first}", tmp_path).info
    assert (info.label, info.train, info.test) == ("parquet:train-00000-of-00002", 5, 2)


def test_several_label_columns(tmp_path: Path) -> None:
    coarse = pa.array([0, 0, 1, 1, 2], pa.int64())
    table = rows(LABELS, coarse=coarse, weight=pa.array([0.5] * 5))
    hub = named(table, label=["cat", "dog"], coarse=["a", "b", "c"])
    for name, content in (("plain", table), ("hub", hub)):
        source = write(tmp_path / name, {TRAIN: content, TEST: content})
        with pytest.raises(
            UserError, match=r"several columns may hold the label; choose --label-column label or coarse"
        ):
            get(source, tmp_path)
        found = get(source, tmp_path, label_column="coarse")
        assert found.train.labels.tolist() == [0, 0, 1, 1, 2]
        assert found.class_names == (("a", "b", "c") if name == "hub" else ("0", "1", "2"))
        assert get(source, tmp_path, label_column="label").info.classes == 2  # not the cached other one
        with pytest.raises(
            UserError, match=r"--label-column 'weight' is no column of integers; those are: label, coarse"
        ):
            get(source, tmp_path, label_column="weight")


def test_class_labels_go_before_other_integers(tmp_path: Path) -> None:
    table = named(rows(LABELS, id=pa.array(range(5))), label=["cat", "dog"])
    assert get(write(tmp_path / "pets", {TRAIN: table, TEST: table}), tmp_path).class_names == ("cat", "dog")


def test_numbers_without_names_are_the_classes_that_occur(tmp_path: Path) -> None:
    source = write(tmp_path / "pets", {TRAIN: rows([7, 3, 12, 3]), TEST: rows([12, 3])})
    found = get(source, tmp_path)
    assert found.class_names == ("3", "7", "12")
    assert found.train.labels.tolist() == [1, 0, 2, 0]
    part = get(source, tmp_path, classes=(3, 12))  # by the numbers of the source
    assert (part.info.label, part.train.labels.tolist()) == ("parquet:pets[3,12]", [0, 1, 0])


def test_masks_are_no_images(tmp_path: Path) -> None:
    table = rows(LABELS)
    both = table.append_column("mask", table.column("image"))
    assert get(write(tmp_path / "pets", {TRAIN: both, TEST: both}), tmp_path).info.train == 5
    renamed = both.rename_columns(["a", "label", "b"])
    with pytest.raises(UserError, match=r"several columns may hold the image \(a, b\)"):
        get(write(tmp_path / "two", {TRAIN: renamed, TEST: renamed}), tmp_path)


def test_somebody_else_s_metadata(tmp_path: Path) -> None:
    for number, text in enumerate(("{", "[]", '{"info": null}', '{"info": {"features": {"label": 3, "x": {}}}}')):
        table = rows(LABELS).replace_schema_metadata({"huggingface": text})
        assert get(write(tmp_path / str(number), {TRAIN: table, TEST: table}), tmp_path).class_names == ("0", "1")


Tables = Callable[[], dict[str, pa.Table]]

PATHS = pa.array([{"path": "a.png"}] * 5, pa.struct([("path", pa.string())]))
NO_BYTES = pa.array([{"bytes": None, "path": "a.png"}] * 5, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
BROKEN = pa.array([b"no image"] * 5, pa.binary())


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        (lambda: {"notes.parquet": rows(LABELS)}, "holds no parquet file named after a split; expected files such as"),
        (lambda: {TEST: rows(LABELS)}, "has no training split, only test; expected"),
        (lambda: {TRAIN: rows(LABELS)}, "has no test or validation split; expected"),
        (lambda: {TRAIN: rows(LABELS), TEST: rows([-1, -1])}, "no row of test has a label"),
        (lambda: {TRAIN: rows([0, 1, None]), TEST: rows([0])}, "row 2 (from 0) has no label in column 'label'"),
        (lambda: {TRAIN: rows([0, -1]), TEST: rows([0])}, "row 1 (from 0) has no label in column 'label'"),
        (lambda: {TRAIN: rows([0, 1]), TEST: rows([0, -1, 1])}, "row 1 (from 0) has no label"),
        (lambda: {TRAIN: rows([0, 1]), TEST: rows([0, 5])}, "row 1 (from 0) has the label 5, which is none of the 2"),
        (lambda: {TRAIN: named(rows([0, 9]), label=["a", "b"]), TEST: rows([0])}, "row 1 (from 0) has the label 9"),
        (lambda: {TRAIN: rows([]), TEST: rows([0])}, f"{TRAIN}: the train split has no rows"),
        (lambda: {TRAIN: rows([0, 0]), TEST: rows([0])}, "1 class is left; a classifier needs at least two"),
        (lambda: {TRAIN: rows([0, 1]).drop_columns("image")}, "has no image column; expected struct<bytes, path>"),
        (lambda: {TRAIN: rows([0, 1]).drop_columns("label")}, "has no label column; expected a column of integers"),
        (lambda: {TRAIN: rows([0, 1]), TEST: rows([0]).drop_columns("image")}, "has no column 'image', which"),
        (lambda: {TRAIN: rows([0, 1]), TEST: rows([0], nested=False)}, "is of another type than in the training split"),
        (lambda: {TRAIN: rows(LABELS).set_column(0, "image", PATHS)}, "column 'image' holds paths, not the images"),
        (
            lambda: {TRAIN: rows(LABELS).set_column(0, "image", NO_BYTES), TEST: rows([0])},
            f"{TRAIN}: row 0 (from 0) has no image bytes",
        ),
        (
            lambda: {
                TRAIN: pa.concat_tables(
                    [rows(LABELS, nested=False), rows(LABELS, nested=False).set_column(0, "image", BROKEN)]
                ),
                TEST: rows([0], nested=False),
            },
            f"{TRAIN}: row 5 (from 0): cannot be read as an image (no known image format)",
        ),
        (lambda: {f"{name}/{TRAIN}": rows(LABELS) for name in "ab"}, "holds several data sets, in the folders a, b"),
        (lambda: {"train-00001-of-00003.parquet": rows(LABELS)}, "lacks shard 0 of the set that train-00001-of-00003"),
        (lambda: {TRAIN: rows([0, 1]), "train-00000-of-00002.parquet": rows([0])}, "mixes shards of different sets"),
    ],
)
def test_bad_sets_get_one_sentence(tables: Tables, sentence: str, tmp_path: Path) -> None:
    source = write(tmp_path / "pets", tables())
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        get(source, tmp_path)
    assert "pets" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data-dir").rglob("*.tmp"))


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a folder nor a file"):
        get(f"parquet:{tmp_path}/pets", tmp_path)
    source = write(tmp_path / "pets", {TRAIN: rows(LABELS), TEST: rows([0])})
    with pytest.raises(UserError, match="is a test split by its name"):
        get(f"{source}/{TEST}", tmp_path)
    (tmp_path / "pets" / TEST).unlink()
    with pytest.raises(UserError, match="has no test or validation split"):
        get(f"{source}/{TRAIN}", tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 300, -1])
def test_a_truncated_file(keep: int, tmp_path: Path) -> None:
    source = write(tmp_path / "pets", {TRAIN: rows(LABELS), TEST: rows([0])})
    path = tmp_path / "pets" / TRAIN
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: cannot be read as parquet \(.*\); fetch it again$"):
        get(source, tmp_path)


def test_a_flipped_bit_is_found_by_the_pages_checksum(tmp_path: Path) -> None:
    source = write(tmp_path / "pets", {TRAIN: rows(LABELS), TEST: rows([0])})
    path = tmp_path / "pets" / TRAIN
    content = bytearray(path.read_bytes())
    content[400] ^= 1  # inside the first image
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as parquet \(.*CRC checksum"):
        get(source, tmp_path)
