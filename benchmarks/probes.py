"""How long the frozen probe of many students takes: features once, then every classifier.

    python benchmarks/probes.py --students 10 --images 5000 --json FILE

Noise as images, 32 pixels a side, ten classes, 8,000 test images as STL-10 has; untrained networks; the whole protocol.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as bench.py has it


from benchmarks.compare import load, summary
from kdbench.core.linear_probe import LinearProbe
from kdbench.core.record import ProbeRecord
from kdbench.core.trial import VANILLA, Trial
from kdbench.data.dataset import Dataset, Split
from kdbench.models import build, info
from kdbench.plan.probe_protocols import protocol, transfer
from kdbench.plan.recipes import recipe
from kdbench.train.checkpoint import Checkpoints
from kdbench.train.device import configure_torch, describe_environment, resolve_device, resolve_precision
from kdbench.train.probe_group import train_probes

CLASSES, TEST = 10, 8000


class Nobody:
    """Watches nothing."""

    def group(self, transfers: Sequence[LinearProbe]) -> None: ...
    def advance(self, epochs: int) -> None: ...
    def record(self, record: ProbeRecord) -> None: ...


def target(count: int) -> Dataset:
    whole = load(f"synthetic:{count + TEST}", 32)
    pixels, labels = whole.train.images, whole.train.labels % CLASSES
    about = replace(whole.info, classes=CLASSES, train=count, test=TEST)
    return Dataset(
        about,
        Split(pixels[:count], labels[:count]),
        Split(pixels[count:], labels[count:]),
        tuple(map(str, range(CLASSES))),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", type=int, default=10)
    parser.add_argument("--images", type=int, default=5000, help="of the target's training split")
    parser.add_argument("--arch", default="resnet8")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    device, images = resolve_device(args.device), target(args.images)
    precision = resolve_precision("auto", device, 32)
    configure_torch(device, precision, None)
    how, schedule = protocol("frozen", epochs=None, size=32), recipe("paper")
    weights = build(args.arch, CLASSES, 32).state_dict()
    source = Trial(images.info, schedule, args.arch, schedule.lr, None, VANILLA, {}, "", 0, precision)
    seconds = []
    for _ in range(args.repetitions):
        transfers = [
            transfer(replace(source, code=str(number)), "", images.info, how, info(args.arch), 1, precision)
            for number in range(args.students)
        ]
        with TemporaryDirectory() as folder:
            started = time.perf_counter()
            records = list(
                train_probes(transfers, images, lambda _: weights, Checkpoints(Path(folder)), device, {}, Nobody())
            )
            seconds.append(time.perf_counter() - started)
        assert [record.status for record in records] == ["done"] * args.students
    machine = {name: value for name, value in describe_environment(device).items() if name != "host"}
    settings = {**vars(args), "json": None, "precision": precision, "epochs": how.recipe.epochs}
    found = summary(seconds)
    figures = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "settings": settings, "seconds": found}
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    print(f"{args.students} students: {found['median']:.1f} s ({found['min']:.1f} - {found['max']:.1f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
