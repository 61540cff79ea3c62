"""The plain student."""

from __future__ import annotations

from math import log

import pytest
import torch

from kdbench.distill import Output, Shapes
from kdbench.distill.objective import objective
from kdbench.models import FeatureShapes
from tests.methods.build import batch_of, construct, step_of
from tests.methods.by_hand import no_terms
from tests.methods.expectations import Expectations, Prediction

EXPECTED = Expectations(
    refused=({"ce_weight": 2.0}, {"kd_weight": 1.0}, {"kd_temperature": 2.0}),
    predictions=(Prediction(no_terms),),
)


def test_by_hand() -> None:
    # Probabilities of the labels: 3/4 and 1/2; the mean of -log over the two images.
    logits = torch.tensor([[log(3), 0.0], [0.0, 0.0]], dtype=torch.float64)
    sides = FeatureShapes((), False, 2)
    method = construct("vanilla", {}, Shapes(sides, (sides,), 2, torch.tensor([0, 1])), torch.float64)
    step = step_of(Output(logits, (), logits), batch=batch_of(2, labels=torch.tensor([0, 1])))
    terms = objective(method, step)
    assert set(terms) == {"ce"}
    assert terms["ce"].item() == pytest.approx((log(4 / 3) + log(2)) / 2, rel=1e-12)
