"""Weights that people own: found, opened without running anything, and checked against the architecture."""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from kdbench.core.errors import UserError
from kdbench.models import registry

_STATE_KEYS = (  # where training scripts put the state dict, most usual first
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "weights",
    "state_dict_ema",
    "model_ema",
)
_WRAPPERS = ("module.", "_orig_mod.")  # prefixes of DataParallel and of compiled models
_SUFFIXES = (".pth", ".pt", ".safetensors")
_LAST_EPOCH = "ckpt_epoch_240"


class _Ignored:
    """Stands for a value of another library (a numpy accuracy) beside the weights: read over, never made."""

    def __init__(self, *_args: object) -> None: ...

    def __setstate__(self, _state: object) -> None: ...


def _stand_in(path: str) -> type:
    """A class that the unpickler takes for the global `path`."""
    module, name = path.rsplit(".", 1)
    return type(name, (_Ignored,), {"__module__": module})


_TOLERATED: list[Any] = [
    argparse.Namespace,
    *(
        _stand_in(f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    _stand_in("numpy.dtype"),
    _stand_in("numpy.ndarray"),
]


def load_checkpoint(path: Path | str, arch: str, classes: int, size: int) -> dict[str, Tensor]:
    """The state dict in a file, complete and fit for `build(arch, classes, size)`.

    Reads `{"model": state dict, ...}` and its usual variants, bare state dicts and DataParallel's prefix, in the zip
    form and the older one. Nothing in the file is executed. Raises UserError, one sentence that names the file.
    """
    path = Path(path)
    registry.layout(arch, classes, size)  # a wrong request is not the file's fault
    weights = _unwrapped(_state_dict(_read(path), path))

    found = _classes_in(weights, arch, size)
    problem = _misfit(weights, registry.layout(arch, found or classes, size))
    if problem:
        raise UserError(f"{path} does not hold a {arch}: {problem}{_guess(weights, size)}")
    if found != classes:
        raise UserError(f"{path} holds a {arch} with {found} classes, but the data has {classes}")

    fitted = {}
    for key, expected in registry.layout(arch, classes, size).items():
        # Files older than torch 0.4.1 lack the counts of batches, which nothing here reads.
        tensor = weights.get(key, torch.zeros(expected.shape)).detach()
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_complex():
            raise UserError(
                f"{path} holds no plain weights: {key} is sparse, complex or empty; save it as real numbers"
            )
        tensor = tensor.to(expected.dtype)
        if not tensor.isfinite().all():
            raise UserError(f"{path} holds non-finite weights ({key})")
        fitted[key] = tensor
    return fitted


def find_checkpoint(directory: Path | str, arch: str) -> Path:
    """The file of `arch` in a folder of teachers.

    In this order: `ARCH.pth`, `ARCH_best.pth`; else, in the one folder called `ARCH` or `ARCH_anything`,
    `ckpt_epoch_240.pth`, `ARCH_best.pth`. `.pt` and `.safetensors` will do as well.
    Raises UserError if there is none, or if two folders have one.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}, where the checkpoint of {arch} should be, is not a folder")
    direct = _first_file(directory, (arch, f"{arch}_best"))
    if direct:
        return direct

    # A letter or digit right behind the name makes it another architecture's: resnet32x4 is not resnet32.
    own = re.compile(rf"{re.escape(arch)}(?![A-Za-z0-9])")
    folders = sorted(entry for entry in directory.iterdir() if entry.is_dir() and own.match(entry.name))
    found = [file for folder in folders if (file := _first_file(folder, (_LAST_EPOCH, f"{arch}_best")))]
    if len(found) > 1:
        both = " and ".join(str(file) for file in found)
        raise UserError(f"{directory} holds several checkpoints of {arch}, {both}; name one of them")
    if not found:
        raise UserError(
            f"{directory} holds no checkpoint of {arch}; looked for {arch}.pth, {arch}_best.pth, "
            f"{arch}*/{_LAST_EPOCH}.pth and {arch}*/{arch}_best.pth, each also as .pt or .safetensors"
        )
    return found[0]


def _read(path: Path) -> object:
    """What torch.load makes of the file, with plain data and tensors only."""
    if not path.is_file():
        raise UserError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    try:
        with torch.serialization.safe_globals(_TOLERATED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on odd pickles is not for the user of this file
            if path.suffix == ".safetensors":
                return load_file(path)
            _check_zip(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UserError:
        raise
    except Exception as error:  # a damaged file raises almost anything, from EOFError to UnicodeDecodeError
        refused = re.search(r"\bGLOBAL (\S+)", str(error))
        if refused:
            raise UserError(
                f"{path} holds code or objects beside plain weights ({refused[1]}) and was not opened; "
                "save the state dict alone and use that file"
            ) from error
        raise UserError(f"{path} is not a PyTorch checkpoint, or is damaged") from error


def _check_zip(path: Path) -> None:
    """The checksums that torch.save puts beside each tensor, which torch.load passes over; older files have none.

    Raises UserError, also for entries that would grow when they are read: torch.save compresses nothing.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
            raise UserError(f"{path} is compressed, which torch.save never does, and was not opened")
        if damaged := file.testzip():
            raise UserError(f"{path} is damaged: the checksum of {damaged} in it does not agree")


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors of the state dict in a checkpoint, wherever it lies."""
    if isinstance(content, Mapping):
        for key in _STATE_KEYS:
            if tensors := _tensors(content.get(key)):
                return tensors
        if tensors := _tensors(content):
            return tensors
    raise UserError(f"{path} holds no state dict, neither bare nor under any of {', '.join(_STATE_KEYS)}")


def _tensors(content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that wrappers of a model put before every key."""
    while prefix := next((p for p in _WRAPPERS if all(key.startswith(p) for key in weights)), None):
        weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
    return weights


def _classes_in(weights: Mapping[str, Tensor], arch: str, size: int) -> int | None:
    """How many classes a state dict of `arch` tells apart: the rows of the tensor whose shape follows their number."""
    one, two = registry.layout(arch, 1, size), registry.layout(arch, 2, size)
    key = next(key for key in one if one[key].shape != two[key].shape)
    return (weights[key].shape[0] or None) if key in weights and weights[key].ndim else None


def _misfit(weights: Mapping[str, Tensor], layout: Mapping[str, Tensor]) -> str | None:
    """The first thing that does not fit, if any."""
    for key, expected in layout.items():
        if key not in weights:
            if key.endswith(".num_batches_tracked"):
                continue
            return f"{key} is missing"
        if weights[key].shape != expected.shape:
            return f"{key} has shape {list(weights[key].shape)} instead of {list(expected.shape)}"
    return next((f"{key} is unexpected" for key in weights if key not in layout), None)


def _guess(weights: Mapping[str, Tensor], size: int) -> str:
    """Which architecture a state dict belongs to, as the end of a sentence."""
    for name in registry.names():
        size_for = max(size, registry.info(name).smallest)  # a guess must not fail on small images
        classes = _classes_in(weights, name, size_for)
        if classes and _misfit(weights, registry.layout(name, classes, size_for)) is None:
            return f"; it looks like {name} with {classes} classes"
    return ""


def _first_file(directory: Path, stems: tuple[str, ...]) -> Path | None:
    files = (directory / f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES)
    return next((file for file in files if file.is_file()), None)
