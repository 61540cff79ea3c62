"""The objective, the same for every method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.distill.distiller import Distiller
from kdbench.distill.losses import soft_kl
from kdbench.distill.step import Step
from kdbench.models.output import Output


def objective(distiller: Distiller[Any], step: Step) -> dict[str, Tensor]:
    """All weighted terms, whose sum is minimized: `ce`, `kd` and the method's own; those of weight 0 are left out.

    Raises:
        TypeError: if `losses` returns no mapping.
        ValueError: if a method takes a shared term's name or returns what is no scalar, or if nothing is left.
    """
    hyper = distiller.hyper
    terms: dict[str, Tensor] = {}
    if hyper.ce_weight or hyper.kd_weight:
        logits = distiller.predict(step.student)
        if hyper.ce_weight:
            terms["ce"] = hyper.ce_weight * F.cross_entropy(logits, step.batch.labels)
        if hyper.kd_weight:
            terms["kd"] = hyper.kd_weight * mean_soft_kl(logits, step.teachers, hyper.kd_temperature)
    own = distiller.losses(step)
    if not isinstance(own, Mapping):
        raise TypeError(f"losses() must return a mapping of names to scalars, not a {type(own).__name__}")
    for name, term in own.items():
        if name in ("ce", "kd"):
            raise ValueError(f"the loss term {name!r} needs another name: the trainer adds its own `ce` and `kd`")
        if term.ndim:
            raise ValueError(f"the loss term {name!r} must be a scalar, and has the shape {tuple(term.shape)}")
        terms[name] = term
    if not terms:
        raise ValueError("the loss has no term: all weights are 0")
    return terms


def mean_soft_kl(logits: Tensor, teachers: tuple[Output, ...], temperature: float) -> Tensor:
    """Mean over the teachers of `soft_kl`."""
    if len(teachers) == 1:
        return soft_kl(logits, teachers[0].logits, temperature)
    return torch.stack([soft_kl(logits, teacher.logits, temperature) for teacher in teachers]).mean()
