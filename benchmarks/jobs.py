"""Measure what a job costs beside its training, and whether the driver's memory stays flat.

    python benchmarks/jobs.py --executor processes --workers 2 --json FILE
    python benchmarks/jobs.py --executor cluster --workers 4 --json FILE

Trains many tiny jobs (a network without a teacher, one epoch on the built-in digits) in worker processes, or on a Ray
cluster of a head without processors and as many simulated nodes as workers. The overhead of a job is the wall time from
the first job's beginning to the last one's end, times the workers that the machine can run at once, less the time in
training, divided by the number of jobs. `driver_seconds_per_job` is the processor time of the driver: what limits how
many jobs a minute one driver can hand out, each with one checkpoint, its record and its weights.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.compare import machine, write_json
from kdbench.core.events import Event, JobEnd, JobStarted
from kdbench.plan.study import RunOptions, StudyOptions, resolve
from kdbench.runner.catalog import build_catalog
from kdbench.runner.study_run import prepare_study
from kdbench.train.device import resolve_device


def resident_mib() -> float:
    """Memory of this process, on Linux."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(executor: str, workers: int, jobs: int, folder: Path) -> dict[str, Any]:
    """Wall time, overhead and memory."""
    run = RunOptions(out=folder / "out", data_dir=folder / "data", jobs=str(workers), threads=1, device="cpu")
    nodes = None
    if executor == "cluster":
        from ray.cluster_utils import Cluster as Nodes

        nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(workers):
            nodes.add_node(num_cpus=1)
        run = replace(run, cluster=nodes.address)
    options = StudyOptions(methods="vanilla", pairs="wrn_16_2:resnet8", dataset="digits", seeds=str(jobs - 1), epochs=1)
    began, ended, memory = list[float](), list[float](), list[float]()

    def watch(event: Event) -> None:
        if isinstance(event, JobStarted):
            began.append(time.monotonic())
        elif isinstance(event, JobEnd):
            ended.append(time.monotonic())
            memory.append(round(resident_mib(), 1))
            print(f"{len(ended)} of {jobs}", end="\r", flush=True)

    try:
        prepared = prepare_study(resolve(options, build_catalog), run, say=lambda text: None)
        used = time.process_time()
        prepared.train(watch)
        used = time.process_time() - used
    finally:
        if nodes is not None:
            nodes.shutdown()
    records = prepared.store.records()
    trained = sum((record.student_seconds or 0.0) + (record.shared_seconds or 0.0) for record in records)
    wall, cores = ended[-1] - began[0], min(workers, os.cpu_count() or 1)
    return {
        "executor": executor,
        "workers": workers,
        "jobs": len(ended),
        "wall_seconds": wall,
        "seconds_in_training": trained,
        "overhead_seconds_per_job": (wall * cores - trained) / len(ended),
        "overhead_after_the_first_workers": (ended[-1] - ended[workers - 1]) * cores / (len(ended) - workers)
        - trained / len(ended),
        "driver_seconds_per_job": used / len(ended),
        "driver_mib": {str(count): memory[count - 1] for count in (1, jobs // 4, jobs // 2, jobs) if count},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executor", choices=("processes", "cluster"), default="processes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        figures = measure(args.executor, args.workers, args.jobs, Path(folder))
    print(json.dumps(figures, indent=1))
    if args.json:
        write_json(args.json, {"machine": machine(resolve_device("cpu")), **figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
