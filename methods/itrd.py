"""Information-theoretic distillation: correlate each feature with the teacher's, and keep the batch's similarities.

Paper:    Miles, Lopez-Rodriguez, Mikolajczyk, "Information Theoretic Representation Distillation", arXiv:2112.00459
          (BMVC 2022).
Loss:     correlation: student embeddings, mapped linearly to the teacher's width, and teacher embeddings are
          standardized feature by feature over the batch (unbiased deviation); c = the mean over the batch of their
          products, for each feature; log2 of the sum over features of |c - 1|^(2 · alpha). mutual: with Gram matrices
          G_s and G_t of embeddings of length 1 (the student's mapped only if the widths differ) and their elementwise
          product G, the sum of (G_s / trace G_s)² - (G / trace G)².
          correlation_weight · correlation + mutual_weight · mutual.
Defaults: correlation_weight 2, mutual_weight 0.05, alpha 1.5: the authors' code. `itrd@published` has what their README
          gives for wrn_40_2:wrn_16_2, for every pair of one architectural type; for the others the defaults.
Differs:  a feature without any variance in the batch, and a batch of zeros, count as uncorrelated; the authors divide
          by 0 there.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import Context, Distiller, Golden, Hyper, Published, Range, Step, register

EPS = 1e-12  # smallest trace; others are at least 1


@dataclass(frozen=True)
class ITRDHyper(Hyper):
    correlation_weight: Annotated[float, "multiplies the correlation term", Range(0.2, 20.0, log=True)] = 2.0
    mutual_weight: Annotated[float, "multiplies the mutual-information term", Range(0.005, 5.0, log=True)] = 0.05
    alpha: Annotated[float, "order of the entropy in the correlation term, at least 0.5", Range(1.0, 3.0)] = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0.5:  # the gradient at |c - 1| = 0 would be infinite
            raise ValueError(f"alpha must be at least 0.5, got {self.alpha}")


class LinearEmbed(nn.Module):
    """A linear layer to the teacher's width."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.linear = nn.Linear(student, teacher)

    def forward(self, embedding: Tensor) -> Tensor:
        embedded: Tensor = self.linear(embedding)
        return embedded


def standardize(features: Tensor) -> Tensor:
    """Features [B, D] with mean 0 and (unbiased) deviation 1 over the batch; 0 where they are constant."""
    variance = features.var(dim=0)
    return (features - features.mean(dim=0)) * variance.masked_fill(variance == 0, math.inf).rsqrt()


def correlation_loss(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """log2 Σ |c - 1|^(2 · alpha) over the features of embeddings [B, D]."""
    correlation = (standardize(student) * standardize(teacher)).mean(dim=0)  # [D]
    return (correlation - 1).abs().pow(2 * alpha).sum().log2()


def mutual_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ (G_s / trace G_s)² - (G / trace G)² of embeddings [B, D]."""
    student, teacher = F.normalize(student), F.normalize(teacher)
    gram = student @ student.T
    joint = gram * (teacher @ teacher.T)
    gram, joint = (matrix / matrix.trace().clamp(min=EPS) for matrix in (gram, joint))
    return (gram.square() - joint.square()).sum()


@register("itrd", ITRDHyper, paper="arXiv:2112.00459", year=2022, kind="relations", group="modern")
class ITRD(Distiller[ITRDHyper]):
    """Trains the linear layer `embed`."""

    def __init__(self, hyper: ITRDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.embed = LinearEmbed(context.student.embedding_dim, context.teacher.embedding_dim)

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, student, teacher = self.hyper, step.student.embedding, step.teacher.embedding
        embedded = self.embed(student)
        compared = student if student.shape == teacher.shape else embedded
        return {
            "correlation": hyper.correlation_weight * correlation_loss(embedded, teacher, hyper.alpha),
            "mutual": hyper.mutual_weight * mutual_loss(compared, teacher),
        }


GOLDEN = {
    "itrd_authors": Golden(
        student={"embedding": "f_s"},
        teacher={"embedding": "f_t"},
        settings={"alpha": "$alpha_it", "correlation_weight": "$lambda_corr", "mutual_weight": "$lambda_mutual"},
        terms={"correlation": "out.correlation/correlation_weight", "mutual": "out.mutual/mutual_weight"},
    )
}

_SAME_TYPE = {"correlation_weight": 2.0, "mutual_weight": 1.0, "alpha": 1.01}
_OTHER_TYPE = {"correlation_weight": 2.0, "mutual_weight": 0.05, "alpha": 1.5}

PUBLISHED = (
    Published(
        source="roymiles/ITRD: its README for wrn_40_2:wrn_16_2, taken for all pairs of one type; else its defaults",
        pairs={
            "wrn_40_2:wrn_16_2": _SAME_TYPE,
            "wrn_40_2:wrn_40_1": _SAME_TYPE,
            "resnet56:resnet20": _SAME_TYPE,
            "resnet110:resnet20": _SAME_TYPE,
            "resnet110:resnet32": _SAME_TYPE,
            "resnet32x4:resnet8x4": _SAME_TYPE,
            "vgg13:vgg8": _SAME_TYPE,
            "vgg13:MobileNetV2": _OTHER_TYPE,
            "ResNet50:MobileNetV2": _OTHER_TYPE,
            "ResNet50:vgg8": _OTHER_TYPE,
            "resnet32x4:ShuffleV1": _OTHER_TYPE,
            "resnet32x4:ShuffleV2": _OTHER_TYPE,
            "wrn_40_2:ShuffleV1": _OTHER_TYPE,
        },
    ),
)
