"""Projector ensemble: the mean of several projections of the student's embedding points to the teacher's.

Paper:    Chen, Wang, Liu, Xu, de Hoog, Huang, "Improved Feature Distillation via Projector Ensemble",
          arXiv:2210.15274 (NeurIPS 2022).
Loss:     pefd_weight · (1 - the cosine between the teacher's embedding and the mean of `projectors` linear layers with
          ReLU of the student's), averaged over the batch.
Defaults: pefd_weight 25, three projectors, CE 1: the authors' script.
Differs:  a length below 1e-12 counts as 1e-12; the authors divide by 0 where all projections are 0.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import Context, Distiller, Golden, Hyper, Range, Step, register


@dataclass(frozen=True)
class PEFDHyper(Hyper):
    pefd_weight: Annotated[float, "multiplies the distance", Range(2.5, 250.0, log=True)] = 25.0
    projectors: Annotated[int, "projections that are averaged", Range(1, 8)] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("projectors")


class Projector(nn.Module):
    """A linear layer and ReLU."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.linear = nn.Linear(student, teacher)

    def forward(self, embedding: Tensor) -> Tensor:
        return F.relu(self.linear(embedding))


def cosine_distance(projected: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of the rows of [B, D], averaged over B."""
    return (1 - (F.normalize(projected) * F.normalize(teacher)).sum(dim=1)).mean()


@register("pefd", PEFDHyper, paper="arXiv:2210.15274", year=2022, kind="features", group="modern")
class PEFD(Distiller[PEFDHyper]):
    """`projector.i` is the i-th projection."""

    def __init__(self, hyper: PEFDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        widths = context.student.embedding_dim, context.teacher.embedding_dim
        self.projector = nn.ModuleList(Projector(*widths) for _ in range(hyper.projectors))

    def losses(self, step: Step) -> dict[str, Tensor]:
        projected = torch.stack([project(step.student.embedding) for project in self.projector]).mean(dim=0)
        return {"pefd": self.hyper.pefd_weight * cosine_distance(projected, step.teacher.embedding)}


GOLDEN = {"pefd": Golden(student={"embedding": "f_s"}, teacher={"embedding": "f_t"})}
