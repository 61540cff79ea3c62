"""Probabilistic knowledge transfer: match the probabilities that one image of the batch is a neighbor of another.

Paper:    Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", arXiv:1803.10837,
          equations 4 to 6 with the cosine kernel.
Loss:     p = cosine similarities c of the embeddings, mapped to [0, 1] by (c + 1)/2, rows divided by their sum;
          pkt_weight · mean over all B² entries of p_t log((p_t + eps)/(p_s + eps)).
Defaults: pkt_weight 30000, eps 1e-7: RepDistiller's scripts and code.
Differs:  takes the mean over B² entries, an image's similarity with itself included, as RepDistiller does: the value
          shrinks with the batch.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Range, Step, register

EPS = 1e-7  # in the norms and in the logarithm, as in the authors' code


@dataclass(frozen=True)
class PKTHyper(Hyper):
    pkt_weight: Annotated[
        float, "multiplies the mean divergence, which is tiny by construction", Range(3000.0, 300000.0, log=True)
    ] = 30000.0


def neighbor_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergence between the neighbor probabilities of two embeddings, averaged over B².

    Args:
        student, teacher: embeddings [B, D]; D may differ. Gradients reach `student` only.
    """
    student, teacher = neighbor_probabilities(student), neighbor_probabilities(teacher.detach())
    return (teacher * ((teacher + EPS) / (student + EPS)).log()).mean()


def neighbor_probabilities(embedding: Tensor) -> Tensor:
    """Probabilities [B, B], rows of sum 1, from embeddings [B, D]."""
    norms = torch.linalg.vector_norm(embedding, dim=1, keepdim=True)  # its gradient at an embedding of zeros is 0
    rows = embedding / (norms + EPS)
    similarity = (rows @ rows.T + 1) / 2
    probabilities: Tensor = similarity / similarity.sum(dim=1, keepdim=True)
    return probabilities


@register("pkt", PKTHyper, paper="arXiv:1803.10837", year=2018, kind="relations", group="paper")
class PKT(Distiller[PKTHyper]):
    """Has no modules of its own."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        divergence = neighbor_divergence(step.student.embedding, step.teacher.embedding)
        return {"divergence": self.hyper.pkt_weight * divergence}


GOLDEN = {"pkt": Golden(student={"embedding": "f_s"}, teacher={"embedding": "f_t"})}
