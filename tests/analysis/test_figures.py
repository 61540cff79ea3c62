"""The figures of a pair: one panel per network, and measures for every seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdbench.analysis import figures, metrics
from kdbench.analysis.figures import PairFigures
from kdbench.analysis.predictions import ModelLoader, Predictions
from kdbench.core.errors import UserError
from kdbench.core.record import Outcome, Record
from kdbench.core.trial import VANILLA, Trial
from kdbench.results import Store
from tests.train import tiny_study
from tests.train.tiny_study import CPU, DATASET

PAIR = ("toy", "digits", "wrn_16_1", "resnet8")


class _RandomModels(ModelLoader):
    """Random predictions, the same for equal trials."""

    def _random(self, seed: int) -> Predictions:
        stream = torch.Generator().manual_seed(seed)
        count = len(DATASET.test)
        return Predictions(torch.randn(count, 4, generator=stream), torch.randn(count, 8, generator=stream))

    def student(self, record: Record) -> Predictions:
        return self._random(int(record.trial.fingerprint, 16))

    def teacher(self, trial: Trial) -> Predictions:
        return self._random(1)


def test_figures_and_measures_of_a_pair(tmp_path: Path) -> None:
    store = Store(tmp_path)
    trials = [
        tiny_study.trial(VANILLA, teacher=None),
        *(tiny_study.trial("kd", seed=seed) for seed in (0, 1)),
        tiny_study.trial("at"),
    ]
    records = [store.save(Outcome(trial, "done"), {}) for trial in trials]
    models = _RandomModels(store, DATASET, CPU)
    pair = PairFigures(models, PAIR, records, seed=0)

    assert [(row.method, row.seed) for row in pair.measured] == [
        ("teacher", 0),
        (VANILLA, 0),
        ("kd", 0),
        ("kd", 1),
        ("at", 0),
    ]
    student, teacher = models.student(records[1]), models.teacher(trials[1])
    assert pair.measured[2].values == metrics.measures(student, teacher, DATASET.test.labels)
    assert pair.measured[0].values == metrics.confidence(teacher, DATASET.test.labels)
    assert pair.students.keys() == {VANILLA, "kd", "at"}

    drawn = dict(pair.draw(20))
    assert list(drawn) == ["correlation", "reliability", "tsne-embeddings", "tsne-logits"]
    panels = {name: {axes.get_title(loc="left") for axes in figure.axes} for name, figure in drawn.items()}
    for name in ("reliability", "tsne-embeddings", "tsne-logits"):
        assert all(any(method in title for title in panels[name]) for method in ("teacher", VANILLA, "kd", "at")), name


def test_samples_are_stratified_and_repeatable() -> None:
    labels = torch.arange(120) % 12
    rows = figures.sample(labels, 30)
    assert torch.equal(rows, figures.sample(labels, 30))
    assert torch.bincount(labels[rows]).tolist() == [3] * figures.CLASSES  # none of the last two classes
    assert torch.equal(figures.sample(labels, 1000), (labels < figures.CLASSES).nonzero().flatten())


def test_tsne_is_seeded_and_needs_three_images() -> None:
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    points = figures.tsne(features, seed=0)
    assert points.shape == (12, 2)
    assert (points == figures.tsne(features, seed=0)).all()
    with pytest.raises(UserError, match=r"^a t-SNE needs at least 3 images, got 2$"):
        figures.tsne(features[:2], seed=0)
