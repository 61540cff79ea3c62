"""R2KD."""

from __future__ import annotations

from dataclasses import replace
from math import log, sqrt
from typing import Any

import pytest
import torch

from kdbench.distill import Output, ViewStep
from kdbench.methods.r2kd import cosine
from tests.methods.build import make_for, requirements, step_of, tensor
from tests.methods.by_hand import CLASSES, Rows, dot, mean, scaled, softmax
from tests.methods.expectations import Expectations, Mutation, Prediction


def rounded_cosines(method: Any, output: Output) -> dict[str, float]:
    # Of a vector with itself, with 1e-8 beside its squared length; the ranks are 1 to C, divided by their sum.
    hyper = method.hyper

    def distance(rows: Rows) -> float:
        return 1 - mean(dot(row, row) / (dot(row, row) + 1e-8) for row in rows)

    rows = [softmax(row) for row in scaled(output.logits.tolist(), 1 / hyper.temperature)]
    value = (
        hyper.value_weight * hyper.temperature**2 * (distance(rows) + distance([*map(list, zip(*rows, strict=True))]))
    )
    ranks = [(rank - (CLASSES + 1) / 2) / (CLASSES * (CLASSES + 1) / 2) for rank in range(1, CLASSES + 1)]
    rank = hyper.rank_weight * distance([ranks])
    weight = hyper.view_weight
    return {"value": value, "rank": rank, "view_value": weight * value, "view_rank": weight * rank}


EXPECTED = Expectations(
    refused=({"temperature": 0.0}, {"teacher_share": 1.1}, {"teacher_share": -0.1}, {"view": "cutout"}),
    effective={"view": "mixup"},
    predictions=(Prediction(rounded_cosines, {"view_weight": 0.5}),),
    mutations={
        "r2kd": Mutation(  # without the columns
            "kdbench.methods.r2kd.value_distance",
            lambda original: lambda student, teacher: 1 - cosine(student, teacher),
        )
    },
)


def test_by_hand() -> None:
    # At T=2 the mean of teacher and pruned teacher, 2 log 3 in the first class, softens to (3/4, 1/4); the student is
    # (1/4, 3/4) in both rows. Cosines of rows: 6/10; of columns, which are constant: 1. Ranks are opposite: distance 2.
    student, nothing = tensor([0.0, 2 * log(3)], [0.0, 2 * log(3)]), torch.zeros(2, 2, dtype=torch.float64)
    teacher, pruned = tensor([4 * log(3), 0.0], [4 * log(3), 0.0]), nothing
    step = step_of(Output(student, (), student), Output(teacher, (), teacher))
    # On the view the teacher alone counts: (3/4, 1/4) against an undecided student.
    on_view = tensor([2 * log(3), 0.0], [2 * log(3), 0.0])
    view = ViewStep(step.batch, Output(nothing, (), nothing), (Output(on_view, (), on_view),))
    step = replace(step, extra={"pruned": Output(pruned, (), pruned)}, views={"cutmix": view})
    settings = {"temperature": 2.0, "teacher_share": 0.5, "value_weight": 3.0, "rank_weight": 5.0, "view_weight": 7.0}
    terms = make_for("r2kd", settings, step).losses(step)
    assert terms["value"].item() == pytest.approx(3 * 4 * (1 - 6 / 10), rel=1e-6)
    assert terms["rank"].item() == pytest.approx(5 * 2, rel=1e-6)
    assert terms["view_value"].item() == pytest.approx(7 * 3 * 4 * (1 - 1 / 2 / sqrt(10 / 16 / 2)), rel=1e-6)
    assert not terms["rank"].requires_grad


def test_without_a_view() -> None:
    assert requirements("r2kd", {"view_weight": 0.0}).views == ()
    assert [view["alpha"] for view in requirements("r2kd", {"view": "mixup"}).views] == [0.2]
