"""What only a GPU can show; run with `pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdbench.core.errors import Interrupted
from kdbench.train.device import configure_torch, describe_environment, resolve_device, resolve_precision
from tests.train.tiny_study import CPU, DATASET, cohort, run_cohort, train, trial

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
METHODS = ("kd", "crd", "icd", "icd+kd")


def test_the_device_is_found() -> None:
    device = resolve_device("auto")
    assert device.type == "cuda"
    assert resolve_device("cuda") == device
    major, _ = torch.cuda.get_device_capability(device)
    assert resolve_precision("auto", device, 8) == ("bf16" if major >= 8 else "fp32")
    assert describe_environment(device)["device"] == "cuda"


def test_batches_are_those_of_the_cpu() -> None:
    sides = [DATASET.loader(batch_size=64, pad=1, device=device, seed=3) for device in (CPU, resolve_device("cuda"))]
    for here, there in zip(*(side.epoch(2) for side in sides), strict=True):
        assert torch.equal(here.indices, there.indices.cpu())
        torch.testing.assert_close(here.images, there.images.cpu(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cohort_trains_on_the_device(tmp_path: Path, precision: str) -> None:
    from dataclasses import replace

    device = resolve_device("cuda")
    configure_torch(device, precision, None)
    trials = [replace(trial(method), precision=precision) for method in METHODS]
    outcomes = {o.trial.method: o for o in run_cohort(tmp_path, cohort(*trials), device=device)}
    assert {name: outcome.status for name, outcome in outcomes.items()} == dict.fromkeys(METHODS, "done")
    here = train(tmp_path / "cpu", *(trial(method) for method in METHODS))
    for method in METHODS:
        first, same = outcomes[method].epochs[0], here[f"{method}/resnet8"].epochs[0]
        for name, value in same.terms.items():
            # (every image of another class is a negative here, so the draw is the same on both)
            # three steps from equal weights on equal batches: rounding only; bf16 carries 8 bits
            assert first.terms[name] == pytest.approx(value, rel=2e-3 if precision == "fp32" else 5e-2), (method, name)


def test_stopped_in_the_midst_of_an_epoch_it_goes_on(tmp_path: Path) -> None:
    device = resolve_device("cuda")
    configure_torch(device, "fp32", None)
    trials = [trial(method) for method in METHODS]
    asked = iter([False] * 5 + [True])  # three steps, one batch of evaluation, the end of the epoch, and one step
    with pytest.raises(Interrupted):
        run_cohort(tmp_path / "parts", cohort(*trials), device=device, stop=lambda: next(asked))
    ends = [
        {o.trial.method: o for o in run_cohort(tmp_path / folder, cohort(*trials), device=device)}
        for folder in ("parts", "whole")
    ]
    for method in METHODS:
        resumed, whole = (end[method].epochs[1] for end in ends)
        assert resumed.epoch == 2
        for name, value in whole.terms.items():
            assert resumed.terms[name] == pytest.approx(value, rel=2e-3), (method, name)
