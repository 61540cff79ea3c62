"""Write docs/sample/: the README's study on the built-in digits, with its report and the README's chart.

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
    """Run the study and copy what is kept. Returns the exit code."""
    with TemporaryDirectory() as folder:
        argv = ["--methods", "kd,crd,icd", "--pairs", "all", "--dataset", "digits", "--out", folder]
        subprocess.run([sys.executable, "bench.py", *argv], cwd=ROOT, check=True)
        SAMPLE.mkdir(exist_ok=True)
        for name in KEPT:
            shutil.copy(Path(folder, name), SAMPLE / Path(name).name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
