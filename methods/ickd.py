"""ICKD: match the correlations between the channels of the last feature map, image by image.

Paper:    Liu, Huang, Lin, Xie, Wang, Chang, Liang, "Exploring Inter-Channel Correlation for Diversity-Preserved
          Knowledge Distillation", arXiv:2202.03680, §3.
Loss:     The student's last feature map goes through a 1x1 convolution without bias and batch norm to the teacher's K
          channels. For each image G = F·Fᵀ [K, K] with F the map flattened to [K, H·W], rows divided by their L2 norm;
          ickd_weight · ‖G_student - G_teacher‖² / K, averaged over the batch.
Defaults: ickd_weight 2.5, CE 1, no KD: the authors' script for resnet32x4:resnet8x4.
Differs:  in nothing. The maps need not have equal sizes.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import Context, Distiller, Golden, Hyper, Range, Shapes, Step, lacks_feature_maps, register


@dataclass(frozen=True)
class ICKDHyper(Hyper):
    ickd_weight: Annotated[float, "multiplies the squared distance", Range(0.25, 25.0, log=True)] = 2.5


class Embedding(nn.Module):
    """The student's map at the teacher's number of channels."""

    def __init__(self, channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.conv2d = nn.Conv2d(channels, teacher_channels, 1, bias=False)
        self.l2norm = nn.BatchNorm2d(teacher_channels)  # as it is called in the authors' code

    def forward(self, feature_map: Tensor) -> Tensor:
        embedded: Tensor = self.l2norm(self.conv2d(feature_map))
        return embedded


def channel_correlations(feature_map: Tensor) -> Tensor:
    """Row-normalized inner products of the channels of maps [B, K, H, W]: [B, K, K]."""
    channels = feature_map.flatten(2)
    return F.normalize(channels @ channels.transpose(1, 2), dim=2)


@register("ickd", ICKDHyper, paper="arXiv:2202.03680", year=2021, kind="relations", group="modern")
class ICKD(Distiller[ICKDHyper]):
    """Trains the embedding `embed_s`."""

    def __init__(self, hyper: ICKDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.embed_s = Embedding(context.student.feature_maps[-1][0], context.teacher.feature_maps[-1][0])

    @classmethod
    def supports(cls, hyper: ICKDHyper, shapes: Shapes) -> str | None:
        return lacks_feature_maps(shapes)

    def losses(self, step: Step) -> dict[str, Tensor]:
        student = channel_correlations(self.embed_s(step.student.feature_maps[-1]))
        teacher = channel_correlations(step.teacher.feature_maps[-1])
        distance = (student - teacher).square().sum(dim=2).mean()
        return {"correlation": self.hyper.ickd_weight * distance}


GOLDEN = {"ickd_authors": Golden(student={"feature_maps": "f_s"}, teacher={"feature_maps": "f_t"})}
