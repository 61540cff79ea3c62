"""Logit standardization: distill z-scores of the logits, so that the student need not match their mean and spread.

Paper:    Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", arXiv:2403.01427, §4.
Loss:     z = (logits - mean) / (deviation over the classes with divisor C - 1, plus 1e-7), for each image and on both
          sides. form=kd: lskd_weight · T² · KL between softmaxes of z/T. form=dkd: lskd_weight · min(epoch /
          warmup_epochs, 1) · (tckd_weight · TCKD + nckd_weight · NCKD), the terms of decoupled knowledge distillation
          on z/T: T² · KL between the two-class distributions (target, all others), and T² · KL between the softmaxes
          over the other classes. All are averaged over the batch. Epochs are from 1 on the scale of 240.
Defaults: form=kd: CE 0.1, lskd_weight 9, T = 2, the authors' own. form=dkd: the same weight and T, with DKD's own
          tckd_weight (alpha) 1, nckd_weight (beta) 8 and 20 epochs of warm-up; the authors give CE the weight 1 there:
          `lskd(form=dkd, ce_weight=1)`.
Differs:  in nothing; the cross-entropy is that of the raw logits, as in the authors' code.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from kdbench.distill import (
    Distiller,
    Golden,
    Hyper,
    Published,
    Range,
    Step,
    decoupled_kl,
    register,
    soft_kl,
    standardize,
)

FORMS = ("kd", "dkd")


@dataclass(frozen=True)
class LSKDHyper(Hyper):
    ce_weight: Annotated[float, "weight of the cross-entropy with the labels", Range(0.01, 1.0, log=True)] = 0.1
    form: Annotated[str, "what is computed from the standardized logits: kd or dkd"] = "kd"
    lskd_weight: Annotated[float, "multiplies all terms", Range(1.0, 18.0, log=True)] = 9.0
    temperature: Annotated[float, "softens the standardized logits of both sides", Range(1.0, 6.0)] = 2.0
    tckd_weight: Annotated[float, "multiplies the target-class term of form=dkd"] = 1.0
    nckd_weight: Annotated[float, "multiplies the non-target term of form=dkd"] = 8.0
    warmup_epochs: Annotated[int, "epochs of 240 in which the factor of form=dkd grows to 1"] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature", "warmup_epochs")
        self.require_choice("form", FORMS)


@register("lskd", LSKDHyper, paper="arXiv:2403.01427", year=2024, kind="logits", group="modern")
class LSKD(Distiller[LSKDHyper]):
    """Compares logits; has no modules of its own."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper = self.hyper
        student, teacher = standardize(step.student.logits), standardize(step.teacher.logits)
        if hyper.form == "kd":
            return {"lskd": hyper.lskd_weight * soft_kl(student, teacher, hyper.temperature)}
        factor = hyper.lskd_weight * step.warm_up(hyper.warmup_epochs) * hyper.temperature**2
        tckd, nckd = decoupled_kl(student / hyper.temperature, teacher / hyper.temperature, step.batch.labels)
        return {"tckd": factor * hyper.tckd_weight * tckd.mean(), "nckd": factor * hyper.nckd_weight * nckd.mean()}


GOLDEN = {
    "lskd_kd": Golden(student={"logits": "y_s"}, teacher={"logits": "y_t"}, settings={"temperature": "$T"}),
    "lskd_dkd": Golden(
        student={"logits": "y_s"},
        teacher={"logits": "y_t"},
        labels="labels",
        settings={
            "form": "dkd",
            "tckd_weight": "$alpha",
            "nckd_weight": "$beta",
            "temperature": "$T",
            "warmup_epochs": "$warmup",
        },
        terms={"tckd": "out.tckd/tckd_weight", "nckd": "out.nckd/nckd_weight"},
    ),
    "td_logitstd": Golden(
        student={"logits": "y_s"},
        teacher={"logits": "y_t"},
        labels="labels",
        settings={"ce_weight": "$alpha", "lskd_weight": "$beta", "temperature": "$temperature"},
    ),
}

_TUNED = {  # pair -> T and weight of form=kd, then T, weight and beta of form=dkd
    "resnet56:resnet20": (2.0, 9.0, 3.0, 18.0, 2.0),
    "resnet110:resnet20": (4.0, 12.0, 2.0, 15.0, 2.0),
    "resnet110:resnet32": (2.0, 9.0, 2.0, 15.0, 2.0),
    "resnet32x4:resnet8x4": (2.0, 9.0, 2.0, 9.0, 8.0),
    "wrn_40_2:wrn_16_2": (2.0, 9.0, 2.0, 12.0, 2.0),
    "wrn_40_2:wrn_40_1": (2.0, 9.0, 2.0, 12.0, 2.0),
    "vgg13:vgg8": (3.0, 9.0, 2.0, 15.0, 2.0),
    "vgg13:MobileNetV2": (3.0, 9.0, 3.0, 9.0, 2.0),
    "ResNet50:MobileNetV2": (3.0, 1.0, 2.0, 15.0, 2.0),
    "resnet32x4:ShuffleV2": (2.0, 9.0, 2.0, 9.0, 8.0),
    "resnet32x4:wrn_16_2": (3.0, 9.0, 2.0, 9.0, 2.0),
    "resnet32x4:wrn_40_2": (3.0, 9.0, 2.0, 9.0, 8.0),
    "wrn_40_2:resnet8x4": (2.0, 9.0, 2.0, 18.0, 2.0),
    "wrn_40_2:MobileNetV2": (3.0, 9.0, 2.0, 15.0, 2.0),
}
PUBLISHED = (
    Published(
        source="names of the logs released with logit-standardization-KD, KD+LS",
        given={"form": "kd"},
        pairs={pair: {"temperature": t, "lskd_weight": weight} for pair, (t, weight, *_) in _TUNED.items()},
    ),
    Published(
        source="names of the logs released with logit-standardization-KD, DKD+LS; mdistiller's beta where they lack it",
        given={"form": "dkd"},
        pairs={
            pair: {"ce_weight": 1.0, "temperature": t, "lskd_weight": weight, "nckd_weight": beta}
            for pair, (*_, t, weight, beta) in _TUNED.items()
        },
    ),
)
