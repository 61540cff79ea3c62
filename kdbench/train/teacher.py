"""The frozen networks of a cohort: loaded once, never trained, one forward pass a batch for all students."""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from kdbench.core.data import DataInfo
from kdbench.core.files import file_sha256
from kdbench.core.jobs import Weights
from kdbench.core.seeding import derive_seed
from kdbench.core.trial import SELF, Cohort, TeacherSource
from kdbench.data.dataset import Batch, Loader
from kdbench.models import build, classifier_of, info, load_checkpoint, restore, stage_batch_norms_of
from kdbench.models.folding import fold
from kdbench.models.output import Classifier, Output
from kdbench.train.device import compiled, on_device
from kdbench.train.evaluate import autocast, evaluate, evaluation_batch

PRUNED_SHARE = 0.1
"""Of the weights that the extra teacher `pruned` lacks: R2KD."""


def load_teacher_file(source: TeacherSource, data: DataInfo) -> dict[str, Tensor]:
    """The weights of a teacher that was given as a file.

    Raises ValueError if it is missing or was changed since it was named, UserError if it does not fit.
    """
    path = Path(source.file or "")
    if not path.is_file() or file_sha256(path) != source.sha256:
        raise ValueError(f"{path} is missing or was changed since this study began")
    return load_checkpoint(path, source.arch, data.classes, data.size)


class Teacher:
    """A frozen network in evaluation mode."""

    def __init__(self, network: nn.Module, arch: str, device: torch.device, precision: str) -> None:
        self.network = on_device(network, device).eval().requires_grad_(False)
        self.arch, self.device, self.precision = arch, device, precision
        self.normalization = info(arch).normalization
        folded = fold(self.network)
        self._folded = cast_weights(folded) if precision == "bf16" else folded
        self._compiled = compiled(self._folded)  # for training steps, as with students
        self.compiles = self._compiled is not self._folded

    def __call__(
        self, batch: Batch, *, pre_activations: bool = False, classifier: bool = False, last_map: bool = False
    ) -> Output:
        """Its output for a batch of a training step, in float32."""
        return self._output(self._compiled, batch, pre_activations, classifier, last_map)

    def evaluate(self, batch: Batch) -> Output:
        """Its output for a batch of any size, in float32."""
        return self._output(self._folded, batch)

    @torch.no_grad()
    def _output(
        self,
        network: nn.Module,
        batch: Batch,
        pre_activations: bool = False,
        classifier: bool = False,
        last_map: bool = False,
    ) -> Output:
        with autocast(self.device, self.precision):
            output: Output = network(batch.images_for(self.normalization), pre_activations=pre_activations)
        # Feature maps are converted here, once for all students, and not in the time of the first that reads them.
        output = output if last_map else replace(output, last_map=None)
        output = output.convert(Tensor.float).materialize()
        return replace(output, classifier=self.classifier) if classifier else output

    @property
    def classifier(self) -> Classifier | None:
        """Weight and bias of its classifier, detached."""
        parameters = classifier_of(self.network)
        return parameters and (parameters[0].detach(), None if parameters[1] is None else parameters[1].detach())

    @property
    def batch_norms(self) -> tuple[tuple[Tensor, Tensor], ...] | None:
        """Weight and bias of the batch norm before each stage's last activation, detached."""
        norms = stage_batch_norms_of(self.network)
        return None if norms is None else tuple((norm.weight.detach(), norm.bias.detach()) for norm in norms)


def cast_weights(network: nn.Module) -> nn.Module:
    """A copy whose convolutions and linear layers hold what autocast would make of their weights in every step."""
    copy = deepcopy(network)
    for module in copy.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)
    return copy


class Teachers:
    """A cohort's teachers, and the extra teachers that its methods require. Vanilla cohorts have none.

    Raises ValueError if the weights of a teacher are missing or their file was changed, UserError if the file does not
    fit. An extra teacher whose weights are missing is left out: only the trials that require it fail.
    """

    def __init__(self, cohort: Cohort, weights: Weights, device: torch.device, extra: Iterable[str] = ()) -> None:
        self.device, self._size = device, cohort.data.size
        self.teachers = tuple(self._load(cohort, source, weights, device) for source in cohort.teachers)
        self.extra = {name: teacher for name in extra if (teacher := self._extra(name, cohort, weights)) is not None}
        self._embeddings: Tensor | None = None

    def _load(self, cohort: Cohort, source: TeacherSource, weights: Weights, device: torch.device) -> Teacher:
        data = cohort.data
        state = load_teacher_file(source, data) if source.file else weights.get(source.key)
        if state is None:
            raise ValueError(f"no weights were given for the teacher {source.arch}")
        return Teacher(restore(source.arch, data.classes, data.size, state), source.arch, device, cohort.precision)

    def _extra(self, name: str, cohort: Cohort, weights: Weights) -> Teacher | None:
        """An extra teacher, see `distill.step.EXTRA_TEACHERS`."""
        if name == SELF:
            sources = [trial.extra_teachers[SELF] for trial in cohort.trials if SELF in trial.extra_teachers]
            known = sources and sources[0].key in weights
            return self._load(cohort, sources[0], weights, self.device) if known else None
        first, data = self.teachers[0], cohort.data
        if name == "random":
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(derive_seed("random teacher", first.arch, cohort.seed))
                network = build(first.arch, data.classes, data.size)
        else:
            network = restore(first.arch, data.classes, data.size, first.network.state_dict())
            pruned = [(part, "weight") for part in network.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
            prune.global_unstructured(pruned, prune.L1Unstructured, amount=PRUNED_SHARE)
            for part, parameter in pruned:
                prune.remove(part, parameter)
        return Teacher(network, first.arch, self.device, cohort.precision)

    def top1(self, batches: Iterable[Batch]) -> float | None:
        """Accuracy in per cent: of the one teacher, or of the mean of their class probabilities; None without any."""
        if not self.teachers:
            return None
        accuracy = evaluate({"teachers": self.log_probabilities}, batches, self.device)["teachers"]
        if isinstance(accuracy, Exception):
            raise accuracy
        return accuracy.top1

    def log_probabilities(self, batch: Batch) -> Tensor:
        """Log-probabilities, float64 [B, C], of the one teacher, or of the mean of their class probabilities."""
        log_p = torch.stack([teacher.evaluate(batch).logits.double().log_softmax(dim=1) for teacher in self.teachers])
        return log_p[0] if len(log_p) == 1 else log_p.logsumexp(dim=0) - math.log(len(log_p))

    def embeddings(self, loader: Loader, count: int) -> Tensor:
        """The (first) teacher's embeddings [N, D] of the `count` training images, without augmentation; made once.

        A loader that is shortened for measurements gives the first images, which then stand for the others too.
        """
        if self._embeddings is None:
            batches = loader.training_images(evaluation_batch(self.device, self._size))
            found = torch.cat([self.teachers[0].evaluate(batch).embedding for batch in batches])
            self._embeddings = found if len(found) == count else found[torch.arange(count) % len(found)]
        return self._embeddings


def class_means(embeddings: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Means [C, D] of embeddings [N, D] by class; zeros for classes without images."""
    members = nn.functional.one_hot(labels, classes).to(embeddings.dtype)  # [N, C]
    return members.T @ embeddings / members.sum(dim=0).clamp(min=1)[:, None]
