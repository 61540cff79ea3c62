"""Relational knowledge distillation: keep the distances and angles between the embeddings of a batch.

Paper:    Park, Kim, Lu, Cho, "Relational Knowledge Distillation", arXiv:1904.05068, equations 6 to 10.
Loss:     distance: pairwise Euclidean distances divided by the mean of the positive ones, smooth L1, averaged over B²;
          angle: cosines of the angles at each image between all pairs of images, smooth L1, averaged over B³;
          rkd_weight · (distance_weight · distance + angle_weight · angle).
Defaults: distance_weight 25, angle_weight 50, rkd_weight 1: RepDistiller's scripts.
Differs:  averages include degenerate pairs and triplets (an image with itself), as in the authors' code.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import Distiller, Golden, Hyper, Range, Step, register

EPS = 1e-12  # below the root, as in the authors' code


@dataclass(frozen=True)
class RKDHyper(Hyper):
    rkd_weight: Annotated[float, "multiplies both terms", Range(0.1, 10.0, log=True)] = 1.0
    distance_weight: Annotated[float, "multiplies the distance term", Range(2.5, 250.0, log=True)] = 25.0
    angle_weight: Annotated[float, "multiplies the angle term", Range(5.0, 500.0, log=True)] = 50.0


def distances(embedding: Tensor) -> Tensor:
    """Pairwise Euclidean distances [B, B] of embeddings [B, D], divided by the mean of the positive ones."""
    norms = embedding.square().sum(dim=1)
    squared = (norms[:, None] + norms[None, :] - 2 * embedding @ embedding.T).clamp(min=EPS)
    diagonal = torch.eye(len(embedding), dtype=torch.bool, device=embedding.device)
    distance = squared.sqrt().masked_fill(diagonal, 0.0)
    positive = distance > 0
    # Not `distance[positive].mean()`: the device would have to wait for the size of the selection.
    return distance / (distance.sum() / positive.sum())


def angles(embedding: Tensor) -> Tensor:
    """Cosines of the angles at image j between images i and k, [B, B, B] in the order j, i, k, of embeddings [B, D].

    They are 0 where i or k is j.
    """
    differences = F.normalize(embedding[None, :] - embedding[:, None], dim=2)  # [B, B, D]: from j to i
    return differences @ differences.transpose(1, 2)


@register("rkd", RKDHyper, paper="arXiv:1904.05068", year=2019, kind="relations", group="paper")
class RKD(Distiller[RKDHyper]):
    """Has no modules of its own."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, student, teacher = self.hyper, step.student.embedding, step.teacher.embedding.detach()
        distance = F.smooth_l1_loss(distances(student), distances(teacher))
        angle = F.smooth_l1_loss(angles(student), angles(teacher))
        return {
            "distance": hyper.rkd_weight * hyper.distance_weight * distance,
            "angle": hyper.rkd_weight * hyper.angle_weight * angle,
        }


GOLDEN = {
    "rkd": Golden(
        student={"embedding": "f_s"},
        teacher={"embedding": "f_t"},
        settings={"distance_weight": "$w_d", "angle_weight": "$w_a"},
        terms={"distance": "out.distance/distance_weight", "angle": "out.angle/angle_weight"},
    )
}
