"""Correlation distance to a teacher mixed with its pruned self, on the batch and on a mixed view.

Paper:    Kim, Ham, Cho, Kim, "Robustness-Reinforced Knowledge Distillation with Correlation Distance and Network
          Pruning", arXiv:2311.13934.
Loss:     The teacher's logits are teacher_share · its own + (1 - teacher_share) · those without the tenth of its
          weights that is smallest. With p_s and p_t = softmaxes over T, value = T² · (2 - the mean cosine of their
          rows - that of their columns); rank = 1 - the mean Pearson correlation of the rows' ranks (Spearman's).
          value_weight · value + rank_weight · rank on the batch, and view_weight times the same on the view.
Defaults: value_weight 2, rank_weight 2, T = 4, teacher_share 0.7, CE 1, a view by CutMix: the authors' code.
Differs:  on the view the teacher alone is matched, as the pruned one sees the batch only. rank has no gradient, as in
          the authors' code: it is reported and trains nothing.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Range, Requires, Step, View, register

EPS = 1e-8  # added to the product of lengths, as in the authors' code
VIEWS = {"cutmix": View("cutmix"), "mixup": View("mixup", alpha=0.2)}


@dataclass(frozen=True)
class R2KDHyper(Hyper):
    value_weight: Annotated[float, "multiplies the distance of probabilities", Range(0.2, 20.0, log=True)] = 2.0
    rank_weight: Annotated[float, "multiplies the distance of ranks, which has no gradient"] = 2.0
    view_weight: Annotated[float, "multiplies both terms on the view; 0 leaves it out", Range(0.1, 10.0, log=True)] = (
        1.0
    )
    temperature: Annotated[float, "softens both sides", Range(1.0, 8.0)] = 4.0
    teacher_share: Annotated[float, "of the teacher itself beside the pruned one, from 0 to 1", Range(0.0, 1.0)] = 0.7
    view: Annotated[str, "how the view is mixed: cutmix or mixup"] = "cutmix"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature")
        if not 0 <= self.teacher_share <= 1:
            raise ValueError(f"teacher_share must be from 0 to 1, got {self.teacher_share}")
        self.require_choice("view", VIEWS)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean cosine of the rows of [N, M]."""
    lengths = torch.linalg.vector_norm(student, dim=1) * torch.linalg.vector_norm(teacher, dim=1)
    cosines: Tensor = (student * teacher).sum(dim=1) / (lengths + EPS)
    return cosines.mean()


def value_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - mean cosine of the rows, plus that of the columns, of probabilities [B, C]."""
    return 2 - cosine(student, teacher) - cosine(student.T, teacher.T)


def centered_ranks(probabilities: Tensor) -> Tensor:
    """Ranks in each row of [B, C] from 1, divided by their sum, minus their mean."""
    count = probabilities.shape[1]
    ranks = probabilities.argsort(dim=1).argsort(dim=1).to(probabilities.dtype) + 1
    return (ranks - (count + 1) / 2) / (count * (count + 1) / 2)


@register("r2kd", R2KDHyper, paper="arXiv:2311.13934", year=2024, kind="logits", group="modern")
class R2KD(Distiller[R2KDHyper]):
    """Compares logits; has no modules of its own."""

    @classmethod
    def requires(cls, hyper: R2KDHyper) -> Requires:
        return Requires(views=(VIEWS[hyper.view],) if hyper.view_weight else (), extra_teachers=("pruned",))

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper = self.hyper
        teacher = torch.lerp(step.extra["pruned"].logits, step.teacher.logits, hyper.teacher_share)
        terms = self._distances(step.student.logits, teacher)
        if hyper.view_weight:
            view = step.views[hyper.view]
            on_view = self._distances(view.student.logits, view.teacher.logits)
            terms |= {f"view_{name}": hyper.view_weight * term for name, term in on_view.items()}
        return terms

    def _distances(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The weighted terms of logits [B, C]."""
        hyper = self.hyper
        student, teacher = ((logits / hyper.temperature).softmax(dim=1) for logits in (student, teacher))
        value = hyper.temperature**2 * value_distance(student, teacher)
        rank = 1 - cosine(centered_ranks(student), centered_ranks(teacher))
        return {"value": hyper.value_weight * value, "rank": hyper.rank_weight * rank}


GOLDEN = {
    "r2kd": Golden(
        student={"logits": "y_s"},
        teacher={"logits": "y_t"},
        extra={"pruned": {"logits": "y_t_pruned"}},
        settings={
            "value_weight": "$value_weight",
            "rank_weight": "$rank_weight",
            "view_weight": 0.0,
            "temperature": "$T",
            "teacher_share": "$teacher_weight",
        },
        terms={"value": "out.value/value_weight", "rank": "out.rank/rank_weight"},
    )
}
