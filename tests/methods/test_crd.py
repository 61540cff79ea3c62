from __future__ import annotations

from math import log

import pytest
import torch

from kdbench.distill import Batch
from methods.crd import EPS, OtherClasses, nce
from tests.methods.golden import DTYPES, Case, batch_of, make, pooled, total_of


def test_by_hand() -> None:
    # One positive of 0.5, two negatives of 0.25 and 0.75, N = 4: noise K/N = 1/2.
    scores = torch.tensor([[0.5, 0.25, 0.75]], dtype=torch.float64)
    wanted = -(log(0.5 / (1 + EPS)) + log(0.5 / (0.75 + EPS)) + log(0.5 / (1.25 + EPS)))
    assert nce(scores, 4).item() == pytest.approx(wanted, rel=1e-12)
    assert nce(scores.repeat(3, 1), 4).item() == pytest.approx(wanted, rel=1e-12)  # a mean over the batch


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("file", ["crd_p1.npz", "crd_p2.npz"])
def test_the_authors_values(file: str, precision: str) -> None:
    case = Case(file, precision)
    known = case.entry["hyperparameters"]
    settings = {name: known[name] for name in ("feat_dim", "nce_k", "nce_t", "nce_m")}
    sizes = {"student": case.arrays["in.f_s.call1"].shape[1], "teacher": case.arrays["in.f_t.call1"].shape[1]}
    labels = torch.arange(known["n_data"])
    method = make("crd", {"ce_weight": 0.0, "crd_weight": 1.0, **settings}, **sizes, labels=labels, dtype=case.dtype)
    case.load(method, "param", "state_before")
    sum_of_calls = torch.zeros((), dtype=torch.float64)
    for call in ("call1", "call2"):
        student, teacher = case.input(f"f_s.{call}"), case.input(f"f_t.{call}")
        case.inputs.pop(f"f_t.{call}") if f"grad.f_t.{call}" not in case.arrays else None
        drawn = case.get(f"in.contrast_idx.{call}")
        assert torch.equal(drawn[:, 0], case.get(f"in.idx.{call}"))
        method.negatives = lambda batch, generator, rows=drawn[:, 1:]: rows
        batch = batch_of(len(student), indices=case.get(f"in.idx.{call}"))
        total, terms = total_of(method, pooled(student), pooled(teacher), batch)
        total.backward()
        with torch.no_grad():
            method.after_backward(batch)
        sum_of_calls += total.detach().double()
        case.check_value(total, f"out.{call}.loss")
        case.check_value(terms["nce_student"], f"out.{call}.student_term")
        case.check_value(terms["nce_teacher"], f"out.{call}.teacher_term")
        for memory in ("memory_student", "memory_teacher"):
            case.check_value(getattr(method, memory), f"state_after_{call}.{memory}")
    case.check_value(method.Z_student, "out.Z_student")
    case.check_value(method.Z_teacher, "out.Z_teacher")
    case.check_total(sum_of_calls)
    case.check_gradients(method)


def test_negatives_are_distinct_images_of_other_classes_in_equal_shares() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    batch = Batch(torch.empty(2, 0), torch.tensor([0, 1]), torch.tensor([0, 3]))
    draw, generator = OtherClasses(labels, 2), torch.Generator().manual_seed(0)
    counts = torch.zeros(2, 6)
    for _ in range(3000):
        rows = draw(batch, generator)
        assert rows.shape == (2, 2)
        assert (rows[:, 0] != rows[:, 1]).all()
        counts[0] += torch.bincount(rows[0], minlength=6)
        counts[1] += torch.bincount(rows[1], minlength=6)
    assert counts[0, :3].sum() == 0
    assert counts[1, 3:5].sum() == 0
    # 2 of 3 and 2 of 4 rows: each is drawn with probability 2/3 and 1/2; five standard deviations of a count
    for row, pool, share in ((0, [3, 4, 5], 2 / 3), (1, [0, 1, 2, 5], 1 / 2)):
        spread = 5 * (3000 * share * (1 - share)) ** 0.5
        assert (counts[row, pool] - 3000 * share).abs().max() < spread


def test_no_more_negatives_than_other_classes_have() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    method = make("crd", {}, student=3, teacher=4, labels=labels, dtype=torch.float32)
    assert method.facts() == {"negatives": 3}  # class 0 has three images, so three are of other classes


def test_one_class_has_no_negatives() -> None:
    from kdbench.distill import Shapes, registry
    from kdbench.models import FeatureShapes

    shape = FeatureShapes((), False, 4)
    shapes = Shapes(shape, shape, 2, torch.zeros(5, dtype=torch.int64))
    reason = registry.distiller("crd").serves(registry.hyper_of("crd", {}), shapes)
    assert reason == "all training images are of one class: there are no negatives"
