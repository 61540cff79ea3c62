"""Refined logit distillation: the teacher's confidence on the label, and its ranking of the classes below the label.

Paper:    Sun, Chen, Lyu, Chen, Chen, Wang, "Knowledge Distillation with Refined Logits", arXiv:2408.07703 (ICCV 2025).
Loss:     Sample confidence: KL between two-class distributions at T = scd_temperature, the teacher's (its highest
          probability, the rest) and the student's (the probability of the label, the rest). Masked correlation: KL
          between softmaxes at T = temperature over the classes whose teacher logit is below the label's. Both times T²
          and averaged over the batch; min(epoch / warmup_epochs, 1) · (scd_weight · the first + mcd_weight ·
          the second), epochs from 1 on the scale of 240.
Defaults: weights 1 and 8, temperatures 1 and 4, warm-up over 20 of 240 epochs: the authors' code, for all pairs alike.
Differs:  the probability of the rest is computed as a log-sum-exp, so that it stays finite where it underflows.
          An image whose label the teacher ranks last adds 0 to the second term, as in the authors' code.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Range, Step, register, soft_kl

MASKED = -1e9  # the logit of a class that is left out


@dataclass(frozen=True)
class RLDHyper(Hyper):
    scd_weight: Annotated[float, "multiplies the sample confidence; alpha", Range(0.1, 10.0, log=True)] = 1.0
    mcd_weight: Annotated[float, "multiplies the masked correlation; beta", Range(0.8, 80.0, log=True)] = 8.0
    scd_temperature: Annotated[float, "temperature of the sample confidence", Range(0.5, 4.0, log=True)] = 1.0
    temperature: Annotated[float, "temperature of the masked correlation", Range(1.0, 16.0, log=True)] = 4.0
    warmup_epochs: Annotated[int, "epochs of 240 in which the factor of both terms grows to 1"] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("scd_temperature", "temperature", "warmup_epochs")


def one_and_rest(logits: Tensor, classes: Tensor) -> Tensor:
    """Log probabilities [B, 2] of one class for each row and of all the others, of logits [B, C] and classes [B]."""
    log_p, index = logits.log_softmax(dim=1), classes[:, None]
    return torch.stack([log_p.gather(1, index).squeeze(1), log_p.scatter(1, index, MASKED).logsumexp(dim=1)], dim=1)


def sample_confidence(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T² · KL((highest, rest) of the teacher ‖ (label, rest) of the student), averaged over B, of logits [B, C]."""
    log_p = one_and_rest(teacher / temperature, teacher.argmax(dim=1))
    log_q = one_and_rest(student / temperature, labels)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def masked_correlation(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T² · KL over the classes that the teacher ranks below the label, averaged over B, of logits [B, C]."""
    mask = teacher >= teacher.gather(1, labels[:, None])  # [B, C]: true at the label itself
    return soft_kl(student.masked_fill(mask, MASKED), teacher.masked_fill(mask, MASKED), temperature)


@register("rld", RLDHyper, paper="arXiv:2408.07703", year=2025, kind="logits", group="modern")
class RLD(Distiller[RLDHyper]):
    """Has no modules of its own."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, student, teacher, labels = self.hyper, step.student.logits, step.teacher.logits, step.batch.labels
        factor = step.warm_up(hyper.warmup_epochs)
        confidence = sample_confidence(student, teacher, labels, hyper.scd_temperature)
        correlation = masked_correlation(student, teacher, labels, hyper.temperature)
        return {"scd": factor * hyper.scd_weight * confidence, "mcd": factor * hyper.mcd_weight * correlation}


GOLDEN = {
    "rld": Golden(
        student={"logits": "y_s"},
        teacher={"logits": "y_t"},
        labels="labels",
        settings={
            "scd_weight": "$alpha",
            "mcd_weight": "$beta",
            "scd_temperature": "$alpha_T",
            "temperature": "$T",
            "warmup_epochs": "$warmup",
        },
        terms={"scd": "out.scd/scd_weight", "mcd": "out.mcd/mcd_weight"},
    )
}
