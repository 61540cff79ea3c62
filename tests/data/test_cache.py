from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdbench.core import files
from kdbench.core.data import DataRequest
from kdbench.core.errors import UserError
from kdbench.data import cache
from kdbench.data.decode import DECODER, decode_all
from kdbench.data.resident import ResidentDataset
from kdbench.data.sources import folder
from tests.data.build import folder_tree, get, noise, png


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every split that is decoded."""
    calls: list[int] = []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return decode_all(*arguments)

    monkeypatch.setattr(folder, "decode_all", counted)
    return calls


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "data-dir/cache").iterdir())


def same(one: ResidentDataset, other: ResidentDataset) -> bool:
    return (
        one.info == other.info
        and one.class_names == other.class_names
        and torch.equal(one.train.images, other.train.images)
    )


def test_the_second_start_decodes_nothing(tmp_path: Path, decodings: list[int]) -> None:
    source = folder_tree(tmp_path / "pets")
    first = get(source, tmp_path)
    assert len(decodings) == 2
    assert same(get(source, tmp_path), first)
    assert get(source, tmp_path, subset=4).info.label == "folder:pets[n=4]"  # one entry serves every selection
    assert len(decodings) == 2
    assert [path.suffix for path in entries(tmp_path)] == [".safetensors"]


def test_another_size_or_another_image_is_another_entry(tmp_path: Path, decodings: list[int]) -> None:
    source = folder_tree(tmp_path / "pets")
    first = get(source, tmp_path)
    assert get(source, tmp_path, size=4).train.images.shape == (6, 4, 4, 3)
    (tmp_path / "pets/train/cat/0.png").write_bytes(png(noise(1, 8, 99)[0]))
    assert get(source, tmp_path).info.content != first.info.content
    assert len(decodings) == 6
    assert len(entries(tmp_path)) == 3


def test_another_decoder_is_another_entry(
    tmp_path: Path, decodings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder_tree(tmp_path / "pets")
    get(source, tmp_path)
    monkeypatch.setattr(cache, "DECODER", DECODER + 1)
    get(source, tmp_path)
    assert len(decodings) == 4


@pytest.mark.parametrize("damage", ["pixel", "label", "header", "truncated", "empty", "text"])
def test_a_damaged_entry_is_built_again(
    damage: str, tmp_path: Path, decodings: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    source = folder_tree(tmp_path / "pets")
    first = get(source, tmp_path)
    path = entries(tmp_path)[0]
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    if damage == "pixel":
        content[-100] ^= 1
    elif damage == "label":
        content[8 + length] ^= 1  # labels, of eight bytes each, come first
    elif damage == "header":
        content[content.index(b"cat")] ^= 1  # a class name
    else:
        content = {"truncated": content[: len(content) // 2], "empty": bytearray(), "text": bytearray(b"hello")}[damage]
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert same(get(source, tmp_path), first)
    assert f"{path} is damaged" in caplog.text
    assert len(decodings) == 4
    assert same(get(source, tmp_path), first)  # and is whole again
    assert len(decodings) == 4


def test_a_foreign_entry_is_not_trusted(tmp_path: Path, decodings: list[int]) -> None:
    source = folder_tree(tmp_path / "pets")
    first, small = get(source, tmp_path), get(source, tmp_path, size=4)
    one, two = entries(tmp_path)
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())  # sound in itself, but under another name
    assert same(get(source, tmp_path), first)
    assert same(get(source, tmp_path, size=4), small)
    one.write_bytes(content)
    save_file(load_file(two), two)  # without our header
    assert same(get(source, tmp_path), first)
    assert same(get(source, tmp_path, size=4), small)


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = folder_tree(tmp_path / "pets")
    (tmp_path / "data-dir").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert get(source, tmp_path).info.train == 6
    assert "the decoded images cannot be kept" in caplog.text


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: Any, path: Path, **__: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    source = folder_tree(tmp_path / "pets")
    with caplog.at_level(logging.WARNING):
        assert get(source, tmp_path).info.train == 6
    assert "No space left on device" in caplog.text
    assert entries(tmp_path) == []


def test_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    folder = tmp_path / "data-dir/cache"
    folder.mkdir(parents=True)
    mine = files.temporary(folder / "a")
    dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", "-99999999-"))
    for path in (mine, dead):
        path.write_bytes(b"half")
    get(folder_tree(tmp_path / "pets"), tmp_path)
    assert not dead.exists()
    assert mine.exists()  # its writer may be at work


def test_an_error_in_the_source_writes_no_entry(tmp_path: Path) -> None:
    source = folder_tree(tmp_path / "pets")
    (tmp_path / "pets/train/cat/0.png").write_bytes(b"?")
    with pytest.raises(UserError):
        get(source, tmp_path)
    assert not (tmp_path / "data-dir").exists()


def test_cached_digits_need_no_scikit_learn(tmp_path: Path) -> None:
    """Its import takes as long as that of torch."""
    first = get("digits", tmp_path)
    assert len(list((tmp_path / "data-dir" / "cache").iterdir())) == 1
    code = (
        "import sys; from pathlib import Path; from kdbench.core.data import DataRequest;"
        "from kdbench.data.sources import prepare;"
        "dataset = prepare(DataRequest('digits', 8), Path(sys.argv[1]));"
        "print(dataset.info.content, 'sklearn' in sys.modules)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "data-dir")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [first.info.content, "False"]


def test_other_digits_than_the_known_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdbench.data.sources import digits

    monkeypatch.setattr(digits, "_DIGEST", "0" * 64)
    with pytest.raises(UserError, match="ships other images"):
        digits.find(DataRequest("digits", 8), Path()).decode(8)
