"""Label smoothing: cross-entropy with labels that give a small share to the other classes, and no teacher.

Paper:    Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for Computer Vision",
          arXiv:1512.00567, §7. A control: what a method gains beyond it does not come from softer labels alone.
Loss:     ls_weight · cross-entropy with a target that is smoothing / C for each class and 1 - smoothing more for the
          label (convention `torch`, the paper's), or 1 - smoothing for the label and smoothing / (C - 1) for each other
          class (convention `tfkd`, that of the code of arXiv:1909.11723); averaged over the batch.
Defaults: smoothing 0.1, as in both; ls_weight 1 in place of the plain cross-entropy, whose ce_weight is 0.
Differs:  in nothing.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from kdbench.distill import Distiller, Hyper, Range, Requires, Step, register

CONVENTIONS = ("torch", "tfkd")


@dataclass(frozen=True)
class LSHyper(Hyper):
    ce_weight: Annotated[float, "weight of the cross-entropy with the labels as they are"] = 0.0
    ls_weight: Annotated[float, "weight of the cross-entropy with the smoothed labels"] = 1.0
    smoothing: Annotated[float, "share of the smoothed label, at least 0 and below 1", Range(0.0, 0.5)] = 0.1
    convention: Annotated[str, "torch: the share goes to all classes; tfkd: to all but the label"] = "torch"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be at least 0 and below 1, got {self.smoothing}")
        self.require_choice("convention", CONVENTIONS)


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, label: float, others: float) -> Tensor:
    """Cross-entropy, averaged over B, with a target of `label` at the label and `others` at each other class.

    Args:
        logits: [B, C].
        labels: int64 [B].
    """
    log_q = logits.log_softmax(dim=1)
    at_label = log_q.gather(1, labels[:, None]).squeeze(1)  # [B]
    return -((label - others) * at_label + others * log_q.sum(dim=1)).mean()


@register("ls", LSHyper, paper="arXiv:1512.00567", year=2016, kind="control", group="control")
class LS(Distiller[LSHyper]):
    """Has no modules of its own."""

    @classmethod
    def requires(cls, hyper: LSHyper) -> Requires:
        return Requires(min_teachers=0, max_teachers=None)

    def losses(self, step: Step) -> dict[str, Tensor]:
        logits, share = step.student.logits, self.hyper.smoothing
        if self.hyper.convention == "torch":
            others = share / logits.shape[1]
            label = 1 - share + others
        else:
            label, others = 1 - share, share / (logits.shape[1] - 1)
        return {"ls": self.hyper.ls_weight * smoothed_cross_entropy(logits, step.batch.labels, label, others)}
