"""Final weights: a state dict of tensors, checked by its SHA-256."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kdbench.store.files import write_whole


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> str:
    """Write the file whole; returns its SHA-256."""
    buffer = io.BytesIO()
    torch.save(dict(weights), buffer)
    content = buffer.getvalue()
    write_whole(path, content)
    return hashlib.sha256(content).hexdigest()


def load_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """Raises ValueError if the file is missing or is not the one that was saved."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one in its record")
    weights: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return weights
