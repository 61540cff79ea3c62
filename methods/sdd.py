"""Scale-decoupled distillation: distill the logits of parts of the image, where they tell more than the whole.

Paper:    Wei, Luo, Luo, "Scale Decoupled Distillation", arXiv:2403.13512 (CVPR 2024, "Scaled Decoupled Distillation").
Loss:     Both networks' last maps are average-pooled to 4x4; cells are the averages of that grid's 1x1, 2x2 or 4x4
          parts, for each number in `grids`, and each cell goes through its network's own classifier. A cell weighs 2
          where the teacher is right about the whole image and wrong about the cell or the reverse, else 1. By `form`, a
          cell's loss is
          kd:  T² · KL(teacher ‖ student);
          dkd: T² · (tckd_weight · KL of (label, others) + nckd_weight · KL over the others);
          nkd: -t_y log s_y at T = 1, minus nckd_weight · T² · Σ_c t_c log s_c at T over all classes.
          sdd_weight · the sum of weight · loss over images and cells, divided by their number; dkd and nkd times
          min(epoch / warmup_epochs, 1), epochs from 1 on the scale of 240.
Defaults: form=kd with cross-entropy 0.1, sdd_weight 0.9, T = 4, grids 1-2: the authors' for resnet32x4:resnet8x4. Their
          dkd and nkd have cross-entropy 1, sdd_weight 1, nckd_weight 8 (called beta and gamma) and 20 epochs of
          warm-up: `sdd(form=dkd, ce_weight=1, sdd_weight=1)`, or sdd(form=dkd)@published.
Differs:  in nothing. As in the authors' code, nkd keeps the label in its second term; the pooling to 4x4 comes first.
"""

import re
from dataclasses import dataclass
from typing import Annotated

import torch
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
    decoupled_kl,
    lacks_parts,
    register,
)


@dataclass(frozen=True)
class SDDHyper(Hyper):
    ce_weight: Annotated[float, "weight of the cross-entropy with the labels", Range(0.01, 1.0, log=True)] = 0.1
    sdd_weight: Annotated[float, "multiplies the loss of the cells", Range(0.09, 9.0, log=True)] = 0.9
    form: Annotated[str, "the loss of a cell: kd, dkd or nkd"] = "kd"
    grids: Annotated[str, "cells along a side, 1 and then 2 or 4 or both: 1-2, 1-4 or 1-2-4"] = "1-2"
    temperature: Annotated[float, "softens both sides", Range(1.0, 16.0, log=True)] = 4.0
    tckd_weight: Annotated[float, "multiplies the target-class term of form=dkd"] = 1.0
    nckd_weight: Annotated[float, "multiplies the non-target term of form=dkd, the second term of form=nkd"] = 8.0
    warmup_epochs: Annotated[int, "epochs of 240 in which the factor of form=dkd or nkd grows to 1"] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature", "warmup_epochs")
        self.require_choice("form", ("kd", "dkd", "nkd"))
        if self.sides() not in ((1, 2), (1, 4), (1, 2, 4)):
            raise ValueError(f"grids must be 1-2, 1-4 or 1-2-4, not {self.grids!r}")

    def sides(self) -> tuple[int, ...]:
        """`grids` as numbers; a list is accepted as well."""
        text = re.sub(", ?", "-", self.grids.strip("[]"))
        return tuple(map(int, text.split("-"))) if re.fullmatch(r"\d(-\d)*", text) else ()


