"""Checkpoint files: find them, read them without executing code, and check them against the architecture."""

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

_STATE_KEYS = (  # under which training scripts save the state dict, most common first
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


class _Placeholder:
    """Takes the place of another library's value in a checkpoint, such as a numpy accuracy, which is never built."""

    def __init__(self, *_args: object) -> None: ...

    def __setstate__(self, _state: object) -> None: ...


def _placeholder(path: str) -> type:
    """A placeholder class that the unpickler accepts for the global `path`."""
    module, name = path.rsplit(".", 1)
    return type(name, (_Placeholder,), {"__module__": module})


_SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    *(
        _placeholder(f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    _placeholder("numpy.dtype"),
    _placeholder("numpy.ndarray"),
]


def load_checkpoint(path: Path | str, arch: str, classes: int, size: int) -> dict[str, Tensor]:
    """The state dict in a file, complete and ready for `build(arch, classes, size)`.

    Reads `{"model": state dict, ...}` and its common variants, plain state dicts and the prefix of DataParallel, saved
    by torch in its zip format or its older one, or as safetensors. Nothing in the file is executed.
    Raises UserError with one sentence that names the file.
    """
    path = Path(path)
    layout = registry.layout(arch, classes, size)  # an invalid request fails here, before the file is read
    weights = _unwrapped(_state_dict(_read(path), path))

    saved_classes = _count_classes(weights, arch, size)
    mismatch = _mismatch(weights, registry.layout(arch, saved_classes or classes, size))
    if mismatch:
        raise UserError(f"{path} does not hold a {arch}: {mismatch}{_guess(weights, size)}")
    if saved_classes != classes:
        raise UserError(f"{path} holds a {arch} with {saved_classes} classes, but the data has {classes}")

    state = {}
    for key, expected in layout.items():
        # Files older than torch 0.4.1 lack the batch counts of batch norms, which are never used.
        tensor = weights.get(key, torch.zeros(expected.shape)).detach()
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_complex():
            raise UserError(
                f"{path} holds no plain weights: {key} is sparse, complex or empty; save it as real numbers"
            )
        tensor = tensor.to(expected.dtype)
        if not tensor.isfinite().all():
            raise UserError(f"{path} holds non-finite weights ({key})")
        state[key] = tensor
    return state


def find_checkpoint(directory: Path | str, arch: str) -> Path:
    """The checkpoint of `arch` in a folder of teachers.

    Looks for `ARCH.pth`, then `ARCH_best.pth`; if there is neither, for `ckpt_epoch_240.pth`, then `ARCH_best.pth` in a
    folder called `ARCH` or `ARCH_anything`. Each may also end in `.pt` or `.safetensors`.
    Raises UserError if there is none, or if several folders have one.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}, where the checkpoint of {arch} should be, is not a folder")
    path = _first_file(directory, (arch, f"{arch}_best"))
    if path:
        return path

    # A name that goes on with a letter or digit is another architecture's: resnet32x4 is not resnet32.
    folder_name = re.compile(rf"{re.escape(arch)}(?![A-Za-z0-9])")
    folders = sorted(entry for entry in directory.iterdir() if entry.is_dir() and folder_name.match(entry.name))
    paths = [path for folder in folders if (path := _first_file(folder, (_LAST_EPOCH, f"{arch}_best")))]
    if len(paths) > 1:
        listed = " and ".join(map(str, paths))
        raise UserError(f"{directory} holds several checkpoints of {arch}, {listed}; name one of them")
    if not paths:
        raise UserError(
            f"{directory} holds no checkpoint of {arch}; looked for {arch}.pth, {arch}_best.pth, "
            f"{arch}*/{_LAST_EPOCH}.pth and {arch}*/{arch}_best.pth, each also as .pt or .safetensors"
        )
    return paths[0]


def _read(path: Path) -> object:
    """The content of the file, restricted to plain data and tensors."""
    if not path.is_file():
        raise UserError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on unusual pickles does not help the user
            if path.suffix == ".safetensors":
                return load_file(path)
            _check_zip(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UserError:
        raise
    except Exception as error:  # a damaged file may raise anything, from EOFError to UnicodeDecodeError
        refused = re.search(r"\bGLOBAL (\S+)", str(error))
        if refused:
            raise UserError(
                f"{path} holds code or objects beside plain weights ({refused[1]}) and was not opened; "
                "save only the state dict and use that file"
            ) from error
        raise UserError(f"{path} is not a PyTorch checkpoint, or is damaged") from error


def _check_zip(path: Path) -> None:
    """Verify the checksums of torch.save's zip format, which torch.load ignores; the older format has none.

    Raises UserError if one does not match, and for compressed entries, which could expand to any size.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
            raise UserError(f"{path} is compressed, which torch.save never does, and was not opened")
        if damaged := file.testzip():
            raise UserError(f"{path} is damaged: the checksum of {damaged} in it does not match")


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors of the state dict in a checkpoint. Raises UserError if there is none."""
    if isinstance(content, Mapping):
        for key in _STATE_KEYS:
            if tensors := _tensors(content.get(key)):
                return tensors
        if tensors := _tensors(content):
            return tensors
    raise UserError(f"{path} holds no state dict, neither at the top level nor under any of {', '.join(_STATE_KEYS)}")


def _tensors(content: object) -> dict[str, Tensor]:
    """The tensors of a mapping by their names; nothing for other objects."""
    if not isinstance(content, Mapping):
        return {}
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the prefixes that wrappers of a model add to every key."""
    while prefix := next((name for name in _WRAPPERS if all(key.startswith(name) for key in weights)), None):
        weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
    return weights


def _count_classes(weights: Mapping[str, Tensor], arch: str, size: int) -> int | None:
    """The number of classes of a state dict of `arch`: the rows of the tensor whose shape depends on that number."""
    one, two = registry.layout(arch, 1, size), registry.layout(arch, 2, size)
    key = next(key for key in one if one[key].shape != two[key].shape)
    return (weights[key].shape[0] or None) if key in weights and weights[key].ndim else None


def _mismatch(weights: Mapping[str, Tensor], layout: Mapping[str, Tensor]) -> str | None:
    """The first difference between weights and layout, or None."""
    for key, expected in layout.items():
        if key not in weights:
            if key.endswith(".num_batches_tracked"):
                continue
            return f"{key} is missing"
        if weights[key].shape != expected.shape:
            return f"{key} has shape {list(weights[key].shape)} instead of {list(expected.shape)}"
    return next((f"{key} is unexpected" for key in weights if key not in layout), None)


def _guess(weights: Mapping[str, Tensor], size: int) -> str:
    """The end of a sentence that names the architecture of a state dict; empty if it is unknown."""
    for name in registry.names():
        valid_size = max(size, registry.info(name).smallest)
        classes = _count_classes(weights, name, valid_size)
        if classes and _mismatch(weights, registry.layout(name, classes, valid_size)) is None:
            return f"; it looks like {name} with {classes} classes"
    return ""


def _first_file(directory: Path, stems: tuple[str, ...]) -> Path | None:
    paths = (directory / f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES)
    return next((path for path in paths if path.is_file()), None)
