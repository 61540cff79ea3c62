"""Losses that two or more methods use, or the harness itself; any other stays in its method's file."""

from __future__ import annotations

from torch import Tensor


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
