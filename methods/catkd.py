"""CAT-KD: match the class activation maps, which say where in the image a classifier sees each class.

Paper:    Guo, Yan, Li, Lin, "Class Attention Transfer Based Knowledge Distillation", arXiv:2304.12777, §3.
Loss:     The classifier's weight, without its bias, applied to each position of the last map gives a map for each
          class; average-pooled to resolution x resolution and, if `normalize`, divided by its L2 norm over these cells;
          catkd_weight · mean squared error between student and teacher over batch, classes and cells. The student's
          classifier learns from it as well.
Defaults: catkd_weight 15, resolution 2, not normalized, CE 1: the authors' setting for resnet32x4:resnet8x4. They tune
          all three for each pair (catkd@published); the 400 and normalized maps of their code are used for none.
Differs:  the authors' students have a classifier without bias, and theirs is dropped from the teacher's; here the
          student is the network that every method trains, bias included. The bias is left out of the maps only.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import (
    Distiller,
    Golden,
    Hyper,
    Output,
    Published,
    Range,
    Requires,
    Shapes,
    Step,
    lacks_parts,
    register,
)


@dataclass(frozen=True)
class CATKDHyper(Hyper):
    catkd_weight: Annotated[float, "multiplies the squared error of the maps", Range(0.5, 800.0, log=True)] = 15.0
    resolution: Annotated[int, "height and width to which the maps are averaged"] = 2
    normalize: Annotated[bool, "whether each class's map is divided by its L2 norm"] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("resolution")


def class_activation_maps(output: Output, resolution: int, normalize: bool) -> Tensor:
    """[B, R², C]: what the classifier gives each class in each of R x R cells, its bias left out."""
    assert output.last_map is not None
    assert output.classifier is not None
    # The mean over positions commutes with the linear classifier, which is cheaper afterwards.
    cells = F.adaptive_avg_pool2d(output.last_map, resolution).flatten(2).transpose(1, 2)  # [B, R², D]
    maps = F.linear(cells, output.classifier[0])
    return F.normalize(maps) if normalize else maps


@register("catkd", CATKDHyper, paper="arXiv:2304.12777", year=2023, kind="features", group="modern")
class CATKD(Distiller[CATKDHyper]):
    """Has no modules of its own."""

    @classmethod
    def requires(cls, hyper: CATKDHyper) -> Requires:
        return Requires(last_map=True, classifier=True)

    @classmethod
    def supports(cls, hyper: CATKDHyper, shapes: Shapes) -> str | None:
        if hyper.normalize and hyper.resolution == 1:
            return "a map of one cell, divided by its norm, says nothing about where a class is"
        return lacks_parts(shapes) if hyper.normalize else None

    def losses(self, step: Step) -> dict[str, Tensor]:
        student, teacher = (
            class_activation_maps(output, self.hyper.resolution, self.hyper.normalize)
            for output in (step.student, step.teacher)
        )
        return {"activation": self.hyper.catkd_weight * F.mse_loss(student, teacher)}


def _settings(weight: float, resolution: int, normalize: bool) -> dict[str, bool | int | float | str]:
    return {"catkd_weight": weight, "resolution": resolution, "normalize": normalize}


PUBLISHED = (
    Published(
        source="CAT-KD's configs/cifar100/CAT_KD",
        pairs={
            "resnet110:resnet32": _settings(1.8, 2, False),
            "resnet56:resnet20": _settings(0.7, 2, False),
            "resnet32x4:resnet8x4": _settings(15.0, 2, False),
            "wrn_40_2:wrn_16_2": _settings(12.0, 2, False),
            "wrn_40_2:wrn_40_1": _settings(1.5, 2, False),
            "vgg13:vgg8": _settings(4.5, 2, False),
            "vgg13:MobileNetV2": _settings(15.0, 2, True),
            "ResNet50:MobileNetV2": _settings(40.0, 2, True),
            "resnet32x4:ShuffleV1": _settings(600.0, 4, True),
            "resnet32x4:ShuffleV2": _settings(600.0, 4, True),
            "wrn_40_2:ShuffleV1": _settings(80.0, 4, True),
        },
    ),
)

GOLDEN = {
    "catkd": Golden(
        student={"last_map": "f_s", "classifier": "student_classifier"},
        teacher={"last_map": "f_t", "classifier": "teacher_classifier"},
        settings={"resolution": "$resolution", "normalize": "$normalize"},
    )
}
