"""Relational representation distillation."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch

from kdbench.distill import Output, soft_cross_entropy
from tests.methods.build import make, output_with_embedding, step_of, tensor
from tests.methods.by_hand import cross_entropy, dot, linear, scaled, share_embedding, unit
from tests.methods.expectations import Expectations, Mutation, Prediction


def equal_embeddings(method: Any, output: Output) -> dict[str, float]:
    # Seven rows, the next place is 4: the batch's five embeddings y take the places 4, 5, 6, 0, 1. Both sides have the
    # similarities of y to these rows, and differ in the temperature only.
    share_embedding(method)
    method.queue_ptr.fill_(4)
    y, queue = unit(linear(method.embed_student, output.embedding.tolist())), method.queue.tolist()
    queue = [y[3], y[4], queue[2], queue[3], y[0], y[1], y[2]]
    similarities = [[dot(row, entry) for entry in queue] for row in y]
    student, teacher = (
        scaled(similarities, 1 / temperature) for temperature in (method.hyper.nce_t_s, method.hyper.nce_t_t)
    )
    return {"relation": method.hyper.rrd_weight * cross_entropy(student, teacher)}


EXPECTED = Expectations(
    refused=({"feat_dim": 0}, {"nce_k": 0}, {"nce_t_s": 0.0}, {"nce_t_t": 0.0}),
    effective={"nce_t_t": 0.5},  # near 0.02 a teacher's own row outweighs a queue of noise beyond float32
    predictions=(
        Prediction(equal_embeddings, {"rrd_weight": 3.0, "nce_k": 7, "nce_t_s": 0.3, "nce_t_t": 0.2, "feat_dim": 3}),
    ),
    mutations={
        "rrd_fifo": Mutation(
            "kdbench.methods.rrd.soft_cross_entropy",
            lambda loss: lambda student, teacher: loss(student / 1.001, teacher),
        )
    },
)


def test_by_hand() -> None:
    # Teacher (3/4, 1/4), student (1/2, 1/2): log 2. Teacher (1/2, 1/2), student (3/4, 1/4): -½ log(3/16).
    student, teacher = tensor([0.0, 0.0], [log(3), 0.0]), tensor([log(3), 0.0], [0.0, 0.0])
    expected = (log(2) - log(3 / 16) / 2) / 2
    assert soft_cross_entropy(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_the_queue_wraps_around() -> None:
    method = make("rrd", {"nce_k": 3, "feat_dim": 2}, student=2, teacher=2, labels=torch.arange(4), dtype=torch.float64)
    first = method.queue[2].clone()
    for rows in (tensor([1.0, 0.0], [0.0, 1.0]), tensor([1.0, 1.0], [2.0, 0.5])):
        step = step_of(output_with_embedding(rows), output_with_embedding(rows))
        method.losses(step)
        with torch.no_grad():
            method.after_backward(step)
            embedded = torch.nn.functional.normalize(method.embed_teacher(rows))
        if method.queue_ptr == 2:
            assert torch.equal(method.queue[2], first)
    assert int(method.queue_ptr) == 1
    torch.testing.assert_close(method.queue[[2, 0]], embedded)
