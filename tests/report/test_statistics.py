"""The statistics against independent computations, and against known truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pandas as pd
import pytest
import scikit_posthocs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from kdbench.report import statistics
from kdbench.report.comparison import Comparison

accuracies = st.lists(st.floats(0, 100).map(lambda x: round(x, 2)), min_size=1, max_size=12)


@given(accuracies)
def test_differences_agree_with_statsmodels(values: list[float]) -> None:
    found = statistics.difference(values)
    assert found is not None
    assert found.mean == pytest.approx(np.mean(values), rel=1e-10, abs=1e-10)
    assert found.n == len(values)
    if max(values) == min(values):
        assert (found.low, found.high, found.p, found.significant) == (None, None, None, None)
        assert found.untestable == (len(values) > 1)
    else:
        assert not found.untestable
        theirs = DescrStatsW(values)
        low, high = theirs.tconfint_mean(alpha=0.05)
        assert found.low == pytest.approx(low, rel=1e-10, abs=1e-9)
        assert found.high == pytest.approx(high, rel=1e-10, abs=1e-9)
        assert found.p == pytest.approx(theirs.ttest_mean(0)[1], rel=1e-10, abs=1e-12)
        assert found.significant == (not low <= 0 <= high)


def test_equal_differences_give_no_test() -> None:
    """0.28 points in every seed: subtraction leaves differences of 1e-14, which are no variance."""
    scores, base = {0: 50.28, 1: 10.28, 2: 97.5}, {0: 50.0, 1: 10.0, 2: 97.22}
    assert len({scores[seed] - base[seed] for seed in scores}) > 1
    test = statistics.by_seed(scores, base)
    assert test is not None
    assert test.untestable
    assert test.mean == pytest.approx(0.28)
    assert (test.low, test.high, test.p, test.significant) == (None, None, None, None)


def test_seeds_are_paired_where_both_are_there() -> None:
    own, base = {0: 71.0, 1: 72.0, 2: 75.0, 9: 1.0}, {0: 70.0, 1: 70.0, 2: 70.0, 5: 99.0}
    found = statistics.by_seed(own, base)
    assert found is not None
    assert found.mean == pytest.approx(8 / 3)
    assert found.n == 3
    theirs = scipy_stats.ttest_rel([71, 72, 75], [70, 70, 70])
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-10)
    assert statistics.by_seed({0: 1.0}, {1: 1.0}) is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=10))
def test_holm_agrees_with_statsmodels(values: list[float | None]) -> None:
    found, known = statistics.holm(values), [p for p in values if p is not None]
    theirs = multipletests(known, method="holm")[1].tolist() if known else []
    assert [p for p in found if p is not None] == pytest.approx(theirs, rel=1e-10, abs=1e-12)
    assert [each is None for each in found] == [each is None for each in values]


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 6), st.integers(2, 8), st.integers(0, 2**16), st.booleans())
def test_ranks_agree_with_scipy(methods: int, pairs: int, seed: int, ties: bool) -> None:
    table = np.random.default_rng(seed).normal(70, 3, (methods, pairs)).round(0 if ties else 6)
    names = [f"m{i}" for i in range(methods)]
    found = statistics.ranking({name: dict(enumerate(row)) for name, row in zip(names, table, strict=True)})  # type: ignore[arg-type]
    assert found is not None
    ranks = scipy_stats.rankdata(-table, axis=0).mean(axis=1)
    assert found.pairs == pairs
    assert {name: found.ranks[name] for name in names} == pytest.approx(dict(zip(names, ranks, strict=True)), rel=1e-10)
    assert list(found.ranks.values()) == sorted(found.ranks.values())
    with np.errstate(all="ignore"):
        expected = scipy_stats.friedmanchisquare(*table).pvalue
    assert found.friedman == pytest.approx(1.0 if math.isnan(expected) else expected, rel=1e-10)
    theirs = scikit_posthocs.posthoc_nemenyi_friedman(table.T)
    assert found.nemenyi is not None
    np.testing.assert_allclose(found.nemenyi.to_numpy(), theirs.to_numpy(), rtol=1e-10)


def test_what_cannot_be_ranked() -> None:
    assert statistics.ranking({"a": {"p": 1.0}}) is None
    assert statistics.ranking({"a": {"p": 1.0}, "b": {"q": 1.0}}) is None  # no pair has both
    two = statistics.ranking({"a": {"p": 1.0, "q": 1.0}, "b": {"p": 2.0, "q": 0.0}})
    assert two is not None
    assert (two.ranks, two.friedman, two.nemenyi) == ({"a": 1.5, "b": 1.5}, None, None)
    one = statistics.ranking({name: {"p": value} for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0))})
    assert one is not None
    assert (list(one.ranks), one.friedman) == (["c", "b", "a"], None)


def test_cliques_are_the_longest_runs_that_cannot_be_told_apart() -> None:
    names = list("abcd")
    apart = pd.DataFrame(0.5, index=names, columns=names)
    for left, right in (("a", "c"), ("a", "d")):
        apart.loc[left, right] = apart.loc[right, left] = 0.01
    assert statistics._cliques(names, apart) == (("a", "b"), ("b", "c", "d"))
    assert statistics._cliques(names, apart * 0) == ()


def test_wins_and_relative_improvement_by_hand() -> None:
    left, right = {"p": 71.0, "q": 70.001, "r": 60.0, "s": 1.0}, {"p": 70.0, "q": 70.002, "r": 61.0}
    assert statistics.wins(left, right) == (1, 1, 1)
    plain = {"p": 68.0, "q": 70.002, "r": 60.0}
    gain = statistics.relative_improvement(left, right, plain)
    assert gain == pytest.approx(100 * ((71 - 70) / (70 - 68) + (60 - 61) / (61 - 60)) / 2)
    assert statistics.relative_improvement(left, right, {"p": 70.0}) is None


PAPER: tuple[tuple[str, str], ...] = (
    *(("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "wrn_40_1"), ("resnet56", "resnet20"), ("resnet110", "resnet20")),
    *(("resnet110", "resnet32"), ("resnet32x4", "resnet8x4"), ("vgg13", "vgg8"), ("vgg13", "MobileNetV2")),
    *(("ResNet50", "MobileNetV2"), ("ResNet50", "vgg8"), ("resnet32x4", "ShuffleV1")),
    *(("resnet32x4", "ShuffleV2"), ("wrn_40_2", "ShuffleV1")),
)
Scores = dict[tuple[str, str], dict[int, float]]


def null_study(
    stream: np.random.Generator, pairs: Sequence[tuple[str, str]], shared: float, unit: str, image: float
) -> list[Scores]:
    """Top-1 of four equal methods with three seeds.

    Of the variance of a trained student the part `shared` is common to all pairs of the same `unit`; accuracies are
    multiples of `image` points.
    """
    methods = []
    for _ in range(4):
        common: dict[tuple[str, int], float] = {}
        scores: Scores = {}
        for teacher, student in pairs:
            scores[teacher, student] = {}
            for seed in range(3):
                key = {"student": (student, seed), "teacher": (teacher, 0), "seed": ("", seed)}[unit]
                luck = common.setdefault(key, stream.normal())
                noise = math.sqrt(shared) * luck + math.sqrt(1 - shared) * stream.normal()
                scores[teacher, student][seed] = image * round((95 + 0.5 * noise) / image)
        methods.append(scores)
    return methods


SHARED = [
    (0.0, "student", 0.01),
    *((part, unit, 0.01) for part in (0.3, 0.6) for unit in ("student", "teacher", "seed")),
    *((part, unit, 0.28) for part, unit in ((0.0, "student"), (0.6, "student"), (0.6, "seed"))),
]
OFTEN = {(PAPER[:6], (0.6, "seed", 0.01)), (PAPER, (0.6, "student", 0.28))}


@pytest.mark.parametrize(
    ("pairs", "shared", "unit", "image"),
    [
        pytest.param(pairs, *how, marks=() if (pairs, how) in OFTEN else pytest.mark.slow, id=f"{len(pairs)}-{how}")
        for pairs in (PAPER[:6], PAPER)
        for how in SHARED
    ],
)
def test_equal_methods_are_told_apart_over_pairs_less_than_once_in_twenty(
    pairs: Sequence[tuple[str, str]], shared: float, unit: str, image: float
) -> None:
    """Whatever the pairs share, and on coarse test sets: any claim in a study of four equal methods is a false one."""
    stream, false, studies = np.random.default_rng(7), 0, 200
    for _ in range(studies):
        base, *others = null_study(stream, pairs, shared, unit, image)
        tests = [
            statistics.over_pairs({pair: statistics.gaps(scores, base[pair]) for pair, scores in other.items()})
            for other in others
        ]
        values = [test.p for test in tests if test is not None and test.p is not None]
        if min(values, default=1.0) < 0.05:  # a correction only raises them
            false += any(p is not None and p < 0.05 for p in statistics.holm(values))
    assert false <= 0.05 * studies


@pytest.mark.parametrize("unit", ["seed", pytest.param("teacher", marks=pytest.mark.slow)])
def test_of_equal_methods_the_first_is_told_apart_less_than_once_in_twenty(unit: str) -> None:
    """Although it is the first by the same numbers."""
    stream, false, studies = np.random.default_rng(7), 0, 100
    for _ in range(studies):
        values = {str(place): scores for place, scores in enumerate(null_study(stream, PAPER, 0.6, unit, 0.01))}
        study = Comparison("cifar100", "paper", "0", 10_000, values)
        first, *others = sorted(values, key=lambda method: -fmean(study.means(method).values()))
        false += len(study.not_below(first, others)) < len(others)
    assert false <= 0.05 * studies


def test_effects_over_pairs_are_found_and_covered() -> None:
    """Half a point over the paper's pairs, with 0.5 points of noise a student: found, and within its interval."""
    stream, found, covered, studies = np.random.default_rng(3), 0, 0, 100
    for _ in range(studies):
        base, other, *_ = null_study(stream, PAPER, 0.3, "student", 0.01)
        test = statistics.over_pairs(
            {pair: {seed: top1 + 0.5 - base[pair][seed] for seed, top1 in of.items()} for pair, of in other.items()}
        )
        assert test is not None
        assert test.low is not None
        assert test.high is not None
        found += bool(test.significant)
        covered += test.low <= 0.5 <= test.high
    assert covered >= 0.95 * studies
    assert found >= 0.5 * studies


