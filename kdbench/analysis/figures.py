"""The pictures and measures of one pair: its students beside their teacher."""

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
from kdbench.report import pictures
from kdbench.report.fidelity import Measured
from kdbench.report.groups import TEACHER

CLASSES = 10
"""Classes in a t-SNE picture at most: the first ones."""

PERPLEXITY = 40.0  # the authors' script


class PairFigures:
    """One pair's teacher and students, those of one seed kept for the pictures.

    Raises ValueError if a network's weights are missing or damaged.
    """

    def __init__(
        self, networks: ModelLoader, place: tuple[str, str, str, str], records: Sequence[Record], seed: int
    ) -> None:
        dataset, recipe, teacher, student = place
        taught = next(record.trial for record in records if record.trial.teacher)
        self.images, self.seed = networks.dataset, seed
        self.labels = self.images.test.labels
        self.caption = f"{dataset}, {recipe}; {teacher} → {student}; seed {seed}"
        self.teacher = networks.teacher(taught)
        self.students: dict[str, Predictions] = {}
        self.measured = [Measured(*place, TEACHER, 0, metrics.confidence(self.teacher, self.labels))]
        for record in records:
            seen = networks.student(record)
            values = metrics.measures(seen, self.teacher, self.labels)
            self.measured.append(Measured(*place, record.trial.method, record.trial.seed, values))
            if record.trial.seed == seed:
                self.students[record.trial.method] = seen

    def draw(self, samples: int) -> Iterator[tuple[str, Figure]]:
        """(name, picture) one by one; `samples` are the images of a t-SNE."""
        labels, caption = self.labels, f"{self.caption}; n = {len(self.labels)} test images"
        apart = {
            name: metrics.profile_difference(own.logits, self.teacher.logits, labels)
            for name, own in self.students.items()
        }
        yield "correlation", pictures.correlation_chart(apart, caption)
        everyone, curves = {TEACHER: self.teacher, **self.students}, {}
        for name, own in everyone.items():
            found = metrics.reliability(own.logits, labels)
            curves[name] = (found.confidence, found.accuracy, metrics.calibration_error(own.logits, labels))
        yield "reliability", pictures.reliability_chart(curves, caption)

        rows, names = sample(labels, samples), self.images.class_names
        caption = f"{self.caption}; the same n = {len(rows)} test images in each panel"
        if len(names) > CLASSES:
            caption += f", of the first {CLASSES} classes"
        for kind, logits in (("embeddings", False), ("logits", True)):
            points = {
                name: tsne((own.logits if logits else own.embedding)[rows], self.seed) for name, own in everyone.items()
            }
            yield f"tsne-{kind}", pictures.scatter_chart(points, labels[rows].numpy(), names[:CLASSES], kind, caption)


def sample(labels: Tensor, count: int) -> Tensor:
    """Rows of `count` test images of the first classes, stratified and always the same."""
    rows = (labels < CLASSES).nonzero().flatten()
    return rows if count >= len(rows) else rows[stratified(labels[rows], count)]


def tsne(features: Tensor, seed: int) -> NDArray[np.float64]:
    """Two dimensions for features [N, D]: scikit-learn's t-SNE, seeded. Raises UserError for fewer than three rows."""
    from sklearn.manifold import TSNE

    if len(features) < 3:
        raise UserError(f"a t-SNE needs at least 3 images, got {len(features)}")
    state = derive_seed("t-SNE", seed) % 2**32
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    found: NDArray[np.float64] = TSNE(perplexity=perplexity, random_state=state, init="pca").fit_transform(
        features.to(torch.float64).numpy()
    )
    return found
