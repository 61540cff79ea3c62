"""Information-flow distillation: keep the similarities of a batch at each stage, earlier stages mostly at first.

Paper:    Passalis, Tzelepi, Tefas, "Heterogeneous Knowledge Distillation using Information Flow Modeling",
          arXiv:2005.00727 (CVPR 2020).
Loss:     For each pair of stages, with features x flattened and two kernels on pairs of images, (x·y / ((‖x‖ + 1e-6)
          (‖y‖ + 1e-6)) + 1) / 2 and 1 / (1 + sqrt(‖x - y‖² + 1e-6)): J = the sum over the kernels of the mean over B²
          of (P_t - P_s) · (log P_t - log P_s), P being the kernel's rows divided by their sums.
          form=flow: hkd_weight · (J of the embeddings + init_weight · decay^e · Σ J of the stage maps), e = epochs of
          50 before this one. form=constant: hkd_weight · (init_weight · J of the first pair of stages + Σ J of the
          others).
          CE + kd_weight · T² · KL are added by the trainer.
Defaults: init_weight 100, decay 0.7 in 50 epochs: the authors' code. hkd_weight 1, CE 1 and kd_weight 1 at T = 4:
          chosen after the port in SemCKD's code, as the authors train for retrieval, by J alone.
Differs:  the teacher is the pair's own, where the authors train an auxiliary one of middle size first. The embeddings
          are left out where both last maps have one position. form=constant is that port, which computes the decay and
          does not apply it. Distances are computed of centered features and are 0 on the diagonal, and kernels are at
          least 1e-12: the same in exact arithmetic, without infinite logarithms.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from kdbench.distill import (
    Distiller,
    Golden,
    Hyper,
    Range,
    Shapes,
    Step,
    lacks_feature_maps,
    match_stages,
    register,
    sum_losses,
)

FORMS = ("flow", "constant")
EPS = 1e-6  # in both kernels, as in the authors' code
SMALLEST = 1e-12  # value of a kernel
SCHEDULE = 50  # epochs of the authors' training


@dataclass(frozen=True)
class HKDHyper(Hyper):
    kd_weight: Annotated[
        float, "weight of the KL divergence to the teacher's softened class probabilities", Range(0.1, 10.0, log=True)
    ] = 1.0
    form: Annotated[str, "how stages are weighted: flow, which decays, or constant"] = "flow"
    hkd_weight: Annotated[float, "multiplies all terms", Range(0.1, 1000.0, log=True)] = 1.0
    init_weight: Annotated[
        float, "of the earlier stages in the first epoch, or of the first with form=constant", Range(1.0, 1e3, log=True)
    ] = 100.0
    decay: Annotated[float, "factor of that weight after each epoch of 50", Range(0.3, 1.0)] = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("decay")
        if self.decay > 1:
            raise ValueError(f"decay must be at most 1, got {self.decay}")
        self.require_choice("form", FORMS)


def kernels(features: Tensor) -> Iterator[Tensor]:
    """The two kernels [B, B] on pairs of images, of features [B, ...], their rows divided by their sums."""
    features = features.flatten(1)
    unit = features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + EPS)
    centered = features - features.mean(dim=0)
    norms = centered.square().sum(dim=1)
    squared = (norms[:, None] + norms - 2 * centered @ centered.T).clamp(min=0)
    diagonal = torch.eye(len(features), dtype=torch.bool, device=features.device)
    distance = (squared.masked_fill(diagonal, 0.0) + EPS).sqrt()
    for kernel in ((unit @ unit.T + 1) / 2, 1 / (1 + distance)):
        kernel = kernel.clamp(min=SMALLEST)
        yield kernel / kernel.sum(dim=1, keepdim=True)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """J of features [B, ...]: the sum over the kernels of the mean over B² of the Jeffreys divergence's terms."""
    pairs = zip(kernels(student), kernels(teacher), strict=True)
    return sum_losses(((p_t - p_s) * (p_t.log() - p_s.log())).mean() for p_s, p_t in pairs)


@register("hkd", HKDHyper, paper="arXiv:2005.00727", year=2020, kind="relations", group="adapted")
class HKD(Distiller[HKDHyper]):
    """Has no modules of its own."""

    @classmethod
    def supports(cls, hyper: HKDHyper, shapes: Shapes) -> str | None:
        return lacks_feature_maps(shapes)

    def losses(self, step: Step) -> dict[str, Tensor]:
        hyper, student, teacher = self.hyper, step.student, step.teacher
        layers = match_stages(student.feature_maps, teacher.feature_maps)
        if hyper.form == "constant":
            (first, *others), weight = layers, hyper.init_weight
            weights = [(first, weight)], [(layer, 1.0) for layer in others]
        else:
            if max(side.shape[2] * side.shape[3] for side in layers[-1]) > 1:
                layers.append((student.embedding, teacher.embedding))
            weight = hyper.init_weight * hyper.decay ** (step.epoch_of(SCHEDULE) - SCHEDULE / step.epochs)
            weights = [(layer, weight) for layer in layers[:-1]], [(layers[-1], 1.0)]
        names = ("weighted", "others")
        return {
            name: hyper.hkd_weight * sum_losses(weight * divergence(*layer) for layer, weight in group)
            for name, group in zip(names, weights, strict=True)
            if group
        }


GOLDEN = {
    "hkd": Golden(
        student={"feature_maps": "f_s[::-1]"},
        teacher={"feature_maps": "f_t[::-1]"},
        epoch="epoch",
        first_epoch=0,
        epochs=SCHEDULE,
        settings={"init_weight": "$init_weight", "decay": "$decay"},
        terms={"others": "out.layer.0"},
    ),
    "hkd_rep": Golden(
        student={"feature_maps": "f_s"},
        teacher={"feature_maps": "f_t"},
        settings={"form": "constant", "init_weight": "$init_weight"},
        terms={"weighted": "out.layer.0/init_weight"},
    ),
}
