"""EmbedDistill for classifiers: the student's embedding replaces the teacher's before the teacher's classifier.

Paper:    Kim, Rawat, Zaheer, Jayasumana, Sadhanala, Jitkrittum, Menon, Fergus, Kumar, "EmbedDistill: A Geometric
          Knowledge Distillation for Information Retrieval", arXiv:2301.12005.
Loss:     embed_weight · the mean over the batch of ‖P(student embedding) - teacher embedding‖ (not squared); P is a
          linear layer where the widths differ, else the identity. The prediction is the teacher's classifier, frozen,
          of P(student embedding). CE + kd_weight · T² · KL, the paper's distillation of scores, are added by the
          trainer.
Defaults: chosen here: embed_weight 1, and `kd`'s weights 0.1 for CE and 0.9 for KL at T = 4.
Differs:  the paper is on retrieval. Its student encodes queries and keeps the teacher's encoder of documents; here the
          teacher's classifier takes that encoder's place. Its generated queries have no counterpart.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from kdbench.distill import Context, Distiller, FrozenClassifier, Hyper, Output, Range, Requires, Step, register


@dataclass(frozen=True)
class EmbedHyper(Hyper):
    ce_weight: Annotated[float, "weight of the cross-entropy with the labels", Range(0.01, 1.0, log=True)] = 0.1
    kd_weight: Annotated[
        float, "weight of the KL divergence to the teacher's softened class probabilities", Range(0.09, 9.0, log=True)
    ] = 0.9
    embed_weight: Annotated[float, "multiplies the distance between embeddings", Range(0.1, 10.0, log=True)] = 1.0


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over B of the Euclidean distance between rows of [B, D]."""
    lengths: Tensor = torch.linalg.vector_norm(student - teacher, dim=1)
    return lengths.mean()


@register("embed", EmbedHyper, paper="arXiv:2301.12005", year=2023, kind="features", group="adapted")
class Embed(Distiller[EmbedHyper]):
    """`projection` leads to the teacher's width, where its classifier predicts."""

    def __init__(self, hyper: EmbedHyper, context: Context) -> None:
        super().__init__(hyper, context)
        student, teacher = context.student.embedding_dim, context.teacher.embedding_dim
        self.projection = nn.Identity() if student == teacher else nn.Linear(student, teacher)
        self.teacher_classifier = FrozenClassifier(context.teacher_classifier)

    @classmethod
    def requires(cls, hyper: EmbedHyper) -> Requires:
        return Requires(classifier=True)

    def predict(self, student: Output) -> Tensor:
        logits: Tensor = self.teacher_classifier(self.projection(student.embedding))
        return logits

    def losses(self, step: Step) -> dict[str, Tensor]:
        projected = self.projection(step.student.embedding)
        return {"embed": self.hyper.embed_weight * distance(projected, step.teacher.embedding)}
