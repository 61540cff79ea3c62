"""Accuracy of many networks in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.dataset import Batch

K = TypeVar("K")


def evaluation_batch(device: torch.device, size: int) -> int:
    """Images of a batch in evaluation: on a GPU as many as keep it busy at this size in pixels."""
    return min(2000, max(100, 2000 * 32**2 // size**2)) if device.type == "cuda" else 500


BINS = 15
"""Confidence bins of the calibration error: Guo et al., arXiv:1706.04599."""


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Where networks run: bf16 arithmetic where it is safe, or plain float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@dataclass(frozen=True)
class Accuracy:
    """In per cent; with fewer than five classes top-5 counts them all."""

    top1: float
    top5: float
    metrics: Mapping[str, float] = field(default_factory=dict)  # if they were asked for, see `evaluate`


@torch.no_grad()
def evaluate(
    networks: Mapping[K, Callable[[Batch], Tensor]],
    batches: Iterable[Batch],
    device: torch.device,
    after_batch: Callable[[], None] = lambda: None,
    *,
    metrics: bool = False,
    teacher: Callable[[Batch], Tensor] | None = None,
) -> dict[K, Accuracy | Exception]:
    """The accuracy of each network over all batches, or what it raised; one failure leaves the others.

    `networks` return logits [B, C] and must be in evaluation mode. `after_batch` is called after every batch.

    With `metrics`, also `nll` (mean negative log-likelihood, nats), `ece` (expected calibration error over BINS equal
    bins, per cent) and, if there is a `teacher` (log-probabilities, float64 [B, C]), `agreement` (images with the
    teacher's top-1 class, per cent) and `kl` (mean KL(teacher ‖ student) at temperature 1, nats).
    """
    hits = {key: torch.zeros(2, dtype=torch.int64, device=device) for key in networks}
    sums = {key: _Sums(device) for key in networks}
    errors: dict[K, Exception] = {}
    count = 0
    for batch in batches:
        reference = teacher(batch) if metrics and teacher else None
        for key, predict in networks.items():
            if key in errors:
                continue
            try:
                logits = predict(batch)
                ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]  # [B, 5]
                hits[key] += torch.stack([ranked[:, 0].sum(), ranked.sum()])
                if metrics:
                    sums[key].add(logits, batch.labels, reference)
            except Exception as error:
                errors[key] = error
        count += len(batch.labels)
        after_batch()
    results: dict[K, Accuracy | Exception] = {}
    shares = (100 * torch.stack(list(hits.values())).double() / count).tolist() if hits else []  # read back once
    for key, (top1, top5) in zip(networks, shares, strict=True):
        more = sums[key].means(count) if metrics and key not in errors else {}
        results[key] = errors.get(key) or Accuracy(top1, top5, more)
    return results


class _Sums:
    """Sums over images from which the metrics are made; they stay on the device until the end."""

    def __init__(self, device: torch.device) -> None:
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)  # of NLL, agreements, KL
        self.bins = torch.zeros(2, BINS, dtype=torch.float64, device=device)  # of correct predictions, confidences
        self.edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=device)
        self.has_teacher = False

    def add(self, logits: Tensor, labels: Tensor, teacher: Tensor | None) -> None:
        log_q = logits.double().log_softmax(dim=1)
        confidence, prediction = log_q.exp().max(dim=1)
        self.totals[0] += F.nll_loss(log_q, labels, reduction="sum")
        index = (torch.bucketize(confidence, self.edges, right=True) - 1).clamp(max=BINS - 1)
        self.bins[0].index_add_(0, index, (prediction == labels).double())
        self.bins[1].index_add_(0, index, confidence)
        if teacher is not None:
            self.has_teacher = True
            self.totals[1] += (prediction == teacher.argmax(dim=1)).sum()
            self.totals[2] += F.kl_div(log_q, teacher, reduction="sum", log_target=True)

    def means(self, count: int) -> dict[str, float]:
        nll, agreements, kl = (self.totals / count).tolist()
        correct, confidence = self.bins
        metrics = {"nll": nll, "ece": 100 * ((correct - confidence).abs().sum() / count).item()}
        return metrics | ({"agreement": 100 * agreements, "kl": kl} if self.has_teacher else {})
