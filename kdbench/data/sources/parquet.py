"""Image sets as they are shared on the Hugging Face hub: parquet files of encoded images and integer labels.

https://huggingface.co/docs/hub/datasets-image and .../datasets-data-files-configuration: splits by file or folder name,
in shards; images as struct<bytes, path> or plain bytes; class names in the schema's `huggingface` metadata.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdbench.core.data import DataRequest
from kdbench.core.errors import UserError
from kdbench.data.dataset import Decoded, Source, Split, encoded_digest, files_sha256
from kdbench.data.decode import decode_all
from kdbench.data.sources.parquet_columns import Columns, choose_columns
from kdbench.data.subset import safe_label

SOURCES = {
    "parquet:PATH": "image sets as shared on the Hugging Face hub: a folder of parquet files",
}

_TRAIN, _TEST = "train", ("test", "val", "valid", "validation")
_SPLIT = re.compile(rf"({'|'.join((_TRAIN, *_TEST))})(?![a-z0-9])", re.IGNORECASE)
_SHARD = re.compile(r"-(\d+)-of-(\d+)")
_LAYOUT = "expected files such as train-00000-of-00001.parquet and test-00000-of-00001.parquet"
_ROWS = 1024  # encoded images read at a time
_MOST_ROWS = 2**26  # of one file; ImageNet-21k has 2**24 images in all
_LARGEST_GROUP = 2**33  # bytes of a group of rows once it is decompressed


@dataclass(frozen=True)
class _Part:
    """One split: its files and the label of every row, -1 where it has none."""

    files: Sequence[Path]
    labels: Sequence[NDArray[np.int64]]  # [rows] each


def find(request: DataRequest, data_dir: Path) -> Source:
    """Reads schemas and labels, no images yet. A single file is a training split; its test split lies beside it."""
    path = Path(os.path.abspath(Path(request.source.partition(":")[2]).expanduser()))
    root = path if path.is_dir() else path.parent
    splits = _splits(path)
    first = splits[_TRAIN][0]
    with _reading(first), _open(first) as opened:
        schema = opened.schema_arrow
    columns = choose_columns(first, schema, request.label_column)
    train = _part(splits[_TRAIN], columns)
    name, test = _labelled_test(path, splits, columns)
    if columns.names is None:
        names = {int(number): str(number) for number in np.unique(np.concatenate(train.labels))}
    else:
        names = dict(enumerate(columns.names))
    for split, part in ((_TRAIN, train), (name, test)):
        _check_labels(split, part, columns, names)

    def decode(size: int) -> Decoded:
        splits = [_decode(part, columns, size) for part in (train, test)]
        encoded = encoded_digest(*((split.labels, digests) for split, digests in splits))
        return Decoded(splits[0][0], splits[1][0], names, encoded)

    files = [*train.files, *test.files]
    digests = dict(zip((file.relative_to(root).as_posix() for file in files), files_sha256(files), strict=True))
    label = safe_label("parquet", path.name if path.is_dir() else path.stem)
    counts = sum(map(len, train.labels)), sum(map(len, test.labels))
    return Source(label, digests, decode, detail=f"{columns.image}/{columns.label}", counts=counts)


# Files ---------------------------------------------------------------------------------------------------------------


def _splits(path: Path) -> dict[str, list[Path]]:
    """Split name -> its shards in order. Raises UserError if there are none, or several data sets."""
    if path.is_file():
        own = _split_of(path)
        if own in _TEST:
            raise UserError(f"{path} is a {own} split by its name; name the training file, or the folder of both")
        beside = _by_folder(path.parent, ("*.parquet",)).get(path.parent, {})
        return {**{name: files for name, files in beside.items() if name != _TRAIN}, _TRAIN: [path]}
    if not path.is_dir():
        raise UserError(f"{path} is neither a folder nor a file; {_LAYOUT}")
    folders = _by_folder(path, ("*.parquet", "*/*.parquet", "*/*/*.parquet", "*/*/*/*.parquet"))
    if not folders:
        raise UserError(f"{path} holds no parquet file named after a split; {_LAYOUT}")
    if len(folders) > 1:
        shown = ", ".join(folder.relative_to(path).as_posix() for folder in list(folders)[:5])
        raise UserError(f"{path} holds several data sets, in the folders {shown}; name one of them")
    splits = next(iter(folders.values()))
    if _TRAIN not in splits:
        raise UserError(f"{path} has no training split, only {', '.join(splits)}; {_LAYOUT}")
    for files in splits.values():
        _check_shards(files)
    return splits


def _by_folder(root: Path, patterns: Sequence[str]) -> dict[Path, dict[str, list[Path]]]:
    """Data sets by folder: train-00000-of-00001.parquet and train/0000.parquet both belong to the folder above."""
    folders: dict[Path, dict[str, list[Path]]] = {}
    files = {file for pattern in patterns for file in root.glob(pattern) if file.is_file()}
    for file in sorted(files):
        if any(part.startswith(".") for part in file.relative_to(root).parts):
            continue
        folder = file.parent
        split = _split_of(file)
        if split is None and folder != root and folder.name.lower() in (_TRAIN, *_TEST):
            split, folder = folder.name.lower(), folder.parent
        if split is not None:
            folders.setdefault(folder, {}).setdefault(split, []).append(file)
    return folders


def _split_of(file: Path) -> str | None:
    match = _SPLIT.match(file.name)
    return match[1].lower() if match else None


def _check_shards(files: Sequence[Path]) -> None:
    """A download that stopped half-way must not pass for a small data set."""
    matches = [match for match in (_SHARD.search(file.name) for file in files) if match]
    if not matches:
        return
    of = {int(match[2]) for match in matches}
    present = {int(match[1]) for match in matches}
    if len(of) > 1:
        raise UserError(
            f"{files[0].parent} mixes shards of different sets ({files[0].name}, {files[-1].name}); keep one"
        )
    missing = sorted(set(range(of.pop())) - present)
    if missing:
        raise UserError(
            f"{files[0].parent} lacks shard {missing[0]} of the set that {files[0].name} is a part of; add it"
        )


# Columns -------------------------------------------------------------------------------------------------------------


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """What a damaged file leads pyarrow to (which may be anything) becomes a sentence. Raises UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise UserError(f"{file}: cannot be read as parquet ({reason}); fetch it again") from error


