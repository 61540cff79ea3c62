"""KD++: beside KD, the student's embedding is drawn to the direction of its class and to at least the teacher's norm.

Paper:    Wang, Cheng, Duan, Wang, Feng, Kong, "Improving Knowledge Distillation via Regularizing Feature Norm and
          Direction", arXiv:2305.17007.
Loss:     nd = the mean over the batch of 1 - s · c / max(‖s‖, ‖t‖), with embeddings s and t of student and teacher and
          c the mean embedding by the teacher of the label's class, divided by its length. Where the widths differ, s
          passes batch norm, dropout of one half and a linear layer to the teacher's. kdpp_weight · nd + kl_weight ·
          min(epoch / warmup_epochs, 1) · T² · KL(softmax(teacher/T) ‖ softmax(student/T)), epochs from 0 on the scale
          of 240. If ‖s‖ is the larger, the denominator is differentiated.
Defaults: CE 1, T = 4, 20 epochs of warm-up: the authors' code; kdpp_weight 2 and kl_weight 3.5: theirs for
          resnet32x4:resnet8x4.
Differs:  embeddings of length 0 on both sides count as 1 apart, where the authors divide by 0. The recipe is the
          study's; the authors train at twice the rate, on batches of 128, with Nesterov's momentum.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import (
    Context,
    Distiller,
    Golden,
    Hyper,
    Published,
    Range,
    Requires,
    Step,
    register,
    soft_kl,
)

DROPOUT = 0.5


@dataclass(frozen=True)
class KDPPHyper(Hyper):
    kdpp_weight: Annotated[float, "multiplies the norm-and-direction term", Range(0.2, 20.0, log=True)] = 2.0
    kl_weight: Annotated[float, "multiplies the divergence", Range(0.35, 35.0, log=True)] = 3.5
    temperature: Annotated[float, "softens both sides of the divergence", Range(1.0, 8.0)] = 4.0
    warmup_epochs: Annotated[int, "epochs of 240 in which the factor of the divergence grows to 1"] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature", "warmup_epochs")


class DropoutEmbed(nn.Module):
    """Batch norm, dropout and a linear layer to the teacher's width."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.bn, self.linear = nn.BatchNorm1d(student), nn.Linear(student, teacher)
        nn.init.zeros_(self.linear.bias)

    def forward(self, embedding: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.rand(embedding.shape, generator=generator, device=embedding.device)
        embedded: Tensor = self.linear(self.bn(embedding) * (draws >= DROPOUT) / (1 - DROPOUT))
        return embedded


def norm_and_direction(student: Tensor, teacher: Tensor, directions: Tensor) -> Tensor:
    """Mean over B of 1 - s · c / max(‖s‖, ‖t‖), of embeddings and directions [B, D]."""
    along = (student * directions).sum(dim=1)
    student_norm, teacher_norm = (torch.linalg.vector_norm(side, dim=1) for side in (student, teacher))
    larger = torch.where(student_norm > teacher_norm, student_norm, teacher_norm)
    return (1 - along / larger.masked_fill(larger == 0, 1.0)).mean()


@register("kdpp", KDPPHyper, paper="arXiv:2305.17007", year=2023, kind="logits", group="modern")
class KDPP(Distiller[KDPPHyper]):
    """`directions` [C, D] are the teacher's class means with length 1; `embed` exists where the widths differ."""

    directions: Tensor

    def __init__(self, hyper: KDPPHyper, context: Context) -> None:
        super().__init__(hyper, context)
        assert context.teacher_class_means is not None
        self.register_buffer("directions", F.normalize(context.teacher_class_means))
        student, teacher = context.student.embedding_dim, context.teacher.embedding_dim
        self.embed = None if student == teacher else DropoutEmbed(student, teacher)

    @classmethod
    def requires(cls, hyper: KDPPHyper) -> Requires:
        return Requires(teacher_class_means=True)

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, student = self.hyper, step.student.embedding
        if self.embed is not None:
            student = self.embed(student, self.generator)
        passed = step.epoch_of(240) - 240 / step.epochs  # epochs of 240 before this one
        warmup = min(passed / hyper.warmup_epochs, 1.0)
        nd = norm_and_direction(student, step.teacher.embedding, self.directions[step.batch.labels])
        kl = soft_kl(step.student.logits, step.teacher.logits, hyper.temperature)
        return {"nd": hyper.kdpp_weight * nd, "kl": hyper.kl_weight * warmup * kl}


GOLDEN = {
    "kdpp": Golden(
        student={"embedding": "f_s"},
        teacher={"embedding": "f_t"},
        context={"teacher_class_means": "centers"},
        labels="labels",
        settings={"kl_weight": 0.0},
    )
}

PUBLISHED = (
    Published(
        source="arXiv:2305.17007 and WangYZ1608/Knowledge-Distillation-via-ND, KD++",
        pairs={
            "resnet56:resnet20": {"kl_weight": 1.0, "kdpp_weight": 2.0},
            "resnet32x4:resnet8x4": {"kl_weight": 3.5, "kdpp_weight": 2.0},
            "wrn_40_2:wrn_40_1": {"kl_weight": 1.0, "kdpp_weight": 1.5},
            "ResNet50:MobileNetV2": {"kl_weight": 3.0, "kdpp_weight": 0.5},
            "resnet32x4:ShuffleV1": {"kl_weight": 2.5, "kdpp_weight": 1.5},
            "resnet32x4:ShuffleV2": {"kl_weight": 4.0, "kdpp_weight": 0.5},
        },
    ),
)