def test_over_pairs_by_hand() -> None:
    """The interval spans those of scipy over pairs, students, teachers and seeds; p is the largest."""
    gaps = {
        pair: {0: 1.0 + number / 10, 1: 0.5 + number / 20, 2: 0.9 - number / 7} for number, pair in enumerate(PAPER[:6])
    }
    table = pd.DataFrame(gaps).T  # a row a pair
    frame = table.mean(axis=1).rename_axis(["teacher", "student"]).reset_index(name="mean")
    units = [
        frame["mean"],
        frame.groupby("student")["mean"].mean(),
        frame.groupby("teacher")["mean"].mean(),
        table.mean(axis=0),
    ]
    theirs = [scipy_stats.ttest_1samp(values, 0.0) for values in units]
    found = statistics.over_pairs(gaps)
    assert found is not None
    assert found.p == pytest.approx(max(test.pvalue for test in theirs), rel=1e-12)
    intervals = [test.confidence_interval(0.95) for test in theirs]
    assert found.low == pytest.approx(min(interval.low for interval in intervals), rel=1e-12)
    assert found.high == pytest.approx(max(interval.high for interval in intervals), rel=1e-12)
    assert found.n == 6
    assert found.mean == pytest.approx(frame["mean"].mean(), rel=1e-12)


