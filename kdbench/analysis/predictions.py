"""What trained networks say of the test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.core.record import Record
from kdbench.core.trial import Trial
from kdbench.data.dataset import ImageSet
from kdbench.data.resident import in_order
from kdbench.models import info, restore
from kdbench.models.output import Output
from kdbench.results import Store
from kdbench.train.device import on_device
from kdbench.train.evaluate import EVALUATION_BATCH, autocast
from kdbench.train.teacher import from_file


@dataclass(frozen=True)
class Predictions:
    """One network's answers to the whole test split, in its order; on the CPU."""

    logits: Tensor  # float32 [N, C]
    embedding: Tensor  # float32 [N, D], what the classifier read


class ModelLoader:
    """The networks of a results folder that were trained on some images."""

    def __init__(self, store: Store, images: ImageSet, device: torch.device) -> None:
        self.store, self.images, self.device = store, images, device

    def student(self, record: Record) -> Predictions:
        """Raises ValueError if its weights are missing or damaged."""
        return self._look(record.trial.arch, self.store.weights(record), record.trial.precision)

    def teacher(self, trial: Trial) -> Predictions:
        """The one that taught this trial. Raises ValueError if its weights are missing or were changed."""
        source = trial.teacher
        if source is None:
            raise ValueError(f"{trial.id} had no teacher")
        if source.file:
            weights = from_file(source, trial.data)
        else:
            record = self.store.find(source.trial or "")
            if record is None:
                raise ValueError(f"the teacher {source.arch} of {trial.id} has no record")
            weights = self.store.weights(record)
        return self._look(source.arch, weights, trial.precision)

    @torch.no_grad()
    def _look(self, arch: str, weights: Mapping[str, Tensor], precision: str) -> Predictions:
        """Show the test split to a network in evaluation mode."""
        info_of, data = info(arch), self.images.info
        network = on_device(restore(arch, data.classes, data.size, weights), self.device).eval()
        normalizations = {info_of.normalization} if info_of.normalization else set()
        logits, embeddings = [], []
        for batch in in_order(self.images.test, data, EVALUATION_BATCH, self.device, normalizations):
            with autocast(self.device, precision):
                output: Output = network(batch.images_for(info_of.normalization), pre_activations=False)
            logits.append(output.logits.float().cpu())
            embeddings.append(output.embedding.float().cpu())
        return Predictions(torch.cat(logits), torch.cat(embeddings))
