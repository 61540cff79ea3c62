"""Show that a change leaves every trained weight as it was, bit for bit: two checkouts train the same digits studies.

    git worktree add ../before COMMIT
    python benchmarks/same_bits.py --before ../before

Every method is trained in a cohort of all, alone, and interrupted and resumed; linear probes follow, by both protocols.
Names of results may differ between the checkouts (`--alias NEW=OLD`: the method NEW was called OLD, and draws its
random numbers under that name here); weights, accuracies and losses may not. Each checkout runs in one process of its
own with one thread. `--keep DIR` keeps what was trained, and reuses what an unchanged checkout has trained there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
METHODS = ["kd", "fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ab", "ft", "fsp", "nst", "crd", "icd", "rrd"]
WITH_KD = [f"{name}+kd" for name in METHODS if name != "kd"]
STUDY = [
    "--dataset",
    "digits",
    "--seeds",
    "1",
    "--precision",
    "fp32",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--epochs",
    "3",
]
PAIR = "wrn_16_2:resnet8"  # the pair of the trials that train alone
INTERRUPT_EVERY = 7.0  # seconds; a run that is interrupted sooner never ends its start-up


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, metavar="DIR", help="a checkout of the earlier commit")
    parser.add_argument("--alias", action="append", default=[], metavar="NEW=OLD", help="a method that was renamed")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep results here instead of a temporary folder")
    parser.add_argument("--train", type=Path, metavar="OUT", help=argparse.SUPPRESS)  # the part of one checkout
    args = parser.parse_args()
    aliases = dict(word.split("=", 1) for word in args.alias)
    if args.train:
        train(args.before, args.train, aliases)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        for name, tree in (("before", args.before), ("after", ROOT)):
            run_checkout(tree.resolve(), (folder / name).resolve(), args.alias if name == "after" else [])
        return compare(folder / "before", folder / "after", aliases)


def run_checkout(tree: Path, out: Path, aliases: Sequence[str]) -> None:
    """Train everything with the code of one checkout, unless that very code has done so already."""
    stamp = out / "trained_by.txt"
    state = code_state(tree)
    if stamp.is_file() and stamp.read_text() == state:
        print(f"{tree}: reused from {out}")
        return
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    started = time.monotonic()
    argv = [sys.executable, str(Path(__file__).resolve()), "--before", str(tree), "--train", str(out)]
    argv += [word for alias in aliases for word in ("--alias", alias)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    with (out / "log.txt").open("w") as log:
        done = subprocess.run(argv, cwd=tree, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{tree} failed, see {out / 'log.txt'}")
    stamp.write_text(state)
    print(f"{tree}: trained in {time.monotonic() - started:.0f} s")


def code_state(tree: Path) -> str:
    """The commit and all that is edited or new in the code."""
    parts = []
    for argv in (["rev-parse", "HEAD"], ["diff", "HEAD", "--", "kdbench", "methods"], ["ls-files", "-o", "kdbench"]):
        parts.append(subprocess.run(["git", *argv], cwd=tree, capture_output=True, text=True, check=True).stdout)
    return "\n".join(parts)


def train(tree: Path, out: Path, aliases: Mapping[str, str]) -> None:
    """All studies of one checkout, in this process."""
    others = [path for path in sys.path if Path(path or ".").resolve() not in (ROOT, ROOT / "benchmarks")]
    sys.path[:] = [str(tree), *others]
    use_old_stream_names(aliases)
    cli = importlib.import_module("kdbench.cli.main" if (tree / "kdbench/cli/main.py").is_file() else "kdbench.cli")
    assert Path(cli.__file__ or "").is_relative_to(tree), cli.__file__
    names = {old: new for new, old in aliases.items()}
    momentum = names.get("rrd(form=momentum)", "rrd(form=momentum)")
    every = [*METHODS, *WITH_KD, momentum]

    def bench(*argv: str) -> int:
        return int(cli.main(list(argv)))

    cohort = out / "cohort"
    check(bench("--methods", ",".join(every), "--pairs", "all", *STUDY, "--out", str(cohort)))
    for number, method in enumerate(every):
        alone = out / "alone" / f"{number:02d}"
        copy_vanilla(cohort, alone)
        check(bench("--methods", method, "--pairs", PAIR, *STUDY, "--out", str(alone)))
    resumed = out / "resumed"
    copy_vanilla(cohort, resumed)
    argv = ["--methods", ",".join(every), "--pairs", PAIR, *STUDY, "--out", str(resumed)]
    stops = interrupted(lambda: bench(*argv))
    (out / "interruptions.txt").write_text(str(stops))
    probe = ["transfer", "--to", "digits", "--classes", "0-4", "--protocol", "frozen,authors", "--epochs", "3"]
    probe += ["--methods", "kd,icd", "--pairs", PAIR, "--precision", "fp32", "--device", "cpu", "--threads", "1"]
    check(bench(*probe, "--out", str(cohort)))


def use_old_stream_names(aliases: Mapping[str, str]) -> None:
    """Random streams are named after methods: a renamed method draws what it drew under its old name."""
    if not aliases:
        return
    seeding: Any = importlib.import_module("kdbench.core.seeding")
    derive = seeding.derive_seed
    seeding.derive_seed = lambda *key: derive(*(aliases.get(str(part), part) for part in key))


def check(code: int) -> None:
    if code not in (0, 1):  # 1: a trial diverged, which both checkouts must agree on
        raise SystemExit(f"exit code {code}")


def copy_vanilla(source: Path, target: Path) -> None:
    (target / "runs").mkdir(parents=True)
    for path in (source / "runs").iterdir():
        if ".vanilla." in path.name:
            shutil.copy2(path, target / "runs")


def interrupted(run: Callable[[], int]) -> int:
    """Run, stop it again and again as Ctrl-C does, and go on; returns how often it was stopped."""
    stops = 0
    while True:
        timer = threading.Timer(INTERRUPT_EVERY, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        code = run()
        timer.cancel()
        if code != 130:
            check(code)
            return stops
        stops += 1


def compare(before: Path, after: Path, aliases: Mapping[str, str]) -> int:
    """Say what differs; 0 if nothing does."""
    problems, weights, probes = [], 0, 0
    kinds = [Path("cohort"), Path("resumed"), *(Path("alone") / path.name for path in (before / "alone").iterdir())]
    reference = results(after / "cohort", aliases)
    for kind in sorted(kinds):
        old, new = results(before / kind, {}), results(after / kind, aliases)
        if old.keys() != new.keys():
            problems.append(f"{kind}: different trials: {sorted(old.keys() ^ new.keys())}")
        for trial in old.keys() & new.keys():
            for name, other in (("before", old[trial]), ("in the cohort", reference[trial])):
                if (difference := differs(other, new[trial])) is not None:
                    problems.append(f"{kind}: {trial}: {difference} ({name})")
            weights += new[trial]["weights"] is not None
    earlier, later = probe_results(before / "cohort"), probe_results(after / "cohort")
    for name in earlier.keys() | later.keys():
        probes += 1
        if earlier.get(name) != later.get(name):
            problems.append(f"probe {name}: {earlier.get(name)} and {later.get(name)}")
    for problem in problems:
        print(problem)
    stops = (after / "interruptions.txt").read_text()
    print(
        f"compared: {weights} files of weights, {probes} linear probes; {stops} interruptions; {len(problems)} differ"
    )
    return 1 if problems or not weights or not probes else 0


def results(folder: Path, aliases: Mapping[str, str]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """(pair or architecture, method, seed) -> status, accuracies and weights."""
    import torch

    found = {}
    for path in sorted((folder / "runs").glob("*.json")):
        if path.name.endswith(".epochs.json"):
            continue
        record = json.loads(path.read_text("utf-8"))
        trial, file = record["trial"], path.with_suffix(".pt")
        pair = ":".join([*teachers(trial), trial["arch"]])
        tensors = torch.load(file, weights_only=True) if file.is_file() else None
        if tensors is not None:
            tensors = {name.removeprefix("network."): value for name, value in tensors.items()}
        method = aliases.get(trial["method"], trial["method"])
        found[pair, method, trial["seed"]] = {
            "status": record["status"],
            "top1": record["top1"],
            "top5": record["top5"],
            "weights": tensors,
        }
    return found


def teachers(trial: Mapping[str, Any]) -> list[str]:
    sources = trial.get("teachers", [trial["teacher"]] if trial.get("teacher") else [])
    return ["+".join(source["arch"] for source in sources)] if sources else []


def differs(left: Mapping[str, Any], right: Mapping[str, Any]) -> str | None:
    for name in ("status", "top1", "top5"):
        if left[name] != right[name]:
            return f"{name} {left[name]} and {right[name]}"
    if (left["weights"] is None) != (right["weights"] is None):
        return "weights of one are missing"
    for name in (left["weights"] or {}).keys() | (right["weights"] or {}).keys():
        one, other = left["weights"].get(name), right["weights"].get(name)
        if one is None or other is None or not bool((one == other).all()):
            return f"the weights {name}"
    return None


def probe_results(folder: Path) -> dict[str, Any]:
    """(source network, protocol) -> accuracies and loss."""
    found = {}
    for path in sorted((folder / "transfers").glob("*.json")):
        record = json.loads(path.read_text("utf-8"))
        name = path.name.rsplit(".", 2)[0]
        found[name] = [record[key] for key in ("status", "top1", "top5", "loss")]
    return found


if __name__ == "__main__":
    sys.exit(main())
