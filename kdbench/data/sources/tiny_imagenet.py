"""Tiny ImageNet in its official folder layout, also where val/ was sorted into class folders afterwards.

wnids.txt   words.txt   train/WNID/images/*.JPEG   val/images/*.JPEG   val/val_annotations.txt
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from kdbench.core.data import DataRequest
from kdbench.core.errors import UserError
from kdbench.data.dataset import Decoded, Source, Split, digest, encoded_digest, files_sha256
from kdbench.data.decode import decode_all
from kdbench.data.sources.archive import Archive, obtain

SOURCES = {
    "tiny-imagenet": "110,000 photographs of 64x64 pixels, 200 classes; downloaded when absent",
}

ARCHIVE = Archive(
    "tiny-imagenet",
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "tiny-imagenet-200.zip",
    "90528d7ca1a48142e341f4ef8d21d0de",
    "tiny-imagenet-200",
)
_SIDE = 64  # pixels, as published
_AGAIN = "fetch the archive again"

Files = list[tuple[Path, int]]  # an image and its class


def find(request: DataRequest, data_dir: Path) -> Source:
    """100,000 training and 10,000 validation images, from `data_dir`/tiny-imagenet-200, downloaded when absent.

    Classes are numbered in the order of their WordNet ids. The test split is validation: the other has no labels.
    """
    root = data_dir / ARCHIVE.folder
    if not root.is_dir():
        obtain(ARCHIVE, data_dir, lambda place: (place / ARCHIVE.folder / "wnids.txt").is_file())
    wnids = sorted(_text(root / "wnids.txt").split())
    for wnid in wnids:
        if not re.fullmatch(r"\w+", wnid):  # a folder's name, and no way out of it
            raise UserError(f"{root / 'wnids.txt'} holds {wnid[:40]!r}, which is no WordNet id; {_AGAIN}")
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    train, test = _train(root / "train", numbers), _validation(root / "val", numbers)

    def decode(size: int) -> Decoded:
        splits = [_split(files, size) for files in (train, test)]
        encoded = encoded_digest(*((split.labels, digests) for split, digests in splits))
        names = dict(enumerate(_names(root / "words.txt", wnids)))
        return Decoded(splits[0][0], splits[1][0], names, encoded)

    digests = {
        name: digest(*(f"{path.relative_to(root).as_posix()} {label} {content}" for (path, label), content in pairs))
        for name, files in (("train", train), ("val", test))
        for pairs in [list(zip(files, files_sha256(path for path, _ in files), strict=True))]
    }
    return Source("tiny-imagenet", digests, decode)


def _text(file: Path) -> str:
    if not file.is_file():
        raise UserError(f"{file} is missing; {_AGAIN}, or use folder:PATH for images in another layout")
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{file} is damaged: it is no text; {_AGAIN}") from None


def _train(folder: Path, numbers: Mapping[str, int]) -> Files:
    files: Files = []
    for wnid, number in numbers.items():
        images = _images(folder / wnid / "images") or _images(folder / wnid)
        if not images:
            raise UserError(f"{folder / wnid} has no image of a class that wnids.txt names; {_AGAIN}")
        files += [(path, number) for path in images]
    return files


def _validation(folder: Path, numbers: Mapping[str, int]) -> Files:
    sorted_ones = [wnid for wnid in numbers if (folder / wnid).is_dir()]
    if sorted_ones:
        return _train(folder, numbers)
    file = folder / "val_annotations.txt"
    labels: dict[str, int] = {}
    for line, text in enumerate(_text(file).splitlines(), start=1):
        words = text.split("\t")
        if len(words) < 2 or words[1] not in numbers:
            raise UserError(f"{file}: line {line} names no image or none of the {len(numbers)} classes; {_AGAIN}")
        labels[words[0]] = numbers[words[1]]
    images = {path.name: path for path in _images(folder / "images")}
    for missing, what in (
        (labels.keys() - images.keys(), "is annotated, but not there"),
        (images.keys() - labels.keys(), f"has no annotation in {file.name}"),
    ):
        if missing:
            raise UserError(f"{folder / 'images' / min(missing)} {what} ({len(missing)} such); {_AGAIN}")
    return [(path, labels[name]) for name, path in images.items()]


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpeg", ".jpg", ".png"))


def _names(words: Path, wnids: list[str]) -> list[str]:
    """The first word for each class; its WordNet id where the list is missing."""
    lines = (line.split("\t", 1) for line in (_text(words).splitlines() if words.is_file() else ()))
    known = {parts[0]: parts[1].split(",")[0].strip() for parts in lines if len(parts) == 2}
    return [known.get(wnid, wnid) for wnid in wnids]


def _split(files: Files, size: int) -> tuple[Split, list[bytes]]:
    labels = torch.tensor([label for _, label in files])
    pixels, digests = decode_all(((str(path), path) for path, _ in files), len(files), size, _SIDE)
    return Split(torch.from_numpy(pixels), labels), digests
