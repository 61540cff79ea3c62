"""DamagedFile files of every kind, and files that would run code."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kdbench.cli.main import main
from kdbench.core.data import DataRequest
from kdbench.core.errors import UserError
from kdbench.core.files import write_checksummed
from kdbench.data.sources import parquet as reader
from kdbench.data.sources import prepare
from kdbench.data.sources.archive import _unpack
from kdbench.models import build, load_checkpoint
from tests.data.build import folder_tree, rows, write
from tests.faults.damage import CAUGHT, FLIPS, KINDS, OUTCOMES, Kind, examine
from tests.train.tiny_study import equal, train, trial


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damage_is_caught_or_one_sentence(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, logger="kdbench"):
        found = examine(kind, random.Random(20261124))
    total = sum(found.values())
    assert total == FLIPS + 7
    assert set(found) <= set(OUTCOMES)
    if kind.ours:
        assert found[CAUGHT] == total


# Files that would run code -------------------------------------------------------------------------------------------


class Evil:
    """Creates a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.target}'",)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "created"


def forms(target: Path) -> dict[str, bytes]:
    """The attack as torch.save writes it, in both its formats, and as a bare pickle."""
    found = {"pickle": pickle.dumps(Evil(target), protocol=2)}
    for name, new in (("zip", True), ("legacy", False)):
        buffer = BytesIO()
        torch.save(
            {"model": {"weight": torch.zeros(1)}, "extra": Evil(target)}, buffer, _use_new_zipfile_serialization=new
        )
        found[name] = buffer.getvalue()
    return found


def test_the_attack_works(target: Path) -> None:
    torch.load(BytesIO(forms(target)["zip"]), weights_only=False)
    assert target.exists()


@pytest.mark.parametrize("form", ["pickle", "zip", "legacy"])
def test_a_teacher_that_would_run_code(
    tmp_path: Path, target: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "teacher.pth"
    file.write_bytes(forms(target)[form])
    argv = ["--dataset", "digits", "--pairs", "resnet20:resnet8", "--methods", "kd", "--teacher", str(file)]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "was not opened" in error
    assert error.count("\n") == 1
    assert not target.exists()


@pytest.mark.parametrize("form", ["pickle", "zip", "legacy"])
def test_cached_data_that_would_run_code(tmp_path: Path, target: Path, form: str) -> None:
    request = DataRequest(folder_tree(tmp_path / "pets"), 8)
    good = prepare(request, tmp_path / "data")
    (cached,) = (tmp_path / "data" / "cache").iterdir()
    cached.write_bytes(forms(target)[form])
    assert torch.equal(prepare(request, tmp_path / "data").train.images, good.train.images)
    assert not target.exists()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_downloaded_set_that_would_run_code(
    tmp_path: Path, target: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision unpickles CIFAR's files; only the published ones come that far."""

    def nothing(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", nothing)
    folder = tmp_path / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    folder.mkdir()
    for file in ("train", "test", "meta", "batches.meta", "test_batch", *(f"data_batch_{n}" for n in range(1, 6))):
        (folder / file).write_bytes(forms(target)["pickle"])
    with pytest.raises(UserError, match="could not be had"):
        prepare(DataRequest(name, 32), tmp_path)
    assert not target.exists()


@pytest.mark.parametrize("form", ["pickle", "zip", "legacy"])
@pytest.mark.parametrize("sealed", [False, True])
def test_a_training_state_that_would_run_code(tmp_path: Path, target: Path, form: str, sealed: bool) -> None:
    whole = train(tmp_path / "whole", trial("kd"))["kd/resnet8"]
    train(tmp_path / "parts", trial("kd"), stop_after=1)
    (path,) = (tmp_path / "parts").iterdir()
    (write_checksummed if sealed else Path.write_bytes)(path, forms(target)[form])
    assert equal(train(tmp_path / "parts", trial("kd"))["kd/resnet8"], whole)
    assert (tmp_path / "damaged" / path.name).exists()
    assert not target.exists()


# Files that would fill memory or leave their folder ------------------------------------------------------------------


def test_a_compressed_teacher_is_not_opened(tmp_path: Path) -> None:
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save(build("resnet8", 10, 8).state_dict(), plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry))
    with pytest.raises(UserError, match="is compressed, which torch"):
        load_checkpoint(bomb, "resnet8", 10, 8)


def test_parquet_that_claims_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "set", {f"{name}.parquet": rows([0, 1] * 8) for name in ("train", "test")})
    monkeypatch.setattr(reader, "_MOST_ROWS", 15)
    with pytest.raises(UserError, match="claims 16 rows"):
        prepare(DataRequest(source, 8), tmp_path / "data")
    monkeypatch.undo()
    table = pa.table({"image": [bytes(2**20)] * 64, "label": [0, 1] * 32})
    pq.write_table(table, tmp_path / "set" / "train.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "set" / "train.parquet").stat().st_size < 2**20  # 64 MiB once it is read
    monkeypatch.setattr(reader, "_LARGEST_GROUP", 2**25)
    with pytest.raises(UserError, match="may be an attack"):
        prepare(DataRequest(source, 8), tmp_path / "data")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_stays_in_its_folder(tmp_path: Path, kind: str) -> None:
    packed, inside = tmp_path / f"set.{kind}", tmp_path / "inside"
    inside.mkdir()
    if kind == "zip":
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("../outside", "x")
        _unpack(packed, str(inside))
    else:
        with tarfile.open(packed, "w") as tar:
            tar.addfile(tarfile.TarInfo("../outside"))
        with pytest.raises(tarfile.TarError):
            _unpack(packed, str(inside))
    assert not (tmp_path / "outside").exists()


def test_names_in_a_list_lead_nowhere(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    root.mkdir()
    (root / "wnids.txt").write_text("n01443537\n../../../etc\n")
    with pytest.raises(UserError, match="which is no WordNet id"):
        prepare(DataRequest("tiny-imagenet", 64), tmp_path)


def test_errors_bring_nothing_that_a_terminal_obeys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "\x1b]0;owned\x07"
    assert main(["--dataset", f"folder:{folder}", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "dataset has control characters" in error
    assert error.rstrip("\n").isprintable()


# The whole program ---------------------------------------------------------------------------------------------------


def test_a_folder_in_which_everything_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Named, set aside, trained again; the records are then as they were."""
    out = tmp_path / "out"
    argv = ["--dataset", "digits", "--pairs", "wrn_16_1:resnet8", "--methods", "kd", "--subset", "128"]
    argv += ["--epochs", "1", "--seeds", "1", "--out", str(out)]
    assert main(argv) == 0
    before = {path.name: json.loads(path.read_text("utf-8")) for path in (out / "runs").glob("*.json")}
    chance = random.Random(1)
    for path in (out / "runs").iterdir():
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    shutil.rmtree(out / "tables")
    capsys.readouterr()
    assert main(["report", "--out", str(out)]) == 2
    assert "holds no records" in capsys.readouterr().err
    assert len(list((out / "damaged").glob("*.json"))) == 3
    assert main(argv) == 0
    assert "0 already there, 3 to train" in capsys.readouterr().out
    for name, content in before.items():
        again = json.loads((out / "runs" / name).read_text("utf-8"))
        assert again.get("weights_sha256") == content.get("weights_sha256")
        assert again.get("top1") == content.get("top1")
