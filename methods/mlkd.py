"""Multi-level logit distillation: match class probabilities, class correlations and batch correlations on two views.

Paper:    Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023.
Loss:     At the temperatures T, 3, 5, 2 and 6, with softened class probabilities S and Q of student and teacher,
          instance: m · the sum of T² · KL(Q ‖ S) on the batch, plus that sum over T, 3 and 5 on the strong view,
          plus that over 2 and 6 on the batch; class: k · the sum of ‖QᵀQ - SᵀS‖² / C on the batch; batch: m · the sum
          of ‖QQᵀ - SSᵀ‖² / B on the batch. m is the share of images whose largest teacher probability is at most the
          batch's median, k the share of classes whose summed teacher probability is at most the median over classes.
          ce_weight · (CE on the batch + CE on the strong view) + mlkd_weight · (instance + class + batch).
          form=lskd: the logits inside KL are standardized first, (logits - mean) / (deviation over the classes with
          divisor C - 1, plus 1e-7), as arXiv:2403.01427 combines both.
Defaults: CE 0.1, mlkd_weight 0.9, T = 4: the authors'. form=lskd was published with other ones: `mlkd(form=lskd,
          mlkd_weight=9, temperature=2)`, or `mlkd(form=lskd)@published`.
Differs:  from the paper as the authors' code does: masks act as the factors m and k only, and of the strong view's sum
          two temperatures see the batch. The recipe is the study's; the authors trained for 480 or 960 epochs. The
          class term grows as B² / C: with ten classes it is hundreds of times what it is with the paper's hundred,
          and form=lskd then needs a learning rate about ten times smaller.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import (
    Distiller,
    Golden,
    Hyper,
    Published,
    Range,
    Requires,
    Step,
    View,
    register,
    soft_kl,
    standardize,
    sum_losses,
)

FURTHER_TEMPERATURES = (3.0, 5.0, 2.0, 6.0)
FORMS = ("plain", "lskd")


@dataclass(frozen=True)
class MLKDHyper(Hyper):
    ce_weight: Annotated[
        float, "weight of the cross-entropy with the labels, on each view", Range(0.01, 1.0, log=True)
    ] = 0.1
    form: Annotated[str, "whether KL takes logits as they are or standardized: plain or lskd"] = "plain"
    mlkd_weight: Annotated[float, "multiplies the terms of all three levels", Range(0.09, 18.0, log=True)] = 0.9
    temperature: Annotated[float, "the first of the five temperatures", Range(1.0, 8.0)] = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature")
        self.require_choice("form", FORMS)


def share_up_to_median(values: Tensor) -> Tensor:
    """The share of values [N] that are at most their median; of an even number it is the mean of the middle two."""
    ordered = values.sort().values
    median = torch.lerp(ordered[(len(values) - 1) // 2], ordered[len(values) // 2], 0.5)
    return (values <= median).to(values.dtype).mean()


def correlation_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """‖TTᵀ - SSᵀ‖² / N of rows S, T, [N, M]."""
    return (teacher @ teacher.T - student @ student.T).square().sum() / len(student)


@register("mlkd", MLKDHyper, paper="CVPR 2023", year=2023, kind="logits", group="modern")
class MLKD(Distiller[MLKDHyper]):
    """Compares logits; has no modules of its own."""

    @classmethod
    def requires(cls, hyper: MLKDHyper) -> Requires:
        return Requires(views=(View("strong"),))

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, strong = self.hyper, step.views["strong"]
        student, teacher = step.student.logits, step.teacher.logits
        temperatures = (hyper.temperature, *FURTHER_TEMPERATURES)
        probabilities = teacher.softmax(dim=1)
        of_images = share_up_to_median(probabilities.amax(dim=1))
        of_classes = share_up_to_median(probabilities.sum(dim=0))
        weak = [self._kl(student, teacher, temperature) for temperature in temperatures]
        first = [
            self._kl(strong.student.logits, strong.teacher.logits, temperature) for temperature in temperatures[:3]
        ]
        softened = [((student / t).softmax(dim=1), (teacher / t).softmax(dim=1)) for t in temperatures]
        by_class = sum_losses(correlation_distance(s.T, t.T) for s, t in softened)
        by_batch = sum_losses(correlation_distance(s, t) for s, t in softened)
        terms = {
            "instance": hyper.mlkd_weight * (of_images * sum_losses(weak) + sum_losses(first + weak[3:])),
            "class": hyper.mlkd_weight * of_classes * by_class,
            "batch": hyper.mlkd_weight * of_images * by_batch,
        }
        if hyper.ce_weight:
            terms["strong_ce"] = hyper.ce_weight * F.cross_entropy(strong.student.logits, step.batch.labels)
        return terms

    def _kl(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        if self.hyper.form == "lskd":
            student, teacher = standardize(student), standardize(teacher)
        return soft_kl(student, teacher, temperature)


GOLDEN = {
    name: Golden(
        student={"logits": "y_s_weak", "strong.logits": "y_s_strong"},
        teacher={"logits": "y_t_weak", "strong.logits": "y_t_strong"},
        labels="labels",
        settings={"temperature": "$T", "form": form},
        terms={"instance": "out.kd", "class": "out.cc", "batch": "out.bc"},
    )
    for name, form in (("mlkd", "plain"), ("lskd_mlkd", "lskd"))
}

PUBLISHED = (
    Published(
        source="names of the logs released with logit-standardization-KD, MLKD+LS",
        given={"form": "lskd"},
        pairs={
            "resnet110:resnet20": {"temperature": 2.0, "mlkd_weight": 9.0},
            "resnet110:resnet32": {"temperature": 2.0, "mlkd_weight": 9.0},
            "resnet32x4:resnet8x4": {"temperature": 2.0, "mlkd_weight": 9.0},
            "wrn_40_2:wrn_16_2": {"temperature": 2.0, "mlkd_weight": 9.0},
            "wrn_40_2:wrn_40_1": {"temperature": 2.0, "mlkd_weight": 9.0},
            "vgg13:vgg8": {"temperature": 2.0, "mlkd_weight": 6.0},
            "vgg13:MobileNetV2": {"temperature": 2.0, "mlkd_weight": 6.0},
            "ResNet50:MobileNetV2": {"temperature": 2.0, "mlkd_weight": 9.0},
            "resnet32x4:ShuffleV2": {"temperature": 2.0, "mlkd_weight": 6.0},
            "resnet32x4:wrn_16_2": {"temperature": 2.0, "mlkd_weight": 9.0},
            "resnet32x4:wrn_40_2": {"temperature": 2.0, "mlkd_weight": 9.0},
            "wrn_40_2:resnet8x4": {"temperature": 2.0, "mlkd_weight": 9.0},
        },
    ),
)
