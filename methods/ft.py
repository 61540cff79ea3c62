"""Factor transfer: an autoencoder condenses the teacher's last feature map into a factor, which the student learns.

Paper:    Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", arXiv:1802.04977.
Loss:     Pretraining: the paraphraser, an autoencoder, learns to reconstruct the teacher's last feature map (mean
          squared error). Main training: it is frozen, and a translator of the student's last feature map is trained
          with the student: attention of both factors (mean over channels of factor², flattened, divided by its L2
          norm); ft_weight · the mean absolute difference.
Defaults: ft_weight 200, k 0.5, leaky ReLUs of slope 0.1: RepDistiller's scripts and code. The paraphraser's learning
          rate is 0.01 for students of the families resnet and wrn, else the student's, as in that code.
Differs:  compares attention maps of the factors, where the paper compares the normalized factors; the translator has
          batch normalization, the paraphraser has none. RepDistiller does so too. The larger factor is average-pooled.
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
    Range,
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
    ft_weight: Annotated[float, "multiplies the mean absolute difference", Range(20.0, 2000.0, log=True)] = 200.0
    k: Annotated[float, "channels of the factor, as a share of the teacher's", Range(0.25, 1.0)] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("k")


def factor_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of the attention of two factors.

    Args:
        student, teacher: factors [B, K, H, W]; K, H and W may differ.
    """
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
    """An autoencoder: feature map [B, K, H, W] -> factor [B, F, H, W] -> feature map."""

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
    """Encodes the student's feature map [B, K, H, W] as a factor [B, F, H, W]."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.encoder = _encoder(channels, factor, norm=True)


@register("ft", FTHyper, paper="arXiv:1802.04977", year=2018, kind="features", group="paper")
class FT(Distiller[FTHyper]):
    """Trains `paraphraser` in pretraining, and `translator` with the student."""

    def __init__(self, hyper: FTHyper, context: Context) -> None:
        super().__init__(hyper, context)
        factor = int(context.teacher.feature_maps[-1][0] * hyper.k)
        self.translator = Translator(context.student.feature_maps[-1][0], factor)
        self.paraphraser = Paraphraser(context.teacher.feature_maps[-1][0], factor)
        self._paraphraser_lr = 0.01 if context.student_family in ("resnet", "wrn") else None

    @classmethod
    def supports(cls, hyper: FTHyper, shapes: Shapes) -> str | None:
        if reason := lacks_positions(shapes, last_only=True):
            return reason
        if int(shapes.teacher.feature_maps[-1][0] * hyper.k) < 1:
            return f"k = {hyper.k:g} leaves its factor without a channel"
        return None

    def pretraining(self) -> Pretraining:
        return Pretraining(modules=(self.paraphraser,), lr=self._paraphraser_lr)

    def pretraining_losses(self, step: Step) -> dict[str, Tensor]:
        teacher = step.teacher.feature_maps[-1]
        return {"reconstruction": F.mse_loss(self.paraphraser.decoder(self.paraphraser.encoder(teacher)), teacher)}

    def losses(self, step: Step) -> dict[str, Tensor]:
        with torch.no_grad():
            teacher_factor = self.paraphraser.encoder(step.teacher.feature_maps[-1])
        student_factor = self.translator.encoder(step.student.feature_maps[-1])
        return {"factor": self.hyper.ft_weight * factor_distance(student_factor, teacher_factor)}


GOLDEN = {
    "ft": Golden(
        student={"feature_maps": "f_s"},
        teacher={"feature_maps": "f_t"},
        settings={"k": "$k"},
        also_pretraining="out.paraphraser_reconstruction",
    )
}
