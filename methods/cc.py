"""Correlation congruence, in the form behind the published tables: products of neighboring differences.

Paper:    Peng et al., "Correlation Congruence for Knowledge Distillation", arXiv:1904.01802.
Loss:     delta_i = |embed(student_i) - embed(teacher_i)|, both embeddings linear, for image i of the batch;
          cc_weight · mean over i = 1 ... B - 1 of Σ_d delta_i,d · delta_(i+1),d.
Defaults: cc_weight 0.02, feat_dim 128: RepDistiller's scripts.
Differs:  from the paper entirely, which compares two kernel correlation matrices; this loss depends on the order of the
          batch. The teacher's embedding is trained too. The published numbers were made with this form.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from kdbench.distill import Context, Distiller, Golden, Hyper, Range, Step, register


@dataclass(frozen=True)
class CCHyper(Hyper):
    cc_weight: Annotated[float, "multiplies the mean product", Range(0.002, 0.2, log=True)] = 0.02
    feat_dim: Annotated[int, "dimensions of the common embedding"] = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("feat_dim")


def neighboring_products(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over neighbors in the batch of the inner product of their absolute differences.

    Args:
        student, teacher: embeddings [B, D], B >= 2.
    """
    delta = (student - teacher).abs()
    return (delta[:-1] * delta[1:]).sum(dim=1).mean()


@register("cc", CCHyper, paper="arXiv:1904.01802", year=2019, kind="relations", group="paper")
class CC(Distiller[CCHyper]):
    """Trains a linear embedding of each side."""

    def __init__(self, hyper: CCHyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.embed_student = nn.Linear(context.student.embedding_dim, hyper.feat_dim)
        self.embed_teacher = nn.Linear(context.teacher.embedding_dim, hyper.feat_dim)

    def losses(self, step: Step) -> dict[str, Tensor]:
        student, teacher = self.embed_student(step.student.embedding), self.embed_teacher(step.teacher.embedding)
        return {"correlation": self.hyper.cc_weight * neighboring_products(student, teacher)}


GOLDEN = {"cc": Golden(student={"embedding": "f_s"}, teacher={"embedding": "f_t"}, settings={"feat_dim": "$feat_dim"})}
