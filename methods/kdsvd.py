"""KD-SVD: match how the leading singular vectors of consecutive feature maps relate to each other.

Paper:    Lee, Kim, Song, "Self-Supervised Knowledge Distillation Using Singular Value Decomposition", arXiv:1807.06819.
Loss:     Each image's feature map is a matrix [H·W, K]. Of the teacher's the k leading right singular vectors are
          taken; of the student's, for each of them, the one of the k + 3 leading ones with the largest |cosine| to it,
          turned to its side. Both are multiplied by the teacher's singular values, divided by their L2 norm. For
          consecutive stages R = exp(-(v_c - w_d)² / 8) with v_c, w_d the entries of their vectors, for all pairs of
          channels; kdsvd_weight · the sum over consecutive stages of ‖R_student - R_teacher‖², averaged over the batch.
Defaults: k = 1: RepDistiller's code, which gives no weight; kdsvd_weight 1 and CE 1 are mdistiller's.
Differs:  a singular vector's sign is arbitrary, and the loss depends on it: RepDistiller takes what its routine
          returns, here the teacher's vectors have sums that are not negative. Singular vectors are computed by the
          eigenvectors of the smaller Gram matrix, outside the graph, and differentiated by first-order perturbation:
          the same gradient, which stays finite where singular values are equal or 0. The device waits for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import (
    Distiller,
    Golden,
    Hyper,
    Range,
    Shapes,
    Step,
    lacks_feature_maps,
    match_stages,
    register,
    sum_losses,
)

MORE = 3  # singular vectors of the student beyond the teacher's k, as in the authors' code


@dataclass(frozen=True)
class KDSVDHyper(Hyper):
    kdsvd_weight: Annotated[float, "multiplies the sum over consecutive stages", Range(0.1, 10.0, log=True)] = 1.0
    k: Annotated[int, "singular vectors of each of the teacher's maps"] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("k")


class Decomposition(NamedTuple):
    """Right singular vectors of matrices [B, P, K], without gradients, the leading one first; R = min(P, K)."""

    squares: Tensor  # [B, R], of the singular values; 0 where they are negligible
    vectors: Tensor  # [B, K, R], 0 where the singular value is negligible


@torch.no_grad()
def decompose(matrices: Tensor) -> Decomposition:
    """By the eigenvectors of the smaller Gram matrix."""
    transposed = matrices.transpose(1, 2)
    wide = matrices.shape[1] < matrices.shape[2]
    squares, vectors = torch.linalg.eigh(matrices @ transposed if wide else transposed @ matrices)
    squares, vectors = squares.flip(1), vectors.flip(2)
    relevant = squares > squares.shape[1] * torch.finfo(squares.dtype).eps * squares[:, :1]
    if wide:
        vectors = F.normalize(transposed @ vectors, dim=1)
    return Decomposition(squares * relevant, vectors * relevant[:, None])


def differentiable(matrices: Tensor, decomposition: Decomposition, chosen: Tensor) -> Tensor:
    """The chosen right singular vectors [B, K, k], with gradients; `chosen` [B, k] are their indices.

    A vector v of singular value s changes by (s² - XᵀX)⁺ d(XᵀX) v. What is added here is 0, and has that gradient.
    """
    squares, vectors = decomposition
    own = squares.gather(1, chosen)  # [B, k]
    selected = vectors.gather(2, chosen[:, None].expand(-1, vectors.shape[1], -1))
    product = matrices.transpose(1, 2) @ (matrices @ selected)
    change = product - product.detach()
    gap = own[:, None] - squares[:, :, None]  # [B, R, k]
    negligible = gap.abs() <= squares.shape[1] * torch.finfo(gap.dtype).eps * squares[:, :1, None]
    inverse = torch.where(negligible, 0.0, 1 / gap.masked_fill(negligible, 1.0))
    inside = vectors.transpose(1, 2) @ change  # [B, R, k], the components along the singular vectors
    outside = change - vectors @ inside  # along those with the singular value 0
    rest = torch.where(own > 0, 1 / own.masked_fill(own <= 0, 1.0), 0.0)[:, None]
    return selected + vectors @ (inverse * inside) + rest * outside


def similarity(vectors: Tensor, earlier: Tensor) -> Tensor:
    """exp(-(v - w)² / 8) of all entries of two stages' vectors, [B, K, k] and [B, L, k]: [B, K, L, k]."""
    return torch.exp(-(vectors[:, :, None] - earlier[:, None]).square() / 8)


@register("kdsvd", KDSVDHyper, paper="arXiv:1807.06819", year=2018, kind="relations", group="modern")
class KDSVD(Distiller[KDSVDHyper]):
    """Has no modules of its own."""

    @classmethod
    def supports(cls, hyper: KDSVDHyper, shapes: Shapes) -> str | None:
        if reason := lacks_feature_maps(shapes):
            return reason
        pairs = match_stages(shapes.student.feature_maps, shapes.teacher.feature_maps)
        if len(pairs) < 2:
            return "it needs two stages at least"
        if any(student[0] != teacher[0] for student, teacher in pairs):
            return "it needs the same number of channels on both sides, stage by stage"
        return None

    def losses(self, step: Step) -> dict[str, Tensor]:
        pairs = match_stages(step.student.feature_maps, step.teacher.feature_maps)
        student, teacher = ([m.flatten(2).transpose(1, 2) for m in maps] for maps in zip(*pairs, strict=True))
        leading = [decompose(matrices) for matrices in teacher]
        targets = self.orient([vectors[:, :, : self.hyper.k] for _, vectors in leading])
        theirs, ours = [], []
        for matrices, target, (squares, _) in zip(student, targets, leading, strict=True):
            strength = F.normalize(squares[:, : self.hyper.k].sqrt())[:, None]  # [B, 1, k]
            theirs.append(target * strength)
            ours.append(self.aligned(matrices, target) * strength)
        distances = [
            (similarity(*ours[stage - 1 : stage + 1]) - similarity(*theirs[stage - 1 : stage + 1])).square().sum()
            for stage in range(1, len(ours))
        ]
        return {"relation": self.hyper.kdsvd_weight * sum_losses(distances) / len(step.batch.labels)}

    def orient(self, vectors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The teacher's vectors of each stage, [B, K, k], turned so that no sum over K is negative."""
        return [vector.where(vector.sum(dim=1, keepdim=True) >= 0, -vector) for vector in vectors]

    def aligned(self, matrices: Tensor, target: Tensor) -> Tensor:
        """For each of the teacher's vectors [B, K, k], the student's that is most along it, turned to its side."""
        decomposition = decompose(matrices)
        candidates = decomposition.vectors[:, :, : self.hyper.k + MORE]
        cosines = candidates.transpose(1, 2) @ target  # [B, k + 3, k]
        chosen = cosines.abs().argmax(dim=1)
        side = cosines.gather(1, chosen[:, None]).sign()  # [B, 1, k]
        return side * differentiable(matrices, decomposition, chosen)


GOLDEN = {
    "kdsvd": Golden(
        student={"feature_maps": "g_s"},
        teacher={"feature_maps": "g_t"},
        settings={"k": "$k"},
        replaced={"orient": "aux.teacher_v"},
    )
}
