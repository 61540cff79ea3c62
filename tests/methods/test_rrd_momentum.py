"""Relational representation distillation with a memory bank."""

from __future__ import annotations

from math import exp
from typing import Any

import pytest
import torch

from kdbench.distill import Output
from kdbench.distill.memory_bank import momentum_update, nce_scores
from tests.methods.build import tensor
from tests.methods.by_hand import NEGATIVES, cross_entropy, linear, memory_scores, scaled, share_embedding, unit
from tests.methods.expectations import Expectations, Mutation, Prediction


def equal_anchors(method: Any, output: Output) -> dict[str, float]:
    # Equal anchors, each against the other side's memory; the scores of both replace the similarities.
    share_embedding(method)
    y, bank, hyper = unit(linear(method.embed_student, output.embedding.tolist())), method.bank, method.hyper
    student = scaled(memory_scores(y, bank.memory_teacher.tolist(), hyper.nce_t), 1 / hyper.nce_t_s)
    teacher = scaled(memory_scores(y, bank.memory_student.tolist(), hyper.nce_t), 1 / hyper.nce_t_t)
    return {"relation": hyper.rrd_momentum_weight * cross_entropy(student, teacher)}


SETTINGS = {"nce_t_s": 0.3, "nce_t_t": 0.2, "feat_dim": 3, "nce_k": NEGATIVES, "nce_t": 0.4}
EXPECTED = Expectations(
    refused=({"feat_dim": 0}, {"nce_k": 0}, {"nce_t": 0.0}, {"nce_t_s": 0.0}, {"nce_t_t": 0.0}, {"nce_m": 1.0}),
    effective={"nce_k": 5, "nce_t_t": 0.5},  # at most the images of other classes; beyond float32 near the default
    predictions=(Prediction(equal_anchors, {**SETTINGS, "rrd_momentum_weight": 3.0}),),
    mutations={
        "rrd_momentum": Mutation(
            "kdbench.distill.memory_bank.nce_scores",
            lambda scores: lambda anchor, memory, rows, z, t: scores(anchor, memory, rows, z, 1.001 * t),
        )
    },
)


def test_scores_by_hand() -> None:
    # Similarities 1 and 0 at T = 1/2: e² and 1; Z = N · their mean = 2 · (e² + 1)/2, and later batches keep it.
    anchor, memory = tensor([1.0, 0.0]), tensor([1.0, 0.0], [0.0, 1.0])
    scores, z = nce_scores(anchor, memory, torch.tensor([[0, 1]]), torch.zeros((), dtype=torch.float64), 0.5)
    assert z.item() == pytest.approx(exp(2) + 1, rel=1e-12)
    assert scores.tolist() == [[pytest.approx(exp(2) / (exp(2) + 1)), pytest.approx(1 / (exp(2) + 1))]]
    scores, z = nce_scores(anchor, memory, torch.tensor([[1, 0]]), torch.tensor(4.0, dtype=torch.float64), 0.5)
    assert [z.item(), scores[0, 0].item()] == pytest.approx([4.0, 0.25])


def test_the_update_by_hand() -> None:
    # ¾ · (1, 0) + ¼ · (0, 1) is along (3, 1), of length √10; other rows stay.
    memory = tensor([1.0, 0.0], [0.0, 1.0])
    momentum_update(memory, torch.tensor([0]), tensor([0.0, 1.0]), 0.75)
    assert memory.tolist() == [[pytest.approx(3 / 10**0.5), pytest.approx(1 / 10**0.5)], [0.0, 1.0]]
