"""Comparative distillation: match the differences between the logits of images to those of the teacher and the labels.

Paper:    Wilf, Xu, Liang, Obolenskiy, Fried, Morency, "Comparative Knowledge Distillation", arXiv:2311.02253
          (WACV 2025).
Loss:     The batch is cut into groups of positives + negatives consecutive images. D = the mean over a group's first
          `positives` images minus that over the others. label = the mean squared error, over groups and classes,
          between D of the student's logits and D of the one-hot labels; comparative = that between D of the student's
          logits and of the teacher's. label_weight · label + ckd_weight · comparative, without cross-entropy.
Defaults: both weights 1, CE 0, one image on each side: the authors' for groups of two.
Differs:  the groups are the rows of a shuffled batch, each image in one of them; images that are left over take no
          part. The authors draw up to 100,000 groups in advance from a subset of 2,000 to 6,000 images, for teachers
          that may be called but a few times, and train with patience. So the settings are not comparable to published
          numbers.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Range, Step, register


@dataclass(frozen=True)
class CKDHyper(Hyper):
    ce_weight: Annotated[float, "weight of the cross-entropy with the labels"] = 0.0
    label_weight: Annotated[float, "multiplies the error of the labels' differences", Range(0.1, 10.0, log=True)] = 1.0
    ckd_weight: Annotated[float, "multiplies the error of the teacher's differences", Range(0.1, 10.0, log=True)] = 1.0
    positives: Annotated[int, "images of a group that count positive"] = 1
    negatives: Annotated[int, "images of a group that count negative"] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("positives", "negatives")


def differences(rows: Tensor, positives: int, negatives: int) -> Tensor:
    """[G, C]: for each group of consecutive rows [B, C], the mean of the first `positives` minus that of the others."""
    size = positives + negatives
    if len(rows) < size:
        raise ValueError(f"a group takes {size} images, and the batch has {len(rows)}")
    groups = rows[: len(rows) // size * size].unflatten(0, (-1, size))
    difference: Tensor = groups[:, :positives].mean(dim=1) - groups[:, positives:].mean(dim=1)
    return difference


@register("ckd", CKDHyper, paper="arXiv:2311.02253", year=2023, kind="relations", group="adapted")
class CKD(Distiller[CKDHyper]):
    """Compares logits; has no modules of its own."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, logits, labels = self.hyper, step.student.logits, step.batch.labels
        one_hot = (torch.arange(logits.shape[1], device=labels.device) == labels[:, None]).to(logits.dtype)
        sizes = hyper.positives, hyper.negatives
        student = differences(logits, *sizes)
        return {
            "label": hyper.label_weight * F.mse_loss(student, differences(one_hot, *sizes)),
            "comparative": hyper.ckd_weight * F.mse_loss(student, differences(step.teacher.logits, *sizes)),
        }


GOLDEN = {
    "ckd": Golden(
        student={"logits": "y_s_pos+y_s_neg"},
        teacher={"logits": "y_t_pos+y_t_neg"},
        labels="labels_pos+labels_neg",
        settings={"positives": "$pos", "negatives": "$neg", "label_weight": 1.0},
        terms={"label": "out.label/label_weight", "comparative": "out.comparative/ckd_weight"},
    )
}
