"""SRD, a simple recipe: compare normalized embeddings after a linear projector, by the logarithm of their distance.

Paper:    Miles, Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", arXiv:2303.11098, §3.
Loss:     d = standardized(projector(student's embedding)) - standardized(teacher's embedding), each dimension over the
          batch; srd_weight · log of the sum of |d|⁴ over batch and dimensions; and KL(teacher ‖ student) at T = 1.
Defaults: srd_weight 2, KD 1 at T = 1, CE 1: the authors' code for ResNets, which is for ImageNet.
Differs:  the projector is as wide as the networks' embeddings; theirs has the 512 dimensions of ResNet-18 and -34. The
          sum is at least the smallest normal number, so that its logarithm is finite where both sides agree.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import Context, Distiller, Golden, Hyper, Range, Step, register

EPS = 1e-4  # added to the variances, as in the authors' code


@dataclass(frozen=True)
class SRDHyper(Hyper):
    kd_weight: Annotated[float, "weight of the KL divergence to the teacher's softened class probabilities"] = 1.0
    kd_temperature: Annotated[float, "temperature that softens both sides of that divergence"] = 1.0
    srd_weight: Annotated[float, "multiplies the logarithm", Range(0.2, 20.0, log=True)] = 2.0


def standardized(embedding: Tensor) -> Tensor:
    """Embeddings [B, D] with mean 0 and variance 1 over the batch."""
    return F.batch_norm(embedding, None, None, training=True, eps=EPS)


def log_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """Logarithm of the sum of fourth powers of the differences of embeddings, both [B, D]; a scalar."""
    total = (standardized(student) - standardized(teacher)).square().square().sum()
    return total.clamp(min=torch.finfo(total.dtype).tiny).log()


@register("srd", SRDHyper, paper="arXiv:2303.11098", year=2024, kind="features", group="modern")
class SRD(Distiller[SRDHyper]):
    """Trains the projector `embed`."""

    def __init__(self, hyper: SRDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.embed = nn.Linear(context.student.embedding_dim, context.teacher.embedding_dim)

    def losses(self, step: Step) -> dict[str, Tensor]:
        distance = log_sum(self.embed(step.student.embedding), step.teacher.embedding)
        return {"log_sum": self.hyper.srd_weight * distance}


GOLDEN = {
    "srd_authors": Golden(
        student={"logits": "y_s", "embedding": "f_s"},
        teacher={"logits": "y_t", "embedding": "f_t"},
        settings={"srd_weight": 2.0, "kd_weight": 1.0, "kd_temperature": 1.0},
        terms={"log_sum": "out.log_sum/srd_weight", "kd": "out.kl/kd_weight"},
    )
}
