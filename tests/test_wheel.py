"""A built wheel works without the source tree: methods, published numbers and all."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_carries_methods_and_published_numbers(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(argv, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert not (site / "results").exists()
    assert not (site / "tests").exists()
    assert not (site / "methods").exists()
    assert (site / "kdbench" / "methods" / "icd.py").is_file()
    assert (site / "kdbench" / "py.typed").is_file()
    probe = (
        "import kdbench, sys; from pathlib import Path; from kdbench.cli.main import main;"
        "from kdbench.report import published;"
        "assert Path(kdbench.__file__).is_relative_to(sys.argv[1]), kdbench.__file__;"
        "assert published.path().is_relative_to(sys.argv[1]), published.path();"
        "assert len(published.pairs()) == 13; assert main(['verify', '--golden', sys.argv[2]]) == 0;"
        "sys.exit(main(['list', 'methods']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, str(site), str(ROOT / "tests" / "golden" / "losses")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("vanilla", "kd", "crd", "icd"):
        assert f"\n{name} " in done.stdout
