"""Wasserstein distillation: transport the student's class probabilities or feature statistics to the teacher's.

Paper:    Lv et al., "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", NeurIPS 2024.
Loss:     target + logit_weight · decay · wasserstein + feature_weight · decay · (mean_weight · mean + std): the first
          two for form=logits, the others for form=features, all for form=both. target = -p_t log p_s at the label.
          wasserstein = the cost of moving the student's softmax over the other classes at temperature T to the
          teacher's, by Sinkhorn iterations; class i to j costs 1 - exp(-sharpen · d), d = 1 - the linear CKA of their
          embeddings by the teacher. Both are averaged over the batch. mean, std = squared differences of means and
          deviations of a grid's cells over the last maps, the student's after convolution, batch norm and ReLU,
          summed and divided by cells · B. decay is 1 until decay_epoch of 240, then half a cosine to 0.
Defaults: the authors' for resnet32x4:resnet8x4, each form alone.
Differs:  classes may have unequal numbers of images (see `class_distances`), and cells one position (variance 0).
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from kdbench.distill import (
    Context,
    ConvRegressor,
    Distiller,
    Golden,
    Hyper,
    Published,
    Range,
    Requires,
    Shapes,
    Step,
    cell_statistics,
    class_distances,
    lacks_feature_maps,
    register,
    target_cross_entropy,
)

EPS = 1e-8  # in cost and iterations, as in the authors' code


@dataclass(frozen=True)
class WKDHyper(Hyper):
    form: Annotated[str, "what is transported: logits, features or both"] = "logits"
    logit_weight: Annotated[float, "multiplies the transport cost", Range(20.0, 2000.0, log=True)] = 600.0
    temperature: Annotated[float, "softens both sides of the transport", Range(1.0, 16.0)] = 8.0
    regularization: Annotated[float, "entropic regularization of the transport", Range(0.02, 0.5, log=True)] = 0.05
    iterations: Annotated[int, "Sinkhorn iterations"] = 10
    sharpen: Annotated[float, "how fast the cost grows with the distance of two classes", Range(0.5, 4.0)] = 1.0
    feature_weight: Annotated[float, "multiplies the terms of form=features", Range(0.005, 1.0, log=True)] = 0.08
    mean_weight: Annotated[float, "multiplies the distance of means beside that of deviations", Range(1.0, 8.0)] = 4.0
    grid: Annotated[int, "cells of a map in each direction"] = 1
    decay_epoch: Annotated[float, "the epoch of 240 after which the weights decay"] = 150.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature", "regularization", "iterations", "sharpen", "grid", "decay_epoch")
        self.require_choice("form", ("logits", "features", "both"))


def transport_cost(student: Tensor, teacher: Tensor, labels: Tensor, cost: Tensor, hyper: WKDHyper) -> Tensor:
    """Entropic transport cost [C, C] between softened logits [B, C] over the other classes, averaged over B."""
    label = torch.arange(student.shape[1], device=labels.device) == labels[:, None]  # [B, C]
    source, goal = torch.stack([student, teacher]).div(hyper.temperature).masked_fill(label, -torch.inf).softmax(dim=2)
    cost = cost.clamp(min=0) + EPS
    kernel = torch.exp(-cost / hyper.regularization)
    u = v = (~label).to(student.dtype) / (student.shape[1] - 1)
    for _ in range(hyper.iterations):
        v = goal / (u @ kernel + EPS)
        u = source / (v @ kernel.T + EPS)
    return (u * (v @ (kernel * cost).T)).sum(dim=1).mean()


def statistics_loss(student: Tensor, teacher: Tensor, grid: int) -> tuple[Tensor, ...]:
    """Squared differences of the cells' means, and of their deviations, summed and divided by grid² · B."""
    pairs = zip(cell_statistics(student, grid), cell_statistics(teacher, grid), strict=True)
    return tuple((s - t).square().sum() / (grid**2 * len(student)) for s, t in pairs)


@register("wkd", WKDHyper, paper="arXiv:2412.08139", year=2024, kind="logits", group="modern")
class WKD(Distiller[WKDHyper]):
    """`cost` [C, C] is that of moving probability between classes; `conv_reg` projects the student's last map."""

    def __init__(self, hyper: WKDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        if hyper.form != "features":
            self.register_buffer("cost", 1 - torch.exp(-hyper.sharpen * class_distances(context)))
        if hyper.form != "logits":
            self.conv_reg = ConvRegressor(context.student.feature_maps[-1], context.teacher.feature_maps[-1], relu=True)

    @classmethod
    def requires(cls, hyper: WKDHyper) -> Requires:
        return Requires(teacher_embeddings=hyper.form != "features")

    @classmethod
    def supports(cls, hyper: WKDHyper, shapes: Shapes) -> str | None:
        if hyper.form == "logits":
            return None
        maps = shapes.student.feature_maps[-1:] + shapes.teacher.feature_maps[-1:]
        return lacks_feature_maps(shapes) or ConvRegressor.incompatibility(*maps)

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, terms = self.hyper, dict[str, Tensor]()
        decay = step.cosine_decay(hyper.decay_epoch)
        if hyper.form != "features":
            logits = step.student.logits, step.teacher.logits, step.batch.labels
            terms["target"] = target_cross_entropy(*logits)
            terms["wasserstein"] = hyper.logit_weight * decay * transport_cost(*logits, self.get_buffer("cost"), hyper)
        if hyper.form != "logits":
            projected = self.conv_reg(step.student.feature_maps[-1])
            mean, deviation = statistics_loss(projected, step.teacher.feature_maps[-1], hyper.grid)
            terms["mean"] = hyper.feature_weight * decay * hyper.mean_weight * mean
            terms["std"] = hyper.feature_weight * decay * deviation
        return terms


GOLDEN = {
    "wkd_logit": Golden(
        student={"logits": "y_s"},
        teacher={"logits": "y_t"},
        context={"teacher_embeddings": "class_features"},
        labels="labels",
        settings={"logit_weight": "$weight", "temperature": "$T", "regularization": "$reg"}
        | {"iterations": "$iterations", "sharpen": "$sharpen", "decay_epoch": 240.0},
        terms={"target": "out.target", "wasserstein": "out.wasserstein/logit_weight"},
    ),
    "wkd_feat": Golden(
        student={"feature_maps": "f_s"},
        teacher={"feature_maps": "f_t"},
        settings={"form": "features", "mean_weight": "$ratio", "grid": "$grid"}
        | {"feature_weight": 1.0, "decay_epoch": 240.0},
        terms={"mean": "out.mean/mean_weight", "std": "out.std"},
    ),
}

_PAIRS = "resnet32x4:resnet8x4", "wrn_40_2:ShuffleV1"
_LOGITS, _FEATURES = ("logit_weight", "temperature"), ("feature_weight", "mean_weight", "grid")
_TUNED: list[tuple[str, tuple[str, ...], list[tuple[float, ...]]]] = [  # the values of each pair
    ("logits", _LOGITS, [(600.0, 8.0), (200.0, 6.0)]),
    ("features", _FEATURES, [(0.08, 4.0, 1), (0.3, 3.0, 4)]),
    ("both", _LOGITS + _FEATURES, [(200.0, 8.0, 0.08, 8.0, 1), (60.0, 4.0, 0.5, 3.0, 4)]),
]
PUBLISHED = tuple(
    Published(
        source="JiamingLv/WKD's configs/cifar100",
        given={"form": form},
        pairs={pair: dict(zip(names, row, strict=True)) for pair, row in zip(_PAIRS, values, strict=True)},
    )
    for form, names, values in _TUNED
)
