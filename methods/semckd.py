"""SemCKD: each student stage learns from all teacher stages, weighted by attention between their batch similarities.

Paper:    Chen, Mei, Zhang, Wang, Feng, Chen, "Cross-Layer Distillation with Semantic Calibration", arXiv:2012.03236,
          §3.
Loss:     Of each stage the rows of F·Fᵀ, F being its map flattened to [B, K·H·W], go through two linear layers with
          ReLU between them and are L2-normalized: queries of the student's stages, keys of the teacher's. For each
          image the softmax over the teacher's stages of query · key weighs the mean squared errors between
          regressor(student's map) and the teacher's map, both average-pooled to the smaller height before; summed over
          all pairs of stages, averaged over the batch and the student's stages, times semckd_weight. A regressor is
          1x1, 3x3, 1x1 convolutions without bias, twice the teacher's channels inside, batch norm and ReLU between.
Defaults: semckd_weight 400, CE 1, KD 1 (T = 4), batch 64, factor 4: the authors' scripts.
Differs:  the authors' first linear layer is as wide as the batch, so that only batches of one size can be trained. Here
          it is `batch` wide (at most the number of training images): rows of smaller batches are padded with zeros,
          those of larger ones are cut. At the published batch of 64 nothing changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import (
    Context,
    Distiller,
    Golden,
    Hyper,
    Range,
    Shapes,
    Step,
    lacks_feature_maps,
    match_spatial_size,
    register,
)


@dataclass(frozen=True)
class SemCKDHyper(Hyper):
    kd_weight: Annotated[float, "weight of the KL divergence to the teacher's softened class probabilities"] = 1.0
    semckd_weight: Annotated[
        float, "multiplies the attention-weighted squared errors", Range(40.0, 4000.0, log=True)
    ] = 400.0
    batch: Annotated[int, "images whose similarities the attention reads; the published batch size"] = 64
    factor: Annotated[int, "queries and keys have `batch` dimensions divided by this"] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("batch", "factor")


class Embedding(nn.Module):
    """Queries or keys [B, D] of rows of similarities [B, `batch`]."""

    def __init__(self, batch: int, dimensions: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(batch, 2 * dimensions)
        self.linear2 = nn.Linear(2 * dimensions, dimensions)

    def forward(self, similarities: Tensor) -> Tensor:
        return F.normalize(self.linear2(F.relu(self.linear1(similarities))))


class Regressor(nn.Module):
    """A map of the student [B, K, H, W] at the teacher's number of channels."""

    def __init__(self, channels: int, teacher_channels: int) -> None:
        super().__init__()
        inner = 2 * teacher_channels
        self.regressor = nn.Sequential(
            *(nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
            *(nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
            nn.Conv2d(inner, teacher_channels, 1, bias=False),
        )

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean squared error of each image, [B]."""
        student, teacher = match_spatial_size(student, teacher)
        regressed: Tensor = self.regressor(student)
        return (regressed - teacher).square().mean(dim=(1, 2, 3))


def similarities(feature_map: Tensor, batch: int) -> Tensor:
    """Inner products of a batch's maps [B, K, H, W]: [B, `batch`], padded with zeros or cut."""
    rows = feature_map.flatten(1)
    return F.pad(rows @ rows.T, (0, batch - len(rows)))  # a negative padding cuts


@register("semckd", SemCKDHyper, paper="arXiv:2012.03236", year=2021, kind="features", group="modern")
class SemCKD(Distiller[SemCKDHyper]):
    """`attention` has a query for each student stage, a key for each teacher stage, a regressor for each pair."""

    def __init__(self, hyper: SemCKDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.batch = min(hyper.batch, len(context.labels))
        dimensions = max(1, self.batch // hyper.factor)
        student, teacher = (shapes.feature_maps[1:] for shapes in (context.student, context.teacher))
        modules: dict[str, nn.Module] = {f"query_{i}": Embedding(self.batch, dimensions) for i in range(len(student))}
        modules |= {f"key_{j}": Embedding(self.batch, dimensions) for j in range(len(teacher))}
        modules |= {
            f"regressor{i}{j}": Regressor(mine[0], theirs[0])
            for i, mine in enumerate(student)
            for j, theirs in enumerate(teacher)
        }
        self.attention = nn.ModuleDict(modules)

    @classmethod
    def supports(cls, hyper: SemCKDHyper, shapes: Shapes) -> str | None:
        return lacks_feature_maps(shapes)

    def losses(self, step: Step) -> dict[str, Tensor]:
        student, teacher = step.student.feature_maps[1:], step.teacher.feature_maps[1:]
        weights = self.weights(student, teacher)
        errors = [
            torch.stack([self.attention[f"regressor{i}{j}"](mine, theirs) for j, theirs in enumerate(teacher)], dim=1)
            for i, mine in enumerate(student)
        ]
        weighted = weights * torch.stack(errors, dim=1)  # [B, S, T]: images, stages of the student and of the teacher
        return {"calibrated": self.hyper.semckd_weight * weighted.sum(dim=2).mean()}

    def weights(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Attention of each student stage to the teacher's, [B, S, T]; sums to 1 over T."""
        queries, keys = (
            torch.stack([self.attention[f"{name}_{i}"](similarities(m, self.batch)) for i, m in enumerate(maps)], dim=1)
            for name, maps in (("query", student), ("key", teacher))
        )
        return (queries @ keys.transpose(1, 2)).softmax(dim=2)


GOLDEN = {
    "semckd": Golden(
        student={"feature_maps": "g_s"},
        teacher={"feature_maps": "g_t"},
        settings={"kd_weight": 0.0, "factor": "$factor"},
    )
}
