"""Probabilistic knowledge transfer: match the probabilities that one image of the batch is a neighbour of another.

Paper:    Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", arXiv:1803.10837,
          equations 4 to 6 with the cosine kernel.
Loss:     cosine similarities of the embeddings, mapped to [0, 1] by (c + 1)/2, rows divided by their sum;
          pkt_weight · mean over all B² entries of p_t log((p_t + eps)/(p_s + eps)).
Defaults: weight 30000, eps 1e-7: RepDistiller's scripts and code.
Differs:  a mean over B² entries, an image's similarity with itself included, so the value shrinks with the batch.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Step, register

EPS = 1e-7  # in the norms and in the logarithm, as in the authors' code


@dataclass(frozen=True)
class PKTHyper(Hyper):
    pkt_weight: Annotated[float, "multiplies the mean divergence, which is tiny by construction"] = 30000.0


def neighbour_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergence between the neighbourhood probabilities of two embeddings.

    Args:
        student, teacher: [B, D]; D may differ. Gradients reach `student` only.
    """
    own, target = _neighbours(student), _neighbours(teacher.detach())
    return (target * ((target + EPS) / (own + EPS)).log()).mean()


def _neighbours(embedding: Tensor) -> Tensor:
    """Probabilities [B, B], rows of sum 1."""
    norms = torch.linalg.vector_norm(embedding, dim=1, keepdim=True)  # its gradient at an embedding of zeros is 0
    rows = embedding / (norms + EPS)
    similarity = (rows @ rows.T + 1) / 2
    probabilities: Tensor = similarity / similarity.sum(dim=1, keepdim=True)
    return probabilities


@register("pkt", PKTHyper, paper="arXiv:1803.10837", year=2018, kind="relations", group="paper")
class PKT(Distiller[PKTHyper]):
    """No helper modules."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        return {
            "divergence": self.hyper.pkt_weight * neighbour_divergence(step.student.embedding, step.teacher.embedding)
        }


GOLDEN = {"pkt": Golden(student={"embedding": "f_s"}, teacher={"embedding": "f_t"})}
