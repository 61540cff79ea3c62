"""Tables for a paper."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexWalker, LatexWalkerParseError

from kdbench.core.trial import VANILLA
from kdbench.report.renderers import latex
from kdbench.report.results import StudyResults
from kdbench.report.tables.accuracy import accuracy
from tests.report.factory import trained
from tests.report.test_comparison import PAIRS, known


def text() -> str:
    records = known(seeds=2)
    records += [trained("fsp", None, pair=PAIRS[0], status="n/a", reason="other sizes")]
    records += [trained("a_b(x=1)+kd", 60.0, pair=PAIRS[0])]
    return latex.document(accuracy(StudyResults(records)))


def test_the_best_is_bold_and_the_second_underlined() -> None:
    found = text()
    rows = [line for line in found.splitlines() if line.startswith("icd &")]
    assert len(rows) == 2  # the paper's same-family pairs in one table, the others in another
    assert all(re.search(r"\\textbf\{\d\d\.\d\d\} \{\\scriptsize \$\\pm\$\d\.\d\d\}", row) for row in rows)
    assert found.count(r"\textbf{") == found.count(r"\underline{") == len(PAIRS)
    assert r"a\_b(x=1)+kd & \multicolumn" not in found
    assert r"a\_b(x=1)+kd &" in found
    assert "n/a" in found
    assert r"\par{\scriptsize fsp, resnet56 $\to$ resnet20: other sizes}" in found
    assert r"\toprule" in found
    assert r"resnet56" in found
    assert "Top-1 accuracy (\\%)" in found


def test_braces_and_environments_close() -> None:
    found = text()
    depth = 0
    for brace in re.sub(r"\\[{}]", "", found):
        depth += (brace == "{") - (brace == "}")
        assert depth >= 0
    assert depth == 0
    begun = re.findall(r"\\begin\{(\w+)\}", found)
    assert sorted(begun) == sorted(re.findall(r"\\end\{(\w+)\}", found))
    for block in re.findall(r"\\begin\{tabular\}\{(l+c*)\}(.*?)\\end\{tabular\}", found, re.DOTALL):
        for line in block[1].splitlines():
            if line.endswith(r"\\") and "multicolumn" not in line:
                assert line.replace(r"\&", "").count("&") == len(block[0]) - 1, line


def test_a_parser_takes_it() -> None:
    walker = LatexWalker(text(), tolerant_parsing=False)
    nodes, _, length = walker.get_latex_nodes()
    assert length == len(walker.s)
    assert {node.environmentname for node in nodes if isinstance(node, LatexEnvironmentNode)} == {"table"}
    with pytest.raises(LatexWalkerParseError):
        LatexWalker(text().replace(r"\end{tabular}", "", 1), tolerant_parsing=False).get_latex_nodes()


@pytest.mark.parametrize("hostile", ["50% & $x_1^2$ #{}~\\", "a → b ± 1 × 2 – ≈ ‖"])
def test_text_is_escaped(hostile: str) -> None:
    found = latex.escape(hostile)
    plain = re.sub(
        r"\\(textbackslash|textasciitilde|textasciicircum)\{\}|\\[&%$#_{}]|\$\\(to|pm|times|approx|Vert)\$", "", found
    )
    assert not re.search(r"[&%$#_{}~^\\]", plain)
    assert plain.isascii()


def test_it_compiles(tmp_path: Path) -> None:
    program = shutil.which("tectonic") or shutil.which("pdflatex")
    if program is None:
        pytest.skip("neither tectonic nor pdflatex is here")
    source = tmp_path / "table.tex"
    source.write_text(f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{text()}\\end{{document}}")
    done = subprocess.run([program, source.name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "table.pdf").stat().st_size > 1000


def test_the_student_row_is_there() -> None:
    assert "Student &" in text()
    assert VANILLA not in text()
