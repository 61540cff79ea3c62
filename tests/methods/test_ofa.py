"""One-for-all distillation."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import nn

from kdbench.distill import Output
from kdbench.methods.ofa import branch as method_branch
from kdbench.methods.ofa import initialize, ofa_loss, parse_exponents
from tests.methods.build import batch_of, make_for, output_with_feature_maps, step_of, tensor
from tests.methods.expectations import Expectations, Mutation

EXPECTED = Expectations(
    refused=({"temperature": 0.0}, *({"exponents": text} for text in ("", "0", "1-2", "a", "1-1-1-1-inf"))),
    effective={"exponents": "1.5"},
    mutations={
        "ofa": Mutation(  # a divergence in place of the cross-entropy
            "kdbench.methods.ofa.ofa_loss",
            lambda loss: lambda student, teacher, *rest: loss(student, teacher, *rest) - loss(teacher, teacher, *rest),
        )
    },
)


def test_by_hand() -> None:
    # At T=2 the teacher softens to (3/4, 1/4), with the label first, and the student to (1/4, 3/4).
    student, teacher = tensor([0.0, 2 * log(3)]), tensor([2 * log(3), 0.0])
    loss = ofa_loss(student, teacher, torch.tensor([0]), 2.0, 2.0)
    expected = ((7 / 4) ** 2 - 1) * log(4) + (1 / 4) ** 2 * log(4 / 3)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    plain = ofa_loss(student, teacher, torch.tensor([0]), 1.0, 2.0)  # the label cancels
    assert plain.item() == pytest.approx(3 / 4 * log(4) + 1 / 4 * log(4 / 3), rel=1e-12)


def test_a_branch_at_each_stage_with_its_exponent() -> None:
    maps = [torch.randn(3, *shape, dtype=torch.float64) for shape in ((2, 8, 8), (2, 8, 8), (4, 4, 4), (6, 2, 2))]
    student = output_with_feature_maps(*maps)
    step = step_of(
        student,
        Output(tensor([0.0, 1.0]).expand(3, 2), (), maps[0].mean((2, 3))),
        batch=batch_of(3, labels=torch.tensor([0, 1, 1])),
    )
    method = make_for("ofa", {"exponents": "9-2-3-4-5", "ofa_weight": 7.0}, step)
    logits = method.branch_logits(student)
    assert [tuple(rows.shape) for rows in logits] == [(3, 2)] * 3
    assert [sum(isinstance(part, torch.nn.BatchNorm2d) for part in branch) for branch in method.branches] == [4, 2, 0]
    teacher, labels = step.teacher.logits, step.batch.labels
    expected = sum(
        ofa_loss(rows, teacher, labels, e, 1.0).item() for rows, e in zip(logits, (2.0, 3.0, 4.0), strict=True)
    )
    terms = method.losses(step)
    assert terms["stages"].item() == pytest.approx(7 * expected, rel=1e-9)
    final = ofa_loss(student.logits, teacher, labels, 5.0, 1.0)
    assert terms["final"].item() == pytest.approx(final.item(), rel=1e-12)


def test_exponents() -> None:
    assert parse_exponents("1.5") == (1.5,) * 5
    assert parse_exponents("1-2-3.0-4-5") == parse_exponents("[1, 2, 3.0, 4, 5]") == (1.0, 2.0, 3.0, 4.0, 5.0)


def test_branches_begin_as_the_authors_do() -> None:
    """With n stages to follow: n times two depth-wise 3x3, the first with stride 2, each before a 1x1; then linear."""
    torch.manual_seed(0)
    branch = method_branch(channels=32, followers=2, width=48, classes=200).apply(initialize)
    convolutions = [part for part in branch if isinstance(part, nn.Conv2d)]
    depthwise, pointwise = convolutions[::2], convolutions[1::2]
    assert [(part.groups, part.stride) for part in depthwise] == [
        (32, (2, 2)),
        (32, (1, 1)),
        (64, (2, 2)),
        (64, (1, 1)),
    ]
    assert [part.out_channels for part in pointwise] == [32, 64, 64, 48]
    assert branch(torch.randn(2, 32, 8, 8)).shape == (2, 200)
    for part in pointwise:
        assert part.weight.std().item() == pytest.approx((2 / part.out_channels) ** 0.5, rel=0.1)
    classifier = branch[-1]
    assert isinstance(classifier, nn.Linear)
    assert classifier.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not classifier.bias.any()
