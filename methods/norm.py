"""N-to-one matching: the student's last map, expanded to N times the teacher's channels, matches the teacher's N times.

Paper:    Liu, Li, Li, Yao, "NORM: Knowledge Distillation via N-to-One Representation Matching", arXiv:2305.13803
          (ICLR 2023).
Loss:     E = the student's last map after a 1x1 convolution to N · (teacher channels) and batch norm. norm_weight ·
          factor(epoch) · N · the mean squared error between E and the teacher's last map repeated N times, max-pooled
          to the student's size. factor is 0.1 before epoch 10 of 240, 0.5 before 20, 1 before 180, 0.5 before 210, then
          0.1; epochs from 0.
          A second 1x1 convolution and batch norm of E is added to the student's last map before pooling. The logits,
          normalized over the classes (biased deviation, eps 1e-7) and times logit_scale, are the prediction.
Defaults: norm_weight 1, N = 8, logit_scale 2.5: the authors' script and code for CIFAR-100; CE 0.1, of the 0.0625 to
          0.5 that they try.
Differs:  both maps are the activated ones whose mean is the embedding; in the authors' wide ResNets the layers are
          inserted before the last batch norm. `+kd` compares with the teacher's raw logits, not its normalized ones.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.distill import Context, Distiller, Golden, Hyper, Once, Output, Range, Requires, Shapes, Step, register

EPS = 1e-7  # of the normalization of the logits, as in the authors' code
SCHEDULE = ((10, 0.1), (20, 0.5), (180, 1.0), (210, 0.5))  # epochs of 240 before which a factor holds; then the last
LAST_FACTOR = 0.1


@dataclass(frozen=True)
class NORMHyper(Hyper):
    ce_weight: Annotated[float, "weight of the cross-entropy with the labels", Range(0.01, 1.0, log=True)] = 0.1
    norm_weight: Annotated[float, "multiplies the squared error", Range(0.1, 10.0, log=True)] = 1.0
    expansion: Annotated[int, "N, how often the teacher's map is matched", Range(1, 16)] = 8
    logit_scale: Annotated[float, "multiplies the normalized logits", Range(0.5, 10.0, log=True)] = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("expansion", "logit_scale")


def factor(epoch: float) -> float:
    """Of the weight in an epoch of 240."""
    return next((value for end, value in SCHEDULE if epoch < end), LAST_FACTOR)


def n_to_one(expanded: Tensor, teacher: Tensor, expansion: int) -> Tensor:
    """N · mean squared error between [B, N·K, H, W] and N copies of [B, K, H', W'], max-pooled to H, W."""
    ratio = teacher.shape[2] // expanded.shape[2], teacher.shape[3] // expanded.shape[3]
    pooled = F.max_pool2d(teacher, ratio) if max(ratio) > 1 else teacher
    error: Tensor = expanded.unflatten(1, (expansion, -1)) - pooled[:, None]  # [B, N, K, H, W]
    return expansion * error.square().mean()


def conv1x1(inputs: int, outputs: int) -> nn.Sequential:
    """A 1x1 convolution and batch norm, initialized as in the authors' code."""
    convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


@register("norm", NORMHyper, paper="arXiv:2305.13803", year=2023, kind="features", group="modern")
class NORM(Distiller[NORMHyper]):
    """`transform` expands the student's last map, `inverse` leads back; both are part of what is deployed."""

    def __init__(self, hyper: NORMHyper, context: Context) -> None:
        super().__init__(hyper, context)
        student, teacher = context.student.last_map, context.teacher.last_map
        assert student is not None
        assert teacher is not None
        self.transform = conv1x1(student[0], hyper.expansion * teacher[0])
        self.inverse = conv1x1(hyper.expansion * teacher[0], student[0])
        self.once = Once()

    @classmethod
    def requires(cls, hyper: NORMHyper) -> Requires:
        return Requires(last_map=True, classifier=True)

    @classmethod
    def supports(cls, hyper: NORMHyper, shapes: Shapes) -> str | None:
        student, teacher = shapes.student.last_map, shapes.teacher.last_map
        if student and teacher and any(t % s for s, t in zip(student[1:], teacher[1:], strict=True)):
            sizes = ("x".join(map(str, shape[1:])) for shape in (teacher, student))
            return "it cannot max-pool the teacher's maps of {} to {}".format(*sizes)
        return None

    def _expand(self, last_map: Tensor) -> Tensor:
        """E, which prediction and loss of a step share."""
        return self.once(self.transform, last_map)

    def raw_logits(self, student: Output) -> Tensor:
        """The logits [B, C] before their normalization."""
        assert student.last_map is not None
        assert student.classifier is not None
        refined = student.last_map + self.inverse(self._expand(student.last_map))
        return F.linear(refined.mean(dim=(2, 3)), *student.classifier)

    def predict(self, student: Output) -> Tensor:
        logits = self.raw_logits(student)
        return F.layer_norm(logits, logits.shape[1:], eps=EPS) * self.hyper.logit_scale

    def losses(self, step: Step) -> dict[str, Tensor]:
        assert step.student.last_map is not None
        assert step.teacher.last_map is not None
        error = n_to_one(self._expand(step.student.last_map), step.teacher.last_map, self.hyper.expansion)
        return {"norm": self.hyper.norm_weight * factor(step.epoch_of(240) - 240 / step.epochs) * error}

    def after_backward(self, step: Step) -> None:
        self.once.forget()


GOLDEN = {
    "norm": Golden(
        student={"last_map": "f_s"},
        teacher={"last_map": "f_t"},
        replaced={"raw_logits": "y_s"},
        settings={"norm_weight": 1 / LAST_FACTOR, "expansion": "$N", "logit_scale": "$scale"},
        predictions="out.scaled_logits_s",
    )
}
