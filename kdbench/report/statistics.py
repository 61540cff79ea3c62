"""Which differences are significant: pure functions over accuracies, each test a library's.

Seeds of one pair are paired, because the students of a cohort share batches and initial weights. Over pairs a test that
takes them for independent claims too much: they share teachers, students' initial weights, seeds and test images. So a
difference over pairs is significant only if it is whatever is taken for the independent unit: pair, student, teacher
and seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import pandas as pd
from scipy import stats

LEVEL = 0.95
"""Of all intervals; 1 - LEVEL is the level of all tests."""

MIN_PAIRS = 5
"""Of a claim over pairs: with fewer, a t-interval over pairs is as wide as what it should decide."""

RESOLUTION = 1e-9
"""Points below which differences count as equal: the rounding of subtracted accuracies is no variance."""


Pair = tuple[str, str]  # teacher, student


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences; interval and p-value only where at least two of them differ."""

    mean: float
    n: int
    low: float | None = None
    high: float | None = None
    p: float | None = None  # two-sided, of no difference
    untested: str = ""  # over pairs: why there is no test

    @property
    def untestable(self) -> bool:
        """Whether all differences are equal: without variance there is no test."""
        return self.n > 1 and self.p is None and not self.untested

    @property
    def significant(self) -> bool | None:
        """Whether the interval leaves out zero; None where there is none."""
        return None if self.low is None or self.high is None else not self.low <= 0 <= self.high


def difference(values: Sequence[float]) -> Difference | None:
    """Student's t over paired differences (scipy); None without any. Equal differences have no interval and no p."""
    if not values:
        return None
    mean = fmean(values)
    if max(values) - min(values) < RESOLUTION:  # also a single one
        return Difference(mean, len(values))
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(LEVEL)
    return Difference(mean, len(values), float(low), float(high), float(test.pvalue))


def gaps(scores: Mapping[int, float], base: Mapping[int, float]) -> dict[int, float]:
    """scores - base for each seed that both have."""
    return {seed: scores[seed] - base[seed] for seed in sorted(scores.keys() & base.keys())}


def by_seed(scores: Mapping[int, float], base: Mapping[int, float]) -> Difference | None:
    """The mean of `gaps`."""
    return difference(list(gaps(scores, base).values()))


def over_pairs(found: Mapping[Pair, Mapping[int, float]]) -> Difference | None:
    """Differences pair -> seed -> points, over pairs; None without any.

    The mean is that over pairs. The interval spans the t-intervals over the means of pairs, of students, of teachers
    and of seeds, and p is the largest of theirs: the interval leaves out zero only where each of them does.
    """
    if not found:
        return None
    means = {pair: fmean(scores.values()) for pair, scores in found.items()}
    seeds = set.intersection(*(set(scores) for scores in found.values()))
    units = {
        "pair": list(means.values()),
        "student": _means_by(means, lambda pair: pair[1]),
        "teacher": _means_by(means, lambda pair: pair[0]),
        "seed": [fmean(scores[seed] for scores in found.values()) for seed in sorted(seeds)],
    }
    mean, n = fmean(means.values()), len(means)
    if n < MIN_PAIRS:
        return Difference(mean, n, untested=f"{MIN_PAIRS} pairs are needed; there are {n}")
    tests = []
    for name, values in units.items():
        if len(values) < 2:
            few = "two seeds are needed that all pairs have" if name == "seed" else f"two {name}s are needed"
            return Difference(mean, n, untested=few)
        test = difference(values)
        if test is None or test.low is None or test.high is None or test.p is None:
            return Difference(mean, n, untested=f"the means of all {name}s are the same")
        tests.append((test.low, test.high, test.p))
    lows, highs, ps = zip(*tests, strict=True)
    opposite = max(lows) > 0 and min(highs) < 0  # two units are significant, but not the same way
    return Difference(mean, n, min(lows), max(highs), 1.0 if opposite else max(ps))


def _means_by(means: Mapping[Pair, float], unit: Callable[[Pair], str]) -> list[float]:
    found: dict[str, list[float]] = {}
    for pair, mean in means.items():
        found.setdefault(unit(pair), []).append(mean)
    return [fmean(values) for values in found.values()]


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction over those that are there.

    As statsmodels' `multipletests`, which collects garbage at each call: most of the time of a small report.
    """
    known = sorted((value, place) for place, value in enumerate(values) if value is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (value, place) in enumerate(known):
        corrected[place] = highest = max(highest, min(1.0, (len(known) - rank) * value))
    return corrected


@dataclass(frozen=True)
class Ranking:
    """Average ranks over pairs in which every method has a mean; 1 is the best."""

    ranks: Mapping[str, float]
    pairs: int
    friedman: float | None  # p-value of no difference between any; None for fewer than 3 methods or 2 pairs
    nemenyi: pd.DataFrame | None  # p-values, method by method
    cliques: tuple[tuple[str, ...], ...]  # neighbours in rank that cannot be told apart, the largest sets


def ranking(means: Mapping[str, Mapping[str, float]]) -> Ranking | None:
    """From method -> pair -> mean accuracy. Friedman (scipy), Nemenyi (scikit-posthocs); None without a full pair."""
    table = pd.DataFrame(means).dropna(axis=0)  # a row a pair, a column a method
    if table.empty or len(table.columns) < 2:
        return None
    ranks = table.rank(axis=1, ascending=False).mean().sort_values(kind="stable")
    order = {str(method): float(rank) for method, rank in ranks.items()}
    if len(table.columns) < 3 or len(table) < 2:
        return Ranking(order, len(table), None, None, ())
    import scikit_posthocs

    friedman = float(stats.friedmanchisquare(*(table[method] for method in table)).pvalue)
    if math.isnan(friedman):  # all are equal everywhere
        friedman = 1.0
    apart = scikit_posthocs.posthoc_nemenyi_friedman(table)
    return Ranking(order, len(table), friedman, apart, _cliques(list(order), apart))


def _cliques(ordered: Sequence[str], apart: pd.DataFrame) -> tuple[tuple[str, ...], ...]:
    """Runs of methods in rank order whose ends cannot be told apart, each as long as it goes."""
    cliques: list[tuple[str, ...]] = []
    for first in range(len(ordered)):
        row = apart.loc[ordered[first]].to_dict()
        near = [n for n in range(first + 1, len(ordered)) if row[ordered[n]] > 1 - LEVEL]
        last = max(near, default=first)
        run = tuple(ordered[first : last + 1])
        if len(run) > 1 and not any(set(run) <= set(other) for other in cliques):
            cliques.append(run)
    return tuple(cliques)


def wins(left: Mapping[str, float], right: Mapping[str, float]) -> tuple[int, int, int]:
    """Pairs in which the left method's mean is above, equal to and below the right one's; to 2 decimals, as printed."""
    gaps = [round(left[pair], 2) - round(right[pair], 2) for pair in left.keys() & right.keys()]
    return sum(gap > 0 for gap in gaps), sum(gap == 0 for gap in gaps), sum(gap < 0 for gap in gaps)


def relative_improvement(
    own: Mapping[str, float], base: Mapping[str, float], plain: Mapping[str, float]
) -> float | None:
    """Average relative improvement over a baseline, in per cent: (own - base) / (base - plain), the mean over pairs.

    As Tian et al. define it, arXiv:1910.10699, §4. Pairs in which the baseline gains nothing are left out.
    """
    pairs = [pair for pair in own.keys() & base.keys() & plain.keys() if base[pair] != plain[pair]]
    if not pairs:
        return None
    return 100 * fmean((own[pair] - base[pair]) / (base[pair] - plain[pair]) for pair in sorted(pairs))
