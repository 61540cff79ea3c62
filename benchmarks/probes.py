"""Measure how long the frozen linear probes of many students take: features once, then every classifier.

    python benchmarks/probes.py --students 10 --images 5000 --json FILE

The images are noise of 32x32 pixels in ten classes, with 8,000 test images as in STL-10. The networks are untrained;
the protocol is run in full.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as in kdbench


from benchmarks.compare import load, machine, summary, write_json
from kdbench.core.events import Event, TrialEnd
from kdbench.core.jobs import ProbeJob
from kdbench.core.trial import VANILLA, Trial
from kdbench.data.dataset import Split
from kdbench.data.resident import ResidentDataset
from kdbench.models import build, info
from kdbench.plan.probe_protocols import protocol, transfer
from kdbench.plan.recipes import recipe
from kdbench.train.device import configure_torch, resolve_device, resolve_precision
from kdbench.train.probe_group import ProbeGroupTrainer

CLASSES, TEST_IMAGES = 10, 8000


def target(count: int) -> ResidentDataset:
    """Synthetic images with `count` training images."""
    dataset = load(f"synthetic:{count + TEST_IMAGES}", 32)
    pixels, labels = dataset.train.images, dataset.train.labels % CLASSES
    data = replace(dataset.info, classes=CLASSES, train=count, test=TEST_IMAGES)
    train, test = Split(pixels[:count], labels[:count]), Split(pixels[count:], labels[count:])
    return ResidentDataset(data, train, test, tuple(map(str, range(CLASSES))))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", type=int, default=10)
    parser.add_argument("--images", type=int, default=5000, help="training images of the target")
    parser.add_argument("--arch", default="resnet8")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    device, dataset = resolve_device(args.device), target(args.images)
    precision = resolve_precision("auto", device, 32)
    configure_torch(device, precision, None)
    frozen, schedule = protocol("frozen", epochs=None, size=32), recipe("paper")
    weights = build(args.arch, CLASSES, 32).state_dict()
    source = Trial(dataset.info, schedule, args.arch, schedule.lr, (), VANILLA, VANILLA, {}, "", 0, precision)
    seconds = []
    for _ in range(args.repetitions):
        probes = [
            transfer(replace(source, code=str(number)), "", dataset.info, frozen, info(args.arch), 1, precision)
            for number in range(args.students)
        ]
        job = ProbeJob(tuple(probes), dict.fromkeys((probe.fingerprint for probe in probes), weights))
        events: list[Event] = []
        started = time.perf_counter()
        ProbeGroupTrainer(job, dataset, device, events.append).train()
        seconds.append(time.perf_counter() - started)
        ended = [event.outcome.status for event in events if isinstance(event, TrialEnd)]
        assert ended == ["done"] * args.students
    settings = {**vars(args), "json": None, "precision": precision, "epochs": frozen.recipe.epochs}
    spent = summary(seconds)
    figures = {"date": time.strftime("%Y-%m-%d"), "machine": machine(device), "settings": settings, "seconds": spent}
    if args.json:
        write_json(args.json, figures)
    print(f"{args.students} students: {spent['median']:.1f} s ({spent['min']:.1f} - {spent['max']:.1f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
