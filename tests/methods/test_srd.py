"""SRD."""

from __future__ import annotations

from math import log

import pytest
import torch

from kdbench.methods.srd import log_sum
from tests.methods.build import make_for, output_with_embedding, step_of, tensor
from tests.methods.by_hand import set_identity
from tests.methods.expectations import Expectations, Mutation

EXPECTED = Expectations(
    mutations={
        "srd_authors": Mutation(  # the unbiased variance
            "kdbench.methods.srd.standardized",
            lambda standardized: lambda rows: standardized(rows) * ((len(rows) - 1) / len(rows)) ** 0.5,
        )
    },
)


def test_by_hand() -> None:
    # Two images at 3 and 1, standardized to ±1 / √(1 + 1e-4); the teacher's are the other way round, at 10 and 12.
    step = step_of(output_with_embedding(tensor([3.0], [1.0])), output_with_embedding(tensor([10.0], [12.0])))
    method = make_for("srd", {"srd_weight": 3.0}, step)
    set_identity(method.embed)
    assert method.losses(step)["log_sum"].item() == pytest.approx(3 * log(2 * 2**4 / (1 + 1e-4) ** 2), rel=1e-12)


def test_it_is_finite_where_both_sides_agree() -> None:
    rows = torch.randn(4, 3, requires_grad=True)
    loss = log_sum(rows, rows.detach())
    loss.backward()
    assert loss.isfinite()
    assert rows.grad is not None
    assert not rows.grad.any()
