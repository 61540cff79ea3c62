"""Knowledge distillation: match the teacher's softened class probabilities.

Paper:    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, §2.
Loss:     0.1 · CE(labels) + 0.9 · T² · KL(softmax(teacher/T) ‖ softmax(student/T)), averaged over the batch.
Defaults: weights 0.1 and 0.9, T = 4: the settings behind the published CIFAR-100 tables (RepDistiller's scripts).
Differs:  in nothing. The harness computes both terms; this method has none of its own.
"""

from dataclasses import dataclass
from typing import Annotated

from kdbench.distill import Distiller, Hyper, register


@dataclass(frozen=True)
class KDHyper(Hyper):
    ce_weight: Annotated[float, "weight of the cross-entropy with the labels"] = 0.1
    kd_weight: Annotated[float, "weight of the KL divergence to the teacher's softened class probabilities"] = 0.9


@register("kd", KDHyper, paper="arXiv:1503.02531", core=True)
class KD(Distiller[KDHyper]):
    """Adds no term to the harness's cross-entropy and KL divergence."""
