"""SimKD: the student predicts with the teacher's classifier, and learns to give it the teacher's last feature map.

Paper:    Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher Classifier",
          arXiv:2203.14001, §3.2.
Loss:     projector(student's last map) = 1x1, 3x3, 1x1 convolutions without bias, each with batch norm and ReLU, of
          K / factor, K / factor and K channels, K being the teacher's; maps before it are average-pooled to the
          smaller of both sizes; simkd_weight · mean squared error with the teacher's last map. The logits, in training
          and evaluation, are the teacher's classifier on the mean over positions of the projected map.
Defaults: simkd_weight 1, no cross-entropy, no KL divergence, factor 2: the authors' scripts.
Differs:  in nothing. The student's own classifier is not trained. The deployed model has the projector and the
          teacher's classifier, and both are counted.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import (
    Context,
    Distiller,
    FrozenClassifier,
    Golden,
    Hyper,
    Once,
    Output,
    Range,
    Requires,
    Step,
    register,
)


@dataclass(frozen=True)
class SimKDHyper(Hyper):
    ce_weight: Annotated[float, "weight of the cross-entropy with the labels"] = 0.0
    simkd_weight: Annotated[float, "multiplies the squared error of the projected map", Range(0.1, 10.0, log=True)] = (
        1.0
    )
    factor: Annotated[int, "the projector's inner maps have the teacher's channels divided by this"] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("factor")


class Projector(nn.Module):
    """The student's last map [B, K, H, W] at the teacher's number of channels."""

    def __init__(self, context: Context, factor: int) -> None:
        super().__init__()
        student, teacher = context.student.last_map, context.teacher.last_map
        assert student is not None
        assert teacher is not None
        self.size = min(student[1], teacher[1]), min(student[2], teacher[2])
        channels = max(1, teacher[0] // factor)
        self.transfer = nn.Sequential(
            *(nn.Conv2d(student[0], channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()),
            *(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()),
            *(nn.Conv2d(channels, teacher[0], 1, bias=False), nn.BatchNorm2d(teacher[0]), nn.ReLU()),
        )

    def resized(self, last_map: Tensor) -> Tensor:
        """The student's or the teacher's map at the smaller of both sizes."""
        return last_map if last_map.shape[2:] == self.size else F.adaptive_avg_pool2d(last_map, self.size)

    def forward(self, last_map: Tensor) -> Tensor:
        projected: Tensor = self.transfer(self.resized(last_map))
        return projected


@register("simkd", SimKDHyper, paper="arXiv:2203.14001", year=2022, kind="features", group="modern")
class SimKD(Distiller[SimKDHyper]):
    """Trains the projector `simkd`; predicts with it and the teacher's classifier."""

    def __init__(self, hyper: SimKDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.simkd = Projector(context, hyper.factor)
        self.teacher_classifier = FrozenClassifier(context.teacher_classifier)
        self.once = Once()

    @classmethod
    def requires(cls, hyper: SimKDHyper) -> Requires:
        return Requires(last_map=True, classifier=True)

    def losses(self, step: Step) -> dict[str, Tensor]:
        assert step.teacher.last_map is not None
        distance = F.mse_loss(self.project(step.student), self.simkd.resized(step.teacher.last_map))
        return {"features": self.hyper.simkd_weight * distance}

    def predict(self, student: Output) -> Tensor:
        logits: Tensor = self.teacher_classifier(self.project(student).mean(dim=(2, 3)))
        return logits

    def project(self, student: Output) -> Tensor:
        """The projected map [B, K, H, W], which loss and prediction of a step share."""
        assert student.last_map is not None
        return self.once(self.simkd, student.last_map)

    def after_backward(self, step: Step) -> None:
        self.once.forget()


GOLDEN = {
    "simkd": Golden(
        student={"last_map": "f_s"},
        teacher={"last_map": "f_t", "classifier": "teacher_classifier"},
        settings={"factor": "$factor"},
        predictions="out.student_logits",
    )
}
