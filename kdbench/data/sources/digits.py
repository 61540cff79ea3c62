"""scikit-learn's handwritten digits (a part of the UCI set): small, and always there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kdbench.core.data import DataRequest
from kdbench.core.errors import UserError
from kdbench.data.dataset import Decoded, Source, Split, digest
from kdbench.data.decode import resize

SOURCES = {
    "digits": "1,797 handwritten digits of 8x8 pixels, 10 classes; comes with scikit-learn",
}

_TEST_IMAGES = 360  # a fifth
_DIGEST = "b04a47f470294ef2fa42b2645960dd6fa7252877e4953ceb8023f65ad13cc565"


def find(request: DataRequest, data_dir: Path) -> Source:
    """The split is fixed and stratified. A mirrored digit is no digit."""
    return Source("digits", {"digits": _DIGEST}, _decode, flip=False)


def _decode(size: int) -> Decoded:
    """Values 0..16 become 0..255. Raises UserError if scikit-learn ships other images."""
    from sklearn.datasets import load_digits  # takes as long to import as the rest of the data code together
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    gray = np.rint(raw.images * (255 / 16)).astype(np.uint8)  # [N, 8, 8]
    images = np.ascontiguousarray(gray[..., None].repeat(3, axis=3))  # [N, 8, 8, 3]
    labels = torch.from_numpy(raw.target.astype(np.int64))  # [N]
    if digest(torch.from_numpy(images), labels) != _DIGEST:
        raise UserError("digits: this version of scikit-learn ships other images than kdbench knows")
    rows = train_test_split(np.arange(len(labels)), test_size=_TEST_IMAGES, random_state=0, stratify=raw.target)
    pixels = torch.from_numpy(resize(images, size))
    train, test = (torch.from_numpy(np.sort(part)) for part in rows)
    names = {number: str(number) for number in range(10)}
    return Decoded(Split(pixels[train], labels[train]), Split(pixels[test], labels[test]), names)
