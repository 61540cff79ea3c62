"""Curriculum temperature."""

from __future__ import annotations

from dataclasses import replace
from math import cos, exp, log, pi
from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench.distill import Output
from kdbench.methods.ctkd import CTKDHyper, gradient_factor
from tests.methods.build import make_for, step_of, tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Mutation, Prediction

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "losses"
WHY = "it is a factor of the temperature's gradient, which changes no term of the same step"

EXPECTED = Expectations(
    refused=({"t_start": 0.0}, {"t_end": 0.0}, {"decay_loops": 0.0}),
    without_effect=dict.fromkeys(("decay_max", "decay_min", "decay_loops"), WHY),
    predictions=(Prediction(zeros("divergence"), {"t_end": 3.0}),),
    mutations={
        "ctkd": Mutation(  # a minus sign too many
            "kdbench.methods.ctkd.gradient_factor", lambda original: lambda epoch, hyper: -original(epoch, hyper)
        )
    },
)


def test_by_hand() -> None:
    # With g = 0 the temperature is 1 + 20/2 = 11. There the teacher softens to (3/4, 1/4), the student to (1/2, 1/2).
    def loss(temperature: float) -> float:
        p = 1 / (1 + exp(-11 * log(3) / temperature))
        return temperature**2 * (p * log(p) + (1 - p) * log(1 - p) + log(2))

    student, teacher = torch.zeros(1, 2, dtype=torch.float64), tensor([11 * log(3), 0.0])
    step = replace(step_of(Output(student, (), student), Output(teacher, (), teacher)), epoch=5)
    method = make_for("ctkd", {"ctkd_weight": 3.0}, step)
    with torch.no_grad():
        method.global_T.zero_()
    term = method.losses(step)["divergence"]
    term.backward()
    assert term.item() == pytest.approx(3 * 121 * (3 / 4 * log(3) - log(2)), rel=1e-12)
    slope = (loss(11.001) - loss(10.999)) / 0.002  # dT/dg = 20 · 1/4; half of the curriculum
    assert method.global_T.grad.item() == pytest.approx(-0.5 * 3 * 5 * slope, rel=1e-6)
    assert method.extra_info() == {"temperature": 11.0}


def test_the_curriculum() -> None:
    factors = {1: (cos(pi / 10) + 1) / 2 - 1, 5: -0.5, 10: -1.0, 240: -1.0}
    for epoch, factor in factors.items():
        assert gradient_factor(epoch, CTKDHyper()) == pytest.approx(factor, abs=1e-12)
    for case, loops, epochs in (("p1", 10.0, (3, 25)), ("p2", 5.0, (4, 6))):
        with np.load(GOLDEN / f"ctkd_{case}.npz") as arrays:
            for epoch in epochs:
                stored = float(arrays[f"out.lambda.epoch{epoch}"])
                assert gradient_factor(epoch, CTKDHyper(decay_loops=loops)) == pytest.approx(stored, rel=1e-12)
