"""Local dense relational logit distillation: match the student's top classes pair by pair, and the rest apart.

Paper:    Xu, Liu, Liu, Wang, Xu, Cheng, "Local Dense Logit Relations for Enhanced Knowledge Distillation",
          arXiv:2507.15911 (ICCV 2025).
Loss:     The k classes that the student scores highest have ranks 1 to k. T² · KL(teacher ‖ student), averaged over the
          batch, of softmaxes over each pair of ranks a < b, weighted by 2 / (1.5 + b - a) · exp(-0.05 (a + b)), and
          over all k classes, weighted by 1; local is the sum divided by k(k - 1)/2 + 1. remaining is T² · KL of
          softmaxes over the C - k other classes. local_weight · local + remaining_weight · remaining.
Defaults: k = 7, weights 10.5 and 7, T = 4: the authors' for resnet32x4:resnet8x4, the only pair they published.
Differs:  classes are left out exactly; the authors subtract 1000 from their logits, with the same result. k is at most
          C - 1. The ranking carries no gradient and the labels do not enter, as in the authors' code.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import Context, Distiller, Golden, Hyper, Range, Shapes, Step, register, soft_kl


@dataclass(frozen=True)
class LDRLDHyper(Hyper):
    local_weight: Annotated[float, "multiplies the term of the top classes", Range(1.0, 100.0, log=True)] = 10.5
    remaining_weight: Annotated[float, "multiplies the term of the other classes", Range(0.7, 70.0, log=True)] = 7.0
    k: Annotated[int, "number of top classes, at least 2; at most all classes but one"] = 7
    temperature: Annotated[float, "softens both sides of all terms", Range(1.0, 16.0, log=True)] = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature")
        if self.k < 2:
            raise ValueError(f"k must be at least 2, got {self.k}")


def pair_weights(like: Tensor) -> Tensor:
    """Weights [K, K] of pairs of the K columns of `like`, row a and column b of ranks a < b; 0 elsewhere."""
    rank = torch.arange(1, like.shape[1] + 1, device=like.device, dtype=like.dtype)
    weights = 2 / (1.5 + (rank[None, :] - rank[:, None]).abs()) * torch.exp(-0.05 * (rank[None, :] + rank[:, None]))
    return weights.triu(diagonal=1)


def pairwise_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student) between the softmaxes of each pair of columns, averaged over B: [K, K].

    Args:
        student, teacher: logits [B, K]. Of two classes a and b the softmax is the logistic function of a - b.
    """
    s, t = ((logits[:, :, None] - logits[:, None, :]) / temperature for logits in (student, teacher))  # [B, K, K]
    first = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))
    second = (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature**2 * (first + second).mean(dim=0)


@register("ldrld", LDRLDHyper, paper="arXiv:2507.15911", year=2025, kind="logits", group="modern")
class LDRLD(Distiller[LDRLDHyper]):
    """Has no modules of its own."""

    def __init__(self, hyper: LDRLDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.k = min(hyper.k, context.classes - 1)

    @classmethod
    def supports(cls, hyper: LDRLDHyper, shapes: Shapes) -> str | None:
        return "it needs at least three classes" if shapes.classes < 3 else None

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, k = self.hyper, self.k
        order = step.student.logits.detach().argsort(dim=1, descending=True)
        student, teacher = step.student.logits.gather(1, order), step.teacher.logits.gather(1, order)
        pairs = pairwise_kl(student[:, :k], teacher[:, :k], hyper.temperature)
        whole = soft_kl(student[:, :k], teacher[:, :k], hyper.temperature)
        local = ((pair_weights(student[:, :k]) * pairs).sum() + whole) / (k * (k - 1) / 2 + 1)
        remaining = soft_kl(student[:, k:], teacher[:, k:], hyper.temperature)
        return {"local": hyper.local_weight * local, "remaining": hyper.remaining_weight * remaining}

    def extra_info(self) -> dict[str, bool | int | float | str]:
        return {"top_classes": self.k}


GOLDEN = {
    "ldrld": Golden(
        student={"logits": "y_s"},
        teacher={"logits": "y_t"},
        settings={"local_weight": "$alpha", "remaining_weight": "$beta", "k": "$k", "temperature": "$T"},
        terms={"local": "out.local/local_weight", "remaining": "out.remaining/remaining_weight"},
    )
}
