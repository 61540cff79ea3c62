"""Each measure against another computation of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import log_loss
from torch import Tensor

from kdbench.analysis import metrics
from kdbench.analysis.predictions import Predictions

STREAM = torch.Generator().manual_seed(0)
LABELS = torch.arange(200) % 5


def logits(sharp: float = 1.0) -> Tensor:
    return sharp * (torch.randn(200, 5, generator=STREAM) + 2 * torch.nn.functional.one_hot(LABELS, 5))


def test_agreement_counts_equal_first_classes() -> None:
    left, right = torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]
    assert metrics.agreement(left, right) == 50.0
    assert metrics.agreement(left, 3 * left) == 100.0


def test_divergence_is_that_of_scipy() -> None:
    left, right = logits(), logits()
    own, target = (each.double().softmax(1).numpy() for each in (left, right))
    assert metrics.divergence(left, right) == pytest.approx(entropy(target, own, axis=1).mean(), rel=1e-10)
    assert metrics.divergence(left, left) == pytest.approx(0, abs=1e-12)


def test_alignment_is_the_normalised_hsic_of_linear_kernels() -> None:
    x, y = torch.randn(50, 7, generator=STREAM), torch.randn(50, 4, generator=STREAM)
    centre = np.eye(50) - 1 / 50
    k, m = (centre @ (each.double() @ each.double().T).numpy() @ centre for each in (x, y))
    assert metrics.cka(x, y) == pytest.approx(np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m)), rel=1e-10)
    turn = torch.linalg.qr(torch.randn(7, 7, generator=STREAM)).Q
    assert metrics.cka(x, 3 * x @ turn + 1) == pytest.approx(1, rel=1e-5)  # no rotation, scale or shift shows


def test_calibration_is_the_weighted_gap_of_the_bins() -> None:
    found = logits(3.0)
    confidence, guess = found.softmax(1).max(1)
    right = (guess == LABELS).double()
    bins = (confidence * metrics.BINS).ceil().long().clamp(1, metrics.BINS)
    gaps = [
        float((confidence[bins == b].double().mean() - right[bins == b].mean()).abs() * (bins == b).sum())
        for b in bins.unique()
    ]
    assert metrics.calibration_error(found, LABELS) == pytest.approx(100 * sum(gaps) / 200, abs=1e-4)
    points = metrics.reliability(found, LABELS)
    assert len(points.confidence) == len(bins.unique())
    assert ((points.accuracy >= 0) & (points.accuracy <= 1)).all()
    sure = 1000.0 * torch.nn.functional.one_hot(LABELS, 5).float()
    assert metrics.calibration_error(sure, LABELS) == pytest.approx(0, abs=1e-6)
    assert metrics.reliability(sure, LABELS).accuracy.tolist() == [1.0]


def test_likelihood_is_that_of_scikit_learn() -> None:
    found = logits()
    own = metrics.confidence(Predictions(found, found), LABELS)
    assert own["nll"] == pytest.approx(log_loss(LABELS.numpy(), found.double().softmax(1).numpy()), rel=1e-10)
    assert own["top1"] == 100 * (found.argmax(1) == LABELS).double().mean().item()


def test_profiles_are_class_means_of_standardised_logits() -> None:
    left, right = logits(), logits()
    scaled = [
        (each - each.mean(1, keepdim=True)) / each.std(1, keepdim=True) for each in (left.double(), right.double())
    ]
    for row in range(5):
        mine = scaled[0][row == LABELS].mean(0)
        torch.testing.assert_close(metrics.profile(left, LABELS)[row], mine)
    apart = metrics.profile_difference(left, right, LABELS)
    assert (apart.diagonal() == 0).all()
    by_hand = (scaled[0][LABELS == 1].mean(0) - scaled[1][LABELS == 1].mean(0)).abs()
    assert apart[1, 2] == pytest.approx(by_hand[2].item())
    assert not metrics.profile(left[:4], LABELS[:4])[4].any()  # a class without images
    values = metrics.measures(Predictions(left, left), Predictions(right, right), LABELS)
    assert values["correlation_max"] == apart.max()
    assert values["correlation_mean"] == pytest.approx(apart.mean())
