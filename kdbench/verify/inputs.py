"""The arrays of a case as a method is given them: outputs of networks, what is known of the teacher, a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdbench.data.dataset import Batch
from kdbench.distill.golden import Golden
from kdbench.distill.step import Context, Step, ViewStep
from kdbench.models import Classifier, FeatureShapes
from kdbench.models.output import Output
from kdbench.verify.vectors import Vectors

REVERSED = "[::-1]"

Side = Mapping[str, str]
"""Field of `Output` -> array."""


class Inputs:
    """What the authors' code was given, in our types. The student's tensors are leaves whose gradients are compared."""

    def __init__(self, vectors: Vectors, golden: Golden, dtype: torch.dtype, device: torch.device) -> None:
        self.vectors, self.golden, self.dtype, self.device = vectors, golden, dtype, device
        self.leaves: dict[str, Tensor] = {}  # name of the stored gradient -> tensor

    def array(self, name: str, *, leaf: bool = False) -> Tensor:
        """A stored array; floating-point ones in the precision of the check."""
        value = self.vectors.arrays[name].to(self.device)
        if not value.is_floating_point():
            return value
        value = value.to(self.dtype).clone()
        if leaf:
            self.leaves[f"grad{name.removeprefix('in')}" if name[:3] == "in." else f"grad_{name}"] = (
                value.requires_grad_()
            )
        return value

    def names(self, word: str | None, call: str) -> list[str]:
        """The names of the arrays that a word of the mapping stands for, without `+`."""
        word = word or ""
        stem = word.removesuffix(REVERSED)
        prefix = stem if stem.startswith("aux.") else f"in.{stem}"
        if f"{prefix}{call}" in self.vectors.arrays:
            return [f"{prefix}{call}"]
        numbers = {
            name.removeprefix(f"{prefix}.").partition(".")[0]
            for name in self.vectors.arrays
            if name.startswith(f"{prefix}.")
        }
        names = [f"{prefix}.{number}" for number in sorted((n for n in numbers if n.isdigit()), key=int)]
        return names[::-1] if word != stem else names

    def tensors(self, word: str, call: str, *, leaf: bool = False) -> list[Tensor]:
        """The arrays that a word stands for; those joined by `+` are one."""
        if "+" in word:
            parts = [self.array(name, leaf=leaf) for part in word.split("+") for name in self.names(part, call)]
            return [torch.cat(parts, dim=1).flatten(0, 1)]
        return [self.array(name, leaf=leaf) for name in self.names(word, call)]

    def output(self, side: Side, call: str, *, leaf: bool = False) -> Output:
        """The output of a network whose other fields are as empty as can be."""
        fields = {name: self.tensors(word, call, leaf=leaf) for name, word in side.items() if name != "classifier"}
        classifier = self._classifier(side["classifier"], leaf) if "classifier" in side else None
        some = (
            next(iter(fields.values()))[0]
            if fields
            else self.tensors(next(iter(self.golden.student.values())), call)[0]
        )
        last_map = fields.get("last_map", [None])[0]

        def maps(name: str) -> tuple[Tensor, ...]:
            stages = [tensor if tensor.ndim == 4 else tensor[:, :, None, None] for tensor in fields.get(name, [])]
            return tuple(stages if self.golden.stem or not stages else [stages[0].detach(), *stages])

        empty = some.new_zeros(len(some), 1)
        embedding = _pooled(fields["embedding"][0]) if "embedding" in fields else empty
        if last_map is not None:
            embedding = _pooled(last_map)
        logits = fields.get("logits", [empty])[0]
        if classifier is not None and "logits" not in fields and classifier[0].shape[1] == embedding.shape[1]:
            logits = torch.nn.functional.linear(embedding, *classifier)
        return Output(logits, maps("feature_maps"), embedding, maps("pre_activations") or None, classifier, last_map)

    def context(self) -> Context:
        """What the method is built from."""
        golden, call = self.golden, self.vectors.calls()[0]
        student, teacher = self.output(_base(golden.student), call), self.output(_base(golden.teacher), call)
        count = int(self.vectors.hyper[golden.images]) if golden.images else len(student.logits)
        classes = student.logits.shape[1] if student.logits.shape[1] > 1 else count
        labels = torch.arange(count) % classes  # no two images of one class, where the classes are not known
        teacher_info: dict[str, Any] = {"teacher_classifier": teacher.classifier}
        for field, word in golden.context.items():
            names = self.names(word, call)
            if field == "teacher_batch_norms":
                teacher_info[field] = tuple(
                    (self.array(f"{name}.weight"), self.array(f"{name}.bias")) for name in names
                )
            elif field == "teacher_embeddings":
                by_class = self.array(names[0])
                classes = len(by_class)
                labels = torch.arange(classes).repeat_interleave(by_class.shape[1])
                teacher_info[field] = by_class.flatten(0, 1)
            else:
                teacher_info[field] = self.array(names[0])
        generator = torch.Generator(self.device)
        return Context(_shapes(student), (_shapes(teacher),), classes, labels, generator=generator, **teacher_info)

    def step(self, call: str) -> Step:
        """One call of the authors' code as a training step."""
        golden = self.golden
        student, teacher = self.output(_base(golden.student), call, leaf=True), self.output(_base(golden.teacher), call)
        batch = self._batch(len(student.logits), call)
        views = {
            view: ViewStep(
                batch,
                self.output(_of_view(golden.student, view), call, leaf=True),
                (self.output(_of_view(golden.teacher, view), call),),
            )
            for view in dict.fromkeys(key.partition(".")[0] for key in golden.student if "." in key)
        }
        extra = {name: self.output(side, call) for name, side in golden.extra.items()}
        epoch = golden.epochs
        if golden.epoch:
            stored = self.vectors.hyper[golden.epoch]
            epoch = int(stored[0] if isinstance(stored, list) else stored) - golden.first_epoch + 1
        return Step(batch, student, (teacher,), epoch, golden.epochs, views, extra)

    def _batch(self, size: int, call: str) -> Batch:
        def integers(word: str | None) -> Tensor:
            arrays = self.tensors(word, call) if word else []
            return arrays[0] if arrays else torch.arange(size, device=self.device)

        images = torch.empty(size, 0, device=self.device)
        return Batch(images, integers(self.golden.labels), integers(self.golden.indices))

    def _classifier(self, word: str, leaf: bool) -> Classifier:
        """A classifier that the vectors hold as a linear layer or as a 1x1 convolution."""
        weight = self.array(f"param.{word}.weight", leaf=leaf)
        bias = f"param.{word}.bias"
        return weight.flatten(1), self.array(bias, leaf=leaf) if bias in self.vectors.arrays else None


def _base(side: Side) -> Side:
    return {field: word for field, word in side.items() if "." not in field}


def _of_view(side: Side, view: str) -> Side:
    return {field.removeprefix(f"{view}."): word for field, word in side.items() if field.startswith(f"{view}.")}


def _pooled(tensor: Tensor) -> Tensor:
    """The embedding [B, D] of a map [B, D, H, W] or of tokens [B, L, D]."""
    return tensor.mean((2, 3)) if tensor.ndim == 4 else tensor.mean(1) if tensor.ndim == 3 else tensor


def _shapes(output: Output) -> FeatureShapes:
    maps = [tuple(tensor.shape[1:]) for tensor in output.feature_maps or output.pre_activations or ()]
    last_map = None if output.last_map is None else tuple(output.last_map.shape[1:])
    dimensions = output.embedding.shape[1]
    return FeatureShapes(tuple(maps), True, dimensions, True, last_map, True)  # type: ignore[arg-type]
