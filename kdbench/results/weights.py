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


def load_weights(content: bytes, part: str = "network") -> dict[str, Tensor]:
    """The state dict of one part, from what was written and has been checked.

    `network` is the trained network; `deploy` is what its method predicts with beside it, empty for most methods.
    Raises ValueError if the content is something else after all.
    """
    try:
        weights: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # somebody made a record and a file that agree
        raise ValueError(f"the weights are no state dict ({type(error).__name__})") from None
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
