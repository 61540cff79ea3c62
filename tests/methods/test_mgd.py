"""MGD."""

from __future__ import annotations

import pytest
import torch

from tests.methods.build import make_for, output_with_feature_maps, step_of, tensor
from tests.methods.by_hand import set_identity
from tests.methods.expectations import Expectations, Mutation

EXPECTED = Expectations(
    refused=({"mask_ratio": 1.0}, {"mask_ratio": -0.1}),
    mutations={
        "mgd": Mutation(  # what is kept is scaled up, as in dropout
            "kdbench.methods.mgd.Generator.forward",
            lambda forward: lambda self, student, kept: forward(self, student, kept * 1.25),
        )
    },
)


def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Convolutions that change nothing, ReLU between them. The second channel is masked: (3, 5, -7) becomes (3, 0, 0).
    # The teacher has (1, 2, 4): 2² + 2² + 4², summed for each of two equal images.
    maps = [output_with_feature_maps(m, m) for m in (tensor(*[[[[3.0]], [[5.0]], [[-7.0]]]] * 2),)]
    maps += [output_with_feature_maps(m, m) for m in (tensor(*[[[[1.0]], [[2.0]], [[4.0]]]] * 2),)]
    step = step_of(*maps)
    method = make_for("mgd", {"mgd_weight": 10.0, "mask_ratio": 0.3}, step)
    for index in (0, 2):
        set_identity(method.mgd.generation[index])
    draws = tensor(*[[[[0.3]], [[0.29]], [[0.9]]]] * 2)
    monkeypatch.setattr(method, "draw", lambda teacher: draws)
    assert method.losses(step)["generated"].item() == pytest.approx(10 * (2**2 + 2**2 + 4**2), rel=1e-12)


def test_every_step_draws_anew_from_the_methods_generator() -> None:
    image = torch.zeros(2, 3, 1, 1)
    method = make_for("mgd", {}, step_of(*[output_with_feature_maps(image, image)] * 2))
    state = method.generator.get_state()
    first, second = method.draw(image), method.draw(image)
    assert first.shape == (2, 3, 1, 1)
    assert not torch.equal(first, second)
    method.generator.set_state(state)
    assert torch.equal(method.draw(image), first)
