"""The teacher of a cohort: loaded once, never trained, one forward pass a batch for all students."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kdbench.core.data import DataInfo
from kdbench.core.files import file_sha256
from kdbench.core.trial import Cohort, TeacherSource
from kdbench.data.resident import Batch
from kdbench.models import info, load_checkpoint, restore
from kdbench.models.folding import fold
from kdbench.models.output import Output
from kdbench.train.device import on_device
from kdbench.train.evaluate import accuracy, autocast


def from_file(teacher: TeacherSource, data: DataInfo) -> dict[str, Tensor]:
    """The weights of a teacher that was given as a file.

    Raises ValueError if it is missing or was changed since it was named, UserError if it does not fit.
    """
    path = Path(teacher.file or "")
    if not path.is_file() or file_sha256(path) != teacher.sha256:
        raise ValueError(f"{path} is missing or was changed since this study began")
    return load_checkpoint(path, teacher.arch, data.classes, data.size)


class Teacher:
    """A frozen network in evaluation mode; vanilla cohorts have one that says nothing.

    Raises ValueError if the weights are missing or their file was changed, UserError if the file does not fit.
    """

    def __init__(self, cohort: Cohort, weights: Mapping[str, Tensor] | None, device: torch.device) -> None:
        self.device, self.precision = device, cohort.precision
        self.network = None
        teacher, data = cohort.teacher, cohort.data
        if teacher is None:
            return
        if teacher.file:
            weights = from_file(teacher, data)
        if weights is None:
            raise ValueError(f"no weights were given for the teacher {teacher.arch}")
        network = restore(teacher.arch, data.classes, data.size, weights)
        self.network = on_device(network, device).eval().requires_grad_(False)
        self._fast = fold(self.network)
        self.normalization = info(teacher.arch).normalization

    def top1(self, batches: Iterable[Batch]) -> float | None:
        """Accuracy in per cent, None without a network."""
        if self.network is None:
            return None
        return accuracy(self.network, batches, self.device, self.precision, self.normalization)[0]

    @torch.no_grad()
    def __call__(self, batch: Batch, pre_activations: bool) -> Output:
        """What the teacher says of a batch, in float32; empty tensors without a network."""
        if self.network is None:
            nothing = batch.images.new_empty(0)
            return Output(nothing, (), nothing)
        with autocast(self.device, self.precision):
            output: Output = self._fast(batch.images_for(self.normalization), pre_activations=pre_activations)
        output = output.convert(Tensor.float)
        # Maps are changed here, once for all students, and not in the time of the first that reads them.
        return replace(
            output,
            feature_maps=tuple(output.feature_maps),
            pre_activations=output.pre_activations and tuple(output.pre_activations),
        )
