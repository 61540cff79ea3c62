"""Projector ensemble feature distillation."""

from __future__ import annotations

import pytest

from tests.methods.build import make_for, output_with_embedding, step_of, tensor
from tests.methods.by_hand import set_identity
from tests.methods.expectations import Expectations, Mutation

EXPECTED = Expectations(
    refused=({"projectors": 0},),
    mutations={
        "pefd": Mutation(  # without ReLU
            "kdbench.methods.pefd.Projector.forward", lambda forward: lambda self, embedding: self.linear(embedding)
        )
    },
)


def test_by_hand() -> None:
    # Projections I and 2 · -I of (3, -4) with ReLU: (3, 0) and (0, 8), whose mean is (3/2, 4) of length √73 / 2.
    # Against (1, 0) the cosine is 3 / √73. The second image, (1, 0), becomes (1/2, 0), orthogonal to (0, 5).
    student, teacher = tensor([3.0, -4.0], [1.0, 0.0]), tensor([1.0, 0.0], [0.0, 5.0])
    step = step_of(output_with_embedding(student), output_with_embedding(teacher))
    method = make_for("pefd", {"pefd_weight": 4.0, "projectors": 2}, step)
    for projector, scale in zip(method.projector, (1.0, -2.0), strict=True):
        set_identity(projector.linear, scale)
    assert method.losses(step)["pefd"].item() == pytest.approx(4 * ((1 - 3 / 73**0.5) + 1) / 2, rel=1e-12)
