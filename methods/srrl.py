"""SRRL: the teacher's classifier must see in the student's embedding what it sees in the teacher's.

Paper:    Yang, Martinez, Bulat, Tzimiropoulos, "Knowledge Distillation via Softmax Regression Representation Learning",
          ICLR 2021, openreview.net/forum?id=ZzwDy_wiWv, §3.
Loss:     transfer(student's embedding) = linear layer without bias, batch norm, ReLU;
          srrl_weight · (mean squared error with the teacher's embedding + mean squared error between the teacher's
          logits and its classifier's on the transferred embedding).
Defaults: srrl_weight 1, CE 1: SimKD's code, whose CIFAR-100 tables have SRRL, and the authors' own.
Differs:  from the authors' code, which is for ImageNet, in the first term: theirs compares channel statistics of the
          last maps. This is SimKD's form. SimKD's scripts add KD of weight 1 to every method; here that is srrl+kd.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import Context, Distiller, Golden, Hyper, Range, Requires, Step, register


@dataclass(frozen=True)
class SRRLHyper(Hyper):
    srrl_weight: Annotated[float, "multiplies the sum of both errors", Range(0.1, 10.0, log=True)] = 1.0


@register("srrl", SRRLHyper, paper="ICLR 2021", year=2021, kind="features", group="modern")
class SRRL(Distiller[SRRLHyper]):
    """Trains `srrl.transfer`."""

    def __init__(self, hyper: SRRLHyper, context: Context) -> None:
        super().__init__(hyper, context)
        student, teacher = context.student.embedding_dim, context.teacher.embedding_dim
        transfer = nn.Sequential(nn.Linear(student, teacher, bias=False), nn.BatchNorm1d(teacher), nn.ReLU())
        self.srrl = nn.ModuleDict({"transfer": transfer})

    @classmethod
    def requires(cls, hyper: SRRLHyper) -> Requires:
        return Requires(classifier=True)

    def losses(self, step: Step) -> dict[str, Tensor]:
        assert step.teacher.classifier is not None
        transferred = self.srrl["transfer"](step.student.embedding)  # [B, D] with the teacher's D
        logits = F.linear(transferred, *step.teacher.classifier)
        weight = self.hyper.srrl_weight
        return {
            "features": weight * F.mse_loss(transferred, step.teacher.embedding),
            "logits": weight * F.mse_loss(logits, step.teacher.logits),
        }


GOLDEN = {
    "srrl": Golden(
        student={"embedding": "f_s"},
        teacher={"embedding": "f_t", "logits": "y_t", "classifier": "teacher_classifier"},
        terms={"features": "out.feature/srrl_weight", "logits": "out.logits/srrl_weight"},
    )
}
