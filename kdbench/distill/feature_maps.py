"""What methods that match feature maps share: pairs of stages, spatial sizes, attention, a convolutional regressor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill.step import Shapes

T = TypeVar("T")
MapShape = tuple[int, int, int]  # K, H, W
VARIANCE_EPS = 1e-5


def match_stages(student: Sequence[T], teacher: Sequence[T]) -> list[tuple[T, T]]:
    """Feature maps (or their shapes) of student and teacher stage by stage, the stem left out.

    Where the numbers of stages differ they are paired from the last one backwards.
    """
    count = min(len(student), len(teacher)) - 1
    return list(zip(student[len(student) - count :], teacher[len(teacher) - count :], strict=True)) if count > 0 else []


def match_spatial_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both feature maps [B, K, H, W] at the height of the smaller one: the larger is average-pooled to it."""
    student_height, teacher_height = student.shape[2], teacher.shape[2]
    if student_height > teacher_height:
        return F.adaptive_avg_pool2d(student, (teacher.shape[2], teacher.shape[3])), teacher
    if student_height < teacher_height:
        return student, F.adaptive_avg_pool2d(teacher, (student.shape[2], student.shape[3]))
    return student, teacher


def attention(features: Tensor) -> Tensor:
    """Mean over channels of the squares of a map [B, K, H, W], flattened and divided by its L2 norm: [B, H·W].

    Source: Zagoruyko, Komodakis, arXiv:1612.03928, §3.1.
    """
    return F.normalize(features.square().mean(dim=1).flatten(1))


def cell_statistics(features: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation [grid², B, K] of the grid x grid cells of maps [B, K, H, W], cut as by adaptive pooling."""
    rows, columns = ([slice(i * n // grid, -(-(i + 1) * n // grid)) for i in range(grid)] for n in features.shape[2:])
    parts = [features[:, :, row, column].flatten(2) for row in rows for column in columns]
    variances = [part.var(dim=2, correction=min(1, part.shape[2] - 1)) for part in parts]
    return torch.stack([part.mean(dim=2) for part in parts]), (torch.stack(variances) + VARIANCE_EPS).sqrt()


def sum_losses(losses: Iterable[Tensor]) -> Tensor:
    """Sum of scalars; raises ValueError if there is none."""
    terms = list(losses)
    if not terms:
        raise ValueError("there is no pair of stages to compare")
    return torch.stack(terms).sum()


def lacks_feature_maps(shapes: Shapes) -> str | None:
    """For `supports`: why a method that compares stages has nothing to compare."""
    for side, features in (("student", shapes.student), ("teacher", shapes.teacher)):
        if len(features.feature_maps) < 2:
            return f"the {side} has no stage maps"
    return None


def lacks_positions(shapes: Shapes, *, last_only: bool = False) -> str | None:
    """For `supports`: as `lacks_feature_maps`, or that each pair of stages (the last pair) meets in one position.

    A method that normalizes over positions is identically zero there.
    """
    if reason := lacks_feature_maps(shapes):
        return reason
    pairs = match_stages(shapes.student.feature_maps, shapes.teacher.feature_maps)[-1 if last_only else 0 :]
    if max(min(student[1] * student[2], teacher[1] * teacher[2]) for student, teacher in pairs) == 1:
        return "all feature maps that it compares are 1x1, where its loss is identically zero"
    return None


def lacks_parts(shapes: Shapes) -> str | None:
    """For the `supports` of methods that compare parts of the last maps: that one has a single position."""
    maps = [shape for shape in (shapes.student.last_map, shapes.teacher.last_map) if shape is not None]
    if any(shape[1:] == (1, 1) for shape in maps):
        return "a last feature map of this pair is 1x1: it has no parts to compare"
    return None


class ConvRegressor(nn.Module):
    """A convolution that brings the student's map to the teacher's shape, batch norm and (where asked for) ReLU.

    Source: the regressor of FitNets (arXiv:1412.6550) as RepDistiller sizes it: 3x3 with stride 2 to halve, transposed
    4x4 to double, else as large as the difference of the sizes asks for.
    """

    def __init__(self, student: MapShape, teacher: MapShape, *, relu: bool) -> None:
        super().__init__()
        self.conv = self._convolution(student, teacher)
        self.bn = nn.BatchNorm2d(teacher[0])
        self.relu = relu

    @staticmethod
    def incompatibility(student: MapShape, teacher: MapShape) -> str | None:
        """None, or why no convolution of this family fits."""
        grows = any(size < target for size, target in zip(student[1:], teacher[1:], strict=True))
        doubles = all(2 * size == target for size, target in zip(student[1:], teacher[1:], strict=True))
        if grows and not doubles:
            size, target = ("x".join(map(str, shape[1:])) for shape in (student, teacher))
            return f"its regressor cannot bring maps of {size} to {target}"
        return None

    @staticmethod
    def _convolution(student: MapShape, teacher: MapShape) -> nn.Module:
        if reason := ConvRegressor.incompatibility(student, teacher):
            raise ValueError(reason)
        (channels, height, width), (target_channels, target_height, target_width) = student, teacher
        if (height, width) == (2 * target_height, 2 * target_width):
            return nn.Conv2d(channels, target_channels, kernel_size=3, stride=2, padding=1)
        if (2 * height, 2 * width) == (target_height, target_width):
            return nn.ConvTranspose2d(channels, target_channels, kernel_size=4, stride=2, padding=1)
        kernel = (1 + height - target_height, 1 + width - target_width)
        return nn.Conv2d(channels, target_channels, kernel_size=kernel)

    def forward(self, features: Tensor) -> Tensor:
        regressed: Tensor = self.bn(self.conv(features))
        return F.relu(regressed) if self.relu else regressed
