"""DIST: keep the teacher's relations between classes and between images, as Pearson correlations of probabilities.

Paper:    Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", arXiv:2205.10536, §3.
Loss:     Of the softmaxes of logits / T, [B, C]: inter = T² · (1 - mean over images of the correlation of student's and
          teacher's rows), intra = T² · (1 - mean over classes of that of their columns);
          dist_weight · (inter_weight · inter + intra_weight · intra).
Defaults: CE 1, dist_weight 2, inter_weight (beta) and intra_weight (gamma) 1, T = 4: the authors' settings for
          CIFAR-100. For ImageNet they have T = 1.
Differs:  in nothing. A row or column that is constant correlates with nothing: its norm is at least 1e-8.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Range, Step, register

EPS = 1e-8  # least norm, as in the authors' code


@dataclass(frozen=True)
class DISTHyper(Hyper):
    dist_weight: Annotated[float, "multiplies both terms", Range(0.2, 20.0, log=True)] = 2.0
    inter_weight: Annotated[float, "multiplies the term of the images' rows; the paper's beta"] = 1.0
    intra_weight: Annotated[float, "multiplies the term of the classes' columns; the paper's gamma"] = 1.0
    temperature: Annotated[float, "softens both sides", Range(1.0, 8.0)] = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature")


def correlation(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Mean Pearson correlation of two matrices along `dim`: 1 of their rows, 0 of their columns."""
    student, teacher = (side - side.mean(dim=dim, keepdim=True) for side in (student, teacher))
    return F.cosine_similarity(student, teacher, dim=dim, eps=EPS).mean()


@register("dist", DISTHyper, paper="arXiv:2205.10536", year=2022, kind="logits", group="modern")
class DIST(Distiller[DISTHyper]):
    """Compares logits; has no modules of its own."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper = self.hyper
        student, teacher = (side.logits.div(hyper.temperature).softmax(dim=1) for side in (step.student, step.teacher))
        factor = hyper.dist_weight * hyper.temperature**2
        return {
            "inter": factor * hyper.inter_weight * (1 - correlation(student, teacher, dim=1)),
            "intra": factor * hyper.intra_weight * (1 - correlation(student, teacher, dim=0)),
        }


GOLDEN = {
    "td_dist": Golden(
        student={"logits": "y_s"},
        teacher={"logits": "y_t"},
        settings={"inter_weight": "$beta", "intra_weight": "$gamma", "temperature": "$tau"},
        terms={"inter": "out.inter/inter_weight", "intra": "out.intra/intra_weight"},
    )
}
