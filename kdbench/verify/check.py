"""Run a distiller on a case of golden vectors and compare everything that the case stores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdbench.core.trial import Value
from kdbench.distill import registry
from kdbench.distill.distiller import Distiller
from kdbench.distill.golden import Golden
from kdbench.distill.objective import objective
from kdbench.distill.step import Step
from kdbench.verify.inputs import Inputs
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
        self.tolerance = vectors.tolerance(comparison.precision)
        self.inputs = Inputs(vectors, golden, DTYPES[comparison.precision], device)
        self.settings = self._settings(method)
        self.distiller = self._distiller(method)

    def _settings(self, method: str) -> dict[str, Value]:
        chosen: dict[str, Value] = {"ce_weight": 0.0, "kd_weight": 0.0, f"{method}_weight": 1.0}
        for key, value in self.golden.settings.items():
            chosen[key] = self.vectors.hyper[value[1:]] if isinstance(value, str) and value[0] == "$" else value
        known = {item: type(default) for item, default in vars(registry.hyper_of(method, {})).items()}
        return {key: known[key](value) for key, value in chosen.items() if key in known}

    def _distiller(self, method: str) -> Distiller[Any]:
        hyper = registry.hyper_of(method, self.settings)
        distiller = registry.distiller(method)(hyper, self.inputs.context()).to(self.device, self.inputs.dtype)
        state = distiller.state_dict()
        sides = (self.golden.student, self.golden.teacher)
        classifiers = {side["classifier"] for side in sides if "classifier" in side}
        unused = self.vectors.entry.get("no_gradient_reaches", [])  # parameters that the authors' code never reads
        for array, value in self.vectors.arrays.items():
            group, _, key = array.partition(".")
            if f"grad_param.{key}" in unused and key not in state:
                continue
            if group in ("param", "state_before") and key.rpartition(".")[0] not in classifiers:
                name = self._own_name(key, state)
                state[name] = value.reshape(state[name].shape) if value.numel() == state[name].numel() else value
        distiller.load_state_dict(state)
        call = self.vectors.calls()[0]
        for attribute, word in self.golden.replaced.items():
            tensors = tuple(self.inputs.tensors(word, call, leaf=not word.startswith("aux.")))
            result = tensors[0] if len(self.inputs.names(word, call)) == 1 else tensors
            setattr(distiller, attribute, lambda *_, result=result, **__: result)
        return distiller.train()

    def _own_name(self, key: str, state: Mapping[str, Tensor]) -> str:
        """The name under which the method holds a parameter or memory of the authors' code. Raises KeyError."""
        for name in (key, self.golden.state_prefix + key):
            if name in state:
                return name
        raise KeyError(f"the method has no parameter or memory {key}")

    def _step(self, call: str) -> Step:
        step = self.inputs.step(call)
        if self.golden.negatives:
            (rows,) = self.inputs.tensors(self.golden.negatives, call)
            self.distiller.bank.sample_negatives = lambda batch, generator: rows[:, 1:]  # type: ignore[union-attr]
        return step

    def compare(self) -> None:
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for call in self.vectors.calls():
            step = self._step(call)
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
        if array := self.golden.predictions:
            logits = self.distiller.predict(step.student)
            self._compare("loss", array, logits, self.vectors.arrays[array], self.tolerance.loss)
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
        parameters_stored = any(name.startswith("grad_param.") for name in arrays)
        gradients = {name: tensor.grad for name, tensor in self.inputs.leaves.items()}
        gradients |= {f"grad_param.{name}": parameter.grad for name, parameter in self.distiller.named_parameters()}
        for name, gradient in gradients.items():
            if name in arrays:
                rtol = self.tolerance.gradient if name.startswith("grad.") else self.tolerance.parameter_gradient
                value = torch.zeros_like(arrays[name]) if gradient is None else gradient
                self._compare("gradient", name, value, arrays[name], rtol)
            elif name.startswith("grad_param.") and not parameters_stored and name not in zero:
                continue
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
