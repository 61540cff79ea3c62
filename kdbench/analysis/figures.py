"""Measures and figures that compare the students of one pair with their teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from kdbench.analysis import metrics
from kdbench.analysis.predictions import ModelLoader, Predictions
from kdbench.core.errors import UserError
from kdbench.core.record import Record
from kdbench.core.seeding import derive_seed
from kdbench.data.subset import stratified
from kdbench.report.charts import pictures
from kdbench.report.groups import TEACHER
from kdbench.report.tables.fidelity import Measured

CLASSES = 10
"""Number of classes in a t-SNE figure at most: the first ones."""

PERPLEXITY = 40.0  # as in the authors' script


class PairFigures:
    """The measures of a pair's students of all seeds, and the figures of those of one seed.

    Raises ValueError if weights are missing or damaged.
    """

    def __init__(
        self, models: ModelLoader, pair: tuple[str, str, str, str], records: Sequence[Record], seed: int
    ) -> None:
        """`pair` is (data set, recipe, teacher, student)."""
        dataset, recipe, teacher, student = pair
        distilled = next(record.trial for record in records if record.trial.teacher)
        self.dataset, self.seed = models.dataset, seed
        self.labels = self.dataset.test_labels
        self.caption = f"{dataset}, {recipe}; {teacher} → {student}; seed {seed}"
        self.teacher = models.teacher(distilled)
        self.students: dict[str, Predictions] = {}
        self.measured = [Measured(*pair, TEACHER, 0, metrics.confidence(self.teacher, self.labels))]
        for record in records:
            predictions = models.student(record)
            values = metrics.measures(predictions, self.teacher, self.labels)
            weights = record.weights_sha256 or ""
            self.measured.append(Measured(*pair, record.trial.method, record.trial.seed, values, weights))
            if record.trial.seed == seed:
                self.students[record.trial.method] = predictions

    def draw(self, samples: int) -> Iterator[tuple[str, Figure]]:
        """(name, figure) one by one; `samples` is the number of images in a t-SNE."""
        labels, caption = self.labels, f"{self.caption}; n = {len(self.labels)} test images"
        differences = {
            name: metrics.profile_difference(student.logits, self.teacher.logits, labels)
            for name, student in self.students.items()
        }
        yield "correlation", pictures.correlation_chart(differences, caption)
        networks, curves = {TEACHER: self.teacher, **self.students}, {}
        for name, network in networks.items():
            points = metrics.reliability(network.logits, labels)
            curves[name] = (points.confidence, points.accuracy, metrics.calibration_error(network.logits, labels))
        yield "reliability", pictures.reliability_chart(curves, caption)

        rows, classes = sample(labels, samples), self.dataset.class_names
        caption = f"{self.caption}; the same n = {len(rows)} test images in each panel"
        if len(classes) > CLASSES:
            caption += f", of the first {CLASSES} classes"
        for kind, features in (
            ("embeddings", {name: network.embedding for name, network in networks.items()}),
            ("logits", {name: network.logits for name, network in networks.items()}),
        ):
            panels = {name: tsne(tensor[rows], self.seed) for name, tensor in features.items()}
            yield f"tsne-{kind}", pictures.scatter_chart(panels, labels[rows].numpy(), classes[:CLASSES], kind, caption)


def sample(labels: Tensor, count: int) -> Tensor:
    """Rows of `count` test images of the first classes: stratified, and the same in every run."""
    rows = (labels < CLASSES).nonzero().flatten()
    return rows if count >= len(rows) else rows[stratified(labels[rows], count)]


def tsne(features: Tensor, seed: int) -> NDArray[np.float64]:
    """Two-dimensional t-SNE [N, 2] of features [N, D]. Raises UserError for fewer than three rows."""
    from sklearn.manifold import TSNE

    if len(features) < 3:
        raise UserError(f"a t-SNE needs at least 3 images, got {len(features)}")
    state = derive_seed("t-SNE", seed) % 2**32
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    model = TSNE(perplexity=perplexity, random_state=state, init="pca")
    points: NDArray[np.float64] = model.fit_transform(features.to(torch.float64).numpy())
    return points
