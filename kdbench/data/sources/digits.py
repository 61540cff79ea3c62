"""scikit-learn's handwritten digits (a part of the UCI set): small, and always there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from kdbench.core.data import DataRequest
from kdbench.data.dataset import Decoded, Source, Split, digest
from kdbench.data.decode import resize

_TEST = 360  # a fifth


def find(request: DataRequest, data_dir: Path) -> Source:
    """Values 0..16 become 0..255; the split is fixed and stratified."""
    raw = load_digits()
    grey = np.rint(raw.images * (255 / 16)).astype(np.uint8)  # [N, 8, 8]
    images = np.ascontiguousarray(grey[..., None].repeat(3, axis=3))  # [N, 8, 8, 3]
    labels = torch.from_numpy(raw.target.astype(np.int64))  # [N]
    rows = train_test_split(np.arange(len(labels)), test_size=_TEST, random_state=0, stratify=raw.target)

    def decode(size: int) -> Decoded:
        pixels = torch.from_numpy(resize(images, size))
        train, test = (torch.from_numpy(np.sort(part)) for part in rows)
        names = {number: str(number) for number in range(10)}
        return Decoded(Split(pixels[train], labels[train]), Split(pixels[test], labels[test]), names)

    files = {"digits": digest(torch.from_numpy(images), labels)}
    return Source("digits", files, decode, flip=False, cached=False)  # a mirrored digit is none
