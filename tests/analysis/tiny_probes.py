"""Linear probes small enough for tests: random images, untrained networks, the real trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kdbench.core.events import Checkpoint, EpochEnd, Event, TrialEnd
from kdbench.core.jobs import ProbeJob, Weights
from kdbench.core.linear_probe import LinearProbe
from kdbench.core.record import ProbeOutcome
from kdbench.core.trial import Trial
from kdbench.data.dataset import Dataset
from kdbench.data.resident import ResidentDataset
from kdbench.models import build, info
from kdbench.plan.probe_protocols import protocol, transfer
from kdbench.runner.executors.local import LocalExecutor
from kdbench.train.checkpoint import Checkpoints
from tests.train import tiny_study
from tests.train.tiny_study import CPU

TARGET = tiny_study.dataset(train=128, test=40)


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
    target: ResidentDataset = TARGET,
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
    stop_after: int | None = None,
    weights: Weights | None = None,
) -> list[ProbeOutcome]:
    """The outcomes of the probes; `folder` is for checkpoints. It can be stopped after an epoch, as by Ctrl-C."""
    checkpoints, outcomes = Checkpoints(folder), list[ProbeOutcome]()

    def emit(event: Event) -> None:
        match event:
            case Checkpoint():
                checkpoints.save(event.id, event.content)
            case EpochEnd(_, epoch) if epoch == stop_after:
                raise KeyboardInterrupt
            case TrialEnd(ProbeOutcome() as outcome):
                outcomes.append(outcome)
                checkpoints.remove(outcome.probe.id)
            case _:
                pass

    if weights is None:
        weights = {probe.fingerprint: network_weights(probe.source) for probe in probes}
    executor = LocalExecutor({target.info.content: target}, CPU, checkpoints)
    executor.run(iter([ProbeJob(tuple(probes), weights)]), emit)
    return outcomes
