"""ABKD: an alpha-beta divergence in place of the KL divergence, which weighs where the two distributions differ.

Paper:    Wang, Yang, Wang, Wang, Xu, Huang, "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge
          Distillation via α-β-Divergence", arXiv:2505.04560, §4.
Loss:     Of p = softmax(teacher / T) and q = softmax(student / T):
          -1/(αβ) · Σ [ p^α q^β - α/(α+β) · p^(α+β) - β/(α+β) · q^(α+β) ], summed over the classes and averaged over the
          batch, times abkd_weight. No T². Where α, β or α + β is 0, the form of the authors' code below.
Defaults: CE 1, T = 4; alpha 0.8, beta 0.3 and abkd_weight 32: the authors' example, resnet56:resnet20. Their settings
          for other pairs are not published with the code.
Differs:  where β (α, α + β) is 0 the authors divide by α (β, α) once, and so does this; the limit of the formula asks
          for the square. Powers are at most exp(60), so that negative exponents stay finite.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Published, Range, Step, register

LARGEST = 60.0  # of the logarithms of powers


@dataclass(frozen=True)
class ABKDHyper(Hyper):
    abkd_weight: Annotated[float, "multiplies the divergence", Range(3.0, 300.0, log=True)] = 32.0
    alpha: Annotated[float, "exponent of the teacher's probabilities", Range(0.2, 1.4)] = 0.8
    beta: Annotated[float, "exponent of the student's probabilities", Range(0.1, 1.0)] = 0.3
    temperature: Annotated[float, "softens both sides", Range(1.0, 8.0)] = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature")


def bounded_exp(logarithm: Tensor) -> Tensor:
    return logarithm.clamp(max=LARGEST).exp()


def alpha_beta_divergence(log_p: Tensor, log_q: Tensor, alpha: float, beta: float) -> Tensor:
    """Divergence of each row, [B], of log-probabilities [B, C] of teacher (p) and student (q)."""
    both = alpha + beta
    if alpha == 0 and beta == 0:
        terms = (log_q - log_p).square() / 2
    elif beta == 0:
        p, q = bounded_exp(alpha * log_p), bounded_exp(alpha * log_q)
        terms = (p * alpha * (log_p - log_q) - p + q) / alpha
    elif alpha == 0:
        p, q = bounded_exp(beta * log_p), bounded_exp(beta * log_q)
        terms = (q * beta * (log_q - log_p) - q + p) / beta
    elif both == 0:
        log_ratio = alpha * (log_p - log_q)
        terms = (bounded_exp(log_ratio) - log_ratio - 1) / alpha
    else:
        mixed, p, q = bounded_exp(alpha * log_p + beta * log_q), bounded_exp(both * log_p), bounded_exp(both * log_q)
        terms = (alpha / both * p + beta / both * q - mixed) / (alpha * beta)
    return terms.sum(dim=1)


@register("abkd", ABKDHyper, paper="arXiv:2505.04560", year=2025, kind="logits", group="modern")
class ABKD(Distiller[ABKDHyper]):
    """Compares logits; has no modules of its own."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper = self.hyper
        log_p, log_q = ((side.logits / hyper.temperature).log_softmax(dim=1) for side in (step.teacher, step.student))
        divergence = alpha_beta_divergence(log_p, log_q, hyper.alpha, hyper.beta).mean()
        return {"abkd": hyper.abkd_weight * divergence}


GOLDEN = {
    "abkd": Golden(
        student={"logits": "y_s"},
        teacher={"logits": "y_t"},
        settings={"alpha": "$alpha", "beta": "$beta", "temperature": "$T"},
    )
}

PUBLISHED = (
    Published(
        source="abkd's README",
        pairs={"resnet56:resnet20": {"alpha": 0.8, "beta": 0.3, "abkd_weight": 32.0}},
    ),
)