def test_where_nothing_is_tested_over_pairs() -> None:
    gaps = {pair: {0: 1.0, 1: 2.0} for pair in PAPER[:6]}
    assert statistics.over_pairs({}) is None
    few = statistics.over_pairs({pair: gaps[pair] for pair in PAPER[:4]})
    assert few is not None
    assert (few.p, few.untestable, few.untested) == (None, False, "5 pairs are needed; there are 4")
    one_teacher = statistics.over_pairs({("vgg13", f"student{i}"): {0: 1.0, 1: 0.1 * i} for i in range(6)})
    assert one_teacher is not None
    assert one_teacher.untested == "two teachers are needed"
    apart = statistics.over_pairs({pair: {number: 1.0 + number**2} for number, pair in enumerate(PAPER[:6])})
    assert apart is not None
    assert apart.untested == "two seeds are needed that all pairs have"
    equal = statistics.over_pairs(gaps)
    assert equal is not None
    assert (equal.p, equal.untested) == (None, "the means of all pairs are the same")
    # Two teachers with the same mean, of pairs that differ.
    balanced = {
        (f"t{i % 2}", f"s{i}"): {0: gain, 1: gain + 0.1} for i, gain in enumerate((1.0, 3.0, 2.0, 1.0, 3.0, 2.0))
    }
    same = statistics.over_pairs(balanced)
    assert same is not None
    assert same.untested == "the means of all teachers are the same"


def test_units_that_are_significant_in_opposite_ways_make_no_claim() -> None:
    """Many pairs of one student gain, a few of each other lose: pairs say plus, students minus."""
    noise = np.random.default_rng(0)
    gaps = {(f"t{i}", "a"): {s: 1.0 + noise.normal(0, 0.1) for s in range(5)} for i in range(40)}
    gaps |= {(f"u{i}", f"b{i}"): {s: -1.0 + noise.normal(0, 0.1) for s in range(5)} for i in range(12)}
    found = statistics.over_pairs(gaps)
    assert found is not None
    assert found.mean > 0
    assert (found.p, found.significant) == (1.0, False)


def simulated(seed: int, effects: dict[str, float], pairs: int = 4, seeds: int = 5) -> dict[str, np.ndarray]:
    """Top-1 [pairs, seeds] with pair levels, shared seed noise and own noise; kd is the reference."""
    stream = np.random.default_rng(seed)
    level, luck = stream.normal(70, 5, (pairs, 1)), stream.normal(0, 0.3, (pairs, seeds))
    return {
        method: level + luck + effect + stream.normal(0, 0.2, (pairs, 1)) + stream.normal(0, 0.3, (pairs, seeds))
        for method, effect in effects.items()
    }


def test_intervals_cover_the_truth_nineteen_times_of_twenty() -> None:
    within = over = 0
    for seed in range(1000):
        found = simulated(seed, {"kd": 0.0, "icd": 0.5}, pairs=6)
        gaps = found["icd"] - found["kd"]
        total = statistics.difference(list(gaps.mean(axis=1)))
        stream = np.random.default_rng(seed)
        noise = stream.normal(0.5, 0.4, 5)  # one pair, whose true difference is 0.5
        one = statistics.by_seed(dict(enumerate(70 + noise)), dict.fromkeys(range(5), 70.0))
        assert total is not None
        assert one is not None
        over += total.low <= 0.5 <= total.high  # type: ignore[operator]
        within += one.low <= 0.5 <= one.high  # type: ignore[operator]
    assert 930 <= over <= 970
    assert 930 <= within <= 970
