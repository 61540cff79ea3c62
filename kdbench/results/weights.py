"""Final weights: a state dict of tensors, whose SHA-256 is in the trial's record."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kdbench.core.files import write_atomic


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> str:
    """Write the file atomically; returns its SHA-256. Raises DiskError."""
    buffer = io.BytesIO()
    torch.save(dict(weights), buffer)
    content = buffer.getvalue()
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def load_weights(content: bytes, part: str = "network") -> dict[str, Tensor]:
    """The state dict of one part, from a file's bytes whose SHA-256 was checked.

    `network` is the trained network; `deploy` is what its method needs for predictions besides the network, empty for
    most methods. Raises ValueError if the bytes are not a state dict.
    """
    prefix = f"{part}."
    try:
        weights: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    except Exception as error:  # a forged file whose SHA-256 stands in a forged record
        raise ValueError(f"the weights are not a state dict ({type(error).__name__})") from None
