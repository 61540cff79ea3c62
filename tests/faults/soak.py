"""Many short cohorts in one process: its memory and its open files must not grow.

    python -m tests.faults.soak --seeds 100 --json FILE

Each seed has two cohorts; those of plain students come in the first half, those of a pair in the second.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tests.faults.fault_study import Study

WORDS = ["--methods", "kd,crd(nce_k=64)", "--pairs", "wrn_16_1:resnet8", "--dataset", "digits", "--subset", "128"]


def soak(home: Path, seeds: int) -> dict[str, Any]:
    """Resident memory and open files as each cohort begins, in four parts of the run."""
    study = Study(home, [*WORDS, "--epochs", "1", "--seeds", str(seeds)])
    process = study.start()
    assert process.stdout is not None
    memory: list[float] = []
    files: list[int] = []
    for line in process.stdout:
        if re.match(r"\[\d+/\d+\] \w+.*student", line):
            status = Path(f"/proc/{process.pid}/status").read_text("ascii")
            memory.append(int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024)
            files.append(len(list(Path(f"/proc/{process.pid}/fd").iterdir())))
    assert process.wait() == 0
    part = len(memory) // 4
    parts = [slice(n * part, (n + 1) * part) for n in range(4)]
    return {
        "cohorts": len(memory),
        "resident_mib_by_quarter": [round(median(memory[each]), 1) for each in parts],
        "open_files_by_quarter": [[min(files[each]), max(files[each])] for each in parts],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), args.seeds)
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
