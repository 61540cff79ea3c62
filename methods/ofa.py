"""One-for-all: logits of branches at the student's stages, and its own, learn the teacher's class probabilities.

Paper:    Hao, Guo, Han, Tang, Hu, Wang, Xu, "One-for-All: Bridge the Gap Between Heterogeneous Architectures in
          Knowledge Distillation", arXiv:2310.19444 (NeurIPS 2023).
Loss:     With p_t and p_s = softmaxes of the teacher's and of some logits over T, and y = 1 at the label, else 0:
          L(logits) = -Σ [(p_t + y)^exponent - y] · log p_s, averaged over the batch. final_weight · L(student's logits)
          + ofa_weight · Σ L(logits of a branch) over the last four stages.
          A branch is a depth-separable convolution for each stage that follows (a 1x1 convolution at the last stage),
          mean over positions, and a linear layer.
Defaults: both weights 1, CE 1, T = 1, exponents 1: the authors' for CIFAR-100.
Differs:  students of tokens have the branches of convolutional ones, where the authors merge patches and add attention
          blocks; students with fewer than four stages have a branch at each.
"""

import re
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from kdbench.distill import Context, Distiller, Golden, Hyper, Output, Range, Shapes, Step, register, sum_losses

STAGES = 4


def parse_exponents(text: str) -> tuple[float, ...]:
    """`1.5`, or `1-2-3-4-5`: of each branch, the first stage's first, then of the student's logits.

    `[1, 2, 3, 4, 5]` is a list as the vectors hold it.
    """
    try:
        numbers = tuple(float(word) for word in re.split(r"-|, ?", text.strip("[]")))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, STAGES + 1) or not all(0 < number < float("inf") for number in numbers):
        raise ValueError(f"exponents must be one number above 0, or {STAGES + 1} joined by -, not {text!r}")
    return numbers if len(numbers) > 1 else numbers * (STAGES + 1)


@dataclass(frozen=True)
class OFAHyper(Hyper):
    final_weight: Annotated[float, "multiplies the term of the student's logits", Range(0.1, 10.0, log=True)] = 1.0
    ofa_weight: Annotated[float, "multiplies the sum of the branches' terms", Range(0.1, 10.0, log=True)] = 1.0
    temperature: Annotated[float, "softens both sides", Range(0.5, 8.0, log=True)] = 1.0
    exponents: Annotated[
        str, "power of the teacher's probabilities: one number, or a-b-c-d-e for four branches and the student's logits"
    ] = "1"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature")
        parse_exponents(self.exponents)


def ofa_loss(student: Tensor, teacher: Tensor, labels: Tensor, exponent: float, temperature: float) -> Tensor:
    """-Σ [(p_t + y)^exponent - y] · log p_s of logits [B, C], averaged over B."""
    label = (torch.arange(student.shape[1], device=labels.device) == labels[:, None]).to(student.dtype)  # [B, C]
    target = ((teacher / temperature).softmax(dim=1) + label).pow(exponent) - label
    return -(target * (student / temperature).log_softmax(dim=1)).sum(dim=1).mean()


def separable(inputs: int, outputs: int) -> list[nn.Module]:
    """Two depth-wise 3x3 convolutions, the first with stride 2, each with a point-wise one, batch norm and ReLU."""
    layers: list[nn.Module] = []
    for stride, width in ((2, inputs), (1, outputs)):
        layers += [
            nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    return layers


def branch(channels: int, followers: int, width: int, classes: int) -> nn.Sequential:
    """From the map of a stage that `followers` stages follow to logits; the channels double with each."""
    layers: list[nn.Module] = [] if followers else [nn.Conv2d(channels, width, 1)]
    for number in range(followers):
        layers += separable(channels * 2**number, width if number == followers - 1 else channels * 2 ** (number + 1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def initialize(module: nn.Module) -> None:
    """As in the authors' code."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


@register("ofa", OFAHyper, paper="arXiv:2310.19444", year=2023, kind="logits", group="modern")
class OFA(Distiller[OFAHyper]):
    """`branches.i` is the branch at the i-th of the student's last four stages."""

    def __init__(self, hyper: OFAHyper, context: Context) -> None:
        super().__init__(hyper, context)
        stages = context.student.feature_maps[1:][-STAGES:]
        width = max(context.student.embedding_dim, context.teacher.embedding_dim)
        self.branches = nn.ModuleList(
            branch(stage[0], len(stages) - number, width, context.classes) for number, stage in enumerate(stages, 1)
        )
        self.branches.apply(initialize)

    @classmethod
    def supports(cls, hyper: OFAHyper, shapes: Shapes) -> str | None:
        return None if len(shapes.student.feature_maps) > 1 else "the student has no stage maps"

    def branch_logits(self, student: Output) -> tuple[Tensor, ...]:
        """The logits [B, C] of each branch."""
        stages = student.feature_maps[1:][-STAGES:]
        return tuple(branch(stage) for branch, stage in zip(self.branches, stages, strict=True))

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, labels, teacher = self.hyper, step.batch.labels, step.teacher.logits
        *exponents, last = parse_exponents(hyper.exponents)
        logits = self.branch_logits(step.student)
        stages = [
            ofa_loss(student, teacher, labels, exponent, hyper.temperature)
            for student, exponent in zip(logits, exponents[-len(logits) :], strict=True)
        ]
        final = ofa_loss(step.student.logits, teacher, labels, last, hyper.temperature)
        return {"final": hyper.final_weight * final, "stages": hyper.ofa_weight * sum_losses(stages)}


GOLDEN = {
    "ofa": Golden(
        student={"logits": "y_s"},
        teacher={"logits": "y_t"},
        labels="labels",
        settings={"temperature": "$T", "exponents": "$eps", "final_weight": 1.0},
        replaced={"branch_logits": "y_s_stage"},
        terms={"final": "out.final/final_weight", "stages": "out.stages/ofa_weight"},
    )
}
