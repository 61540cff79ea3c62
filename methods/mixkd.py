"""MixKD: beside KD, learn mixed labels and the teacher's probabilities on convex combinations of images.

Paper:    Liang, Hao, Shen, Zhou, Chen, Chen, Carin, "MixKD: Towards Efficient Distillation of Large-scale Language
          Models", arXiv:2011.00593 (ICLR 2021).
Loss:     On x' = lam · x + (1 - lam) · x of a partner, lam ~ Beta(alpha, alpha): labels = lam · CE(label) + (1 - lam) ·
          CE(partner's label); teacher = T² · KL(softmax(teacher(x')/T) ‖ softmax(student(x')/T)); both averaged over
          the batch. mixed_label_weight · labels + mixkd_weight · teacher. CE and KL on x are added by the trainer.
Defaults: chosen here, as the paper's were not found: on x' the weights that `kd` has on x, 0.1 for labels and 0.9 for
          the teacher at T = 4, and the same on x; alpha 1, as mixup has for CIFAR.
Differs:  pixels are mixed, where the paper mixes word embeddings of sentences.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from kdbench.distill import Distiller, Hyper, Range, Requires, Step, View, register, soft_kl


@dataclass(frozen=True)
class MixKDHyper(Hyper):
    ce_weight: Annotated[float, "weight of the cross-entropy with the labels", Range(0.01, 1.0, log=True)] = 0.1
    kd_weight: Annotated[
        float, "weight of the KL divergence to the teacher's softened class probabilities", Range(0.09, 9.0, log=True)
    ] = 0.9
    mixed_label_weight: Annotated[
        float, "multiplies the cross-entropy with mixed labels, on mixed images", Range(0.01, 1.0, log=True)
    ] = 0.1
    mixkd_weight: Annotated[float, "multiplies the divergence on mixed images", Range(0.09, 9.0, log=True)] = 0.9
    temperature: Annotated[float, "softens both sides of the divergence on mixed images", Range(1.0, 8.0)] = 4.0
    alpha: Annotated[float, "of the Beta distribution of lam", Range(0.1, 2.0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature", "alpha")


def mixed_cross_entropy(logits: Tensor, labels: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """lam · CE(label) + (1 - lam) · CE(partner's label) of logits [B, C], averaged over B.

    `partner` are rows of the batch, `lam` shares of the image itself: both [B].
    """
    own = F.cross_entropy(logits, labels, reduction="none")
    others = F.cross_entropy(logits, labels[partner], reduction="none")
    return (lam * own + (1 - lam) * others).mean()


@register("mixkd", MixKDHyper, paper="arXiv:2011.00593", year=2021, kind="logits", group="adapted")
class MixKD(Distiller[MixKDHyper]):
    """Compares logits; has no modules of its own."""

    @classmethod
    def requires(cls, hyper: MixKDHyper) -> Requires:
        return Requires(views=(View("mixup", alpha=hyper.alpha),))

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, view = self.hyper, step.views["mixup"]
        assert view.partner is not None
        assert view.lam is not None
        logits = view.student.logits
        labels = mixed_cross_entropy(logits, step.batch.labels, view.partner, view.lam.to(logits.dtype))
        teacher = soft_kl(logits, view.teacher.logits, hyper.temperature)
        return {"mixed_labels": hyper.mixed_label_weight * labels, "mixed_teacher": hyper.mixkd_weight * teacher}
