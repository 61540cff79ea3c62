"""Golden vectors of the authors' code, fed to the distillers that train."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.distill import Batch, Distiller, Output, Shapes, registry
from kdbench.distill.objective import objective
from kdbench.models import FeatureShapes
from kdbench.spec import Value

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "losses"
INDEX = json.loads((FOLDER / "index.json").read_text("utf-8"))
DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass
class Case:
    """One file of vectors, in one precision: `inputs` require gradients."""

    file: str
    precision: str

    def __post_init__(self) -> None:
        (self.entry,) = (case for case in INDEX["cases"] if case["file"] == self.file)
        self.dtype = DTYPES[self.precision]
        with np.load(FOLDER / self.file) as arrays:
            self.arrays = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        self.inputs: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor:
        """A float array in this case's precision, an integer one as it is."""
        array = self.arrays[name]
        return array.to(self.dtype) if array.is_floating_point() else array

    def input(self, name: str) -> Tensor:
        self.inputs[name] = self.get(f"in.{name}").clone().requires_grad_()
        return self.inputs[name]

    def load(self, method: Distiller[Any], *groups: str) -> None:
        """Parameters and memories by their golden names, from `param.` or `state_before.`."""
        own = {**dict(method.named_parameters()), **dict(method.named_buffers())}
        names = [name for name in self.arrays if name.split(".")[0] in groups]
        assert names
        with torch.no_grad():
            for name in names:
                own[name.split(".", 1)[1]].copy_(self.arrays[name])

    def check_total(self, total: Tensor) -> None:
        tolerance = self.entry["tolerance"][self.precision]
        wanted = self.arrays["out.loss"].double()
        worst = tolerance["atol"] + tolerance["loss_rtol"] * wanted.abs()
        assert (total.detach().double() - wanted).abs() <= worst, f"{total.item()} instead of {wanted.item()}"

    def check_value(self, found: Tensor, name: str) -> None:
        """A named part, at the tolerance of the loss."""
        tolerance = self.entry["tolerance"][self.precision]
        wanted = self.arrays[name].double()
        worst = tolerance["atol"] + tolerance["loss_rtol"] * wanted.abs().max()
        assert (found.detach().double() - wanted).abs().max() <= worst, name

    def check_gradients(self, method: Distiller[Any]) -> None:
        """Of all inputs and parameters; none may be missing from the vectors without the index saying so."""
        tolerance = self.entry["tolerance"][self.precision]
        found = {f"grad.{name}": tensor.grad for name, tensor in self.inputs.items()}
        found |= {f"grad_param.{name}": parameter.grad for name, parameter in method.named_parameters()}
        compared = 0
        for name, gradient in found.items():
            if name in self.arrays:
                wanted = self.arrays[name].double()
                key = "grad_rtol_of_max" if name.startswith("grad.") else "grad_param_rtol_of_max"
                rtol = tolerance.get(key, tolerance["grad_rtol_of_max"])
                assert gradient is not None, f"{name}: no gradient"
                worst = tolerance["atol"] + rtol * wanted.abs().max()
                assert (gradient.double() - wanted).abs().max() <= worst, name
                compared += 1
            elif name in self.entry["mathematically_zero_gradients"]:
                assert gradient is None or gradient.abs().max() <= 1e-6, name
            else:
                assert gradient is None or not gradient.any(), f"{name} is not in the vectors"
        assert compared == sum(name.startswith("grad") for name in self.arrays)


def make(
    name: str, settings: dict[str, Value], *, student: int, teacher: int, labels: Tensor, dtype: torch.dtype
) -> Any:
    """The distiller that trains, in the given precision."""
    wide = FeatureShapes((), False, student), FeatureShapes((), False, teacher)
    shapes = Shapes(*wide, int(labels.max()) + 1, labels)
    return registry.distiller(name)(registry.hyper_of(name, settings), shapes, torch.Generator()).to(dtype)


def pooled(embedding: Tensor) -> Output:
    return Output(embedding.new_zeros(len(embedding), 2), (), embedding)


def batch_of(size: int, indices: Tensor | None = None, labels: Tensor | None = None) -> Batch:
    rows = torch.arange(size)
    return Batch(torch.empty(size, 0), rows if labels is None else labels, rows if indices is None else indices)


def total_of(
    method: Distiller[Any], student: Output, teacher: Output, batch: Batch
) -> tuple[Tensor, dict[str, Tensor]]:
    terms = objective(method, student, teacher, batch, 1)
    return torch.stack(list(terms.values())).sum(), terms
