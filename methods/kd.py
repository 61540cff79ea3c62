"""Knowledge distillation: match the teacher's softened class probabilities.

Paper:    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, §2.
Loss:     ce_weight · CE(labels) + kd_weight · T² · KL(softmax(teacher/T) ‖ softmax(student/T)), both averaged over the
          batch.
Defaults: weights 0.1 and 0.9, T = 4: the settings behind the published CIFAR-100 tables (RepDistiller's scripts).
Differs:  in nothing. The trainer computes both terms, and averages KL over several teachers.
"""

from dataclasses import dataclass
from typing import Annotated

from kdbench.distill import Distiller, Golden, Hyper, Range, Requires, register


@dataclass(frozen=True)
class KDHyper(Hyper):
    ce_weight: Annotated[float, "weight of the cross-entropy with the labels", Range(0.01, 1.0, log=True)] = 0.1
    kd_weight: Annotated[
        float, "weight of the KL divergence to the teacher's softened class probabilities", Range(0.09, 9.0, log=True)
    ] = 0.9


@register("kd", KDHyper, paper="arXiv:1503.02531", year=2015, kind="logits", group="paper")
class KD(Distiller[KDHyper]):
    """Adds no term to the trainer's cross-entropy and KL divergence."""

    @classmethod
    def requires(cls, hyper: KDHyper) -> Requires:
        return Requires(max_teachers=None)


GOLDEN = {
    "kd": Golden(
        student={"logits": "y_s"},
        teacher={"logits": "y_t"},
        labels="labels",
        settings={"kd_weight": 1.0, "kd_temperature": "$T"},
    )
}
