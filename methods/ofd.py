"""OFD: match the teacher's maps before the activation, as far as a ReLU with a margin would let them through.

Paper:    Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", arXiv:1904.01866, §3.
Loss:     For each pair of stages: s = 1x1 convolution without bias and batch norm of the student's map; t = the
          teacher's map, average-pooled to the student's size, at least a margin. (s - t)², except where s <= t and the
          teacher's map is not positive; summed over channels and positions, averaged over the batch, divided by
          2^(n - 1 - i) for stage i = 0 ... n - 1 of n; ofd_weight · the sum over the stages.
          A channel's margin is the mean of its negative values, for a normal distribution with the mean and deviation
          of the teacher's batch norm; -3 deviations where less than 0.001 of it is negative.
Defaults: ofd_weight 0.001, kernel_size 1: mdistiller's configuration for CIFAR-100, by the authors' code.
Differs:  the teacher is in evaluation mode, as everywhere here; mdistiller's normalizes by the batch. A deviation of 0
          gives a finite margin.
"""

import math
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
    Requires,
    Shapes,
    Step,
    lacks_feature_maps,
    match_stages,
    register,
    sum_losses,
)

RARE = 0.001
"""Share of negative values up to which their mean is not what the margin is."""


@dataclass(frozen=True)
class OFDHyper(Hyper):
    ofd_weight: Annotated[float, "multiplies the sum over stages", Range(1e-4, 1e-2, log=True)] = 1e-3
    kernel_size: Annotated[int, "height and width of the connectors' convolutions, an odd number"] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be an odd number above 0, got {self.kernel_size}")


def negative_mean(deviation: Tensor, mean: Tensor) -> Tensor:
    """Mean of the negative values of normal distributions, or -3 deviations where they are rare; all [K]."""
    deviation, mean = deviation.double().abs(), mean.double()
    z = -mean / deviation.clamp(min=torch.finfo(torch.float64).tiny)
    share = torch.special.ndtr(z)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return torch.where(share > RARE, mean - deviation * density / share, -3 * deviation)


def partial_distance(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Squared distance to the teacher's map, at least the margin, where it counts: summed, and averaged over B.

    Args:
        student, teacher: maps before the activation, both [B, K, H, W].
        margin: [K], not positive.
    """
    target = torch.maximum(teacher, margin[:, None, None])
    counts = (student > target) | (teacher > 0)
    return ((student - target).square() * counts).sum() / len(student)


def connector(channels: int, teacher_channels: int, kernel_size: int) -> nn.Sequential:
    """Convolution and batch norm, initialized as in the authors' code."""
    conv = nn.Conv2d(channels, teacher_channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(teacher_channels))


@register("ofd", OFDHyper, paper="arXiv:1904.01866", year=2019, kind="features", group="modern")
class OFD(Distiller[OFDHyper]):
    """Trains a connector `connectors.i` for the i-th pair of stages, whose margins are `margin_i`."""

    def __init__(self, hyper: OFDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        pairs = match_stages(context.student.feature_maps, context.teacher.feature_maps)
        self.connectors = nn.ModuleList(
            connector(student[0], teacher[0], hyper.kernel_size) for student, teacher in pairs
        )
        assert context.teacher_batch_norms is not None
        for stage, norm in enumerate(context.teacher_batch_norms[-len(pairs) :]):
            self.register_buffer(f"margin_{stage}", negative_mean(*norm).float())

    @classmethod
    def requires(cls, hyper: OFDHyper) -> Requires:
        return Requires(pre_activations=True, teacher_batch_norms=True)

    @classmethod
    def supports(cls, hyper: OFDHyper, shapes: Shapes) -> str | None:
        return lacks_feature_maps(shapes)

    def losses(self, step: Step) -> dict[str, Tensor]:
        assert step.student.pre_activations is not None
        assert step.teacher.pre_activations is not None
        pairs = match_stages(step.student.pre_activations, step.teacher.pre_activations)
        distances = []
        for stage, (student, teacher) in enumerate(pairs):
            pooled = F.adaptive_avg_pool2d(teacher, (student.shape[2], student.shape[3]))
            margin = self.get_buffer(f"margin_{stage}")
            distance = partial_distance(self.connectors[stage](student), pooled, margin)
            distances.append(distance / 2 ** (len(pairs) - 1 - stage))
        return {"partial": self.hyper.ofd_weight * sum_losses(distances)}


GOLDEN = {
    "ofd": Golden(
        student={"pre_activations": "stu_preact"},
        teacher={"pre_activations": "tea_preact"},
        context={"teacher_batch_norms": "tea_bn"},
        settings={"kernel_size": "$kernel_size"},
        stem=True,
    )
}
