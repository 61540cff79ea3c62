from __future__ import annotations

import hashlib
from pathlib import Path

from kdbench.core.errors import unknown_name
from kdbench.core.files import file_sha256
from kdbench.core.seeding import derive_seed


def test_seeds_are_what_they_were() -> None:
    # Results depend on these values: a change here is a change of protocol.
    assert (
        derive_seed("weights", "resnet8", 0)
        == int(hashlib.sha256(b"weights\x1fresnet8\x1f0").hexdigest()[:16], 16) // 2
    )
    assert len({derive_seed("a", "b"), derive_seed("ab"), derive_seed("a", "b", ""), derive_seed("b", "a")}) == 4
    assert all(0 <= derive_seed(number) < 2**63 for number in range(100))


def test_unknown_words_get_their_nearest_match() -> None:
    error = unknown_name("model", "RESNET", ["resnet8", "vgg"], "see the list")
    assert str(error) == "unknown model 'RESNET': did you mean 'resnet8'? see the list"
    assert str(unknown_name("model", "zzz", ["resnet8"], "see the list")) == "unknown model 'zzz': see the list"


def test_file_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
