"""Checkpoints on disk, one file per trial, so that a killed run continues from its last checkpoint."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kdbench.core.files import DamagedFile, DiskError, quarantine, read_checksummed, write_checksummed
from kdbench.core.trial import CheckpointInterval

log = logging.getLogger("kdbench")


GPU_MINUTES = 5.0
"""Least minutes between checkpoints on a GPU, whose epochs may be shorter than it takes to write them."""


class CheckpointSchedule:
    """When checkpoints are due: as asked, else after every epoch, on a GPU after those that end GPU_MINUTES after the
    last checkpoint.
    """

    def __init__(self, interval: CheckpointInterval | None = None, device: torch.device | None = None) -> None:
        self.interval = interval or CheckpointInterval()
        self._apart = GPU_MINUTES if interval is None and device is not None and device.type == "cuda" else 0.0
        self._saved = time.monotonic()

    def due(self, epoch: int | None = None) -> bool:
        """Whether checkpoints are due now: at the end of an epoch (from 1), or within one (None)."""
        minutes = (time.monotonic() - self._saved) / 60
        if self.interval.minutes is not None:
            return minutes >= self.interval.minutes
        return epoch is not None and epoch % self.interval.epochs == 0 and minutes >= self._apart

    def saved(self) -> None:
        """Checkpoints have been written."""
        self._saved = time.monotonic()


def serialize(state: Mapping[str, Any]) -> bytes:
    """A state of tensors and plain data as bytes: made where it is trained, and only written where it is kept."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


class Checkpoints:
    """Files `ID.pt` under one folder, each written atomically, with its checksum."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, trial_id: str, content: bytes) -> None:
        """Write the serialized state of a trial. Raises DiskError."""
        write_checksummed(self._path(trial_id), content)

    def exists(self, trial_id: str) -> bool:
        return self._path(trial_id).exists()

    def load(self, trial_id: str) -> dict[str, Any] | None:
        """The trial's last state, on the CPU, or None; a damaged file is quarantined. Raises DiskError."""
        path = self._path(trial_id)
        try:
            content = read_checksummed(path)
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            quarantine(path, error, "its trial starts again")
            return None
        except OSError as error:
            raise DiskError(f"{path} cannot be read ({error.strerror}); correct that, or remove the file") from error
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # not written by kdbench: only tensors and plain data are ever opened
            quarantine(path, f"{type(error).__name__}", "its trial starts again")
            return None
        return state

    def remove(self, trial_id: str) -> None:
        self._path(trial_id).unlink(missing_ok=True)

    def size(self, trial_id: str) -> int:
        """Bytes of a trial's state, 0 if there is none."""
        path = self._path(trial_id)
        return path.stat().st_size if path.exists() else 0

    def _path(self, trial_id: str) -> Path:
        return self.folder / f"{trial_id}.pt"
