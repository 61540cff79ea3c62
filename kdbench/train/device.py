"""Device, precision, threads, and what a record says of the machine."""

from __future__ import annotations

import logging
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import PIL
import torch
from PIL import features
from torch import nn

from kdbench import __version__
from kdbench.core.errors import UserError
from kdbench.core.trial import Value

os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
"""Queues of the hardware, which are made when CUDA starts: with fewer than there are streams, students wait for each
other although nothing asks them to."""


def resolve_device(text: str) -> torch.device:
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`. Raises UserError if it is not there."""
    if text == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise UserError(f"--device {text!r} is not one of auto, cpu, cuda, cuda:N")
    if not torch.cuda.is_available():
        raise UserError(f"--device {text}: torch {torch.__version__} finds no CUDA device here; use --device cpu")
    device = torch.device("cuda", device.index or 0)
    if device.index >= torch.cuda.device_count():
        raise UserError(f"--device {text}: there are {torch.cuda.device_count()} CUDA devices here, numbered from 0")
    return device


BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # of /proc/cpuinfo on x86 and Arm: multiplies bf16 natively
BF16_PIXELS = 32  # on smaller images conversion costs a CPU more than it saves: docs/performance.md


def resolve_precision(text: str, device: torch.device, size: int) -> str:
    """`auto`: bf16 on what computes in it natively (a CPU: for images of at least 32 pixels a side), else fp32."""
    if text != "auto":
        return text
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--precision auto: this machine has no GPU to ask; give bf16 or fp32")
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)  # older cards emulate it, slowly
    else:
        native = size >= BF16_PIXELS and not BF16_FLAGS.isdisjoint(_cpuinfo("flags", "Features").split())
    return "bf16" if native else "fp32"


_compiles = False


def configure_torch(device: torch.device, precision: str, threads: int | None, compiles: bool = False) -> None:
    """Process-wide switches for one run; `compiles`: whether `compiled` does."""
    global _compiles
    _compiles = compiles
    if compiles and device.type == "cpu":  # which it is told to use: that there is no GPU is no news
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        exact = precision == "fp32"
        torch.backends.cuda.matmul.allow_tf32 = not exact
        torch.backends.cudnn.allow_tf32 = not exact


def compiled(network: nn.Module) -> nn.Module:
    """The network, compiled by torch.compile on its first call if this run compiles; its weights are the same."""
    return torch.compile(network) if _compiles else network  # type: ignore[return-value]


def seed_default_generator(device: torch.device, seed: int) -> None:
    """Seed the generator that dropout draws from on a device.

    `torch.manual_seed` seeds those of all backends and takes ten times as long, once a step and student.
    """
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed % 2**63)
    else:
        torch.default_generator.manual_seed(seed % 2**63)


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_mib` begin anew, where the system can (on a CPU: Linux)."""
    if device.type == "cuda":
        with suppress(RuntimeError):  # of a torch that has not recovered from a recording that failed
            torch.cuda.empty_cache()  # what is cached counts as reserved
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_mib(device: torch.device) -> float | None:
    """Most memory held at once: on a CUDA device by torch, which counts that of CUDA graphs as reserved alone; else the
    resident set of this process, where it is known.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return size / 2 ** (20 if sys.platform == "darwin" else 10)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was no memory left, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _MEMORY_ENDED.search(str(error)) is not None


_MEMORY_ENDED = re.compile(r"DefaultCPUAllocator|out of memory|(CUBLAS|CUDNN|CUSOLVER|CUFFT)_STATUS_\w*ALLOC\w*_FAILED")
"""In the messages of plain RuntimeErrors."""


def answers(device: torch.device) -> bool:
    """Whether the device still computes: after an assertion that failed on it, say, a CUDA device never does again."""
    try:
        return bool(torch.ones((), device=device).item() == 1)
    except RuntimeError as error:
        return is_out_of_memory(error)


def lost_message(device: torch.device, error: BaseException) -> str:
    """The one sentence with which a command ends when its device fails."""
    cause = (str(error).splitlines() or [""])[0]
    return f"{device} has failed and computes no longer in this process ({cause}); the same command goes on from here"


Network = TypeVar("Network", bound=nn.Module)


def on_device(network: Network, device: torch.device) -> Network:
    """The network on its device, its weights in the channels-last order that the batches have."""
    return network.to(device).to(memory_format=torch.channels_last)


def describe_environment(device: torch.device) -> dict[str, Value]:
    """Recorded with every result; two records that differ here may differ in their last bits."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "kdbench": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "pillow": f"{PIL.__version__}, libjpeg {features.version('jpg') or 'none'}",
        "platform": platform.platform(),
        "host": platform.node(),
        **({"compiled": True} if _compiles else {}),
        **_commit(),
    }


def _commit() -> dict[str, Value]:
    """The commit of the code, and whether it was edited since, where the code is a git checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        commit, edits = (
            subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10)
            for arguments in (
                ["log", "-1", "--format=%H", "--", "kdbench", "methods"],
                ["status", "--porcelain", "--", "kdbench", "methods"],
            )
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit.stdout.strip(), "edited": bool(edits.stdout.strip())} if commit.stdout.strip() else {}


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(*names: str) -> str:
    """The first line of /proc/cpuinfo with one of these names; empty where there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in names:
                    return value.strip()
    except OSError:
        pass
    return ""
