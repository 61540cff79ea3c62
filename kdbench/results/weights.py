"""Final weights: a state dict of tensors; its SHA-256 is kept in the record."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kdbench.core.files import write_atomic


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> str:
    """Write the file whole; returns its SHA-256. Raises DiskError."""
    buffer = io.BytesIO()
    torch.save(dict(weights), buffer)
    content = buffer.getvalue()
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def load_weights(content: bytes) -> dict[str, Tensor]:
    """From what was written and has been checked. Raises ValueError if it is something else after all."""
    try:
        weights: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # somebody made a record and a file that agree
        raise ValueError(f"the weights are no state dict ({type(error).__name__})") from None
    return weights
