"""Everything worth doing on a GPU, for machines that are lent for minutes and reached by small transfers.

Here, once: cut images and a teacher into pieces that can be transferred one by one:

    python benchmarks/on_gpu.py --cut ../images ../teachers/resnet56.pth --pieces build/pieces --mib 50

On the machine with the GPU, in this order; each prints what it found and writes it to --out, which can be committed:

    python benchmarks/on_gpu.py --stage build/pieces/*-1-of-3   keeps a piece; the last one unpacks them
    python benchmarks/on_gpu.py --proof                                 does recording train as plain steps do?
    python benchmarks/on_gpu.py --speed                                 whole epochs beside the conventional loop
    python benchmarks/on_gpu.py --study                                 a study; called again, it goes on

Every part runs in a process of its own and is written as soon as it ends, so that what fails costs only itself.
`--seconds` bounds a call. What a later call needs (images, checkpoints) lies in --state.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PAIRS = ("resnet32x4:resnet8x4", "wrn_40_2:wrn_16_2", "vgg13:vgg8")
STUDY_PAIR, STUDY_METHODS = "resnet56:resnet20", "kd,crd,icd,icd+kd"
LEAST = 20.0  # seconds, below which no part is begun
PIECE = re.compile(r"([0-9a-f]{12})-(\d+)-of-(\d+)")


class Figures:
    """One JSON file, written after every part."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.deadline = path, time.monotonic() + seconds
        self.values: dict[str, Any] = {"machine": machine(), "date": time.strftime("%Y-%m-%d")}

    @property
    def seconds(self) -> float:
        """That are left."""
        return max(1.0, self.deadline - time.monotonic())

    def keep(self, name: str, value: dict[str, Any]) -> None:
        self.values[name] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.values, indent=1) + "\n", "utf-8")
        print(f"{name}: {json.dumps(value)[:600]}", flush=True)

    def run(self, name: str, argv: Sequence[str], seconds: float | None = None, **environment: str) -> int:
        """Run a part, and keep its exit code, its time and the end of what it printed. Returns the exit code."""
        if self.seconds < LEAST:
            self.keep(name, {"left_out": "the time of this call was up"})
            return 0
        started = time.perf_counter()
        code, output = run(argv, min(seconds or self.seconds, self.seconds), environment)
        shown = "python " + " ".join(argv)
        taken = round(time.perf_counter() - started, 1)
        self.keep(
            name, {"command": shown, **environment, "exit_code": code, "seconds": taken, "output": output[-4000:]}
        )
        return code


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


