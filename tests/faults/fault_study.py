"""Studies that run in processes of their own, and what may be done to them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parents[2]
_HARM = Path(__file__).parent / "harm"


def digits_as_parquet(folder: Path) -> Path:
    """The built-in digits as encoded images, so that a study has something to decode and to keep in its cache."""
    folder.mkdir(parents=True)
    found = load_digits()
    for name, rows in (("train", slice(0, 1437)), ("test", slice(1437, None))):
        encoded = []
        for pixels in found.images[rows]:
            buffer = io.BytesIO()
            Image.fromarray((pixels * 15.9375).astype("uint8")).convert("RGB").save(buffer, "PNG")
            encoded.append({"bytes": buffer.getvalue(), "path": None})
        table = pa.table({"image": encoded, "label": found.target[rows].tolist()})
        pq.write_table(table, folder / f"{name}-00000-of-00001.parquet")
    return folder


@dataclass
class Study:
    """One study, its folders, and the command that runs it."""

    home: Path
    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.home / "results"

    def start(self, harm: dict[str, Any] | None = None, *more: str, own_group: bool = False) -> subprocess.Popen[str]:
        """The study's process, with `harm` as sitecustomize.py has it; in a process group of its own as by a shell."""
        environment = {**os.environ, **self.environment}
        if harm is not None:
            environment |= {"KDBENCH_HARM": json.dumps(harm), "PYTHONPATH": str(_HARM)}
        if "--jobs" not in self.words:
            more = ("--jobs", "1", *more)
        folders = ["--out", str(self.out), "--data-dir", str(self.home / "data")]
        command = [sys.executable, str(ROOT / "bench.py"), *self.words, *folders, *more]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=own_group,
        )

    def run(self, harm: dict[str, Any] | None = None, *more: str, code: int | None = 0) -> str:
        """What it printed; None as code: any will do. There must never be a traceback."""
        process = self.start(harm, *more)
        printed, _ = process.communicate(timeout=280)
        assert "Traceback" not in printed, printed
        assert code is None or process.returncode == code, printed
        return printed

    def files(self) -> set[str]:
        """All files of its results and its cache, without the locks, which stay, by path."""
        places = (self.out, self.home / "data")
        found = {str(path.relative_to(self.home)) for place in places for path in place.rglob("*") if path.is_file()}
        return {path for path in found if not path.startswith("results/locks/")}

    def trials(self) -> dict[str, dict[str, Any]]:
        """Every record with its epochs, without times and places, by file name."""
        found = {}
        for path in sorted((self.out / "runs").glob("*.json")):
            content = json.loads(path.read_text("utf-8"))
            del content["sha256"]
            if path.name.endswith(".epochs.json"):
                for epoch in content["epochs"]:
                    del epoch["student_seconds"], epoch["shared_seconds"]
            else:
                for name in ("finished", "student_seconds", "shared_seconds", "cost"):
                    del content[name]
                del content["environment"]["host"], content["environment"]["jobs"]
            found[path.name] = content
        return found

    def finished_at(self) -> dict[str, bytes]:
        """The records as they lie there."""
        return {path.name: path.read_bytes() for path in (self.out / "runs").glob("*.json")}


def written(log: Path) -> Counter[str]:
    """How often each record got its name, from the log of the harm."""
    lines = log.read_text("utf-8").splitlines() if log.exists() else []
    paths = [Path(line.partition(" ")[2]) for line in lines]
    return Counter(
        path.name
        for path in paths
        if path.parent.name == "runs" and path.suffix == ".json" and not path.name.endswith(".epochs.json")
    )


def end(process: subprocess.Popen[str]) -> str:
    """Kill it as the system does, and give what it printed."""
    process.send_signal(signal.SIGKILL)
    return process.communicate()[0]
