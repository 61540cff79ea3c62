"""Run a distiller on a case and compare everything that the case stores."""

from __future__ import annotations

import importlib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.core.trial import Value
from kdbench.data.resident import Batch
from kdbench.distill.distiller import Distiller, Shapes
from kdbench.distill.objective import objective
from kdbench.distill.registry import distiller, hyper_of
from kdbench.models import FeatureShapes
from kdbench.models.output import Output
from kdbench.verify.vectors import DTYPES, Vectors


@dataclass
class Verdict:
    """One case in one precision: worst relative errors, and what lies beyond its tolerance."""

    method: str
    case: str
    precision: str
    loss: float = 0.0
    gradient: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.problems


def mapping() -> Mapping[str, Mapping[str, Any]]:
    """`methods/golden.toml`: how names in the vectors map to methods and their inputs."""
    package = importlib.import_module("kdbench.methods")
    (path,) = (file for folder in package.__path__ if (file := Path(folder) / "golden.toml").is_file())
    return tomllib.loads(path.read_text("utf-8"))


def check(vectors: Vectors, how: Mapping[str, Any], precision: str, device: torch.device) -> Verdict:
    """Loads parameters and memories by name, calls the method as training does, compares."""
    verdict = Verdict(vectors.method, vectors.case, precision)
    try:
        _Run(vectors, how, precision, device, verdict).compare()
    except Exception as error:  # a case that cannot be run has failed, and the others go on
        verdict.problems.append(f"{type(error).__name__}: {error}".splitlines()[0])
    return verdict


