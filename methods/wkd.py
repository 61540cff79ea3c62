"""Wasserstein distillation: transport the student's class probabilities or feature statistics to the teacher's.

Paper:    Lv, Yang, Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation",
          arXiv:2412.08139 (NeurIPS 2024).
Loss:     form=logits: target = -p_t log p_s at the label, averaged over the batch; wasserstein = the cost of moving the
          student's softmax over the other classes at temperature T to the teacher's, by `iterations` Sinkhorn
          iterations with entropic regularization, averaged over the batch; target + logit_weight · decay · wasserstein.
          Moving class i to j costs 1 - exp(-sharpen · d), d = 1 - the linear CKA of the teacher's embeddings of both
          classes' training images.
          form=features: the student's last map, by a 1x1 convolution (one that fits the sizes, where they differ),
          batch norm and ReLU, and the teacher's are cut into grid x grid cells, with mean and deviation (unbiased
          variance plus 1e-5) for each cell and channel; feature_weight · decay · (mean_weight · mean + std), both the
          squared differences summed, divided by grid² · B. form=both: all of these.
          decay is 1 until decay_epoch of 240, then falls along half a cosine to 0; epochs from 1.
Defaults: logit_weight 600, T = 8, feature_weight 0.08, mean_weight 4, grid 1 (for resnet32x4:resnet8x4);
          regularization 0.05, 10 iterations, sharpen 1, decay_epoch 150: the authors' settings.
Differs:  CKA pairs the images of two classes in the order of the data set; a class with fewer images than the largest
          repeats its own. The label's class takes no part by masks instead of being cut out, with the same result. A
          cell of one position has the variance 0, which the authors leave undefined.
"""

import math
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
    lacks_feature_maps,
    register,
    target_cross_entropy,
)

FORMS = ("logits", "features", "both")
EPS = 1e-8  # in cost and iterations, as in the authors' code
VARIANCE_EPS = 1e-5
CKA_BLOCK = 32  # rows of Gram matrices that are held at a time


@dataclass(frozen=True)
class WKDHyper(Hyper):
    form: Annotated[str, "what is transported: logits, features or both"] = "logits"
    logit_weight: Annotated[float, "multiplies the transport cost of form=logits", Range(20.0, 2000.0, log=True)] = (
        600.0
    )
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
        self.require_choice("form", FORMS)


def class_distances(embeddings: Tensor, labels: Tensor, classes: int) -> Tensor:
    """1 - linear CKA [C, C] between the classes, of embeddings [N, D] and labels [N].

    CKA is the cosine of centered Gram matrices [n, n] of two classes; 0 for a class without images or variance.
    """
    counts = labels.bincount(minlength=classes)
    rows = torch.arange(int(counts.max()), device=labels.device) % counts.clamp(min=1)[:, None]  # [C, n]
    rows = rows + (counts.cumsum(0) - counts)[:, None]
    features = embeddings[labels.argsort(stable=True)[rows.clamp(max=len(labels) - 1)]]  # [C, n, D]
    features = (features - features.mean(dim=1, keepdim=True)) * (counts > 0)[:, None, None]
    products = features.new_zeros(classes, classes)
    for block in features.split(CKA_BLOCK, dim=1):
        gram = (block @ features.transpose(1, 2)).flatten(1)
        products += gram @ gram.T
    norms = products.diagonal().sqrt()
    distances = 1 - products / (norms[:, None] * norms).clamp(min=torch.finfo(norms.dtype).tiny)
    return distances.fill_diagonal_(0.0)


def transport_cost(student: Tensor, teacher: Tensor, labels: Tensor, cost: Tensor, hyper: WKDHyper) -> Tensor:
    """Entropic transport cost [C, C] between softened logits [B, C] over the other classes, averaged over B."""
    target = torch.arange(student.shape[1], device=labels.device) == labels[:, None]  # [B, C]
    source, goal = (
        (logits / hyper.temperature).masked_fill(target, -math.inf).softmax(dim=1) for logits in (student, teacher)
    )
    cost = cost.clamp(min=0) + EPS
    kernel = torch.exp(-cost / hyper.regularization)
    u = (~target).to(student.dtype) / (student.shape[1] - 1)
    v = u
    for _ in range(hyper.iterations):
        v = goal / (u @ kernel + EPS)
        u = source / (v @ kernel.T + EPS)
    return (u * (v @ (kernel * cost).T)).sum(dim=1).mean()