def cell_logits(output: Output, sides: tuple[int, ...]) -> Tensor:
    """Logits [B, cells, C] of the cells of a network's last map, the whole first, then row by row."""
    assert output.last_map is not None
    assert output.classifier is not None
    fine = F.adaptive_avg_pool2d(output.last_map, 4)
    cells = torch.cat([F.avg_pool2d(fine, 4 // side).flatten(2) for side in sides], dim=2)  # [B, D, cells]
    return F.linear(cells.transpose(1, 2), *output.classifier)


def cell_weights(teacher: Tensor, labels: Tensor) -> Tensor:
    """Weight of each cell [B, cells], 1 or 2, of the teacher's logits [B, cells, C]."""
    right = teacher.argmax(dim=2) == labels[:, None]
    return 1 + (right != right[:, :1]).to(teacher.dtype)


def cell_losses(student: Tensor, teacher: Tensor, labels: Tensor, hyper: SDDHyper) -> Tensor:
    """The loss of each cell [B, cells], of logits [B, cells, C] and labels [B]."""
    softened = student / hyper.temperature, teacher / hyper.temperature
    squared = hyper.temperature**2
    if hyper.form == "dkd":
        tckd, nckd = decoupled_kl(*softened, labels[:, None])
        return squared * (hyper.tckd_weight * tckd + hyper.nckd_weight * nckd)
    log_s, log_t = (logits.log_softmax(dim=-1) for logits in softened)
    if hyper.form == "kd":
        return squared * F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=-1)
    index = labels[:, None, None].expand(-1, student.shape[1], 1)
    of_label = (teacher.softmax(dim=-1).gather(2, index) * student.log_softmax(dim=-1).gather(2, index)).squeeze(2)
    return -of_label - hyper.nckd_weight * squared * (log_t.exp() * log_s).sum(dim=-1)


@register("sdd", SDDHyper, paper="arXiv:2403.13512", year=2024, kind="logits", group="modern")
class SDD(Distiller[SDDHyper]):
    """Has no modules of its own; the student's classifier is trained on the cells as well."""

    @classmethod
    def requires(cls, hyper: SDDHyper) -> Requires:
        return Requires(last_map=True, classifier=True)

    @classmethod
    def supports(cls, hyper: SDDHyper, shapes: Shapes) -> str | None:
        return lacks_parts(shapes)

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, labels = self.hyper, step.batch.labels
        student, teacher = (cell_logits(side, hyper.sides()) for side in (step.student, step.teacher))  # [B, cells, C]
        factor = 1.0 if hyper.form == "kd" else step.warm_up(hyper.warmup_epochs)
        weighted = cell_weights(teacher, labels) * cell_losses(student, teacher, labels, hyper)
        return {"cells": factor * hyper.sdd_weight * weighted.mean()}


def _golden(form: str, **settings: str) -> Golden:
    student, teacher = {"last_map": "f_s", "classifier": "student_classifier"}, {"last_map": "f_t"}
    settings |= {"form": form, "grids": "$M", "temperature": "$T"}
    return Golden(student, {**teacher, "classifier": "teacher_classifier"}, labels="labels", settings=settings)


GOLDEN = {
    "sdd_kd": _golden("kd"),
    "sdd_dkd": _golden("dkd", tckd_weight="$alpha", nckd_weight="$beta"),
    "sdd_nkd": _golden("nkd", nckd_weight="$gamma"),
}


_PAIRS = (
    *("resnet32x4:resnet8x4", "vgg13:vgg8", "ResNet50:vgg8", "vgg13:MobileNetV2", "ResNet50:MobileNetV2"),
    *("resnet32x4:ShuffleV1", "resnet32x4:ShuffleV2", "wrn_40_2:ShuffleV1"),
)


def _published(form: str, *coarse: str) -> Published:
    """Grids 1-2 for the pairs named and 1-2-4 for the others; beta is 6 for a vgg13 and 8 for other teachers."""
    pairs: dict[str, dict[str, float | str]] = {}
    for pair in _PAIRS:
        beta = 6.0 if pair.startswith("vgg13") else 8.0
        others = {} if form == "kd" else {"ce_weight": 1.0, "sdd_weight": 1.0, "nckd_weight": beta}
        pairs[pair] = {"grids": "1-2" if pair in coarse else "1-2-4", **others}
    return Published("SDD-CVPR2024's scripts teacher_*.sh and configs/cifar100", pairs, given={"form": form})


PUBLISHED = (
    _published("kd", "resnet32x4:resnet8x4", "vgg13:vgg8"),
    _published("dkd", "resnet32x4:resnet8x4", "vgg13:vgg8"),
    _published("nkd", "resnet32x4:resnet8x4", "vgg13:vgg8", "ResNet50:vgg8"),
)
