"""DamagedFile files of every kind, and what becomes of them.

    python -m tests.faults.damage --seed 20261124 --json FILE

Each file is damaged in the same ways (bits flipped at random places, cut off, emptied, replaced by something else) and
read as the program reads it. What kdbench wrote must be caught by its checksum; of foreign files, what cannot be seen
is counted.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file

from kdbench.core.data import DataRequest
from kdbench.core.errors import UserError
from kdbench.core.files import DamagedFile
from kdbench.data.sources import prepare
from kdbench.models import build, load_checkpoint
from kdbench.results import Store
from kdbench.train.checkpoint import Checkpoints, serialize
from kdbench.verify.vectors import load
from tests.data.build import folder_tree, noise, rows
from tests.report.factory import trained
from tests.report.test_linear_probes import moved
from tests.results.test_store import DONE, ENVIRONMENT, TRIAL

FLIPS = 15
CAUGHT, SENTENCE, UNSEEN = "caught by its checksum", "one sentence", "not noticed"
OUTCOMES = (CAUGHT, SENTENCE, UNSEEN)


@dataclass(frozen=True)
class Kind:
    """A kind of file: where a good one lies, and what reading it comes to."""

    name: str
    ours: bool
    make: Callable[[Path], Path]  # in an empty folder
    read: Callable[[Path], object]  # raises UserError or ValueError; None: it was set aside or not taken


def damages(content: bytes, chance: random.Random) -> Iterator[tuple[str, bytes]]:
    for _ in range(FLIPS):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        yield "a flipped bit", bytes(flipped)
    for length in (len(content) - 1, len(content) // 2, 1):
        yield "cut off", content[:length]
    yield "emptied", b""
    yield "another type", b'[{"top1": "high"}]\n'
    yield "zeros", bytes(len(content))
    yield "random bytes", chance.randbytes(len(content))


# What kdbench writes -------------------------------------------------------------------------------------------------


def _store(folder: Path) -> Store:
    store = Store(folder / "results")
    store.save(DONE, ENVIRONMENT)
    return store


def _record(folder: Path) -> Path:
    return _store(folder).runs / f"{TRIAL.id}.json"


def _read_record(path: Path) -> object:
    return Store(path.parents[1]).records() or None


def _epochs(folder: Path) -> Path:
    return _store(folder).runs / f"{TRIAL.id}.epochs.json"


def _read_epochs(path: Path) -> object:
    return Store(path.parents[1]).epochs(TRIAL.id)


def _weights(folder: Path) -> Path:
    return _store(folder).runs / f"{TRIAL.id}.pt"


def _read_weights(path: Path) -> object:
    store = Store(path.parents[1])
    return store.weights(store.records()[0])


def _state(folder: Path) -> Path:
    checkpoints = Checkpoints(folder / "results" / "checkpoints")
    checkpoints.save("trial", serialize({"network": {"weight": torch.arange(500.0)}, "epochs": []}))
    return checkpoints.folder / "trial.pt"


def _read_state(path: Path) -> object:
    return Checkpoints(path.parent).load("trial")


def _transfer(folder: Path) -> Path:
    Store(folder / "results").write_probe(moved(trained("icd"), 61.5))
    (path,) = (folder / "results" / "transfers").iterdir()
    return path


def _read_transfer(path: Path) -> object:
    return Store(path.parents[1]).probe_records() or None


def _cache(folder: Path) -> Path:
    _images(folder, folder_tree(folder / "pets"))
    (path,) = (folder / "data" / "cache").iterdir()
    return path


def _read_cache(path: Path) -> object:
    """None if the entry was not taken, and built again as it was."""
    before = path.read_bytes()
    folder = path.parents[2]
    _images(folder, f"folder:{folder / 'pets'}")
    return None if path.read_bytes() != before else before


# What comes from elsewhere -------------------------------------------------------------------------------------------


def _images(folder: Path, source: str) -> object:
    return prepare(DataRequest(source, 8), folder / "data")


def _parquet(checksums: bool) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "set").mkdir()
        for name in ("train", "test"):
            table = rows([0, 1] * 8)
            pq.write_table(table, folder / "set" / f"{name}.parquet", write_page_checksum=checksums)
        return folder / "set" / "train.parquet"

    return make


def _read_parquet(path: Path) -> object:
    return _images(path.parents[1], f"parquet:{path.parent}")


def _picture(ending: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder_tree(folder / "pets")
        path = folder / "pets" / "train" / "cat" / f"new.{ending}"
        buffer = BytesIO()
        Image.fromarray(noise(1, 32)[0]).save(buffer, {"jpg": "JPEG"}.get(ending, ending))
        path.write_bytes(buffer.getvalue())
        return path

    return make


def _read_picture(path: Path) -> object:
    return _images(path.parents[3], f"folder:{path.parents[2]}")


def _teacher(ending: str, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.manual_seed(1)
        state = dict(build("resnet8", 10, 8).state_dict())
        path = folder / f"resnet8.{ending}"
        if ending == "safetensors":
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
        else:
            torch.save({"model": state, "epoch": 240}, path, **options)
        return path

    return make


def _read_teacher(path: Path) -> object:
    return load_checkpoint(path, "resnet8", 10, 8)


def _golden(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        source = Path(__file__).parents[1] / "golden" / "losses"
        first = json.loads((source / "index.json").read_text("utf-8"))
        first["cases"] = first["cases"][:1]
        (folder / "index.json").write_text(json.dumps(first))
        vectors = first["cases"][0]["file"]
        (folder / vectors).write_bytes((source / vectors).read_bytes())
        return folder / (vectors if name == "vectors" else name)

    return make


def _read_golden(path: Path) -> object:
    return [case.arrays for case in load(path.parent)]


KINDS = (
    Kind("record (`runs/ID.json`)", True, _record, _read_record),
    Kind("epochs (`runs/ID.epochs.json`)", True, _epochs, _read_epochs),
    Kind("weights (`runs/ID.pt`)", True, _weights, _read_weights),
    Kind("training state (`checkpoints/ID.pt`)", True, _state, _read_state),
    Kind("transfer record (`transfers/ID.json`)", True, _transfer, _read_transfer),
    Kind("decoded images (`cache/*.safetensors`)", True, _cache, _read_cache),
    Kind("parquet with page checksums", False, _parquet(True), _read_parquet),
    Kind("parquet without", False, _parquet(False), _read_parquet),
    Kind("PNG image", False, _picture("png"), _read_picture),
    Kind("JPEG image", False, _picture("jpg"), _read_picture),
    Kind("teacher `.pth` (zip)", False, _teacher("pth"), _read_teacher),
    Kind(
        "teacher `.pth` (before torch 1.6)",
        False,
        _teacher("pth", _use_new_zipfile_serialization=False),
        _read_teacher,
    ),
    Kind("teacher `.safetensors`", False, _teacher("safetensors"), _read_teacher),
    Kind("golden vectors (`.npz`)", False, _golden("vectors"), _read_golden),
    Kind("golden index (`index.json`)", False, _golden("index.json"), _read_golden),
)


def outcome(kind: Kind, path: Path) -> str:
    """What becomes of a damaged file. Raises whatever is neither caught nor a sentence."""
    try:
        found = kind.read(path)
    except (UserError, ValueError) as error:
        if kind.ours and (isinstance(error, DamagedFile) or "damaged" in str(error)):
            return CAUGHT
        if not isinstance(error, UserError) or "\n" in str(error):
            raise
        return SENTENCE
    return CAUGHT if found is None else UNSEEN


def examine(kind: Kind, chance: random.Random) -> Counter[str]:
    """How often what became of the damaged files of a kind."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        good = kind.make(Path(folder))
        content = good.read_bytes()
        if not kind.ours or kind.read is _read_state:
            assert kind.read(good) is not None
    for _, damaged in damages(content, chance):
        with tempfile.TemporaryDirectory() as folder:
            path = kind.make(Path(folder))
            path.write_bytes(damaged)
            found[outcome(kind, path)] += 1
    return found


def table(found: dict[str, Counter[str]]) -> list[str]:
    """Markdown."""
    lines = [f"| kind | damaged | {' | '.join(OUTCOMES)} |", f"|---|{'---|' * (1 + len(OUTCOMES))}"]
    for name, counts in found.items():
        cells = [str(counts[each]) if counts[each] else "–" for each in OUTCOMES]
        lines.append(f"| {name} | {sum(counts.values())} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=20261124)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    found = {kind.name: examine(kind, random.Random(args.seed)) for kind in KINDS}
    print("\n".join(table(found)))
    total = sum(sum(counts.values()) for counts in found.values())
    print(f"\n{total} damaged files, no traceback")
    if args.json:
        args.json.write_text(json.dumps({"seed": args.seed, "files": total, "kinds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
