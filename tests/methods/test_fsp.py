"""Flow of solution procedure."""

from __future__ import annotations

import pytest

from kdbench.methods.fsp import flow
from tests.methods.build import tensor
from tests.methods.by_hand import zeros
from tests.methods.expectations import Expectations, Mutation, Prediction

EXPECTED = Expectations(
    unsupported="it needs equal channels",
    predictions=(Prediction(zeros("pretraining flow")),),
    mutations={
        "fsp": Mutation("kdbench.methods.fsp.flow", lambda flow: lambda maps: [matrix * 1.001 for matrix in flow(maps)])
    },
)


def test_by_hand() -> None:
    # Inner products over the two positions, averaged: (1·3 + 2·4)/2 and (1·5 + 2·6)/2.
    (matrix,) = flow([tensor([[[1.0, 2.0]]]), tensor([[[3.0, 4.0]], [[5.0, 6.0]]])])
    assert matrix.tolist() == [[[pytest.approx(5.5), pytest.approx(8.5)]]]
