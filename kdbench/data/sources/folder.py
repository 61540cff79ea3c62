"""The user's own images: train/ and test/ or val/, in each a folder a class, in each any image files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from kdbench.core.data import DataRequest
from kdbench.core.errors import UserError
from kdbench.data.dataset import Decoded, Source, Split, encoded_digest, files_sha256
from kdbench.data.decode import decode_all
from kdbench.data.subset import hold_out_test, safe_label

SOURCES = {
    "folder:PATH": "your own images: train/ and test/ or val/, with one folder per class",
}

TEST_NAMES = ("test", "val", "valid", "validation")
"""Where the test split is looked for, best first."""

_EXTENSIONS = (
    ".bmp",
    ".gif",
    ".jfif",
    ".jp2",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
_LAYOUT = "expected train/CLASS/IMAGE and test/CLASS/IMAGE (or val/, valid/, validation/)"

Files = dict[str, list[Path]]  # class name -> its images, both in order


def find(request: DataRequest, data_dir: Path) -> Source:
    """Class numbers follow the sorted folder names. Raises UserError if the layout is another one."""
    root = Path(os.path.abspath(Path(request.source.partition(":")[2]).expanduser()))
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; {_LAYOUT}")
    folders = {child.name.lower(): child for child in sorted(root.iterdir()) if child.is_dir()}
    if "train" not in folders:
        raise UserError(f"{root} has no folder train; {_LAYOUT}")
    train, ignored = _classes(folders["train"])
    label, names, fraction = safe_label("folder", root.name), dict(enumerate(train)), request.test_fraction
    digests = {folders["train"].name: _digest(folders["train"], train)}
    test_folder = _test_folder(folders, train)
    if test_folder is None:
        if not fraction:
            raise UserError(
                f"{root} has no folder test, val, valid or validation; {_LAYOUT}, or give --test-fraction 0.2 to test "
                "on a fifth of the images"
            )
        note = f"test={fraction:g}"

        def decode_and_split(size: int) -> Decoded:
            split, encoded = _split(train, size)
            return Decoded(*hold_out_test(split, fraction, label), names, encoded_digest((split.labels, encoded)))

        return Source(label, digests, decode_and_split, detail=note, notes=(note,), ignored=ignored)
    if fraction:
        raise UserError(f"{root} has the test part {test_folder.name}: leave out --test-fraction")
    test, also_ignored = _classes(test_folder)
    _compare(folders["train"], train, test_folder, test)

    def decode(size: int) -> Decoded:
        splits = [_split(files, size) for files in (train, test)]
        encoded = encoded_digest(*((split.labels, digests) for split, digests in splits))
        return Decoded(splits[0][0], splits[1][0], names, encoded)

    digests[test_folder.name] = _digest(test_folder, test)
    counts = sum(map(len, train.values())), sum(map(len, test.values()))
    return Source(label, digests, decode, ignored=ignored + also_ignored, counts=counts)


def _classes(split: Path) -> tuple[Files, int]:
    """The folders that hold at least one image, at any depth, and how many other files there are."""
    classes: Files = {}
    ignored = 0
    for folder in sorted(split.iterdir(), key=lambda path: path.name):
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        files = [path for path in _walk(folder) if path.name[0] != "."]
        images = [path for path in files if path.name.lower().endswith(_EXTENSIONS)]
        ignored += len(files) - len(images)
        if images:
            classes[folder.name] = sorted(images)
    if not classes:
        raise UserError(f"{split} holds no folder with images; {_LAYOUT}")
    return classes, ignored


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder; links are followed, each folder once. Raises UserError if one cannot be read."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}")

    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        seen.add(os.path.realpath(parent))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(parent, name)) not in seen]
        yield from (Path(parent, name) for name in names)


def _test_folder(folders: dict[str, Path], train: Files) -> Path | None:
    present = [folders[name] for name in TEST_NAMES if name in folders]
    for folder in present:  # a test/ without labels has none of the class folders
        if any((folder / name).is_dir() for name in train):
            return folder
    return present[0] if present else None


def _compare(train_folder: Path, train: Files, test_folder: Path, test: Files) -> None:
    for folder, classes, other in ((test_folder, test, train), (train_folder, train, test)):
        missing = [name for name in other if name not in classes]
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise UserError(f"{folder} has no image of the class {shown}; both splits need the same class folders")


def _split(files: Files, size: int) -> tuple[Split, list[bytes]]:
    named = [(str(path), path) for paths in files.values() for path in paths]
    labels = [number for number, paths in enumerate(files.values()) for _ in paths]
    pixels, digests = decode_all(named, len(named), size)
    return Split(torch.from_numpy(pixels), torch.tensor(labels)), digests


def _digest(split: Path, files: Files) -> str:
    """One SHA-256 over the relative paths and contents of all images."""
    paths = [path for images in files.values() for path in images]
    combined = hashlib.sha256()
    for path, content in zip(paths, files_sha256(paths), strict=True):
        combined.update(os.fsencode(path.relative_to(split).as_posix()) + b"\0" + content.encode() + b"\n")
    return combined.hexdigest()
