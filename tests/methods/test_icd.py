from __future__ import annotations

from math import log

import pytest
import torch
from kdbench.methods.icd import contrastive_and_invariance


def test_by_hand() -> None:
    # Two orthogonal pairs, scale log 3: logits are log 3 on the diagonal and 0 beside it, so p = q = (3/4, 1/4).
    eye = torch.eye(2, dtype=torch.float64)
    contrastive, invariance = contrastive_and_invariance(
        eye, eye, torch.tensor(log(3), dtype=torch.float64), torch.tensor(0.7)
    )
    assert contrastive.item() == pytest.approx(-log(3 / 4), rel=1e-12)
    assert invariance.item() == pytest.approx(0.0, abs=1e-12)

    # Teacher 2 equals teacher 1: rows of logits are (s, s) and (0, 0), columns (s, 0) twice, with s = log 3.
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    contrastive, invariance = contrastive_and_invariance(
        eye, teacher, torch.tensor(log(3), dtype=torch.float64), torch.tensor(0.0)
    )
    assert contrastive.item() == pytest.approx(log(2), rel=1e-12)
    # p = (1/2, 1/2) for both students, q = (3/4, 1/4) for both teachers: KL(q ‖ p), the same for both rows
    assert invariance.item() == pytest.approx(0.75 * log(1.5) + 0.25 * log(0.5), rel=1e-12)
