"""How far a student is: its pretraining stage, and the epoch that it is in."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kdbench.train.meters import EpochTimer, LossMeter
from kdbench.train.optim import load_optimizer


class PretrainingStage:
    """A student's pretraining: what it trains, and how far it is."""

    def __init__(self, backbone: list[nn.Module], optimizer: torch.optim.Optimizer, epochs: int) -> None:
        self.backbone, self.optimizer, self.epochs = backbone, optimizer, epochs
        self.losses: list[float] = []  # mean of each finished epoch

    def state(self) -> dict[str, Any]:
        return {"losses": self.losses, "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        load_optimizer(self.optimizer, state["optimizer"])
        self.losses = list(state["losses"])


class EpochState:
    """An epoch under way, with the student's meters for it. Pretraining epochs are -1, -2, ..."""

    def __init__(self, epoch: int, lr: float, dropout_seed: int, meter: LossMeter, timer: EpochTimer) -> None:
        self.epoch, self.lr, self.dropout_seed, self.steps = epoch, lr, dropout_seed, 0
        self.meter, self.timer = meter, timer
        meter.reset()
        timer.begin_epoch()

    def state(self, generator: torch.Generator) -> dict[str, Any]:
        """How far the epoch is, with the student's generator; waits for the device."""
        return {
            "epoch": self.epoch,
            "steps": self.steps,
            "seconds": self.timer.seconds(self.steps),
            "meter": self.meter.state(),
            "generator": generator.get_state(),
        }

    def load_state(self, state: dict[str, Any], generator: torch.Generator) -> None:
        """Go on from `state()`."""
        self.steps = state["steps"]
        self.timer.begin_epoch(state["seconds"], state["steps"])
        self.meter.load_state(state["meter"])
        generator.set_state(state["generator"])
