"""The objective, the same for every method."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from kdbench.data.resident import Batch
from kdbench.distill.distiller import Distiller
from kdbench.distill.losses import soft_kl
from kdbench.models.output import Output


def objective(
    distiller: Distiller[Any], student: Output, teacher: Output, batch: Batch, epoch: int
) -> dict[str, Tensor]:
    """All weighted terms, whose sum is minimised: `ce`, `kd` and the method's own; those of weight 0 are left out.

    Raises:
        ValueError: if a method takes a shared term's name or returns what is no scalar, or if nothing is left.
    """
    hyper = distiller.hyper
    terms: dict[str, Tensor] = {}
    if hyper.ce_weight:
        terms["ce"] = hyper.ce_weight * F.cross_entropy(student.logits, batch.labels)
    if hyper.kd_weight:
        terms["kd"] = hyper.kd_weight * soft_kl(student.logits, teacher.logits, hyper.kd_temperature)
    for name, term in distiller.losses(student, teacher, batch, epoch).items():
        if name in ("ce", "kd"):
            raise ValueError(f"the loss term {name!r} needs another name: the harness adds its own `ce` and `kd`")
        if term.ndim:
            raise ValueError(f"the loss term {name!r} must be a scalar, and has the shape {tuple(term.shape)}")
        terms[name] = term
    if not terms:
        raise ValueError("the loss has no term: all weights are 0")
    return terms
