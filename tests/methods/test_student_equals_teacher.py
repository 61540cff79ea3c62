"""A student whose outputs are its teacher's has the loss that the paper's formula predicts.

The test modules of the methods work out the predictions by hand, in plain Python; of a method they read settings,
parameters and memories only. Those are set so that both sides agree where that leaves something to predict, or so that
what remains has a short form. Where 0 is predicted the value alone proves little: a perturbed student must then give
another one.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdbench.core.trial import VANILLA, Value
from kdbench.distill import Output, Shapes, Step
from kdbench.distill.step import EXTRA_TEACHERS
from tests.methods.build import all_terms, batch_of, construct, incompatibility, requirements, step_with, values
from tests.methods.by_hand import CLASSES, INDICES, LABELS, SHAPES, mean, softmax
from tests.methods.expectations import METHODS, Prediction, expectations

PREDICTIONS = [
    pytest.param(name, prediction, id=f"{name}-{number}")
    for name in METHODS
    for number, prediction in enumerate(expectations(name).predictions)
]


def output() -> Output:
    stream = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(len(INDICES), *shape, generator=stream, dtype=torch.float64)

    maps = tuple(draw(*shape) for shape in SHAPES.feature_maps)
    logits, embedding = draw(CLASSES), draw(SHAPES.embedding_dim)
    before = tuple(draw(*shape) for shape in SHAPES.feature_maps)
    classifier = draw(SHAPES.embedding_dim)[:CLASSES], draw()[:CLASSES]
    assert SHAPES.last_map is not None
    return Output(logits, maps, embedding, before, classifier, draw(*SHAPES.last_map))


@pytest.mark.parametrize(("name", "prediction"), PREDICTIONS)
def test_the_formula_predicts_the_loss(name: str, prediction: Prediction) -> None:
    teacher, batch = output(), batch_of(len(INDICES), INDICES, LABELS[INDICES])
    stream = torch.Generator().manual_seed(6)
    student = teacher.convert(lambda tensor: tensor + 0.3 * torch.randn(tensor.shape, generator=stream).double())
    student = student.materialize()
    weights: dict[str, Value] = {} if name == VANILLA else {"ce_weight": 0.7, "kd_weight": 0.6}
    required = requirements(name, prediction.settings)
    count = max(1, required.min_teachers)
    shapes = Shapes(SHAPES, (SHAPES,) * count, CLASSES, LABELS)
    assert incompatibility(name, shapes) is None

    def step(of_student: Output) -> Step:
        """All teachers, extra teachers and views have the same outputs."""
        extra = dict.fromkeys(EXTRA_TEACHERS, lambda: teacher)
        return step_with(required, batch, lambda: of_student, [lambda: teacher] * count, extra, epoch=1)

    method = construct(name, {**weights, **prediction.settings}, shapes, torch.float64, seed=4)
    with torch.no_grad():
        predicted = prediction.predict(method, teacher)
        # The trainer's own terms: the labels' cross-entropy, and the divergence of a distribution from itself.
        rows = zip(teacher.logits.tolist(), batch.labels.tolist(), strict=True)
        predicted["ce"] = float(weights.get("ce_weight", 1.0)) * mean(
            -math.log(softmax(row)[label]) for row, label in rows
        )
        if weights:
            predicted["kd"] = 0.0
        # The sums are taken in another order; where a number is subtracted from itself at most rounding is left.
        terms = values(all_terms(method, step(teacher)))
        assert terms == pytest.approx(predicted, rel=1e-10, abs=1e-12)
        perturbed = values(all_terms(method, step(student)))
    for term, value in predicted.items():
        if term not in prediction.independent_of_student:
            assert abs(perturbed[term] - value) > 1e-3 * max(value, 1e-3), f"{term} does not depend on the student"
