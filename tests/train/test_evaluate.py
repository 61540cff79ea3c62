"""One evaluation pass for many networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import log_loss
from torch import Tensor

from kdbench.analysis import metrics
from kdbench.data.dataset import Batch
from kdbench.train.evaluate import Accuracy, evaluate

CPU = torch.device("cpu")


def batches() -> list[Batch]:
    labels = torch.tensor([6, 0, 3, 4, 5])
    images = torch.arange(5.0)[:, None, None, None]
    return [Batch(images[part], labels[part], labels[part]) for part in (slice(0, 3), slice(3, 5))]


def ranked(batch: Batch) -> Tensor:
    """For every image class 6 scores highest, then 0, 1, 2, 3: the top five."""
    logits = torch.zeros(len(batch.labels), 7)
    for rank, label in enumerate([6, 0, 1, 2, 3, 4, 5]):
        logits[:, label] = -rank
    return logits


def perfect(batch: Batch) -> Tensor:
    return torch.nn.functional.one_hot(batch.labels, 7).float()


def test_accuracies_count_every_image_of_every_batch() -> None:
    accuracies = evaluate({"ranked": ranked, "perfect": perfect}, batches(), CPU)
    assert accuracies["perfect"] == Accuracy(100.0, 100.0)
    assert isinstance(accuracies["ranked"], Accuracy)
    assert (accuracies["ranked"].top1, accuracies["ranked"].top5) == pytest.approx((100 / 5, 300 / 5))


def test_each_batch_is_read_once_whatever_the_number_of_networks() -> None:
    served: list[Batch] = []

    def images() -> Iterator[Batch]:
        for batch in batches():
            served.append(batch)
            yield batch

    def recording(batch: Batch) -> Tensor:
        predicted_for.append(batch)
        return ranked(batch)

    predicted_for: list[Batch] = []
    evaluate(dict.fromkeys("abc", recording), images(), CPU)
    assert len(served) == 2
    assert [id(batch) for batch in predicted_for] == [id(batch) for batch in served for _ in "abc"]


def test_a_network_that_fails_leaves_the_others() -> None:
    calls = []

    def fails_in_the_second_batch(batch: Batch) -> Tensor:
        calls.append(len(batch.labels))
        if len(batch.labels) == 2:
            raise ValueError("too few images")
        return perfect(batch)

    accuracies = evaluate({"fails": fails_in_the_second_batch, "perfect": perfect}, batches(), CPU)
    assert isinstance(accuracies["fails"], ValueError)
    assert accuracies["perfect"] == Accuracy(100.0, 100.0)


def test_the_caller_is_asked_after_each_batch() -> None:
    asked: list[None] = []
    evaluate({"perfect": perfect}, batches(), CPU, lambda: asked.append(None))
    assert len(asked) == 2


def test_metrics_are_those_of_the_libraries() -> None:
    """The sums over batches against torchmetrics, scikit-learn and scipy on everything at once."""
    stream = torch.Generator().manual_seed(3)
    labels = torch.randint(7, (60,), generator=stream)
    student, teacher = (3 * torch.randn(60, 7, generator=stream) for _ in range(2))
    parts = [Batch(labels[part, None], labels[part], torch.arange(60)[part]) for part in (slice(0, 40), slice(40, 60))]

    def logits_of(logits: Tensor) -> Callable[[Batch], Tensor]:
        return lambda batch: logits[batch.indices]

    def log_probabilities(batch: Batch) -> Tensor:
        return teacher[batch.indices].double().log_softmax(dim=1)

    networks, q, p = {"student": logits_of(student)}, student.double().softmax(dim=1), teacher.double().softmax(dim=1)
    accuracy = evaluate(networks, parts, CPU, metrics=True, teacher=log_probabilities)["student"]
    assert isinstance(accuracy, Accuracy)
    assert accuracy.metrics == pytest.approx(
        {
            "nll": log_loss(labels, q.numpy(), labels=range(7)),
            "ece": metrics.calibration_error(student, labels),
            "agreement": metrics.agreement(student, teacher),
            "kl": entropy(p.numpy(), q.numpy(), axis=1).mean(),
        },
        rel=1e-5,  # torchmetrics computes in float32
    )
    alone = evaluate(networks, parts, CPU, metrics=True)["student"]
    assert isinstance(alone, Accuracy)
    assert alone.metrics.keys() == {"nll", "ece"}
    assert evaluate(networks, parts, CPU, teacher=log_probabilities)["student"] == Accuracy(
        accuracy.top1, accuracy.top5
    )
