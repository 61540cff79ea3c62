"""Predictions of trained networks for the test split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdbench.core.data import Normalization
from kdbench.core.record import Record
from kdbench.core.trial import Cohort, TeacherSource, Trial
from kdbench.data.dataset import Dataset
from kdbench.models import info, restore
from kdbench.models.output import Output
from kdbench.results import Store
from kdbench.train.cohort import build_student
from kdbench.train.device import on_device
from kdbench.train.evaluate import autocast, evaluation_batch
from kdbench.train.teacher import Teachers, load_teacher_file


@dataclass(frozen=True)
class Predictions:
    """The outputs of one network for the test split, in its order, on the CPU."""

    logits: Tensor  # float32 [N, C]
    embedding: Tensor  # float32 [N, D], the input of the classifier


class ModelLoader:
    """Loads networks of a results folder, which were trained on `dataset`, and runs them on its test split."""

    def __init__(self, store: Store, dataset: Dataset, device: torch.device) -> None:
        self.store, self.dataset, self.device = store, dataset, device

    def student(self, record: Record) -> Predictions:
        """The predictions of a trained student. Raises ValueError if its weights are missing or damaged."""
        trial = record.trial
        network = self._restore(trial.arch, trial, self.store.weights(record))
        deploy = self.store.weights(record, "deploy")
        deployed = self._deployment(trial, network, deploy) if deploy else None
        return self._predict(network, info(trial.arch).normalization, trial.precision, deployed)

    def teacher(self, trial: Trial) -> Predictions:
        """The predictions of a trial's teacher; of several, log mean class probabilities and concatenated embeddings.

        Raises ValueError if there is no teacher, or if weights are missing or were changed.
        """
        if not trial.teachers:
            raise ValueError(f"{trial.id} has no teacher")
        outputs = [
            self._predict(
                self._restore(source.arch, trial, self._teacher_weights(source, trial)),
                info(source.arch).normalization,
                trial.precision,
            )
            for source in trial.teachers
        ]
        if len(outputs) == 1:
            return outputs[0]
        probabilities = torch.stack([output.logits.softmax(dim=1) for output in outputs]).mean(dim=0)
        embeddings = torch.cat([output.embedding for output in outputs], dim=1)
        return Predictions(probabilities.log(), embeddings)

    def _teacher_weights(self, source: TeacherSource, trial: Trial) -> dict[str, Tensor]:
        if source.file:
            return load_teacher_file(source, trial.data)
        record = self.store.find(source.trial or "")
        if record is None:
            raise ValueError(f"the teacher {source.arch} of {trial.id} has no record")
        return self.store.weights(record)

    def _restore(self, arch: str, trial: Trial, weights: dict[str, Tensor]) -> nn.Module:
        return on_device(restore(arch, trial.data.classes, trial.data.size, weights), self.device).eval()

    def _deployment(self, trial: Trial, network: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
        """The network with the modules that its method needs to predict, in evaluation mode; `weights` are theirs."""
        cohort = Cohort(trial.data, trial.recipe, trial.seed, trial.precision, trial.teachers, (trial,))
        trained = [source for source in cohort.sources.values() if not source.file]
        teacher_weights = {source.key: self._teacher_weights(source, trial) for source in trained}
        teachers = Teachers(cohort, teacher_weights, self.device, trial.extra_teachers)
        normalizations = [teacher.normalization for teacher in teachers.teachers if teacher.normalization]
        loader = self.dataset.loader(
            batch_size=min(trial.recipe.batch_size, self.dataset.info.train),
            pad=trial.recipe.pad,
            device=self.device,
            seed=trial.seed,
            normalizations=normalizations,
        )
        student = build_student(trial, self.dataset, teachers, loader)
        deployed = student.distiller.deploy(student.network)
        state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
        state |= {f"deploy.{name}": tensor for name, tensor in weights.items()}
        deployed.load_state_dict(state)
        return deployed.eval()

    @torch.no_grad()
    def _predict(
        self, network: nn.Module, normalization: Normalization | None, precision: str, deployed: nn.Module | None = None
    ) -> Predictions:
        """Predictions for the test split; logits are those of `deployed` if it is given."""
        logits, embeddings = [], []
        normalizations = [normalization] if normalization else []
        loader = self.dataset.loader(batch_size=1, pad=0, device=self.device, seed=0, normalizations=normalizations)
        for batch in loader.evaluation(evaluation_batch(self.device, self.dataset.info.size)):
            images = batch.images_for(normalization)
            with autocast(self.device, precision):
                output: Output = network(images, pre_activations=False)
                predicted: Tensor = output.logits if deployed is None else deployed(images)
            logits.append(predicted.float().cpu())
            embeddings.append(output.embedding.float().cpu())
        return Predictions(torch.cat(logits), torch.cat(embeddings))
