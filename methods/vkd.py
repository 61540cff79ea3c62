"""Orthogonal projection: the student's embedding, mapped by an orthogonal matrix, matches the normalized teacher's.

Paper:    Miles, Elezi, Deng, "VkD: Improving Knowledge Distillation using Orthogonal Projections", arXiv:2403.06213
          (CVPR 2024).
Loss:     smooth L1 between W · student embedding and the teacher's embedding, its own mean and (biased) deviation
          normalized, averaged over the batch and the teacher's dimensions, times vkd_weight. W [T, S] is trained and
          has orthonormal columns (rows, if it is wide): a fixed orthogonal matrix times S Householder reflections, or
          times the exponential of a skew-symmetric matrix where both widths are the same.
          CE + kd_weight · T² · KL are added by the trainer.
Defaults: vkd_weight (alpha) 1, kd_weight (gamma) 1 at T = 1, CE 1: the authors' code.
Differs:  KL is on the student's logits, as no student here has a distillation token. The embedding stands for the mean
          of the student's tokens. The parametrization is torch's without one flaw: torch reads the signs of the columns
          from the parameter's diagonal, cut to integers, so that the first step with weight decay turns -1 into 0 and W
          into a matrix of zeros; here they are constants.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdbench.distill import Context, Distiller, Golden, Hyper, Range, Step, register

TAYLOR_TERMS, SQUARINGS = 16, 4  # of the exponential: exact to float32 up to a norm of 40


@dataclass(frozen=True)
class VKDHyper(Hyper):
    kd_weight: Annotated[
        float, "weight of the KL divergence to the teacher's softened class probabilities", Range(0.1, 10.0, log=True)
    ] = 1.0
    kd_temperature: Annotated[float, "temperature that softens both sides of that divergence"] = 1.0
    vkd_weight: Annotated[float, "multiplies the distance between embeddings", Range(0.1, 10.0, log=True)] = 1.0


def reflections(lower: Tensor) -> Tensor:
    """The first k columns of a product of k Householder reflections, [n, k].

    `lower` [n, k] holds their vectors below its diagonal; on it they are 1. In the compact form I - V T Vᵀ the inverse
    of T has the strict upper triangle of VᵀV and half its diagonal.
    """
    identity = torch.eye(*lower.shape, dtype=lower.dtype, device=lower.device)
    vectors = lower.tril(-1) + identity
    products = vectors.T @ vectors
    inverse = products.triu(1) + torch.diag(products.diagonal() / 2)
    mixed: Tensor = torch.linalg.solve_triangular(inverse, vectors[: lower.shape[1]].T, upper=True)
    return identity - vectors @ mixed


def rotation(lower: Tensor) -> Tensor:
    """The exponential of L - Lᵀ [n, n], L being what is below the diagonal: by scaling and squaring.

    torch.matrix_exp chooses its degree by the norm, for which the device would have to wait.
    """
    scaled = (lower.tril(-1) - lower.tril(-1).T) / 2**SQUARINGS
    identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    result = identity
    for order in range(TAYLOR_TERMS, 0, -1):
        result = identity + scaled @ result / order
    for _ in range(SQUARINGS):
        result = result @ result
    return result


class Orthogonal(nn.Module):
    """A matrix with orthonormal columns (rows, if it is wide) as a function of a free matrix of the same shape."""

    base: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("base", nn.init.orthogonal_(torch.empty(size, size)))

    def forward(self, free: Tensor) -> Tensor:
        rows, columns = free.shape
        lower = free if rows >= columns else free.T
        matrix = self.base @ (rotation(lower) if rows == columns else -reflections(lower))
        return matrix if rows >= columns else matrix.T

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Where training begins, whatever the weight was: the columns of `base`."""
        return torch.zeros_like(weight)


@register("vkd", VKDHyper, paper="arXiv:2403.06213", year=2024, kind="features", group="modern")
class VKD(Distiller[VKDHyper]):
    """Trains the orthogonal `projector`."""

    def __init__(self, hyper: VKDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        student, teacher = context.student.embedding_dim, context.teacher.embedding_dim
        self.projector = nn.Linear(student, teacher, bias=False)
        parametrize.register_parametrization(self.projector, "weight", Orthogonal(max(student, teacher)))

    def losses(self, step: Step) -> dict[str, Tensor]:
        teacher = step.teacher.embedding
        distance = F.smooth_l1_loss(self.projector(step.student.embedding), F.layer_norm(teacher, teacher.shape[1:]))
        return {"vkd": self.hyper.vkd_weight * distance}


GOLDEN = {"vkd": Golden(student={"embedding": "tokens_s"}, teacher={"embedding": "f_t"})}
