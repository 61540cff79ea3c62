"""ProbeStore small enough for tests: random images, untrained networks, real probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kdbench.core.linear_probe import LinearProbe
from kdbench.core.record import ProbeRecord
from kdbench.core.trial import Trial
from kdbench.data.dataset import Dataset
from kdbench.models import build, info
from kdbench.plan.probe_protocols import protocol, transfer
from kdbench.train.checkpoint import Checkpoints
from kdbench.train.probe_group import train_probes
from tests.train import tiny_study
from tests.train.tiny_study import CPU

TARGET = tiny_study.images(train=128, test=40)


class Quiet:
    """Nothing to see; stops after so many epochs, as Ctrl-C would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.left = stop_after

    def group(self, transfers: Sequence[LinearProbe]) -> None: ...
    def record(self, record: ProbeRecord) -> None: ...

    def advance(self, epochs: int) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def weights(arch: str, trial: Trial) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return build(arch, trial.data.classes, trial.data.size).state_dict()


def made(
    arch: str = "resnet8",
    name: str = "frozen",
    *,
    epochs: int | None = 2,
    views: int = 1,
    target: Dataset = TARGET,
    precision: str = "fp32",
    seed: int = 0,
) -> LinearProbe:
    """A transfer of a network that was (said to be) trained on the toy study's images."""
    source = tiny_study.trial("kd", arch=arch, teacher="wrn_16_1", seed=seed)
    source = replace(source, data=replace(source.data, classes=6, size=target.info.size))
    how = protocol(name, epochs=epochs, size=target.info.size)
    return transfer(source, "0" * 64, target.info, how, info(arch), views, precision)


def run(
    transfers: Sequence[LinearProbe],
    folder: Path,
    target: Dataset = TARGET,
    watcher: Quiet | None = None,
) -> list[ProbeRecord]:
    watcher, checkpoints = watcher or Quiet(), Checkpoints(folder)
    found = train_probes(
        transfers, target, lambda each: weights(each.source.arch, each.source), checkpoints, CPU, {}, watcher
    )
    return list(found)
