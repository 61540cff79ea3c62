"""Factor transfer: an autoencoder condenses the teacher's last map; the student learns to produce the condensed form.

Paper:    Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", arXiv:1802.04977.
Loss:     First the paraphraser learns to reconstruct the teacher's last map (mean squared error). Then it is frozen,
          and the translator of the student's last map is trained with the student: attention of both factors (mean over
          channels of factor², flattened, divided by its L2 norm), ft_weight · mean absolute difference.
Defaults: weight 200, factor rate k = 0.5, slopes 0.1: RepDistiller's scripts and code. The paraphraser's rate is 0.01
          for students of the resnet and wrn families, else the student's own, as in its code.
Differs:  from the paper in comparing attention maps of the factors, not the normalized factors; the paraphraser has no
          batch normalization, the translator has. So does RepDistiller. The larger factor is average-pooled.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import (
    Context,
    Distiller,
    Golden,
    Hyper,
    Pretraining,
    Shapes,
    Step,
    attention,
    lacks_positions,
    match_spatial_size,
    register,
)

SLOPE = 0.1  # of the leaky ReLUs


@dataclass(frozen=True)
class FTHyper(Hyper):
    ft_weight: Annotated[float, "multiplies the mean absolute difference"] = 200.0
    k: Annotated[float, "channels of the factor, as a share of the teacher's"] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("k")


def factor_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of the attention of two factors [B, K, H, W]."""
    student, teacher = match_spatial_size(student, teacher)
    return (attention(student) - attention(teacher)).abs().mean()


def _block(convolution: nn.Module, channels: int, norm: bool) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(channels) if norm else nn.Identity(), nn.LeakyReLU(SLOPE)]


def _encoder(channels: int, factor: int, norm: bool) -> nn.Sequential:
    widths = (channels, channels, factor, factor)
    return nn.Sequential(
        *(
            module
            for before, after in pairwise(widths)
            for module in _block(nn.Conv2d(before, after, 3, padding=1), after, norm)
        )
    )


class Paraphraser(nn.Module):
    """Encodes the teacher's map into a factor, and decodes it again."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.encoder = _encoder(channels, factor, norm=False)
        widths = (factor, factor, channels, channels)
        self.decoder = nn.Sequential(
            *(
                module
                for before, after in pairwise(widths)
                for module in _block(nn.ConvTranspose2d(before, after, 3, padding=1), after, norm=False)
            )
        )


class Translator(nn.Module):
    """Brings the student's map into the form of the teacher's factor."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.encoder = _encoder(channels, factor, norm=True)


@register("ft", FTHyper, paper="arXiv:1802.04977", year=2018, kind="features", group="paper")
class FT(Distiller[FTHyper]):
    """`paraphraser` is trained first, `translator` with the student."""

    def __init__(self, hyper: FTHyper, context: Context) -> None:
        super().__init__(hyper, context)
        factor = int(context.teacher.feature_maps[-1][0] * hyper.k)
        self.translator = Translator(context.student.feature_maps[-1][0], factor)
        self.paraphraser = Paraphraser(context.teacher.feature_maps[-1][0], factor)
        self._slow = context.student_family in ("resnet", "wrn")

    @classmethod
    def supports(cls, hyper: FTHyper, shapes: Shapes) -> str | None:
        if reason := lacks_positions(shapes, last_only=True):
            return reason
        if int(shapes.teacher.feature_maps[-1][0] * hyper.k) < 1:
            return "k leaves no channel to the factor"
        return None

    def pretraining(self) -> Pretraining:
        return Pretraining(modules=(self.paraphraser,), lr=0.01 if self._slow else None)

    def pretraining_losses(self, step: Step) -> dict[str, Tensor]:
        target = step.teacher.feature_maps[-1]
        return {"reconstruction": F.mse_loss(self.paraphraser.decoder(self.paraphraser.encoder(target)), target)}

    def losses(self, step: Step) -> dict[str, Tensor]:
        with torch.no_grad():
            target = self.paraphraser.encoder(step.teacher.feature_maps[-1])
        own = self.translator.encoder(step.student.feature_maps[-1])
        return {"factor": self.hyper.ft_weight * factor_distance(own, target)}


GOLDEN = {
    "ft": Golden(
        student={"feature_maps": "f_s"},
        teacher={"feature_maps": "f_t"},
        settings={"k": "$k"},
        also_pretraining="out.paraphraser_reconstruction",
    )
}
