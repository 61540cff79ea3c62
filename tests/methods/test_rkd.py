"""Relational knowledge distillation."""

from __future__ import annotations

import pytest

from kdbench.distill import Output
from tests.methods.build import make_for, step_of, tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Mutation, Prediction

EXPECTED = Expectations(
    predictions=(Prediction(zeros("distance", "angle")),),
    mutations={"rkd": Mutation("kdbench.methods.rkd.angles", lambda angles: lambda rows: angles(rows) * 0.99)},
)


def output(*rows: list[float]) -> Output:
    embedding = tensor(*rows)
    return Output(embedding.new_zeros(len(embedding), 2), (), embedding)


def test_distance_by_hand() -> None:
    # On a line at 0, 3, 7: distances 3, 7, 4, their mean 14/3. At 0, 1, 2: distances 1, 2, 1, their mean 4/3. They
    # differ by 9/14 - 3/4, 0 and 12/14 - 3/4, twice each among nine entries; smooth L1 is half a square there. All
    # angles on a line are 0 or 180 degrees, equal on both sides.
    step = step_of(output([0.0], [3.0], [7.0]), output([0.0], [1.0], [2.0]))
    terms = make_for("rkd", {}, step).losses(step)
    differences = (9 / 14 - 3 / 4, 0.0, 12 / 14 - 3 / 4)
    expected = 25 * sum(2 * difference**2 / 2 for difference in differences) / 9
    assert terms["distance"].item() == pytest.approx(expected, rel=1e-6)
    assert terms["angle"].item() == pytest.approx(0.0, abs=1e-12)


def test_angle_by_hand() -> None:
    # A right angle at the first student; the teachers lie on a line, with 0 degrees there. Of 27 triplets these differ:
    # at the first image cos 90° against cos 0°, twice; at the second and third 45° against 0° and 180°, twice each.
    step = step_of(output([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]), output([0.0, 0.0], [1.0, 0.0], [2.0, 0.0]))
    half = 0.5**0.5
    entries = [0.5 * 1.0, 0.5 * (half + 1) ** 2 if half + 1 < 1 else half + 1 - 0.5, 0.5 * (1 - half) ** 2]
    expected = 50 * 2 * sum(entries) / 27
    assert make_for("rkd", {}, step).losses(step)["angle"].item() == pytest.approx(expected, rel=1e-6)
