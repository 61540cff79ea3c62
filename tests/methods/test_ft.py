"""Factor transfer."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest

from kdbench.distill import Output
from kdbench.methods.ft import factor_distance
from tests.methods.build import tensor
from tests.methods.by_hand import Rows, Vector, batch_norm, entries, mean, set_identity, unit
from tests.methods.expectations import Expectations, Mutation, Prediction


def identity_convolutions(method: Any, output: Output) -> dict[str, float]:
    # As many factors as channels, all convolutions the identity. Three leaky ReLUs of slope 0.1 encode: x < 0 becomes
    # x/10³; three more decode: x/10⁶ remains. The translator has a fresh batch norm before each of its leaky ReLUs.
    x = output.feature_maps[-1]
    modules = (method.paraphraser.encoder, method.paraphraser.decoder, method.translator.encoder)
    for module in modules:
        for convolution in module[::3]:
            set_identity(convolution)
    lost = mean((min(v, 0.0) * (1 - 1e-6)) ** 2 for v in entries(x))

    channels = [entries(channel) for channel in x.unbind(1)]  # [K][B·H·W]
    target = [[v if v > 0 else v / 1000 for v in channel] for channel in channels]
    for _ in range(3):
        channels = [[z if z > 0 else z / 10 for z in batch_norm(channel)[0]] for channel in channels]

    def attention(factor: Rows) -> Vector:
        positions = x[0, 0].numel()
        squares = [mean(v**2 for v in position) for position in zip(*factor, strict=True)]  # [B·H·W]
        images = [squares[start : start + positions] for start in range(0, len(squares), positions)]
        return [value for image in unit(images) for value in image]

    apart = mean(abs(a - b) for a, b in zip(attention(channels), attention(target), strict=True))
    return {"pretraining reconstruction": lost, "factor": method.hyper.ft_weight * apart}


EXPECTED = Expectations(
    refused=({"k": 0.0},),
    predictions=(
        Prediction(identity_convolutions, {"ft_weight": 3.0, "k": 1.0}, frozenset({"pretraining reconstruction"})),
    ),
    mutations={
        "ft": Mutation(
            "kdbench.methods.ft.factor_distance", lambda loss: lambda student, teacher: loss(student, teacher) ** 2
        )
    },
)


def test_by_hand() -> None:
    # Squares of (3, 4) are (9, 16), of length √337; those of (1, 0) are (1, 0). The mean absolute difference.
    loss = factor_distance(tensor([[[3.0, 4.0]]]), tensor([[[1.0, 0.0]]]))
    assert loss.item() == pytest.approx((1 - 9 / sqrt(337) + 16 / sqrt(337)) / 2, rel=1e-12)
