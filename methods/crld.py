"""Cross-view consistency: where the teacher is confident, match its class probabilities within and across two views.

Paper:    Zhang, Liu, Cai, Ma, "Cross-View Consistency Regularisation for Knowledge Distillation", arXiv:2412.16493
          (ACM MM 2024).
Loss:     KL(s, t) = T² · KL between softmaxes of teacher and student logits over T, for each image; w is the batch, v
          its strong view. within: KL(s_w, t_w) + KL(s_v, t_v) where the teacher's largest probability on the batch is
          at least weak_threshold; cross: KL(s_v, t_w) + KL(s_w, t_v) where that on the strong view is at least
          strong_threshold; both 0 elsewhere, and averaged over all images.
          ce_weight · (CE on the batch + CE on the strong view) + within_weight · within + cross_weight · cross.
Defaults: CE 1, within_weight 2, cross_weight 0.5, T = 4, thresholds 0.9 and 0.2: the authors' for CIFAR-100.
Differs:  in nothing from two copies of the authors' code, which itself could not be read.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Range, Requires, Step, View, register


@dataclass(frozen=True)
class CRLDHyper(Hyper):
    ce_weight: Annotated[
        float, "weight of the cross-entropy with the labels, on each view", Range(0.1, 10.0, log=True)
    ] = 1.0
    within_weight: Annotated[float, "multiplies the term within views", Range(0.2, 20.0, log=True)] = 2.0
    cross_weight: Annotated[float, "multiplies the term across views", Range(0.05, 5.0, log=True)] = 0.5
    temperature: Annotated[float, "softens both sides of both terms", Range(1.0, 8.0)] = 4.0
    weak_threshold: Annotated[
        float, "lowest confidence of the teacher on the batch for the term within views", Range(0.5, 0.99)
    ] = 0.9
    strong_threshold: Annotated[
        float, "lowest confidence of the teacher on the strong view for the term across views", Range(0.05, 0.9)
    ] = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature")
        for name in ("weak_threshold", "strong_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student) of softened logits [B, C], for each image: [B]."""
    log_q = (student / temperature).log_softmax(dim=1)
    log_p = (teacher / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def confident(teacher: Tensor, threshold: float) -> Tensor:
    """1 where the largest probability of logits [B, C] is at least the threshold, else 0: [B]."""
    return (teacher.softmax(dim=1).amax(dim=1) >= threshold).to(teacher.dtype)


@register("crld", CRLDHyper, paper="arXiv:2412.16493", year=2024, kind="logits", group="modern")
class CRLD(Distiller[CRLDHyper]):
    """Compares logits; has no modules of its own."""

    @classmethod
    def requires(cls, hyper: CRLDHyper) -> Requires:
        return Requires(views=(View("strong"),))

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, strong, t = self.hyper, step.views["strong"], self.hyper.temperature
        weak_s, weak_t = step.student.logits, step.teacher.logits
        strong_s, strong_t = strong.student.logits, strong.teacher.logits
        within = (kl(weak_s, weak_t, t) + kl(strong_s, strong_t, t)) * confident(weak_t, hyper.weak_threshold)
        cross = (kl(strong_s, weak_t, t) + kl(weak_s, strong_t, t)) * confident(strong_t, hyper.strong_threshold)
        terms = {"within": hyper.within_weight * within.mean(), "cross": hyper.cross_weight * cross.mean()}
        if hyper.ce_weight:
            terms["strong_ce"] = hyper.ce_weight * F.cross_entropy(strong_s, step.batch.labels)
        return terms


GOLDEN = {
    "crld": Golden(
        student={"logits": "y_s_weak", "strong.logits": "y_s_strong"},
        teacher={"logits": "y_t_weak", "strong.logits": "y_t_strong"},
        labels="labels",
        settings={
            "temperature": "$T",
            "within_weight": "$wv",
            "cross_weight": "$cv",
            "weak_threshold": "$tau_w",
            "strong_threshold": "$tau_s",
        },
        terms={"within": "out.within/within_weight", "cross": "out.cross/cross_weight"},
    )
}
