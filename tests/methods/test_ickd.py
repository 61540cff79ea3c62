"""ICKD."""

from __future__ import annotations

from math import sqrt

import pytest
import torch.nn.functional as F
from torch import Tensor

from tests.methods.build import make_for, output_with_feature_maps, step_of, tensor
from tests.methods.by_hand import set_identity
from tests.methods.expectations import Expectations, Mutation


def cosines(feature_map: Tensor) -> Tensor:
    """A typical mistake: the channels are normalized, not the rows of their inner products."""
    channels = F.normalize(feature_map.flatten(2), dim=2)
    return channels @ channels.transpose(1, 2)


EXPECTED = Expectations(
    mutations={
        "ickd_authors": Mutation("kdbench.methods.ickd.channel_correlations", lambda correlations: cosines),
    },
)


def test_by_hand() -> None:
    # With fresh statistics and weights of 1 the embedding only scales. Student's channels (1, 0) and (3, 4): their
    # inner products 1, 3 and 3, 25. The teacher's (1, 0) and (0, 1): the identity.
    student, teacher = tensor([[[1.0, 0.0]], [[3.0, 4.0]]]), tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    step = step_of(output_with_feature_maps(student, student), output_with_feature_maps(teacher, teacher))
    method = make_for("ickd", {"ickd_weight": 4.0}, step).eval()
    set_identity(method.embed_s.conv2d)
    first = (1 / sqrt(10) - 1) ** 2 + (3 / sqrt(10)) ** 2
    second = (3 / sqrt(634)) ** 2 + (25 / sqrt(634) - 1) ** 2
    assert method.losses(step)["correlation"].item() == pytest.approx(4 * (first + second) / 2, rel=1e-12)
