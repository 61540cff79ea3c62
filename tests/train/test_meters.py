"""Loss terms and times of an epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdbench.train.meters import EpochTimer, LossMeter
from kdbench.train.student import to_float32
from tests.train.tiny_study import train, trial

CPU = torch.device("cpu")
ONE = torch.ones(())


def update(meter: LossMeter, ce: float, match: float, norm: float = 1.0) -> None:
    meter.update({"ce": ONE * ce, "match": ONE * match}, ONE * norm)


def test_means_over_the_steps() -> None:
    meter = LossMeter(CPU)
    update(meter, 1.0, 10.0)
    update(meter, 2.0, 30.0)
    assert meter.means(2) == {"ce": 1.5, "match": 20.0}
    assert meter.first_nonfinite() is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([(1, 1, 1), (1, float("nan"), 1), (float("inf"), 1, 1)], (1, ["match"])),
        ([(float("inf"), float("nan"), 1)], (0, ["ce", "match"])),
        ([(1, 1, 1), (1, 1, float("nan")), (float("nan"), 1, 1)], (1, [])),
    ],
)
def test_the_first_nonfinite_step_names_its_terms(
    values: list[tuple[float, float, float]], expected: tuple[int, list[str]]
) -> None:
    meter = LossMeter(CPU)
    for ce, match, norm in values:
        update(meter, ce, match, norm)
    assert meter.first_nonfinite() == expected


def test_a_meter_goes_on_from_its_state() -> None:
    whole, first, second = LossMeter(CPU), LossMeter(CPU), LossMeter(CPU)
    steps = [(1.0, 2.0), (3.0, float("nan")), (5.0, 6.0)]
    for ce, match in steps:
        update(whole, ce, match)
    for ce, match in steps[:2]:
        update(first, ce, match)
    second.load_state(first.state())
    update(second, *steps[2])
    assert second.first_nonfinite() == whole.first_nonfinite() == (1, ["match"])
    assert second.means(3)["ce"] == whole.means(3)["ce"] == 3.0


def test_an_epoch_timer_extrapolates_untimed_steps_and_resumes() -> None:
    timer = EpochTimer(CPU)
    timer._seconds = [1.0, 3.0]
    assert timer.seconds(4) == pytest.approx(8.0)  # two of four steps were timed, 2 s on average
    assert timer.seconds(4) == pytest.approx(8.0)
    resumed = EpochTimer(CPU)
    resumed.begin_epoch(seconds_before=8.0, steps_before=4)
    resumed._seconds = [1.0]
    assert resumed.seconds(6) == pytest.approx(10.0)
    untimed = EpochTimer(CPU)
    untimed.begin_epoch(seconds_before=8.0, steps_before=4)
    assert untimed.seconds(6) == pytest.approx(12.0)
    untimed.begin_epoch()
    assert untimed.seconds(3) == pytest.approx(6.0)  # no step of this epoch was timed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_of_feature_maps_come_back_in_the_layout_of_convolutions(dtype: torch.dtype) -> None:
    leaf = torch.randn(2, 3, 4, 4, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    before = leaf * 1
    features = before * 1
    gradients: list[torch.Tensor] = []
    before.register_hook(gradients.append)
    weights = torch.arange(96.0).reshape(2, 3, 16)
    (to_float32(features).flatten(2) * weights).sum().backward()  # flattened: its own gradient is contiguous in NCHW
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)
    assert gradients[0].dtype == dtype
    torch.testing.assert_close(gradients[0].float(), weights.reshape(2, 3, 4, 4))
    assert to_float32(torch.ones(2, 3, dtype=dtype)).dtype == torch.float32


def test_what_is_shared_is_charged_to_those_that_require_it(tmp_path: Path) -> None:
    outcomes = train(tmp_path, trial("kd"), trial("icd"), trial("kd_views"), trial("random"))
    kd, icd, views, random = (outcome.epochs[-1].shared_seconds for outcome in outcomes.values())
    assert kd == icd
    assert kd < min(views, random)  # their view, and their extra teacher
