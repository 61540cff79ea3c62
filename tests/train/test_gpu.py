"""What only a GPU can show; run with `pytest -m gpu`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.core.errors import Interrupted
from kdbench.core.record import Outcome
from kdbench.distill import Distiller, Hyper, Step, register, registry
from kdbench.train import cohort as cohort_module
from kdbench.train import cuda_graph
from kdbench.train.device import configure_torch, describe_environment, resolve_device, resolve_precision
from tests.train import tiny_study
from tests.train.test_recorded_step import REFUSED, trials
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


STEPS = 45
LONG = tiny_study.dataset(train=64 * STEPS)
RECIPE = replace(tiny_study.RECIPE, epochs=2, milestones=(1.0,))  # the rate drops before the second epoch
RATE = 0.005  # at which 90 steps do not turn the last bits of a sum into another trajectory


class _Waits(Distiller[Hyper]):
    """Reads a value back when gradients are set already."""

    def after_backward(self, step: Step) -> None:
        assert step.student.logits.mean().item() < 1e9


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device, with recording forced, and the same algorithms whenever they are chosen."""
    device = resolve_device("cuda")
    configure_torch(device, "fp32", None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(cuda_graph, "SHORTEST", 1)
    cuda_graph._cuda.cache_clear()
    return device


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Who was not recorded; nobody else may have been, or there is nothing to compare."""
    messages = [record.getMessage() for record in caplog.records if "without a CUDA graph" in record.getMessage()]
    return [message.split(" runs without")[0] for message in messages]


def on_device(
    folder: Path, device: torch.device, methods: Sequence[str], *, plain: bool = False, **options: Any
) -> dict[str, Outcome]:
    trials = [replace(trial(method), recipe=RECIPE, data=LONG.info, lr=RATE) for method in methods]
    with pytest.MonkeyPatch.context() as patch:
        if plain:
            patch.setattr(cohort_module, "accelerator", lambda device, steps: cuda_graph.Plain())
        outcomes = run_cohort(folder, cohort(*trials), dataset=LONG, device=device, **options)
    return {outcome.trial.method: outcome for outcome in outcomes}


def differences(left: dict[str, Outcome], right: dict[str, Outcome]) -> list[str]:
    """Terms that differ by more than the order of atomic additions explains."""
    found = []
    for method, outcome in left.items():
        assert (outcome.status, right[method].status) == ("done", "done"), (outcome.reason, right[method].reason)
        for one, other in zip(outcome.epochs, right[method].epochs, strict=True):
            for name, value in one.terms.items():
                if other.terms[name] != pytest.approx(value, rel=1e-3, abs=1e-6):
                    found.append(f"{method}, epoch {one.epoch}, {name}: {value} and {other.terms[name]}")
    return found


@pytest.mark.parametrize("part", range(6))
def test_replayed_steps_train_as_plain_ones(
    tmp_path: Path, exact: torch.device, part: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Every method, both stages, across a drop of the rate."""
    names = [trial.method for trial in trials()][part::6]
    plain = on_device(tmp_path / "plain", exact, names, plain=True)
    replayed = on_device(tmp_path / "replayed", exact, names)
    assert differences(plain, replayed) == []
    assert refusals(caplog) == [name for name in names if name in REFUSED]
    assert cuda_graph.accelerator(exact, STEPS).can_record


def test_a_method_that_waits_leaves_the_others_recorded(
    tmp_path: Path, exact: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    register("t_waits", Hyper, paper="-")(_Waits)
    try:
        plain = on_device(tmp_path / "plain", exact, ("t_waits", *METHODS), plain=True)
        replayed = on_device(tmp_path / "replayed", exact, ("t_waits", *METHODS))
    finally:
        del registry._METHODS["t_waits"]
    assert differences(plain, replayed) == []
    assert refusals(caplog) == ["t_waits"]
    assert cuda_graph.accelerator(exact, STEPS).can_record


def test_stopped_in_the_midst_of_an_epoch_after_recording(
    tmp_path: Path, exact: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    asked = iter([False] * 30 + [True])
    with pytest.raises(Interrupted):
        on_device(tmp_path / "parts", exact, METHODS, stop=lambda: next(asked))
    resumed = on_device(tmp_path / "parts", exact, METHODS)
    assert differences(on_device(tmp_path / "whole", exact, METHODS), resumed) == []
    assert refusals(caplog) == []
