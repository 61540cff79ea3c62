"""Arithmetic in plain Python, for predictions that share no code with the methods; and the step they are made for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.distill import Output
from kdbench.models import FeatureShapes

IMAGES, CLASSES = 12, 4  # three images a class: each has nine of other classes
LABELS = torch.arange(IMAGES) % CLASSES
INDICES = torch.tensor([7, 2, 9, 4, 11])  # the batch
NEGATIVES = 9  # as many as there are, so that it does not matter in which order they are drawn
SHAPES = FeatureShapes(((2, 4, 4), (3, 4, 4), (4, 2, 2)), True, 6, last_map=(6, 2, 2))

Vector = list[float]
Rows = list[Vector]


def mean(numbers: Iterable[float]) -> float:
    numbers = list(numbers)
    return math.fsum(numbers) / len(numbers)


def dot(left: Vector, right: Vector) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def softmax(row: Vector) -> Vector:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / math.fsum(powers) for power in powers]


def linear(layer: nn.Linear, rows: Rows) -> Rows:
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return [[dot(line, row) + offset for line, offset in zip(weight, bias, strict=True)] for row in rows]


def unit(rows: Rows) -> Rows:
    """Each row divided by its length."""
    return [[value / math.sqrt(dot(row, row)) for value in row] for row in rows]


def by_channel(feature_map: Tensor) -> list[Rows]:
    """[B][K][H·W]"""
    channels: list[Rows] = feature_map.flatten(2).tolist()
    return channels


def entries(feature_map: Tensor) -> Vector:
    numbers: Vector = feature_map.flatten().tolist()
    return numbers


def batch_norm(channel: Vector) -> tuple[Vector, float, float]:
    """A channel's values after a fresh batch norm; their mean; the root of their variance plus 1e-5."""
    center = mean(channel)
    deviation = math.sqrt(mean((value - center) ** 2 for value in channel) + 1e-5)
    return [(value - center) / deviation for value in channel], center, deviation


def share_embedding(method: Any) -> None:
    """Embed both sides alike."""
    method.embed_teacher.load_state_dict(method.embed_student.state_dict())


def set_identity(layer: nn.Module, scale: float = 1.0) -> None:
    """Make a layer with as many outputs as inputs multiply by `scale`."""
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    with torch.no_grad():
        (nn.init.eye_ if isinstance(layer, nn.Linear) else nn.init.dirac_)(layer.weight)
        layer.weight.mul_(scale)
        if layer.bias is not None:
            layer.bias.zero_()


def no_terms(method: Any, output: Output) -> dict[str, float]:
    """The method adds no term to the trainer's."""
    return {}


def zeros(*terms: str) -> Callable[[Any, Output], dict[str, float]]:
    """A distance of two things that are computed alike from student and teacher, without trained modules."""
    return lambda method, output: dict.fromkeys(terms, 0.0)


def memory_scores(anchors: Rows, memory: Rows, temperature: float) -> Rows:
    """exp(v·m / T) / Z for the row of an image and those of other classes; Z = N · the mean of all exponentials."""
    labels = LABELS.tolist()
    rows = [
        [index, *(row for row in range(IMAGES) if labels[row] != label)]
        for index, label in zip(INDICES.tolist(), LABELS[INDICES].tolist(), strict=True)
    ]
    powers = [
        [math.exp(dot(anchor, memory[row]) / temperature) for row in selected]
        for anchor, selected in zip(anchors, rows, strict=True)
    ]
    constant = IMAGES * mean(power for row in powers for power in row)
    return [[power / constant for power in row] for row in powers]


def cross_entropy(student: Rows, teacher: Rows) -> float:
    """Mean over rows of -Σ softmax(teacher) · log softmax(student)."""
    return mean(
        -dot(softmax(teacher_row), [math.log(q) for q in softmax(student_row)])
        for student_row, teacher_row in zip(student, teacher, strict=True)
    )


def scaled(rows: Rows, factor: float) -> Rows:
    return [[value * factor for value in row] for row in rows]
