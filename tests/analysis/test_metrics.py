"""Each measure against an independent computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import log_loss
from torch import Tensor

from kdbench.analysis import metrics
from kdbench.analysis.predictions import Predictions
from kdbench.train.evaluate import BINS

STREAM = torch.Generator().manual_seed(0)
LABELS = torch.arange(200) % 5


def logits(scale: float = 1.0) -> Tensor:
    return scale * (torch.randn(200, 5, generator=STREAM) + 2 * torch.nn.functional.one_hot(LABELS, 5))


def test_agreement_counts_equal_predictions() -> None:
    left, right = torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]
    assert metrics.agreement(left, right) == 50.0
    assert metrics.agreement(left, 3 * left) == 100.0


def test_divergence_equals_scipys() -> None:
    left, right = logits(), logits()
    student, teacher = (tensor.double().softmax(1).numpy() for tensor in (left, right))
    assert metrics.divergence(left, right) == pytest.approx(entropy(teacher, student, axis=1).mean(), rel=1e-10)
    assert metrics.divergence(left, left) == pytest.approx(0, abs=1e-12)


def test_cka_is_the_normalized_hsic_of_linear_kernels() -> None:
    x, y = torch.randn(50, 7, generator=STREAM), torch.randn(50, 4, generator=STREAM)
    center = np.eye(50) - 1 / 50
    k, m = (center @ (tensor.double() @ tensor.double().T).numpy() @ center for tensor in (x, y))
    assert metrics.cka(x, y) == pytest.approx(np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m)), rel=1e-10)
    rotation = torch.linalg.qr(torch.randn(7, 7, generator=STREAM)).Q
    assert metrics.cka(x, 3 * x @ rotation + 1) == pytest.approx(1, rel=1e-5)  # invariant to rotation, scale and shift


def test_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    tensor = logits(3.0)
    confidence, prediction = tensor.softmax(1).max(1)
    correct = (prediction == LABELS).double()
    bins = (confidence * BINS).ceil().long().clamp(1, BINS)
    gaps = [
        float((confidence[bins == b].double().mean() - correct[bins == b].mean()).abs() * (bins == b).sum())
        for b in bins.unique()
    ]
    assert metrics.calibration_error(tensor, LABELS) == pytest.approx(100 * sum(gaps) / 200, abs=1e-4)
    points = metrics.reliability(tensor, LABELS)
    assert len(points.confidence) == len(bins.unique())
    assert ((points.accuracy >= 0) & (points.accuracy <= 1)).all()
    certain = 1000.0 * torch.nn.functional.one_hot(LABELS, 5).float()
    assert metrics.calibration_error(certain, LABELS) == pytest.approx(0, abs=1e-6)
    assert metrics.reliability(certain, LABELS).accuracy.tolist() == [1.0]


def test_likelihood_equals_scikit_learns() -> None:
    tensor = logits()
    values = metrics.confidence(Predictions(tensor, tensor), LABELS)
    assert values["nll"] == pytest.approx(log_loss(LABELS.numpy(), tensor.double().softmax(1).numpy()), rel=1e-10)
    assert values["top1"] == 100 * (tensor.argmax(1) == LABELS).double().mean().item()


def test_profiles_are_class_means_of_standardized_logits() -> None:
    left, right = logits(), logits()
    standardized = [
        (tensor - tensor.mean(1, keepdim=True)) / tensor.std(1, keepdim=True)
        for tensor in (left.double(), right.double())
    ]
    for label in range(5):
        mean = standardized[0][label == LABELS].mean(0)
        torch.testing.assert_close(metrics.profile(left, LABELS)[label], mean)
    difference = metrics.profile_difference(left, right, LABELS)
    assert (difference.diagonal() == 0).all()
    expected = (standardized[0][LABELS == 1].mean(0) - standardized[1][LABELS == 1].mean(0)).abs()
    assert difference[1, 2] == pytest.approx(expected[2].item())
    assert not metrics.profile(left[:4], LABELS[:4])[4].any()  # a class without images
    values = metrics.measures(Predictions(left, left), Predictions(right, right), LABELS)
    assert values["correlation_max"] == difference.max()
    assert values["correlation_mean"] == pytest.approx(difference.mean())
