"""Losses that two or more methods use, or the harness itself; any other stays in its method's file."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

STANDARDIZE_EPS = 1e-7


def soft_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) between softened class probabilities, times T².

    Args:
        student, teacher: raw logits, [B, C]; gradients reach `student` only.
        temperature: T > 0, no unit. T² keeps the gradient's size independent of T.

    Returns:
        Scalar in nats, averaged over B (not over B·C); >= 0, and 0 iff the softened rows agree.

    Raises:
        ValueError: if the shapes differ or T <= 0.

    Source: Hinton et al. 2015, arXiv:1503.02531, §2 and §2.1 (the T² factor).
    """
    if student.shape != teacher.shape or temperature <= 0:
        raise ValueError(f"soft_kl: {tuple(student.shape)} vs {tuple(teacher.shape)}, T={temperature}")
    log_q = (student / temperature).log_softmax(dim=1)
    log_p = (teacher.detach() / temperature).log_softmax(dim=1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy between the softmax of the teacher's scores and that of the student's.

    Args:
        student, teacher: scores already divided by their temperatures, [B, K]; gradients reach `student` only.

    Returns:
        Scalar in nats, averaged over B.
    """
    return -(teacher.detach().softmax(dim=1) * student.log_softmax(dim=1)).sum(dim=1).mean()


def target_cross_entropy(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The part of the cross-entropy at temperature 1 that belongs to the labels' classes: -p(y) log s(y).

    Args:
        student, teacher: logits, [B, C]; gradients reach `student` only.
        labels: [B].

    Returns:
        Scalar in nats, averaged over B.
    """
    log_s, log_p = (logits.log_softmax(dim=1).gather(1, labels[:, None]) for logits in (student, teacher.detach()))
    return -(log_p.exp() * log_s).mean()


def standardize(logits: Tensor) -> Tensor:
    """The logits of each image, [B, C], with mean 0 and (unbiased) standard deviation 1.

    Source: Sun et al. 2024, arXiv:2403.01427, with the 1e-7 that the authors' code adds to the deviation.
    """
    return (logits - logits.mean(dim=1, keepdim=True)) / (STANDARDIZE_EPS + logits.std(dim=1, keepdim=True))


def target_or_other(logits: Tensor, target: Tensor) -> Tensor:
    """Log-probabilities [..., 2] of the target class and of all others, from logits [..., C] and the target's mask."""
    log_probabilities = logits.log_softmax(dim=-1)
    parts = [log_probabilities.masked_fill(mask, -math.inf).logsumexp(dim=-1) for mask in (~target, target)]
    return torch.stack(parts, dim=-1)


def among_others(logits: Tensor, target: Tensor) -> Tensor:
    """Log-probabilities [..., C] of the other classes alone, from logits [..., C]; 0 for the target class."""
    return logits.masked_fill(target, -math.inf).log_softmax(dim=-1).masked_fill(target, 0.0)


def decoupled_kl(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The target-class and the non-target part of the KL divergence.

    Args:
        student, teacher: logits already divided by the temperature, [..., C].
        labels: [...], or of a shape that broadcasts to it.

    Returns:
        Both in nats, [...]: KL(teacher ‖ student) between the two-class distributions (target, all others), and between
        the softmaxes over the other classes.

    Source: Zhao et al. 2022, arXiv:2203.08679, §3.
    """
    target = torch.arange(student.shape[-1], device=labels.device) == labels[..., None]
    parts = (
        F.kl_div(split(student, target), split(teacher, target), reduction="none", log_target=True).sum(dim=-1)
        for split in (target_or_other, among_others)
    )
    tckd, nckd = parts
    return tckd, nckd