def _open(file: Path) -> Any:
    with _reading(file):
        opened = pq.ParquetFile(file, page_checksum_verification=True)
        most = max((opened.metadata.row_group(n).total_byte_size for n in range(opened.num_row_groups)), default=0)
    if opened.metadata.num_rows > _MOST_ROWS or most > _LARGEST_GROUP:
        opened.close()
        raise UserError(
            f"{file}: claims {opened.metadata.num_rows:,} rows, up to {most:,} bytes of them in a group, which may be "
            f"an attack; split it, at most {_MOST_ROWS:,} rows a file and {_LARGEST_GROUP:,} bytes a group"
        )
    return opened


# Rows ----------------------------------------------------------------------------------------------------------------


def _part(files: Sequence[Path], columns: Columns) -> _Part:
    return _Part(files, [_labels(file, columns) for file in files])


def _labels(file: Path, columns: Columns) -> NDArray[np.int64]:
    """[rows]; -1 where there is none."""
    with _reading(file), _open(file) as opened:
        schema = opened.schema_arrow
        if columns.image not in schema.names:
            raise UserError(f"{file}: has no column {columns.image!r}, which the training split has")
        if columns.nested != pa.types.is_struct(schema.field(columns.image).type):
            raise UserError(f"{file}: column {columns.image!r} is of another type than in the training split")
        if columns.label not in schema.names:
            return np.full(opened.metadata.num_rows, -1, dtype=np.int64)
        column = opened.read(columns=[columns.label]).column(0)
        return np.asarray(pc.fill_null(column.cast(pa.int64()), -1).to_numpy(), dtype=np.int64)


def _labelled_test(path: Path, splits: dict[str, list[Path]], columns: Columns) -> tuple[str, _Part]:
    present = [name for name in _TEST if name in splits]
    if not present:
        raise UserError(f"{path} has no test or validation split; {_LAYOUT}")
    for name in present:
        part = _part(splits[name], columns)
        if any((labels >= 0).any() for labels in part.labels):
            return name, part
    raise UserError(
        f"{path}: no row of {' and '.join(present)} has a label; a labelled test or validation split is needed"
    )


def _check_labels(split: str, part: _Part, columns: Columns, names: dict[int, str]) -> None:
    if not any(len(labels) for labels in part.labels):
        raise UserError(f"{part.files[0]}: the {split} split has no rows")
    known = np.array(sorted(names), dtype=np.int64)
    for file, labels in zip(part.files, part.labels, strict=True):
        bad = np.flatnonzero(~np.isin(labels, known) | (labels < 0))
        if len(bad):
            row = int(bad[0])
            what = (
                "no label" if labels[row] < 0 else f"the label {labels[row]}, which is none of the {len(known)} classes"
            )
            raise UserError(f"{file}: row {row} (from 0) has {what} in column {columns.label!r}; correct or remove it")


def _decode(part: _Part, columns: Columns, size: int) -> tuple[Split, list[bytes]]:
    labels: Tensor = torch.from_numpy(np.concatenate(part.labels))
    pixels, digests = decode_all(_pictures(part, columns), len(labels), size)
    return Split(torch.from_numpy(pixels), labels), digests


def _pictures(part: _Part, columns: Columns) -> Iterator[tuple[str, bytes]]:
    wanted = f"{columns.image}.bytes" if columns.nested else columns.image
    for file in part.files:
        row = 0
        with _open(file) as opened:
            batches = opened.iter_batches(batch_size=_ROWS, columns=[wanted])
            while True:
                with _reading(file):
                    batch = next(batches, None)
                if batch is None:
                    break
                column = batch.column(0)
                for encoded in (pc.struct_field(column, "bytes") if columns.nested else column).to_pylist():
                    if encoded is None:
                        raise UserError(f"{file}: row {row} (from 0) has no image bytes; embed or remove it")
                    yield f"{file}: row {row} (from 0)", encoded
                    row += 1
