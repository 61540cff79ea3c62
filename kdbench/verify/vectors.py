"""Golden vectors on disk: an index that describes the cases, a file of arrays each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.core.errors import UserError

DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class Tolerance:
    """How far a result may lie from the stored one: atol + rtol · size."""

    atol: float
    loss: float  # relative to the value
    gradient: float  # relative to the largest entry
    parameter_gradient: float


@dataclass(frozen=True)
class Vectors:
    """One case."""

    folder: Path
    entry: Mapping[str, Any]

    @property
    def method(self) -> str:
        return str(self.entry["method"])

    @property
    def case(self) -> str:
        return str(self.entry["case"])

    @property
    def hyper(self) -> Mapping[str, Any]:
        hyperparameters: Mapping[str, Any] = self.entry.get("hyperparameters", {})
        return hyperparameters

    @cached_property
    def arrays(self) -> dict[str, Tensor]:
        path = self.folder / Path(self.entry["file"]).name
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
        except Exception as error:  # a damaged file raises almost anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path} cannot be read as golden vectors ({reason})") from error

    def tolerance(self, precision: str) -> Tolerance:
        values = self.entry["tolerance"][precision]
        gradient = values.get("grad_rtol_of_max", 0.0)
        return Tolerance(
            values.get("atol", 0.0), values["loss_rtol"], gradient, values.get("grad_param_rtol_of_max", gradient)
        )

    def calls(self) -> list[str]:
        """Endings of the input arrays of consecutive calls: `.call1`, ..., or one empty ending."""
        endings = {name.rpartition(".")[2] for name in self.arrays if name.startswith("in.")}
        calls = sorted((word for word in endings if word.startswith("call")), key=lambda word: int(word[4:]))
        return [f".{word}" for word in calls] or [""]


def load(folder: Path) -> list[Vectors]:
    """Every case of a folder, in the index's order. Raises UserError."""
    path = folder / "index.json"
    try:
        cases = json.loads(path.read_text("utf-8"))["cases"]
        return [Vectors(folder, {"file": case["file"], "method": case["method"], **case}) for case in cases]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not an index of golden vectors ({type(error).__name__}: {error})") from error
