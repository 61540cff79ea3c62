"""Scale-decoupled distillation."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch

from kdbench.distill import Output
from kdbench.distill.losses import among_others, target_or_other
from kdbench.methods.sdd import SDDHyper
from tests.methods.build import batch_of, make_for, step_of
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Mutation, Prediction

EQUAL_WEIGHTS = Mutation(
    "kdbench.methods.sdd.cell_weights",
    lambda original: lambda teacher, labels: torch.ones_like(original(teacher, labels)),
)
WHY = "form=kd does not have it"

EXPECTED = Expectations(
    refused=(
        {"temperature": 0.0},
        {"warmup_epochs": 0},
        {"form": "rkd"},
        *({"grids": grids} for grids in ("", "1", "2-4", "1-3", "1.2", "x1y2", "1-2-", "12")),
    ),
    effective={"form": "dkd", "grids": "1-2-4"},
    without_effect=dict.fromkeys(("tckd_weight", "nckd_weight", "warmup_epochs"), WHY),
    predictions=(Prediction(zeros("cells"), {"grids": "1-4"}), Prediction(zeros("cells"), {"form": "dkd"})),
    mutations={
        "sdd_kd": EQUAL_WEIGHTS,
        "sdd_dkd": Mutation(  # the label stays among the others
            "kdbench.distill.losses.among_others",
            lambda original: lambda logits, target: logits.log_softmax(dim=-1),
        ),
        "sdd_nkd": EQUAL_WEIGHTS,
    },
)


def test_by_hand() -> None:
    # The map is the logits of two classes in 4x4 cells. The teacher says 10 log 3 for the first class in the quarter at
    # the top left, 2 log 3 for the second at the bottom right, on average 2 log 3 for the first: at T=2 that is
    # (3/4, 1/4) for the whole, (243/244, 1/244), twice (1/2, 1/2), and (1/4, 3/4). The label is the second, which the
    # teacher finds only in the last quarter: that one weighs 2. The student is undecided everywhere.
    maps = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    maps[0, 0, :2, :2], maps[0, 1, 2:, 2:] = 10 * log(3), 2 * log(3)
    nothing, classifier = torch.zeros_like(maps), (torch.eye(2, dtype=torch.float64), None)

    def output(last_map: torch.Tensor) -> Output:
        embedding = last_map.mean(dim=(2, 3))
        return Output(embedding, (), embedding, classifier=classifier, last_map=last_map)

    step = step_of(output(nothing), output(maps), batch=batch_of(1, labels=torch.tensor([1])))

    def divergence(p: float) -> float:  # from (1/2, 1/2)
        return p * log(p) + (1 - p) * log(1 - p) + log(2)

    expected = 3 * 4 * (divergence(3 / 4) + divergence(243 / 244) + 2 * divergence(3 / 4)) / 5  # weight · T² / cells
    settings = {"sdd_weight": 3.0, "temperature": 2.0}
    assert make_for("sdd", settings, step).losses(step)["cells"].item() == pytest.approx(expected, rel=1e-12)
    # With two classes the others are one, so that of dkd the first term alone is left; epoch 5 of 20 to warm up.
    method = make_for("sdd", {**settings, "form": "dkd"}, step)
    assert method.losses(replace(step, epoch=5))["cells"].item() == pytest.approx(expected / 4, rel=1e-12)


def test_grids_are_read_as_the_authors_write_them() -> None:
    assert SDDHyper(grids="[1,2,4]").sides() == SDDHyper(grids="1-2-4").sides() == (1, 2, 4)


def test_no_probability_is_too_small() -> None:
    logits = torch.tensor([[1e10, -1e10, 0.0]], requires_grad=True)
    target = torch.tensor([[True, False, False]])
    binary, others = target_or_other(logits, target), among_others(logits, target)
    (binary.sum() + others.sum()).backward()
    assert binary.isfinite().all()
    assert others.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