def run(argv: Sequence[str], seconds: float, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code (124: timed out) and output of a Python command."""
    command = [sys.executable, *argv] if argv[0] != "compute-sanitizer" else list(argv)
    try:
        process = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as timeout:
        output = timeout.stdout or b""  # bytes, whatever `text` says
        return 124, output.decode(errors="replace") if isinstance(output, bytes) else output
    return process.returncode, process.stdout + process.stderr


# Pieces


def cut(sources: Sequence[Path], pieces: Path, mib: int) -> list[Path]:
    """Pack folders and files into pieces of at most so many MiB, with a list of their checksums."""
    if mib < 1:
        raise ValueError("--mib must be at least 1")
    if missing := [str(source) for source in sources if not source.exists()]:
        raise ValueError(f"there is no {', '.join(missing)}")
    pieces.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as packed:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for source in sources:
                archive.add(source, source.name)
        size = packed.tell()
        digest = file_digest(packed)
        count = -(-size // (mib * 2**20))
        paths = [pieces / f"{digest}-{number}-of-{count}" for number in range(1, count + 1)]
        packed.seek(0)
        for path in paths:
            path.write_bytes(packed.read(mib * 2**20))
            print(path)
    return paths


def stage(pieces: Sequence[Path], state: Path) -> bool:
    """Keep pieces; once all of them are there, unpack them. Raises ValueError for what is no piece, and for damage."""
    for piece in pieces:
        if not PIECE.fullmatch(piece.name) or not piece.is_file():
            raise ValueError(f"{piece} is not a piece that --cut has made")
        kept = state / "pieces" / piece.name.split("-")[0]
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(piece, kept / piece.name)
    digest, _, count = PIECE.fullmatch(pieces[-1].name).groups()  # type: ignore[union-attr]
    needed = [kept / f"{digest}-{number}-of-{count}" for number in range(1, int(count) + 1)]
    if missing := [path.name for path in needed if not path.exists()]:
        print(f"still missing: {', '.join(missing)}")
        return False
    with tempfile.TemporaryFile() as whole:
        for path in needed:
            whole.write(path.read_bytes())
        shutil.rmtree(kept)
        if file_digest(whole) != digest:
            raise ValueError("the pieces do not make up what was cut: bring them again")
        whole.seek(0)
        with tarfile.open(fileobj=whole) as archive:
            archive.extractall(state / "staged", filter="data")
    print(f"unpacked into {state / 'staged'}")
    return True


def file_digest(file: IO[bytes]) -> str:
    """The first digits of the SHA-256 of all of a file."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()[:12]  # type: ignore[arg-type]


def staged(state: Path) -> tuple[str, Path]:
    """The images as `--dataset` names them, and the folder of teachers. Raises ValueError without images."""
    folders = {path.parent for path in (state / "staged").rglob("*.parquet")}
    if len(folders) != 1:
        raise ValueError(f"there are no images in {state / 'staged'}: --stage brings them")
    return f"parquet:{folders.pop().resolve()}", state / "staged"


# Parts


def proof(figures: Figures, out: Path) -> None:
    """Whether recording trains as plain steps do, and what torch and CUDA say of it."""
    tests = ["-m", "pytest", "-q", "-m", "gpu", "tests/train/test_gpu.py", "-p", "no:cacheprovider", "-k"]
    figures.run("small tests", [*tests, "not replayed and not waits and not midst"], 120)
    figures.run("verify", ["bench.py", "verify", "--golden", "tests/golden/losses", "--device", "cuda"], 60)
    figures.run("a method that waits", [*tests, "waits"], 120)
    figures.run("resumed", [*tests, "midst"], 120)
    for part in range(6):
        figures.run(f"replayed as plain, part {part}", [*tests, f"replayed and {part}"], 150)
    kernels = ["benchmarks/kernels.py", "--methods", "kd,crd,icd"]
    figures.run("kernels of a step", kernels, 60)
    if shutil.which("compute-sanitizer"):
        memcheck = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", sys.executable]
        figures.run("memcheck", [*memcheck, *tests, "waits"], 240)
    else:
        figures.keep("memcheck", {"left_out": "there is no compute-sanitizer here"})


def speed(figures: Figures, out: Path, images: str | None) -> None:
    """Whole epochs beside the conventional loop, with few and with many queues; then steps and the floor."""
    source = images or "synthetic:50000"
    for pair in PAIRS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "figures.json"
            argv = ["benchmarks/epochs.py", "--pair", pair, "--methods", "vanilla,kd,crd,icd", "--images", source]
            argv += ["--epochs", "2", "--repetitions", "1", "--workers", "8", "--json", str(path)]
            figures.run(f"epochs, {pair}", argv, 200)
            if path.is_file():
                figures.keep(f"epochs, {pair}", json.loads(path.read_text("utf-8")))
    for queues in ("8", "32"):
        argv = ["benchmarks/floor.py", "--pair", PAIRS[0], "--methods", "all", "--images", "synthetic:12800"]
        argv += ["--steps", "5", "--repetitions", "2"]
        figures.run(f"15 students, {queues} queues", argv, 120, CUDA_DEVICE_MAX_CONNECTIONS=queues)


def study(figures: Figures, out: Path, state: Path, dataset: str, teachers: Path) -> None:
    """Go on with the study until the time is up; what it has is packed into `study.tar.gz` after every call."""
    results = state / "study"
    argv = ["bench.py", "--methods", STUDY_METHODS, "--pairs", STUDY_PAIR, "--dataset", dataset, "--seeds", "5"]
    argv += ["--teacher-dir", str(teachers), "--jobs", "1", "--checkpoint-every", "1", "--out", str(results)]
    argv += ["--data-dir", str(state / "data"), "--time-limit", f"{int(max(LEAST, figures.seconds - 60))}s"]
    figures.run("study", argv, figures.seconds - 20)
    figures.run("status", ["bench.py", "status", "--out", str(results)], 60)
    figures.keep("trials", {"records": list(records(results / "runs"))})
    with tarfile.open(out / "study.tar.gz", "w:gz") as archive:
        for name in ("runs", "tables", "charts", "report.html", "study.toml"):
            if (results / name).exists():
                archive.add(results / name, f"study/{name}", filter=_without_weights)
    with tarfile.open(out / "checkpoints.tar", "w") as archive:
        for name in ("runs", "checkpoints", "study.toml", "plan.json"):
            if (results / name).exists():
                archive.add(results / name, f"study/{name}")


def resume(state: Path, packed: Path) -> None:
    """Unpack the checkpoints that a call on another machine has written."""
    with tarfile.open(packed) as archive:
        archive.extractall(state, filter="data")


def _without_weights(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.endswith((".pt", ".safetensors", ".pth")) else member


def records(runs: Path) -> Iterator[dict[str, Any]]:
    """What each record says of its trial and its result."""
    for path in sorted(runs.glob("*.json")):
        if not path.name.endswith(".epochs.json"):
            record = json.loads(path.read_text("utf-8"))
            trial = {key: record["trial"][key] for key in ("arch", "method", "precision", "seed")}
            yield trial | {
                key: record[key] for key in ("status", "reason", "top1", "student_seconds", "shared_seconds")
            }


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is asked for. Returns the exit code: 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--cut", nargs="+", type=Path, metavar="PATH", help="folders and files to cut into pieces")
    what.add_argument("--stage", nargs="+", type=Path, metavar="PIECE", help="pieces that were brought")
    what.add_argument("--proof", action="store_true")
    what.add_argument("--speed", action="store_true")
    what.add_argument("--study", action="store_true")
    parser.add_argument("--pieces", type=Path, default=ROOT / "build" / "pieces", help="with --cut: where they go")
    parser.add_argument("--mib", type=int, default=50, help="with --cut: size of a piece (default: 50)")
    parser.add_argument("--state", type=Path, default=ROOT / "build" / "gpu", help="kept between calls, not committed")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "figures", help="where figures are written")
    parser.add_argument("--resume", type=Path, metavar="TAR", help="with --study: checkpoints.tar of an earlier call")
    parser.add_argument("--seconds", type=float, default=520.0, help="of a call, at most (default: 520)")
    args = parser.parse_args(argv)
    try:
        if args.cut:
            cut(args.cut, args.pieces, args.mib)
            return 0
        if args.stage:
            stage(args.stage, args.state)
            return 0
        if args.seconds < 2 * LEAST:
            raise ValueError(f"--seconds must be at least {2 * LEAST:.0f}")
        name = "proof" if args.proof else "speed" if args.speed else "study"
        args.out.mkdir(parents=True, exist_ok=True)
        figures = Figures(args.out / f"{name}.json", args.seconds)
        if args.proof:
            proof(figures, args.out)
        elif args.speed:
            has_images = (args.state / "staged").exists()
            speed(figures, args.out, staged(args.state)[0] if has_images else None)
        else:
            if args.resume:
                resume(args.state, args.resume)
            study(figures, args.out, args.state, *staged(args.state))
    except (OSError, ValueError, tarfile.TarError) as error:
        print(f"on_gpu: {error}", file=sys.stderr)
        return 2
    codes = [part["exit_code"] for part in figures.values.values() if isinstance(part, dict) and "exit_code" in part]
    stopped = 130 if args.study else 0  # a study whose time was up
    return 0 if set(codes) <= {0, stopped} else 1


if __name__ == "__main__":
    sys.exit(main())
