"""Device, precision, threads, and what a record says of the machine."""

from __future__ import annotations

import platform

import torch
from torch import nn

from kdbench import __version__
from kdbench.spec import UserError, Value


def pick_device(text: str) -> torch.device:
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


def pick_precision(text: str, device: torch.device) -> str:
    """`auto`: bf16 on GPUs that compute in it, else fp32."""
    if text == "auto":
        # Older cards emulate bf16, slowly; since compute capability 8.0 they compute in it.
        return "bf16" if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return text


def configure(device: torch.device, precision: str, threads: int | None) -> None:
    """Process-wide switches of torch for one run."""
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        exact = precision == "fp32"
        torch.backends.cuda.matmul.allow_tf32 = not exact
        torch.backends.cudnn.allow_tf32 = not exact


def on_device(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on its device, its weights in the channels-last order that the batches have."""
    return network.to(device).to(memory_format=torch.channels_last)


def describe(device: torch.device) -> dict[str, Value]:
    """Recorded with every result; two records that differ here may differ in their last bits."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "kdbench": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "host": platform.node(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
