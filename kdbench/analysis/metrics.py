"""How similar two networks are, and how well calibrated one network is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kdbench.analysis.predictions import Predictions
from kdbench.train.evaluate import BINS


def agreement(student: Tensor, teacher: Tensor) -> float:
    """Percentage of images with equal top-1 predictions, from logits [N, C]: Stanton et al., arXiv:2106.05945, §2."""
    return 100 * (student.argmax(dim=1) == teacher.argmax(dim=1)).double().mean().item()


def divergence(student: Tensor, teacher: Tensor) -> float:
    """Mean KL(teacher ‖ student) of the class probabilities, in nats, from logits [N, C] at temperature 1."""
    log_q, log_p = (F.log_softmax(logits.double(), dim=1) for logits in (student, teacher))
    kl: float = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True).item()
    return kl


def cka(left: Tensor, right: Tensor) -> float:
    """Linear centered kernel alignment of embeddings [N, D] and [N, E], 0 to 1: Kornblith et al., arXiv:1905.00414."""
    x, y = (embeddings.double() - embeddings.double().mean(dim=0) for embeddings in (left, right))
    norm = (x.T @ x).norm() * (y.T @ y).norm()
    alignment: float = ((y.T @ x).square().sum() / norm).item()
    return alignment


def profile(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [N, C] standardized over the classes and averaged over the images of each true class, as in the paper.

    Returns:
        float64 [C, C], one row per true class; rows of classes without images are zero.
    """
    logits = logits.double()
    scaled = (logits - logits.mean(dim=1, keepdim=True)) / logits.std(
        dim=1, keepdim=True
    )  # unbiased, as in the authors' script
    classes = logits.shape[1]
    members = F.one_hot(labels, classes).double()  # [N, C]
    return members.T @ scaled / members.sum(dim=0).clamp(min=1)[:, None]


def profile_difference(student: Tensor, teacher: Tensor, labels: Tensor) -> NDArray[np.float64]:
    """Absolute difference of the two profiles, [C, C], with a diagonal of 0 as in the authors' script."""
    difference = (profile(student, labels) - profile(teacher, labels)).abs()
    array: NDArray[np.float64] = difference.fill_diagonal_(0).numpy()
    return array


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error in percent: mean |accuracy - confidence| over BINS equal bins, weighted by images."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    error = multiclass_calibration_error(F.softmax(logits, dim=1), labels, num_classes=logits.shape[1], n_bins=BINS)
    return 100 * error.item()


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram, with one point for each bin that contains images."""

    confidence: NDArray[np.float64]  # mean over the bin
    accuracy: NDArray[np.float64]


def reliability(logits: Tensor, labels: Tensor) -> Reliability:
    """Accuracy by confidence in BINS equal bins, from logits [N, C] and labels [N]."""
    from sklearn.calibration import calibration_curve

    confidence, prediction = F.softmax(logits.double(), dim=1).max(dim=1)
    correct = (prediction == labels).numpy()
    accuracy, mean_confidence = calibration_curve(correct, confidence.clamp(max=1).numpy(), n_bins=BINS)
    return Reliability(mean_confidence, accuracy)


def measures(student: Predictions, teacher: Predictions, labels: Tensor) -> dict[str, float]:
    """All measures of one student, by their names in fidelity.csv."""
    difference = profile_difference(student.logits, teacher.logits, labels)
    classes = len(difference)
    return {
        "agreement": agreement(student.logits, teacher.logits),
        "kl": divergence(student.logits, teacher.logits),
        "cka": cka(student.embedding, teacher.embedding),
        "correlation_mean": float(difference.sum() / (classes * classes)),
        "correlation_max": float(difference.max()),
        **confidence(student, labels),
    }


def confidence(predictions: Predictions, labels: Tensor) -> dict[str, float]:
    """The measures that need no teacher."""
    return {
        "top1": 100 * (predictions.logits.argmax(dim=1) == labels).double().mean().item(),
        "ece": calibration_error(predictions.logits, labels),
        "nll": F.cross_entropy(predictions.logits.double(), labels).item(),
    }
