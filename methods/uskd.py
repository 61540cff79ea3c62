"""Universal self-KD: soft labels made from the student's own logits and from a weak classifier of an earlier stage.

Paper:    Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
          Approach with Normalized Loss and Customized Soft Labels", arXiv:2303.13005 (ICCV 2023). A control without a
          teacher.
Loss:     s and w are the softmaxes of the student and of a linear classifier of the pooled feature map of the last
          stage but one, y the label.
          target: -(s_y² + 1 - mean of s_y² over the batch) · log s_y, the factor without gradient;
          weak: cross-entropy of w with the label smoothed by 0.1;
          non_target: classes are ranked by w_c / (1 - w_y + 1e-6) + log s_c / (1 - log s_y + 1e-6), rank k gets the
          share 1/k, and the shares of all classes but y, divided by their sum, are the target of a cross-entropy with
          the softmax over the logits of these classes. All are averaged over the batch and weighted.
Defaults: all three weights 0.1, beside the cross-entropy: the authors' for CIFAR-100.
Differs:  in nothing. The ranking adds log-probabilities of the logits to probabilities of the weak classifier, as in
          the authors' code. The stage is the one they use in ResNet-18, the third of four.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import Context, Distiller, Golden, Hyper, Range, Requires, Shapes, Step, register

SMOOTHING = 0.1  # of the weak classifier's labels, as in the authors' code
EPS = 1e-6  # below both summands of the ranking, as in the authors' code


@dataclass(frozen=True)
class USKDHyper(Hyper):
    target_weight: Annotated[float, "multiplies the target-class term; alpha", Range(0.01, 10.0, log=True)] = 0.1
    non_target_weight: Annotated[float, "multiplies the non-target term; beta", Range(0.01, 1.0, log=True)] = 0.1
    weak_weight: Annotated[float, "multiplies the weak classifier's term; mu", Range(0.001, 1.0, log=True)] = 0.1


def middle(stages: int) -> int:
    """The index of the last stage but one among feature maps whose first is the stem's; of the only one if need be."""
    return max(1, stages - 2)


def target_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the labels, averaged over B, with more weight on images that the student is surer of."""
    log_s = logits.log_softmax(dim=1).gather(1, labels[:, None]).squeeze(1)  # [B]
    squared = log_s.detach().exp().square()
    return -((squared + 1 - squared.mean()) * log_s).mean()


def zipf_shares(weak: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """The target of the non-target classes, [B, C] with 0 at the label and rows that sum to 1, of logits [B, C]."""
    index, log_s, w = labels[:, None], logits.log_softmax(dim=1), weak.softmax(dim=1)
    score = w / (1 - w.gather(1, index) + EPS) + log_s / (1 - log_s.gather(1, index) + EPS)
    order = score.argsort(dim=1, descending=True)
    by_rank = 1 / torch.arange(1, score.shape[1] + 1, device=score.device, dtype=score.dtype)
    shares = torch.zeros_like(score).scatter(1, order, by_rank.expand_as(score)).scatter(1, index, 0.0)
    return shares / shares.sum(dim=1, keepdim=True)


def non_target_loss(logits: Tensor, labels: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy of shares [B, C] with the softmax over all classes but the label, averaged over B."""
    lowest = torch.finfo(logits.dtype).min
    return -(shares * logits.scatter(1, labels[:, None], lowest).log_softmax(dim=1)).sum(dim=1).mean()


@register("uskd", USKDHyper, paper="arXiv:2303.13005", year=2023, kind="control", group="control")
class USKD(Distiller[USKDHyper]):
    """`fc` is the weak classifier."""

    def __init__(self, hyper: USKDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        maps = context.student.feature_maps
        self.fc = nn.Linear(maps[middle(len(maps))][0], context.classes)

    @classmethod
    def requires(cls, hyper: USKDHyper) -> Requires:
        return Requires(min_teachers=0, max_teachers=None)

    @classmethod
    def supports(cls, hyper: USKDHyper, shapes: Shapes) -> str | None:
        return "the student has no stage maps" if len(shapes.student.feature_maps) < 2 else None

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, logits, labels, maps = self.hyper, step.student.logits, step.batch.labels, step.student.feature_maps
        weak = self.fc(maps[middle(len(maps))].mean(dim=(2, 3)))  # [B, C]
        shares = zipf_shares(weak.detach(), logits.detach(), labels)
        return {
            "target": hyper.target_weight * target_loss(logits, labels),
            "non_target": hyper.non_target_weight * non_target_loss(logits, labels, shares),
            "weak": hyper.weak_weight * F.cross_entropy(weak, labels, label_smoothing=SMOOTHING),
        }


GOLDEN = {
    "uskd": Golden(
        student={"logits": "y_s", "feature_maps": "f_mid"},
        labels="labels",
        settings={"target_weight": "$alpha", "non_target_weight": "$beta", "weak_weight": "$mu"},
        terms={
            "target": "out.target/target_weight",
            "non_target": "out.non_target/non_target_weight",
            "weak": "out.weak/weak_weight",
        },
    )
}
