"""Training states on disk, one file a trial, so that a killed run goes on after its last whole epoch."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("kdbench")


class Checkpoints:
    """Files `ID.pt` under one folder; each is written whole and then renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, trial_id: str, state: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self._path(trial_id).with_suffix(f".tmp{os.getpid()}")
        try:
            torch.save(state, temporary)
            temporary.replace(self._path(trial_id))
        finally:
            temporary.unlink(missing_ok=True)

    def exists(self, trial_id: str) -> bool:
        return self._path(trial_id).exists()

    def load(self, trial_id: str) -> dict[str, Any] | None:
        """The trial's last state on the CPU, or None; a file that cannot be read is reported and passed over."""
        path = self._path(trial_id)
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            log.warning("%s cannot be read (%s): its trial starts again", path, type(error).__name__)
            return None
        return state

    def remove(self, trial_id: str) -> None:
        self._path(trial_id).unlink(missing_ok=True)

    def _path(self, trial_id: str) -> Path:
        return self.folder / f"{trial_id}.pt"
