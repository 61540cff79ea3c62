"""SIGKILL at random instants over one study that is started again each time.

    python -m tests.faults.kills --kills 50 --seed 20261124 --json FILE

A kill strikes at a chosen event in the life of a file (see harm/sitecustomize.py) in the folder of states, records,
tables or of the image cache, or at a random time: while it starts, decodes, trains the teacher or the students.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults.fault_study import Study, digits_as_parquet, written

EVENTS = {"checkpoints": 18, "runs": 18, "cache": 3, "": 30}
"""Folder -> within how many events of its files a kill strikes."""

LAST = 2
"""Kills that strike while the tables are written, when all is trained."""


def study(home: Path, images: Path, *, seeds: int, epochs: int) -> Study:
    """A teacher, plain students, and three methods: one with a memory, one with a first stage."""
    words = ["--methods", "icd,crd,ab", "--pairs", "wrn_16_2:resnet8", "--recipe", "digits"]
    words += ["--dataset", f"parquet:{images}", "--subset", "512", "--seeds", str(seeds), "--epochs", str(epochs)]
    return Study(home, words)


def harass(harassed: Study, kills: int, chance: random.Random) -> dict[str, Any]:
    """Kill it so often, then let it end. Returns what was done."""
    log = harassed.home / "written.log"
    struck: Counter[str] = Counter()
    first_seen: dict[str, bytes] = {}
    starts = 0
    while True:
        starts += 1
        left = kills - sum(struck.values())
        if 0 < left <= LAST or (left > 0 and chance.random() < 0.6):
            folder = chance.choice(list(EVENTS)) if left > LAST else "tables"
            if folder == "cache":
                shutil.rmtree(harassed.home / "data", ignore_errors=True)
            number = chance.randint(1, EVENTS.get(folder, 18))
            process = harassed.start({"folder": folder, "number": number, "how": "kill", "log": str(log)})
            printed, _ = process.communicate()
            kind = f"a file in {folder or 'any folder'}"
        elif left > 0:
            process = harassed.start({"log": str(log)})
            lines: list[str] = []
            reader = threading.Thread(target=_follow, args=(process, lines))
            reader.start()
            if chance.random() < 0.5:
                kind = "a random time from its start"
            else:
                kind = "a random time in training"
                while process.poll() is None and not any(line.startswith("[") for line in lines):
                    time.sleep(0.01)
            time.sleep(chance.uniform(0, 4 if "start" in kind else 2))
            process.kill()
            reader.join()
            process.wait()
            printed = "".join(lines)
        else:
            process = harassed.start({"log": str(log)})
            printed, _ = process.communicate()
            kind = "nothing"
        assert "Traceback" not in printed, printed
        now = harassed.finished_at()
        for name, content in first_seen.items():
            if not name.endswith(".epochs.json"):
                assert now.get(name) == content, f"{name} was written again"
        first_seen = now
        if process.returncode == -9:
            struck[kind] += 1
            continue
        assert process.returncode == 0, printed
        if left <= 0:
            writes = written(log)
            return {
                "kills": dict(struck),
                "starts": starts,
                "records": len(writes),
                "most_writes": max(writes.values()),
            }
        raise AssertionError(f"the study ended after {sum(struck.values())} kills: make it longer")


def _follow(process: Any, lines: list[str]) -> None:
    lines.extend(iter(process.stdout.readline, ""))


def compare(harassed: Study, undisturbed: Study) -> dict[str, Any]:
    """Whether the two ended alike, and which files only one of them has."""
    return {
        "records_equal": harassed.trials() == undisturbed.trials(),
        "stray_files": sorted(harassed.files() ^ undisturbed.files()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=20261124)
    parser.add_argument("--seeds", type=int, default=6, help="of the study")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        images = digits_as_parquet(home / "digits")
        pair = [study(home / name, images, seeds=args.seeds, epochs=args.epochs) for name in ("kills", "undisturbed")]
        pair[1].run()
        started = time.monotonic()
        found = harass(pair[0], args.kills, random.Random(args.seed)) | compare(*pair)
        found |= {"seed": args.seed, "seconds": round(time.monotonic() - started), "trials": len(pair[1].trials()) // 2}
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
