"""SRRL."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from kdbench.distill import Output
from tests.methods.build import make_for, output_with_embedding, step_of, tensor
from tests.methods.by_hand import set_identity
from tests.methods.expectations import Expectations, Mutation

EXPECTED = Expectations(
    mutations={
        "srrl": Mutation(  # the bias of the teacher's classifier is forgotten
            "kdbench.methods.srrl.F",
            lambda functional: SimpleNamespace(
                mse_loss=functional.mse_loss, linear=lambda rows, weight, bias: functional.linear(rows, weight)
            ),
        )
    },
)


def test_by_hand() -> None:
    # A transfer by 1 and fresh statistics: (2, -3) becomes (a, 0) with a = 2 / √(1 + 1e-5). The teacher's embedding is
    # (1, 1), and its classifier (3, 5) · x + 1/2 gives a logit of 3a + 1/2 in place of 8.
    teacher = Output(tensor([8.0]), (), tensor([1.0, 1.0]), classifier=(tensor([3.0, 5.0]), tensor(0.5)))
    step = step_of(replace(output_with_embedding(tensor([2.0, -3.0])), logits=tensor([0.0])), teacher)
    method = make_for("srrl", {"srrl_weight": 2.0}, step).eval()
    set_identity(method.srrl["transfer"][0])
    a = 2 / (1 + 1e-5) ** 0.5
    terms = method.losses(step)
    assert terms["features"].item() == pytest.approx(2 * ((a - 1) ** 2 + 1) / 2, rel=1e-12)
    assert terms["logits"].item() == pytest.approx(2 * (3 * a + 0.5 - 8) ** 2, rel=1e-12)
