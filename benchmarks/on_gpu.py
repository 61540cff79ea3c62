"""Run everything worth running on a GPU, with one command that takes under nine minutes and writes one JSON file.

    python benchmarks/on_gpu.py --images DIR --target DIR --json FILE

DIR holds real images in the parquet layout; without it the study on real images is left out. Each part runs in its own
process and is written as soon as it ends, so that a part that fails costs only itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SECONDS = 520.0  # for everything
PAIR = "resnet32x4:resnet8x4"
METHODS = "kd,crd,icd"
COMPARED = (PAIR, "wrn_40_2:wrn_16_2", "vgg13:vgg8")
RECORDED = ("status", "reason", "top1", "top5", "teacher_top1", "student_seconds", "shared_seconds", "extra_info")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    from kdbench.train.device import describe_environment, resolve_device

    device = resolve_device("auto")
    environment: dict[str, Any] = dict(describe_environment(device))
    del environment["host"]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        environment |= {"memory_gib": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    return environment


def run(argv: list[str], seconds: float) -> tuple[int, str]:
    """Exit code (124: timed out) and output of a command."""
    try:
        process = subprocess.run(
            [sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as timeout:
        output = timeout.stdout or b""  # bytes, whatever `text` says
        return 124, output.decode(errors="replace") if isinstance(output, bytes) else output
    return process.returncode, process.stdout + process.stderr


def tests(seconds: float) -> dict[str, Any]:
    files = ["tests/train/test_gpu.py", "tests/data/test_resident.py"]  # others need what only a developer installs
    code, output = run(["-m", "pytest", "-q", "-m", "gpu", *files], seconds)
    return {"exit_code": code, "summary": output.strip().splitlines()[-1:], "output": output[-4000:] if code else ""}


def verify(seconds: float) -> dict[str, Any]:
    code, output = run(["bench.py", "verify", "--golden", "tests/golden/losses", "--device", "cuda"], seconds)
    return {"exit_code": code, "output": output[-12000:]}


def comparison(pair: str, methods: str, seconds: float) -> dict[str, Any]:
    """`compare.py` on noise, with enough steps for CUDA graphs to be captured and then replayed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        argv = ["benchmarks/compare.py", "--pair", pair, "--methods", methods, "--warmup", "20", "--steps", "60"]
        code, output = run([*argv, "--workers", "8", "--json", str(path)], seconds)
        figures = json.loads(path.read_text("utf-8")) if path.is_file() else {"output": output[-4000:]}
        return {"command": "python " + " ".join(argv), "exit_code": code, **figures}


def study(images: Path, epochs: int, seconds: float, precision: str, target: Path | None = None) -> dict[str, Any]:
    """The `quick` recipe, shortened to `epochs`, on all images: seconds an epoch and accuracies from the records.

    With a target, linear probes of all networks follow, under the protocol `frozen`.
    """
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        out, data_dir = Path(folder) / "out", ["--data-dir", str(Path(folder) / "data")]
        argv = ["bench.py", "--methods", METHODS, "--pairs", PAIR, "--dataset", f"parquet:{images}", "--seeds", "1"]
        argv += ["--recipe", "quick", "--epochs", str(epochs), "--precision", precision]
        started = time.perf_counter()
        code, output = run([*argv, "--out", str(out), *data_dir], seconds)
        figures: dict[str, Any] = {
            "command": "python " + " ".join(argv).replace(str(images), images.name),
            "exit_code": code,
            "wall_seconds": round(time.perf_counter() - started, 1),
            "trials": trials(out / "runs"),
        }
        if code:
            figures["output"] = output[-4000:]
        if target and not code:
            argv = ["bench.py", "transfer", "--to", f"parquet:{target}", "--out", str(out), *data_dir]
            started = time.perf_counter()
            code, output = run(argv, max(1.0, deadline - time.monotonic()))
            table = out / "tables" / "transfer.csv"
            figures["transfer"] = {
                "exit_code": code,
                "wall_seconds": round(time.perf_counter() - started, 1),
                "table": table.read_text("utf-8") if table.is_file() else output[-4000:],
            }
        return figures


def trials(runs: Path) -> list[dict[str, Any]]:
    """What each record says of its trial and its result."""
    paths = [path for path in sorted(runs.glob("*.json")) if not path.name.endswith(".epochs.json")]
    records = [json.loads(path.read_text("utf-8")) for path in paths]
    return [
        {key: record["trial"][key] for key in ("arch", "method", "precision")} | {key: record[key] for key in RECORDED}
        for record in records
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run all parts. Returns the exit code: 0 if the tests passed, or if there are none for this device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of parquet files, e.g. CIFAR-10")
    parser.add_argument("--target", type=Path, help="folder of parquet files to transfer to, e.g. Tiny ImageNet")
    parser.add_argument("--json", type=Path, required=True, help="where the figures are written")
    args = parser.parse_args(argv)
    deadline = time.monotonic() + SECONDS
    figures: dict[str, Any] = {"machine": machine(), "date": time.strftime("%Y-%m-%d")}

    def remaining() -> float:
        return max(1.0, deadline - time.monotonic())

    def keep(name: str, value: dict[str, Any]) -> None:
        figures[name] = value
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
        print(f"{name}: {json.dumps(value)[:600]}", flush=True)

    keep("tests", tests(remaining()))
    keep("verify", verify(min(60.0, remaining())))
    for pair in COMPARED:
        keep(f"four methods, {pair}", comparison(pair, f"vanilla,{METHODS}", min(120.0, remaining())))
    if args.images:
        images = args.images.resolve()
        for precision in ("bf16", "fp32"):  # one epoch each: what an epoch costs
            keep(f"one epoch, {precision}", study(images, 1, remaining(), precision))
        cost = figures["one epoch, bf16"]["wall_seconds"]
        target = args.target.resolve() if args.target else None
        share = 0.6 if target else 0.85
        epochs = max(1, min(30, int(remaining() * share / max(cost, 1.0))))  # the full recipe where time allows
        keep(f"study of {epochs} epochs", study(images, epochs, remaining(), "bf16", target))
    return 0 if figures["tests"]["exit_code"] in (0, 5) else 1


if __name__ == "__main__":
    sys.exit(main())
