"""Run a distiller on a case of golden vectors and compare everything that the case stores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdbench.core.trial import Value
from kdbench.data.dataset import Batch
from kdbench.distill import registry
from kdbench.distill.distiller import Distiller
from kdbench.distill.golden import Golden
from kdbench.distill.objective import objective
from kdbench.distill.step import Context, Step
from kdbench.models import FeatureShapes
from kdbench.models.output import Output
from kdbench.verify.vectors import DTYPES, Vectors


@dataclass
class Comparison:
    """One case in one precision: worst relative errors, and what lies beyond its tolerance."""

    name: str
    case: str
    precision: str
    loss: float = 0.0
    gradient: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.problems


def check(vectors: Vectors, method: str, golden: Golden, precision: str, device: torch.device) -> Comparison:
    """Load parameters and memories by name, call the method as training does, compare."""
    comparison = Comparison(vectors.method, vectors.case, precision)
    try:
        _Run(vectors, method, golden, device, comparison).compare()
    except Exception as error:  # a case that cannot be run has failed, and the others go on
        comparison.problems.append(f"{type(error).__name__}: {error}".splitlines()[0])
    return comparison


class _Run:
    def __init__(
        self, vectors: Vectors, method: str, golden: Golden, device: torch.device, comparison: Comparison
    ) -> None:
        self.vectors, self.golden, self.device, self.comparison = vectors, golden, device, comparison
        self.dtype = DTYPES[comparison.precision]
        self.tolerance = vectors.tolerance(comparison.precision)
        self.student_inputs: dict[str, Tensor] = {}  # by array name
        self.settings = self._settings(method)
        self.distiller = self._distiller(method)

    def _settings(self, method: str) -> dict[str, Value]:
        chosen: dict[str, Value] = {"ce_weight": 0.0, f"{method}_weight": 1.0}
        for key, value in self.golden.settings.items():
            chosen[key] = self.vectors.hyper[value[1:]] if isinstance(value, str) and value[0] == "$" else value
        known = {item: type(default) for item, default in vars(registry.hyper_of(method, {})).items()}
        return {key: known[key](value) for key, value in chosen.items() if key in known}

    def _distiller(self, method: str) -> Distiller[Any]:
        call = self.vectors.calls()[0]
        count = self.vectors.hyper[self.golden.images] if self.golden.images else self._batch_size()
        labels = torch.arange(count)  # every image of another class: any row may be a negative
        student, teacher = (self._shapes(side, call) for side in (self.golden.student, self.golden.teacher))
        context = Context(student, (teacher,), int(count), labels, generator=torch.Generator(self.device))
        distiller = registry.distiller(method)(registry.hyper_of(method, self.settings), context)
        distiller = distiller.to(self.device, self.dtype)
        state = distiller.state_dict()
        for array, value in self.vectors.arrays.items():
            group, _, key = array.partition(".")
            if group in ("param", "state_before"):
                name = self._own_name(key, state)
                state[name] = value.reshape(state[name].shape) if value.numel() == state[name].numel() else value
        distiller.load_state_dict(state)
        return distiller.train()

    def _own_name(self, key: str, state: Mapping[str, Tensor]) -> str:
        """The name under which the method holds a parameter or memory of the authors' code. Raises KeyError."""
        for name in (key, self.golden.state_prefix + key):
            if name in state:
                return name
        raise KeyError(f"the method has no parameter or memory {key}")

    def _batch_size(self) -> int:
        name = next(iter(self.golden.student.values()))
        array = next(array for array in self.vectors.arrays if array.startswith(f"in.{name}"))
        return len(self.vectors.arrays[array])

    def _array(self, name: str) -> Tensor:
        value = self.vectors.arrays[name].to(self.device)
        return value.to(self.dtype) if value.is_floating_point() else value

    def _names(self, word: str | None, call: str) -> list[str]:
        """`g` -> in.g.0, in.g.1, ... or in.g alone."""
        if f"in.{word}{call}" in self.vectors.arrays:
            return [f"in.{word}{call}"]
        names = [name for name in self.vectors.arrays if name.startswith(f"in.{word}.")]
        return sorted(names, key=lambda name: int(name.rpartition(".")[2]))

    def _shapes(self, side: Mapping[str, str], call: str) -> FeatureShapes:
        names = self._names(side.get("feature_maps", side.get("pre_activations")), call)
        maps = [tuple(self.vectors.arrays[name].shape[1:]) for name in names]
        if maps and not self.golden.stem:
            maps = [maps[0], *maps]
        embedding = self._names(side.get("embedding"), call)
        dimensions = self.vectors.arrays[embedding[0]].shape[1] if embedding else 1
        return FeatureShapes(tuple(maps), True, dimensions)  # type: ignore[arg-type]

    def _output(self, side: Mapping[str, str], call: str) -> Output:
        fields: dict[str, list[Tensor]] = {}
        for name, word in side.items():
            fields[name] = []
            for array in self._names(word, call):
                tensor = self._array(array).clone()
                if side is self.golden.student:
                    self.student_inputs[array.removeprefix("in.")] = tensor.requires_grad_()
                fields[name].append(tensor)
        some = next(iter(fields.values()))[0]
        empty = some.new_zeros(len(some), 1)

        def maps(name: str) -> tuple[Tensor, ...]:
            stages = fields.get(name, [])
            return tuple(stages if self.golden.stem or not stages else [stages[0].detach(), *stages])

        return Output(
            fields.get("logits", [empty])[0],
            maps("feature_maps"),
            fields.get("embedding", [empty])[0],
            maps("pre_activations") or None,
        )

    def _batch(self, size: int, call: str) -> Batch:
        def integers(word: str | None) -> Tensor:
            names = self._names(word, call) if word else []
            return self._array(names[0]) if names else torch.arange(size, device=self.device)

        if self.golden.negatives:
            rows = self._array(self._names(self.golden.negatives, call)[0])
            self.distiller.bank.sample_negatives = lambda batch, generator: rows[:, 1:]  # type: ignore[union-attr]
        images = torch.empty(size, 0, device=self.device)
        return Batch(images, integers(self.golden.labels), integers(self.golden.indices))

    def compare(self) -> None:
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for call in self.vectors.calls():
            student, teacher = self._output(self.golden.student, call), self._output(self.golden.teacher, call)
            step = Step(self._batch(len(student.logits), call), student, (teacher,), 1, 1)
            if self.golden.pretraining:
                terms = self.distiller.pretraining_losses(step)
            else:
                terms = objective(self.distiller, step)
            value = torch.stack(list(terms.values())).sum()
            value.backward()
            if not self.golden.pretraining:
                with torch.no_grad():
                    self.distiller.after_backward(step)
            total += value.detach().double()
            self._compare_call(call, value, terms)
        self._compare("loss", "out.loss", total, self.vectors.arrays["out.loss"], self.tolerance.loss)
        if array := self.golden.also_pretraining:
            loss = torch.stack(list(self.distiller.pretraining_losses(step).values())).sum()
            self._compare("loss", array, loss, self.vectors.arrays[array], self.tolerance.loss)
        self._compare_gradients()

    def _compare_call(self, call: str, value: Tensor, terms: Mapping[str, Tensor]) -> None:
        """What is stored of one call: its loss, its terms, and the memories after it."""
        arrays, name = self.vectors.arrays, call.removeprefix(".")
        if name and f"out.{name}.loss" in arrays:
            self._compare("loss", f"out.{name}.loss", value, arrays[f"out.{name}.loss"], self.tolerance.loss)
        for term, word in self.golden.terms.items():
            array, _, weight = word.partition("/")
            array = f"out.{name}.{array}" if name else array
            divisor = float(self.settings.get(weight, 1.0))
            if array in arrays and divisor:
                self._compare("loss", array, terms[term] / divisor, arrays[array], self.tolerance.loss)
        state = self.distiller.state_dict()
        for array, expected in arrays.items():
            group, _, key = array.partition(".")
            if (name and group == f"state_after_{name}") or array in ("out.Z_student", "out.Z_teacher"):
                self._compare("loss", array, state[self._own_name(key, state)], expected, self.tolerance.loss)

    def _compare_gradients(self) -> None:
        arrays, zero = self.vectors.arrays, self.vectors.entry.get("mathematically_zero_gradients", [])
        gradients = {f"grad.{name}": tensor.grad for name, tensor in self.student_inputs.items()}
        gradients |= {f"grad_param.{name}": parameter.grad for name, parameter in self.distiller.named_parameters()}
        for name, gradient in gradients.items():
            if name in arrays:
                rtol = self.tolerance.gradient if name.startswith("grad.") else self.tolerance.parameter_gradient
                value = torch.zeros_like(arrays[name]) if gradient is None else gradient
                self._compare("gradient", name, value, arrays[name], rtol)
            elif gradient is not None and gradient.abs().max() > (1e-6 if name in zero else 0.0):
                self.comparison.problems.append(f"{name} should be zero")
        for name in arrays:
            if name.startswith(("grad.", "grad_param.")) and name not in gradients:
                self.comparison.problems.append(f"{name} has no counterpart")

    def _compare(self, kind: str, name: str, value: Tensor, expected: Tensor, rtol: float) -> None:
        value, expected = value.detach().double().cpu(), expected.double()
        if value.shape != expected.shape:
            if value.numel() != expected.numel():
                self.comparison.problems.append(f"{name} has the shape {tuple(value.shape)}")
                return
            value = value.reshape(expected.shape)
        size = expected.abs().max().item()
        error = (value - expected).abs().max().item()
        relative = error / size if size else error
        setattr(self.comparison, kind, max(getattr(self.comparison, kind), relative))
        if not error <= self.tolerance.atol + rtol * size or math.isnan(error):
            self.comparison.problems.append(f"{name} is off by {relative:.1e}, allowed {rtol:.0e}")
