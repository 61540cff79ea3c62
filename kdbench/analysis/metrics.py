"""How alike two networks are, and how far one network's confidence is to be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kdbench.analysis.predictions import Predictions

BINS = 15
"""Of the calibration error and the reliability diagram: Guo et al., arXiv:1706.04599."""


def agreement(student: Tensor, teacher: Tensor) -> float:
    """Per cent of the images [N, C] for which both have the same first class: Stanton et al., arXiv:2106.05945, §2."""
    return 100 * (student.argmax(dim=1) == teacher.argmax(dim=1)).double().mean().item()


def divergence(student: Tensor, teacher: Tensor) -> float:
    """Mean KL(teacher ‖ student) of the class probabilities, in nats, from logits [N, C] at temperature 1."""
    own, target = (F.log_softmax(each.double(), dim=1) for each in (student, teacher))
    found: float = F.kl_div(own, target, reduction="batchmean", log_target=True).item()
    return found


def cka(left: Tensor, right: Tensor) -> float:
    """Linear centred kernel alignment of embeddings [N, D] and [N, E], 0 to 1: Kornblith et al., arXiv:1905.00414."""
    x, y = (each.double() - each.double().mean(dim=0) for each in (left, right))
    size = (x.T @ x).norm() * (y.T @ y).norm()
    found: float = ((y.T @ x).square().sum() / size).item()
    return found


def profile(logits: Tensor, labels: Tensor) -> Tensor:
    """The paper's picture: logits [N, C] standardised over classes, averaged over the images of each true class.

    Returns:
        float64 [C, C], a row a true class; rows of classes without images are zero.
    """
    logits = logits.double()
    scaled = (logits - logits.mean(dim=1, keepdim=True)) / logits.std(dim=1, keepdim=True)  # unbiased, as the authors
    classes = logits.shape[1]
    members = F.one_hot(labels, classes).double()  # [N, C]
    return members.T @ scaled / members.sum(dim=0).clamp(min=1)[:, None]


def profile_difference(student: Tensor, teacher: Tensor, labels: Tensor) -> NDArray[np.float64]:
    """|student - teacher| of their profiles, its diagonal 0 as in the authors' script; [C, C]."""
    difference = (profile(student, labels) - profile(teacher, labels)).abs()
    found: NDArray[np.float64] = difference.fill_diagonal_(0).numpy()
    return found


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error in per cent: mean |accuracy - confidence| over BINS equal bins, weighted by images."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    found = multiclass_calibration_error(F.softmax(logits, dim=1), labels, num_classes=logits.shape[1], n_bins=BINS)
    return 100 * found.item()


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: one point for each bin that has images."""

    confidence: NDArray[np.float64]  # mean of the bin
    accuracy: NDArray[np.float64]


def reliability(logits: Tensor, labels: Tensor) -> Reliability:
    """Accuracy by confidence, in BINS equal bins."""
    from sklearn.calibration import calibration_curve

    confidence, guess = F.softmax(logits.double(), dim=1).max(dim=1)
    right = (guess == labels).numpy()
    accuracy, mean = calibration_curve(right, confidence.clamp(max=1).numpy(), n_bins=BINS)
    return Reliability(mean, accuracy)


def measures(own: Predictions, teacher: Predictions, labels: Tensor) -> dict[str, float]:
    """All of them for one student, by their names in fidelity.csv."""
    apart = profile_difference(own.logits, teacher.logits, labels)
    classes = len(apart)
    return {
        "agreement": agreement(own.logits, teacher.logits),
        "kl": divergence(own.logits, teacher.logits),
        "cka": cka(own.embedding, teacher.embedding),
        "correlation_mean": float(apart.sum() / (classes * classes)),
        "correlation_max": float(apart.max()),
        **confidence(own, labels),
    }


def confidence(own: Predictions, labels: Tensor) -> dict[str, float]:
    """Those that need no teacher."""
    return {
        "top1": 100 * (own.logits.argmax(dim=1) == labels).double().mean().item(),
        "ece": calibration_error(own.logits, labels),
        "nll": F.cross_entropy(own.logits.double(), labels).item(),
    }