class _Run:
    def __init__(
        self, vectors: Vectors, how: Mapping[str, Any], precision: str, device: torch.device, verdict: Verdict
    ) -> None:
        self.vectors, self.how, self.device, self.verdict = vectors, how, device, verdict
        self.dtype, self.tolerance = DTYPES[precision], vectors.tolerance(precision)
        self.inputs: dict[str, Tensor] = {}  # of the student, by array name
        self.settings = self._settings()
        self.method = self._method()

    def _settings(self) -> dict[str, Value]:
        name = self.how.get("method", self.vectors.method)
        chosen: dict[str, Value] = {"ce_weight": 0.0, f"{name}_weight": 1.0}
        for key, value in self.how.get("settings", {}).items():
            chosen[key] = self.vectors.hyper[value[1:]] if isinstance(value, str) and value[0] == "$" else value
        known = {item: type(default) for item, default in vars(hyper_of(name, {})).items()}
        return {key: known[key](value) for key, value in chosen.items() if key in known}

    def _method(self) -> Distiller[Any]:
        name = self.how.get("method", self.vectors.method)
        call = self.vectors.calls()[0]
        count = self.vectors.hyper[self.how["rows"]] if "rows" in self.how else len(self._array(self._some_input()))
        labels = torch.arange(count)  # every image of another class: any row may be a negative
        shapes = Shapes(self._shapes("student", call), self._shapes("teacher", call), int(count), labels)
        method = distiller(name)(hyper_of(name, self.settings), shapes, torch.Generator(self.device))
        method = method.to(self.device, self.dtype)
        state = method.state_dict()
        for array, value in self.vectors.arrays.items():
            group, _, key = array.partition(".")
            if group in ("param", "state_before"):
                if key not in state:
                    raise KeyError(f"the method has no parameter or memory {key}")
                state[key] = value.reshape(state[key].shape) if value.numel() == state[key].numel() else value
        method.load_state_dict(state)
        return method.train()

    def _some_input(self) -> str:
        """The name of an array whose length is the batch."""
        words = self.how.get("student", {})
        name = next(iter(words.values()))
        return next(array for array in self.vectors.arrays if array.startswith(f"in.{name}"))

    def _array(self, name: str) -> Tensor:
        value = self.vectors.arrays[name].to(self.device)
        return value.to(self.dtype) if value.is_floating_point() else value

    def _names(self, word: str, call: str) -> list[str]:
        """`g` -> in.g.0, in.g.1, ... or in.g alone."""
        if f"in.{word}{call}" in self.vectors.arrays:
            return [f"in.{word}{call}"]
        found = [name for name in self.vectors.arrays if name.startswith(f"in.{word}.")]
        return sorted(found, key=lambda name: int(name.rpartition(".")[2]))

    def _shapes(self, side: str, call: str) -> FeatureShapes:
        words = self.how.get(side, {})
        maps = [tuple(self.vectors.arrays[n].shape[1:]) for n in self._names(words.get("maps", "?"), call)]
        maps = maps or [
            tuple(self.vectors.arrays[n].shape[1:]) for n in self._names(words.get("pre_activations", "?"), call)
        ]
        if maps and not self.how.get("stem"):
            maps = [maps[0], *maps]
        embedding = self._names(words.get("embedding", "?"), call)
        width = self.vectors.arrays[embedding[0]].shape[1] if embedding else 1
        return FeatureShapes(tuple(maps), True, width)  # type: ignore[arg-type]

    def _output(self, side: str, call: str) -> Output:
        fields: dict[str, list[Tensor]] = {}
        for name, word in self.how.get(side, {}).items():
            fields[name] = []
            for array in self._names(word, call):
                tensor = self._array(array).clone()
                if side == "student":
                    self.inputs[array.removeprefix("in.")] = tensor.requires_grad_()
                fields[name].append(tensor)
        some = next(iter(fields.values()))[0]
        nothing = some.new_zeros(len(some), 1)

        def stages(name: str) -> tuple[Tensor, ...]:
            found = fields.get(name, [])
            return tuple(found if self.how.get("stem") or not found else [found[0].detach(), *found])

        return Output(
            fields.get("logits", [nothing])[0],
            stages("maps"),
            fields.get("embedding", [nothing])[0],
            stages("pre_activations") or None,
        )

    def _batch(self, size: int, call: str) -> Batch:
        def integers(key: str) -> Tensor:
            found = self._names(self.how[key], call) if key in self.how else []
            return self._array(found[0]) if found else torch.arange(size, device=self.device)

        if "negatives" in self.how:
            drawn = self._array(self._names(self.how["negatives"], call)[0])
            self.method.negatives = lambda batch, generator: drawn[:, 1:]  # type: ignore[assignment]
        return Batch(torch.empty(size, 0, device=self.device), integers("labels"), integers("indices"))

    def compare(self) -> None:
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for call in self.vectors.calls():
            student, teacher = self._output("student", call), self._output("teacher", call)
            batch = self._batch(len(student.logits), call)
            terms = self._terms(self.how.get("stage", "main"), student, teacher, batch)
            value = torch.stack(list(terms.values())).sum()
            value.backward()
            if self.how.get("stage", "main") == "main":
                with torch.no_grad():
                    self.method.after_backward(batch)
            total += value.detach().double()
            self._compare_parts(call, value, terms)
        self._close("loss", "out.loss", total, self.vectors.arrays["out.loss"], self.tolerance.loss)
        if "also" in self.how:
            for stage, array in self.how["also"].items():
                extra = sum(self._terms(stage, student, teacher, batch).values(), torch.zeros((), device=self.device))
                self._close("loss", array, extra, self.vectors.arrays[array], self.tolerance.loss)
        self._compare_gradients()

    def _terms(self, stage: str, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        if stage == "pretraining":
            return self.method.pretraining_losses(student, teacher, batch, 1)
        return objective(self.method, student, teacher, batch, 1)

    def _compare_parts(self, call: str, value: Tensor, terms: Mapping[str, Tensor]) -> None:
        arrays, name = self.vectors.arrays, call.removeprefix(".")
        if name and f"out.{name}.loss" in arrays:
            self._close("loss", f"out.{name}.loss", value, arrays[f"out.{name}.loss"], self.tolerance.loss)
        for term, word in self.how.get("terms", {}).items():
            array, _, weight = word.partition("/")
            array = f"out.{name}.{array}" if name else array
            divisor = float(self.settings.get(weight, 1.0))
            if array in arrays and divisor:
                self._close("loss", array, terms[term] / divisor, arrays[array], self.tolerance.loss)
        state = self.method.state_dict()
        for array, wanted in arrays.items():
            if name and array.startswith(f"state_after_{name}."):
                key = array.partition(".")[2]
                self._close("loss", array, state[key], wanted, self.tolerance.loss)
            elif array in ("out.Z_student", "out.Z_teacher"):
                self._close("loss", array, state[array.removeprefix("out.")], wanted, self.tolerance.loss)

    def _compare_gradients(self) -> None:
        arrays, zero = self.vectors.arrays, self.vectors.entry.get("mathematically_zero_gradients", [])
        found = {f"grad.{name}": tensor.grad for name, tensor in self.inputs.items()}
        found |= {f"grad_param.{name}": each.grad for name, each in self.method.named_parameters()}
        for name, gradient in found.items():
            if name in arrays:
                rtol = self.tolerance.gradient if name.startswith("grad.") else self.tolerance.parameter_gradient
                value = torch.zeros_like(arrays[name]) if gradient is None else gradient
                self._close("gradient", name, value, arrays[name], rtol)
            elif gradient is not None and gradient.abs().max() > (1e-6 if name in zero else 0.0):
                self.verdict.problems.append(f"{name} should be zero")
        for name in arrays:
            if name.startswith(("grad.", "grad_param.")) and name not in found:
                self.verdict.problems.append(f"{name} has no counterpart")

    def _close(self, kind: str, name: str, value: Tensor, wanted: Tensor, rtol: float) -> None:
        value, wanted = value.detach().double().cpu(), wanted.double()
        if value.shape != wanted.shape:
            if value.numel() != wanted.numel():
                self.verdict.problems.append(f"{name} has the shape {tuple(value.shape)}")
                return
            value = value.reshape(wanted.shape)
        size = wanted.abs().max().item()
        error = (value - wanted).abs().max().item()
        relative = error / size if size else error
        setattr(self.verdict, kind, max(getattr(self.verdict, kind), relative))
        if not error <= self.tolerance.atol + rtol * size or math.isnan(error):
            self.verdict.problems.append(f"{name} is off by {relative:.1e}, allowed {rtol:.0e}")
