"""Knowledge review: fuse the student's stages from deep to shallow, and match each level to a stage of the teacher.

Paper:    Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", arXiv:2104.09044, §3.
Loss:     Levels from deep to shallow: the embedding as a 1x1 map, then the stages. x = 1x1 convolution and batch norm
          of the student's map; except at the deepest level x ← a · x + b · deeper, with the deeper level's map resized
          to that of x, and a, b = sigmoid(1x1 convolution of both), two weights for each position. Resized to the
          teacher's map, x goes on to the next level, and its 3x3 convolution and batch norm are compared with the
          teacher's map before the activation: mean squared error, plus 1/2, 1/4, 1/8 of that of both maps averaged to
          4x4, 2x2, 1x1 (those that are smaller than the map), divided by the sum of these weights.
          reviewkd_weight · min(epoch / warmup_epochs, 1) · the sum over levels, epochs counted from 1 to 240.
Defaults: reviewkd_weight 1, warmup_epochs 20, at most 512 channels inside: the authors' code. Their scripts set the
          weight for each pair: reviewkd@published.
Differs:  in nothing. Of the maps before the activation only the teacher's are used, but both networks must have them.
"""

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
    Output,
    Published,
    Range,
    Requires,
    Shapes,
    Step,
    lacks_feature_maps,
    match_stages,
    register,
    sum_losses,
)

MOST_CHANNELS = 512
"""Of the maps that are fused; fewer where the student's embedding has fewer dimensions."""


@dataclass(frozen=True)
class ReviewKDHyper(Hyper):
    reviewkd_weight: Annotated[float, "multiplies the sum over levels", Range(0.1, 10.0, log=True)] = 1.0
    warmup_epochs: Annotated[int, "epochs of 240 in which the weight grows linearly"] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("warmup_epochs")


def resized(maps: Tensor, size: torch.Size) -> Tensor:
    """Maps [B, K, H, W] with the height and width of `size`, by nearest neighbors."""
    return maps if maps.shape[2:] == size else F.interpolate(maps, tuple(size), mode="nearest")


class Fusion(nn.Module):
    """One level: fuses the student's map with that of the deeper level."""

    def __init__(self, channels: int, fused: int, teacher_channels: int, *, deepest: bool) -> None:
        super().__init__()
        enter = nn.Conv2d(channels, fused, 1, bias=False)
        leave = nn.Conv2d(fused, teacher_channels, 3, padding=1, bias=False)
        self.conv1 = nn.Sequential(enter, nn.BatchNorm2d(fused))
        self.conv2 = nn.Sequential(leave, nn.BatchNorm2d(teacher_channels))
        self.att_conv = None if deepest else nn.Sequential(nn.Conv2d(2 * fused, 2, 1), nn.Sigmoid())
        for conv in (enter, leave):
            nn.init.kaiming_uniform_(conv.weight, a=1)  # as in the authors' code

    def forward(self, student: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """What is compared with the teacher's map, and what the next level fuses; both have the teacher's `size`."""
        fused: Tensor = self.conv1(student)
        if self.att_conv is not None and deeper is not None:
            deeper = resized(deeper, fused.shape[2:])
            weights = self.att_conv(torch.cat([fused, deeper], dim=1))  # [B, 2, H, W]
            fused = fused * weights[:, :1] + deeper * weights[:, 1:]
        fused = resized(fused, size)
        return self.conv2(fused), fused


def pyramid_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Weighted mean of the mean squared errors of two maps [B, K, H, W] at full size and averaged to smaller ones."""
    distance, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size < student.shape[2]:
            weight /= 2
            student_mean, teacher_mean = (F.adaptive_avg_pool2d(maps, size) for maps in (student, teacher))
            distance = distance + weight * F.mse_loss(student_mean, teacher_mean)
            total += weight
    return distance / total


@register("reviewkd", ReviewKDHyper, paper="arXiv:2104.09044", year=2021, kind="features", group="modern")
class ReviewKD(Distiller[ReviewKDHyper]):
    """Trains a fusion for each level, `abfs.0` for the deepest."""

    def __init__(self, hyper: ReviewKDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        stages = match_stages(context.student.feature_maps, context.teacher.feature_maps)
        channels = [(student[0], teacher[0]) for student, teacher in stages]
        channels.append((context.student.embedding_dim, context.teacher.embedding_dim))
        fused = min(MOST_CHANNELS, context.student.embedding_dim)
        self.abfs = nn.ModuleList(
            Fusion(student, fused, teacher, deepest=not level)
            for level, (student, teacher) in enumerate(reversed(channels))
        )

    @classmethod
    def requires(cls, hyper: ReviewKDHyper) -> Requires:
        return Requires(pre_activations=True)

    @classmethod
    def supports(cls, hyper: ReviewKDHyper, shapes: Shapes) -> str | None:
        return lacks_feature_maps(shapes)

    def losses(self, step: Step) -> dict[str, Tensor]:
        factor = self.hyper.reviewkd_weight * step.warm_up(self.hyper.warmup_epochs)
        return {"review": factor * sum_losses(self.distances(step.student, step.teacher))}

    def distances(self, student: Output, teacher: Output) -> list[Tensor]:
        """The distance of each level, the deepest first."""
        assert teacher.pre_activations is not None
        levels = match_stages(student.feature_maps, teacher.pre_activations)
        levels.append((student.embedding[:, :, None, None], teacher.embedding[:, :, None, None]))
        distances, deeper = [], None
        for fusion, (student_map, teacher_map) in zip(self.abfs, reversed(levels), strict=True):
            compared, deeper = fusion(student_map, deeper, teacher_map.shape[2:])
            distances.append(pyramid_distance(compared, teacher_map))
        return distances


_WEIGHTS = {
    **dict.fromkeys(("wrn_40_2:wrn_16_2", "wrn_40_2:wrn_40_1", "resnet32x4:resnet8x4", "vgg13:vgg8"), 5.0),
    **dict.fromkeys(("wrn_40_2:ShuffleV1", "resnet32x4:ShuffleV1"), 5.0),
    "resnet32x4:ShuffleV2": 8.0,
    "resnet56:resnet20": 0.6,
    "resnet110:resnet32": 1.0,
}
_SOURCE = "ReviewKD's script/reviewKD.sh; vgg13:vgg8 from mdistiller's issue 23"
PUBLISHED = (Published(_SOURCE, {pair: {"reviewkd_weight": weight} for pair, weight in _WEIGHTS.items()}),)

GOLDEN = {
    "reviewkd": Golden(
        student={"feature_maps": "stu_feat", "embedding": "stu_pooled"},
        teacher={"pre_activations": "tea_preact", "embedding": "tea_pooled"},
        stem=True,
    )
}
