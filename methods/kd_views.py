"""KD on two views: the base batch and a strongly augmented view of the same images alike.

Paper:    none. A control for methods that train on the same two views (MLKD, CRLD): what these gain beyond it does not
          come from the augmentation and the second forward pass alone.
Loss:     On each view, ce_weight · CE(labels) + kd_weight · T² · KL(softmax(teacher/T) ‖ softmax(student/T)), averaged
          over the batch; both views are summed.
Defaults: weights 0.1 and 0.9 on each view, as MLKD weighs its cross-entropies and each of its divergences; T = 4,
          MLKD's first temperature, alone.
Differs:  in nothing. The trainer computes both terms of the base batch. KL is averaged over several teachers.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import Distiller, Hyper, Range, Requires, Step, View, register, soft_kl


@dataclass(frozen=True)
class KDViewsHyper(Hyper):
    ce_weight: Annotated[
        float, "weight of the cross-entropy with the labels on each view", Range(0.01, 1.0, log=True)
    ] = 0.1
    kd_weight: Annotated[
        float, "weight of the KL divergence to the teacher on each view", Range(0.09, 9.0, log=True)
    ] = 0.9


@register("kd_views", KDViewsHyper, paper="-", kind="control", group="control")
class KDViews(Distiller[KDViewsHyper]):
    """Adds to the trainer's terms the same of the second view."""

    @classmethod
    def requires(cls, hyper: KDViewsHyper) -> Requires:
        return Requires(views=(View("strong"),), max_teachers=None)

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, view = self.hyper, step.views["strong"]
        logits = self.predict(view.student)
        divergences = [soft_kl(logits, teacher.logits, hyper.kd_temperature) for teacher in view.teachers]
        return {
            "ce_strong": hyper.ce_weight * F.cross_entropy(logits, view.batch.labels),
            "kd_strong": hyper.kd_weight * torch.stack(divergences).mean(),
        }
