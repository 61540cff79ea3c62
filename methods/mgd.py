"""MGD: generate the teacher's last feature map from the student's, of which random channels are masked.

Paper:    Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", arXiv:2205.01529, §3.
Loss:     The student's last feature map, brought to the teacher's channels by a 1x1 convolution where they differ;
          each channel of each image is set to 0 with probability mask_ratio; then 3x3 convolution, ReLU, 3x3
          convolution; mgd_weight · the squared error to the teacher's map, summed over channels and positions and
          averaged over the batch.
Defaults: mgd_weight 0.0012, mask_ratio 0.15, CE 1: the authors' configuration for CIFAR-100; ImageNet's weight, and the
          default of their code, is 7e-5.
Differs:  maps of unequal size are average-pooled to the smaller height; the authors' code refuses them.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
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
class MGDHyper(Hyper):
    mgd_weight: Annotated[float, "multiplies the squared error, a sum", Range(7e-5, 0.02, log=True)] = 1.2e-3
    mask_ratio: Annotated[float, "share of the channels that are masked, at least 0 and below 1", Range(0.0, 0.9)] = (
        0.15
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be at least 0 and below 1, got {self.mask_ratio}")


class Generator(nn.Module):
    """Generates the teacher's map [B, K, H, W] from the student's."""

    def __init__(self, channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.align = nn.Identity() if channels == teacher_channels else nn.Conv2d(channels, teacher_channels, 1)
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )

    def forward(self, student: Tensor, kept: Tensor) -> Tensor:
        """`kept` says for each image and channel of the teacher, [B, K, 1, 1], whether it is not masked."""
        generated: Tensor = self.generation(self.align(student) * kept)
        return generated


def squared_error(generated: Tensor, teacher: Tensor) -> Tensor:
    """Of maps [B, K, H, W], summed over all but B, averaged over B."""
    return (generated - teacher).square().sum() / len(teacher)


@register("mgd", MGDHyper, paper="arXiv:2205.01529", year=2022, kind="features", group="modern")
class MGD(Distiller[MGDHyper]):
    """Trains the generator `mgd`."""

    def __init__(self, hyper: MGDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.mgd = Generator(context.student.feature_maps[-1][0], context.teacher.feature_maps[-1][0])

    @classmethod
    def supports(cls, hyper: MGDHyper, shapes: Shapes) -> str | None:
        return lacks_feature_maps(shapes)

    def losses(self, step: Step) -> dict[str, Tensor]:
        student, teacher = match_spatial_size(step.student.feature_maps[-1], step.teacher.feature_maps[-1])
        kept = self.draw(teacher) >= self.hyper.mask_ratio
        return {"generated": self.hyper.mgd_weight * squared_error(self.mgd(student, kept), teacher)}

    def draw(self, teacher: Tensor) -> Tensor:
        """A number between 0 and 1 for each image and channel, [B, K, 1, 1]."""
        return torch.rand(len(teacher), teacher.shape[1], 1, 1, generator=self.generator, device=teacher.device)


GOLDEN = {
    "mgd": Golden(
        student={"feature_maps": "f_s"},
        teacher={"feature_maps": "f_t"},
        settings={"mask_ratio": "$lambda_mgd"},
        replaced={"draw": "mask_uniform"},
    )
}
