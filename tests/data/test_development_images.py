"""Real images, in the files in which they are shared."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.data.build import get

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no development images in {FOLDER}"),
]


def test_a_real_set_from_the_hub(tmp_path: Path) -> None:
    found = get(f"parquet:{FOLDER}", tmp_path, size=32)
    info = found.info
    assert (info.label, info.classes, info.train, info.test) == ("parquet:cifar10", 10, 50000, 10000)
    assert found.class_names[0] == "airplane"
    assert found.train.labels.bincount().tolist() == [5000] * 10
    # The published figures for CIFAR-10; these images went through JPEG.
    assert info.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.001)
    assert info.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.003)
    begin = time.perf_counter()
    again = get(f"parquet:{FOLDER}", tmp_path, size=32, subset=10000)
    assert time.perf_counter() - begin < 10  # from the cache; a second or so
    assert again.info.label == "parquet:cifar10[n=10000]"
    assert again.train.labels.bincount().tolist() == [1000] * 10
