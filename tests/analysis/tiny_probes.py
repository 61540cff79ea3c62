"""Linear probes small enough for tests: random images, untrained networks, the real trainer."""

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

TARGET = tiny_study.dataset(train=128, test=40)


class Quiet:
    """A watcher that can stop the run after a number of epochs, as Ctrl-C would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.remaining = stop_after

    def group(self, probes: Sequence[LinearProbe]) -> None: ...
    def record(self, record: ProbeRecord) -> None: ...

    def advance(self, epochs: int) -> None:
        if self.remaining is not None:
            self.remaining -= 1
            if self.remaining == 0:
                raise KeyboardInterrupt


def network_weights(trial: Trial) -> dict[str, Tensor]:
    """Weights of an untrained network of the trial's architecture, the same in every call."""
    torch.manual_seed(1)
    return build(trial.arch, trial.data.classes, trial.data.size).state_dict()


def linear_probe(
    arch: str = "resnet8",
    name: str = "frozen",
    *,
    epochs: int | None = 2,
    views: int = 1,
    target: Dataset = TARGET,
    precision: str = "fp32",
    seed: int = 0,
) -> LinearProbe:
    """A probe, by the protocol `name`, of a network that is said to come from the tiny study."""
    source = tiny_study.trial("kd", arch=arch, teacher="wrn_16_1", seed=seed)
    source = replace(source, data=replace(source.data, classes=6, size=target.info.size))
    settings = protocol(name, epochs=epochs, size=target.info.size)
    return transfer(source, "0" * 64, target.info, settings, info(arch), views, precision)


def train(
    probes: Sequence[LinearProbe],
    folder: Path,
    target: Dataset = TARGET,
    watcher: Quiet | None = None,
) -> list[ProbeRecord]:
    """The records of the probes; `folder` is for checkpoints."""
    checkpoints = Checkpoints(folder)
    records = train_probes(
        probes, target, lambda probe: network_weights(probe.source), checkpoints, CPU, {}, watcher or Quiet()
    )
    return list(records)
