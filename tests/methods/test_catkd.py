"""CAT-KD."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest

from kdbench.core.trial import Pair, Value
from kdbench.distill import Output, registry
from tests.methods.build import make_for, output_with_embedding, shapes_of_pair, step_of, tensor
from tests.methods.expectations import Expectations, Mutation

EXPECTED = Expectations(
    refused=({"resolution": 0},),
    mutations={
        "catkd": Mutation(
            "kdbench.methods.catkd.class_activation_maps",
            lambda maps: lambda output, resolution, normalize: maps(output, resolution, not normalize),
        )
    },
)


def output(row: list[float], weight: float) -> Output:
    last_map = tensor([[row, row]])
    embedding = output_with_embedding(last_map.mean(dim=(2, 3)))
    return replace(embedding, last_map=last_map, classifier=(tensor([weight]), tensor(9.0)))


def test_by_hand() -> None:
    # Maps of 2x4 averaged to 2x2: the student's rows are 2 · (1, 3), the teacher's -1 · (4, 0); the bias of 9 is left
    # out. Normalized over the four cells: (1, 3) / √20 and (-4, 0) / √32.
    step = step_of(output([0.0, 2.0, 3.0, 3.0], 2.0), output([4.0, 4.0, 0.0, 0.0], -1.0))
    settings = {"catkd_weight": 3.0, "resolution": 2}
    plain = make_for("catkd", {**settings, "normalize": False}, step).losses(step)["activation"]
    assert plain.item() == pytest.approx(3 * ((2 + 4) ** 2 + 6**2) / 2, rel=1e-12)
    normalized = make_for("catkd", {**settings, "normalize": True}, step).losses(step)["activation"]
    expected = ((1 / sqrt(20) + 4 / sqrt(32)) ** 2 + (3 / sqrt(20)) ** 2) / 2
    assert normalized.item() == pytest.approx(3 * expected, rel=1e-12)


PAIR = Pair(("vgg13",), "vgg8")


def test_normalized_maps_need_cells() -> None:
    shapes = shapes_of_pair("catkd", PAIR, 32)
    assert shapes.teacher.last_map is not None
    coarse = {"normalize": True, "resolution": 1}
    cases: list[tuple[dict[str, Value], bool]] = [({}, False), ({"normalize": True}, False), ({**coarse}, True)]
    for settings, refused in cases:
        assert bool(registry.incompatibility("catkd", settings, shapes)) == refused
    small = shapes_of_pair("catkd", PAIR, 8)
    assert registry.incompatibility("catkd", {"normalize": True}, small)
    assert registry.incompatibility("catkd", {}, small) is None
