"""What trained networks say of the test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.data.batches import in_order
from kdbench.data.imageset import ImageSet
from kdbench.models import info, restore
from kdbench.models.output import Output
from kdbench.spec import Record, Trial
from kdbench.store import Store
from kdbench.train.environment import on_device
from kdbench.train.evaluate import EVALUATION_BATCH, autocast
from kdbench.train.guide import from_file


@dataclass(frozen=True)
class Seen:
    """One network's answers to the whole test split, in its order; on the CPU."""

    logits: Tensor  # float32 [N, C]
    embedding: Tensor  # float32 [N, D], what the classifier read


class Networks:
    """The networks of a results folder that were trained on some images."""

    def __init__(self, store: Store, images: ImageSet, device: torch.device) -> None:
        self.store, self.images, self.device = store, images, device

    def student(self, record: Record) -> Seen:
        """Raises ValueError if its weights are missing or damaged."""
        return self._look(record.trial.arch, self.store.weights(record), record.trial.precision)

    def teacher(self, trial: Trial) -> Seen:
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
    def _look(self, arch: str, weights: Mapping[str, Tensor], precision: str) -> Seen:
        """Show the test split to a network in evaluation mode."""
        info_of, data = info(arch), self.images.info
        network = on_device(restore(arch, data.classes, data.size, weights), self.device).eval()
        others = {info_of.statistics} if info_of.statistics else set()
        logits, embeddings = [], []
        for batch in in_order(self.images.test, data, EVALUATION_BATCH, self.device, others):
            with autocast(self.device, precision):
                output: Output = network(batch.images_for(info_of.statistics), preact=False)
            logits.append(output.logits.float().cpu())
            embeddings.append(output.embedding.float().cpu())
        return Seen(torch.cat(logits), torch.cat(embeddings))