def cells(features: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation [grid², B, K] of the grid x grid cells of maps [B, K, H, W], cut as by adaptive pooling."""
    rows, columns = ([slice(i * n // grid, -(-(i + 1) * n // grid)) for i in range(grid)] for n in features.shape[2:])
    parts = [features[:, :, row, column].flatten(2) for row in rows for column in columns]
    variances = [part.var(dim=2, correction=min(1, part.shape[2] - 1)) for part in parts]
    return torch.stack([part.mean(dim=2) for part in parts]), (torch.stack(variances) + VARIANCE_EPS).sqrt()


def statistics_loss(student: Tensor, teacher: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Squared differences of the cells' means, and of their deviations, summed and divided by grid² · B."""
    pairs = zip(cells(student, grid), cells(teacher, grid), strict=True)
    mean, deviation = ((s - t).square().sum() / (grid**2 * len(student)) for s, t in pairs)
    return mean, deviation


@register("wkd", WKDHyper, paper="arXiv:2412.08139", year=2024, kind="logits", group="modern")
class WKD(Distiller[WKDHyper]):
    """`cost` [C, C] is that of moving probability between classes; `conv_reg` projects the student's last map."""

    cost: Tensor

    def __init__(self, hyper: WKDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        if hyper.form != "features":
            embeddings = context.teacher_embeddings
            assert embeddings is not None
            distances = class_distances(embeddings, context.labels.to(embeddings.device), context.classes)
            self.register_buffer("cost", 1 - torch.exp(-hyper.sharpen * distances))
        if hyper.form != "logits":
            maps = context.student.feature_maps[-1], context.teacher.feature_maps[-1]
            self.conv_reg = ConvRegressor(*maps, relu=True)

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
        hyper, labels, terms = self.hyper, step.batch.labels, dict[str, Tensor]()
        share = max(0.0, step.epoch_of(240) - hyper.decay_epoch) / max(240 - hyper.decay_epoch, 1e-9)
        decay = (1 + math.cos(math.pi * share)) / 2
        if hyper.form != "features":
            student, teacher = step.student.logits, step.teacher.logits
            terms["target"] = target_cross_entropy(student, teacher, labels)
            transport = transport_cost(student, teacher, labels, self.cost, hyper)
            terms["wasserstein"] = hyper.logit_weight * decay * transport
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
        settings={
            "logit_weight": "$weight",
            "temperature": "$T",
            "regularization": "$reg",
            "iterations": "$iterations",
            "sharpen": "$sharpen",
            "decay_epoch": 240.0,
        },
        terms={"target": "out.target", "wasserstein": "out.wasserstein/logit_weight"},
    ),
    "wkd_feat": Golden(
        student={"feature_maps": "f_s"},
        teacher={"feature_maps": "f_t"},
        settings={
            "form": "features",
            "feature_weight": 1.0,
            "mean_weight": "$ratio",
            "grid": "$grid",
            "decay_epoch": 240.0,
        },
        terms={"mean": "out.mean/mean_weight", "std": "out.std"},
    ),
}

# Of a form and a pair: logit_weight, temperature, feature_weight, mean_weight and grid, as far as the form has them.
_TABLE: dict[str, dict[str, tuple[float | int, ...]]] = {
    "logits": {"resnet32x4:resnet8x4": (600.0, 8.0), "wrn_40_2:ShuffleV1": (200.0, 6.0)},
    "features": {"resnet32x4:resnet8x4": (0.08, 4.0, 1), "wrn_40_2:ShuffleV1": (0.3, 3.0, 4)},
    "both": {"resnet32x4:resnet8x4": (200.0, 8.0, 0.08, 8.0, 1), "wrn_40_2:ShuffleV1": (60.0, 4.0, 0.5, 3.0, 4)},
}


def _published(form: str, pairs: dict[str, tuple[float | int, ...]]) -> Published:
    names = ("logit_weight", "temperature") * (form != "features")
    names += ("feature_weight", "mean_weight", "grid") * (form != "logits")
    settings = {pair: dict(zip(names, values, strict=True)) for pair, values in pairs.items()}
    return Published("JiamingLv/WKD's configs/cifar100", settings, given={"form": form})


PUBLISHED = tuple(_published(form, pairs) for form, pairs in _TABLE.items())
