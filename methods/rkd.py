"""Relational knowledge distillation: keep the distances and angles between the embeddings of a batch.

Paper:    Park, Kim, Lu, Cho, "Relational Knowledge Distillation", arXiv:1904.05068, equations 6 to 10.
Loss:     distance: pairwise Euclidean distances divided by the mean of the positive ones, smooth-L1, averaged over B²;
          angle: cosines of the angles at each image between all pairs of others, smooth-L1, averaged over B³;
          rkd_weight · (distance_weight · distance + angle_weight · angle).
Defaults: 25 and 50, weight 1: RepDistiller's scripts.
Differs:  averages include degenerate pairs and triplets (an image with itself), as in the authors' code.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Step, register

EPS = 1e-12  # below the root, as in the authors' code


@dataclass(frozen=True)
class RKDHyper(Hyper):
    rkd_weight: Annotated[float, "multiplies both terms"] = 1.0
    distance_weight: Annotated[float, "multiplies the distance term"] = 25.0
    angle_weight: Annotated[float, "multiplies the angle term"] = 50.0


def distances(embedding: Tensor) -> Tensor:
    """Pairwise Euclidean distances over the mean of the positive ones, [B, B]."""
    squares = embedding.square().sum(dim=1)
    squared = (squares[:, None] + squares[None, :] - 2 * embedding @ embedding.T).clamp(min=EPS)
    diagonal = torch.eye(len(embedding), dtype=torch.bool, device=embedding.device)
    plain = squared.sqrt().masked_fill(diagonal, 0.0)
    positive = plain > 0
    # not `plain[positive].mean()`: a mask of unknown size would make the device wait
    return plain / (plain.sum() / positive.sum())


def angles(embedding: Tensor) -> Tensor:
    """Cosine of the angle at image j between images i and k, [B, B, B] in the order j, i, k; 0 where degenerate."""
    differences = F.normalize(embedding[None, :] - embedding[:, None], dim=2)  # [B, B, D]: from j to i
    return differences @ differences.transpose(1, 2)


@register("rkd", RKDHyper, paper="arXiv:1904.05068", year=2019, kind="relations", group="paper")
class RKD(Distiller[RKDHyper]):
    """No helper modules."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        own, target, hyper = step.student.embedding, step.teacher.embedding.detach(), self.hyper
        return {
            "distance": hyper.rkd_weight * hyper.distance_weight * F.smooth_l1_loss(distances(own), distances(target)),
            "angle": hyper.rkd_weight * hyper.angle_weight * F.smooth_l1_loss(angles(own), angles(target)),
        }


GOLDEN = {
    "rkd": Golden(
        student={"embedding": "f_s"},
        teacher={"embedding": "f_t"},
        settings={"distance_weight": "$w_d", "angle_weight": "$w_a"},
        terms={"distance": "out.distance/distance_weight", "angle": "out.angle/angle_weight"},
    )
}
