"""Writes docs/sample/: the study of the README on the embedded digits, its report and the README's picture.

python docs/sample.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "docs" / "sample"
KEPT = (
    "report.html",
    "tables/accuracy.md",
    "tables/accuracy.tex",
    "tables/comparison.md",
    "charts/accuracy.digits.digits.png",
)


def main() -> int:
    with TemporaryDirectory() as folder:
        words = ["--methods", "kd,crd,icd", "--pairs", "all", "--dataset", "digits", "--out", folder]
        subprocess.run([sys.executable, "bench.py", *words], cwd=ROOT, check=True)
        SAMPLE.mkdir(exist_ok=True)
        for name in KEPT:
            shutil.copy(Path(folder, name), SAMPLE / Path(name).name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
