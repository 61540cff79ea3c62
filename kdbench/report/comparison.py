"""Records -> which method is better than the baseline, by how much, and whether that is significant."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING

from kdbench.core.trial import VANILLA
from kdbench.report import statistics
from kdbench.report.groups import Group, method_key
from kdbench.report.scores import listed, pair_label
from kdbench.report.statistics import MIN_PAIRS, Difference, Pair, Ranking

if TYPE_CHECKING:
    from kdbench.report.results import StudyResults

COARSE = 0.1  # points of one test image, from which on a report says so
NEARLY_SOLVED = 10  # test images that the plain student has wrong, below which a report says so


@dataclass(frozen=True)
class Comparison:
    """One table's accuracies: method -> pair -> seed -> top-1."""

    dataset: str
    recipe: str
    baseline: str | None  # None: neither the one asked for nor the plain student is there
    test_images: int
    values: Mapping[str, Mapping[Pair, Mapping[int, float]]]
    over_seeds: Mapping[tuple[str, Pair], Difference] = field(default_factory=dict)
    over_pairs: Mapping[str, Difference] = field(default_factory=dict)
    corrected: Mapping[tuple[str, Pair | None], float | None] = field(default_factory=dict)
    ranking: Ranking | None = None
    unranked: tuple[str, ...] = ()  # methods that lack a pair
    partial: frozenset[tuple[str, Pair]] = frozenset()  # cells with a failed or diverged seed: never the best

    @property
    def methods(self) -> list[str]:
        return list(self.values)

    @cached_property
    def pairs(self) -> list[Pair]:
        return list(dict.fromkeys(pair for of in self.values.values() for pair in of))

    @cached_property
    def complete(self) -> list[str]:
        """Methods whose means over pairs can be compared: all seeds of every pair are there."""
        partial = {method for method, _ in self.partial}
        return [method for method, of in self.values.items() if len(of) == len(self.pairs) and method not in partial]

    @property
    def untested(self) -> str:
        """Why no difference over pairs is tested; empty where some are."""
        reasons = [difference.untested for difference in self.over_pairs.values()]
        return reasons[0] if reasons and all(reasons) else ""

    def means(self, method: str) -> dict[str, float]:
        """Pair -> mean over seeds."""
        return {f"{t}:{s}": sum(of.values()) / len(of) for (t, s), of in self.values[method].items()}

    @property
    def step(self) -> float:
        """Points of one test image."""
        return 100 / self.test_images

    def claimed(self, method: str) -> bool | None:
        """Whether a difference to the baseline over pairs may be stated. None: it is significant, but not stated.

        It is at least one test image, and neither the ranks nor any pair says the opposite.
        """
        total = self.over_pairs[method]
        if not _below(self.corrected[method, None]) or not total.significant or self.baseline is None:
            return False
        mean = total.mean
        opposite = [
            d.mean * mean < 0 and _below(self.corrected[m, p]) for (m, p), d in self.over_seeds.items() if m == method
        ]
        ranks = self.ranking.ranks if self.ranking else {}
        fits = not {method, self.baseline} <= set(ranks) or (ranks[self.baseline] - ranks[method]) * mean > 0
        return True if abs(mean) >= self.step and fits and not any(opposite) else None

    def not_below(self, first: str, others: Sequence[str]) -> list[str]:
        """Of `others`, those that are not significantly below `first` over pairs.

        The first was chosen by the same numbers, so that p is corrected (Bonferroni) for all pairs of methods.
        """
        tests = len(self.complete) * (len(self.complete) - 1) / 2
        found = []
        for method in others:
            gaps = {
                pair: statistics.gaps(scores, self.values[method][pair]) for pair, scores in self.values[first].items()
            }
            test = statistics.over_pairs({pair: gap for pair, gap in gaps.items() if gap})
            below = test is not None and test.p is not None and _below(test.p * tests) and test.mean >= self.step
            found += [] if below else [method]
        return found

    def ties(self) -> set[tuple[Pair, str]]:
        """Cells that cannot be told apart from their column's best distillation method, seeds paired, Holm-corrected.

        Empty where there is one seed: nothing can be said then.
        """
        cells: set[tuple[Pair, str]] = set()
        for pair in {pair for of in self.values.values() for pair in of}:
            here = {m: of[pair] for m, of in self.values.items() if pair in of and m != VANILLA}
            whole = [method for method in here if (method, pair) not in self.partial]
            first = max(whole, key=lambda m: sum(here[m].values()) / len(here[m]), default=None)
            tests = {m: statistics.by_seed(here[m], here[first]) for m in here if first is not None and m != first}
            corrected = statistics.holm([test.p if test else None for test in tests.values()])
            for (method, test), p in zip(tests.items(), corrected, strict=True):
                equal = test is not None and test.untestable and test.mean == 0
                if equal or (p is not None and not _below(p)):
                    cells.add((pair, method))
        return cells


def comparisons(results: StudyResults) -> list[Comparison]:
    """One for each (dataset, recipe) that has a pair."""
    tables: dict[tuple[str, str], list[Group]] = {}
    for group in results.groups:
        if group.teacher and group.done:
            tables.setdefault((group.dataset, group.recipe), []).append(group)
    return [_compare_table(*table, groups, results.baseline) for table, groups in tables.items()]


def _compare_table(dataset: str, recipe: str, groups: Sequence[Group], wanted: str) -> Comparison:
    values: dict[str, dict[Pair, dict[int, float]]] = {}
    for group in sorted(groups, key=lambda group: method_key(group.method)):
        scores = {record.trial.seed: record.top1 for record in group.done if record.top1 is not None}
        values.setdefault(group.method, {})[group.teacher, group.student] = scores
    baseline = next((method for method in (wanted, VANILLA) if method in values), None)
    pairs = list(dict.fromkeys((group.teacher, group.student) for group in groups))
    whole = [method for method, of in values.items() if len(of) == len(pairs)]
    test_images = min(record.trial.data.test for group in groups for record in group.done)
    partial = {(g.method, (g.teacher, g.student)) for g in groups if len(g.done) < len(g.records)}
    bare = Comparison(dataset, recipe, baseline, test_images, values, partial=frozenset(partial))
    ranked = statistics.ranking({method: bare.means(method) for method in whole})
    over_seeds: dict[tuple[str, Pair], Difference] = {}
    over_pairs: dict[str, Difference] = {}
    if baseline is not None:
        for method, of in values.items():
            if method != baseline:
                for pair, scores in of.items():
                    if difference := statistics.by_seed(scores, values[baseline].get(pair, {})):
                        over_seeds[method, pair] = difference
                gaps = {pair: statistics.gaps(scores, values[baseline].get(pair, {})) for pair, scores in of.items()}
                if total := statistics.over_pairs({pair: gap for pair, gap in gaps.items() if gap}):
                    over_pairs[method] = total
    corrected: dict[tuple[str, Pair | None], float | None] = {}
    for family in (over_seeds, {(method, None): difference for method, difference in over_pairs.items()}):
        corrected |= dict(zip(family, statistics.holm([difference.p for difference in family.values()]), strict=True))
    left_out = tuple(method for method in values if method not in whole)
    return replace(
        bare, over_seeds=over_seeds, over_pairs=over_pairs, corrected=corrected, ranking=ranked, unranked=left_out
    )


def answer(comparison: Comparison) -> list[str]:
    """The outcome in at most two sentences: the highest mean, and how sure that is."""
    others = [method for method in comparison.methods if method not in (comparison.baseline, VANILLA)]
    if comparison.baseline is None or not others:
        return sentences(comparison)[:1]
    means = {method: fmean(comparison.means(method).values()) for method in comparison.complete}
    plain = means.pop(VANILLA, None)
    if not means:
        return ["No method has all seeds of every pair: means over other pairs cannot be compared."]
    first, *rest = sorted(means, key=lambda method: -means[method])
    others = [method for method in rest if method != comparison.baseline]
    where = f"Over {len(comparison.pairs)} pairs" if comparison.pairs[1:] else pair_label(*comparison.pairs[0])
    said = f"{where}: {first} has the highest mean accuracy"
    if plain is not None and plain >= means[first]:
        said += " of the methods"
    if first != comparison.baseline:
        said += f", {_gap(comparison, first)}"
    elif rest:
        said += f"; next is {rest[0]}, {_gap(comparison, rest[0])}"
    if plain is not None and plain >= means[first]:
        said += "; the plain student's is at least as high"
    elif plain is not None and comparison.baseline != VANILLA:
        said += f"; the plain student is {means[first] - plain:.2f} points below it"
    return [f"{said}.", *_certainty(comparison, first, others)]


def _gap(comparison: Comparison, method: str) -> str:
    """A difference to the baseline with its interval, and whether it may be claimed."""
    (pair, *more), baseline = comparison.pairs, comparison.baseline
    found = comparison.over_pairs.get(method) if more else comparison.over_seeds.get((method, pair))
    if found is None:
        return f"without a seed in common with {baseline}"
    said = f"{abs(found.mean):.2f} points {'above' if found.mean >= 0 else 'below'} {baseline}"
    if abs(found.mean) < comparison.step:
        return f"{said}, which is less than one of the {comparison.test_images:,} test images"
    if found.low is None or found.high is None:
        return said + (f" (no test: {found.untested})" if found.untested and not comparison.untested else "")
    claimed = comparison.claimed(method) if more else _below(comparison.corrected[method, pair])
    words = {True: "significant", False: "not significant", None: "not claimed: the ranks or a pair say the opposite"}
    return f"{said} (95 % interval {found.low:+.2f} to {found.high:+.2f}; {words[claimed]})"


def _certainty(comparison: Comparison, first: str, others: Sequence[str]) -> list[str]:
    """Which methods cannot be told apart from the first, or why that cannot be said; at most one sentence."""
    seeds = max((difference.n for difference in comparison.over_seeds.values()), default=0)
    if not comparison.pairs[1:]:
        if seeds < 2:
            return ["With one seed no difference can be told from chance, and one pair says nothing of other pairs."]
        near = [method for method in others if (comparison.pairs[0], method) in comparison.ties()]
        said = f"{listed(near)} cannot be told apart from it here, and one pair" if near else "One pair"
        return [f"{said} says nothing of other pairs."]
    if comparison.untested:
        significant, cells = _within_pairs(comparison)
        within = ", nor within them with one seed"
        if seeds > 1:
            few = " (with two seeds hardly any could be)" if seeds == 2 else ""
            within = (
                f"; within them, {significant} of {cells} differences to {comparison.baseline} are significant{few}"
            )
        return [f"Nothing is claimed over pairs ({comparison.untested}){within}."]
    near = comparison.not_below(first, others)
    lower = [method for method in others if method not in near]
    parts = [f"{listed(near)} cannot be told apart from it"] if near else []
    if len(near) == len(others) > 3:
        parts = [f"None of the {len(near)} others can be told apart from it"]
    parts += [f"{listed(lower)} {'is' if len(lower) == 1 else 'are'} significantly lower"] if lower else []
    return [f"{'; '.join(parts)} (5 %, corrected for all pairs of methods)."] if parts else []


def _within_pairs(comparison: Comparison) -> tuple[int, int]:
    """Significant differences to the baseline within pairs, and all."""
    cells = [place for place in comparison.over_seeds if place[0] != VANILLA]
    return sum(_below(comparison.corrected[place]) for place in cells), len(cells)


def sentences(comparison: Comparison) -> list[str]:
    """What the numbers allow to be said, and what they do not, as plain sentences."""
    if comparison.baseline is None:
        return ["No baseline: neither the method asked for nor the plain student was trained."]
    others = [method for method in comparison.methods if method not in (comparison.baseline, VANILLA)]
    if not others:
        if VANILLA not in comparison.values or comparison.baseline == VANILLA:
            return [f"Nothing to compare with {comparison.baseline}."]
        means = comparison.means(comparison.baseline), comparison.means(VANILLA)
        gap = fmean(means[0][pair] - means[1][pair] for pair in means[0] if pair in means[1])
        side = "above" if gap >= 0 else "below"
        return [f"{comparison.baseline} is {abs(gap):.2f} points {side} the plain student; there is no other method."]
    pairs = len(comparison.pairs)
    said = _over_pairs(comparison, others, pairs) if pairs > 1 else []
    if pairs == 1:
        said.append("One pair: nothing can be said of other pairs.")
    seeds = max(d.n for d in comparison.over_seeds.values()) if comparison.over_seeds else 0
    if seeds < 2:
        said.append("One seed: differences within a pair have no interval, and no p-value is given.")
    else:
        significant, cells = _within_pairs(comparison)
        said.append(
            f"Within pairs, {significant} of {cells} differences to {comparison.baseline} are significant "
            f"(paired by seed, {statistics.LEVEL:.0%}, Holm-corrected)."
        )
        if untested_cells := sum(d.untestable for (m, _), d in comparison.over_seeds.items() if m in others):
            said.append(
                f"{untested_cells} of them {'is' if untested_cells == 1 else 'are'} the same in all seeds: "
                "without variance there is no test."
            )
    ranking = comparison.ranking
    if ranking and ranking.friedman is not None:
        first, rank = next(iter(ranking.ranks.items()))
        verdict = "ranks differ significantly" if _below(ranking.friedman) else "ranks do not differ significantly"
        test = f"{verdict} (Friedman, p = {ranking.friedman:.2g})"
        if ranking.pairs < MIN_PAIRS:
            test = f"with fewer than {MIN_PAIRS} pairs ranks are not tested"
        said.append(
            f"Best average rank over {ranking.pairs} pairs: {first} ({rank:.2f} of {len(ranking.ranks)}); {test}."
        )
    if comparison.unranked:
        said.append(f"Not ranked, because they lack a pair: {', '.join(comparison.unranked)}.")
    return said + _plain_student(comparison) + _resolution(comparison)


def _over_pairs(comparison: Comparison, others: Collection[str], pairs: int) -> list[str]:
    """What may be claimed over several pairs, and why nothing else is."""
    compared = {m: d for m, d in comparison.over_pairs.items() if m in others}
    if not compared:
        return [f"Nothing is said over pairs: no method shares a pair and a seed with {comparison.baseline}."]
    reasons: dict[str, list[str]] = {}
    for method, difference in compared.items():
        if difference.untested:
            reasons.setdefault(difference.untested, []).append(method)
    if all(difference.untested for difference in compared.values()):
        return [f"Nothing is claimed over pairs: {reason}." for reason in reasons]
    said = []
    for way, word in ((1, "better"), (-1, "worse")):
        named = [
            f"{m} ({d.mean:+.2f} [{d.low:+.2f}, {d.high:+.2f}]" + (f", {d.n} pairs)" if d.n != pairs else ")")
            for m, d in compared.items()
            if d.mean * way > 0 and comparison.claimed(m)
        ]
        if named:
            said.append(f"Over {pairs} pairs, significantly {word} than {comparison.baseline}: {', '.join(named)}.")
    if unclaimed := [method for method in compared if comparison.claimed(method) is None]:
        said.append(
            f"Not claimed, though significant over pairs: {', '.join(unclaimed)}; less than one test image, or the "
            "ranks or a pair say the opposite."
        )
    if not said:
        said.append(
            f"Over {pairs} pairs no method differs significantly from {comparison.baseline} "
            f"({statistics.LEVEL:.0%}, Holm-corrected; by pair, by student, by teacher and by seed)."
        )
    said += [f"No test over pairs for {', '.join(methods)}: {reason}." for reason, methods in reasons.items()]
    return said


def _plain_student(comparison: Comparison) -> list[str]:
    """Where no method is above the plain student."""
    if VANILLA not in comparison.values:
        return []
    plain, means = comparison.means(VANILLA), [comparison.means(m) for m in comparison.methods if m != VANILLA]
    unbeaten = [pair for pair, mean in plain.items() if all(of[pair] <= mean for of in means if pair in of)]
    if len(unbeaten) == len(plain):
        return [
            "No method is above the plain student in any pair."
            if len(plain) > 1
            else "No method is above the plain student."
        ]
    if unbeaten:
        return [
            f"No method is above the plain student in {len(unbeaten)} of {len(plain)} pairs: {', '.join(unbeaten)}."
        ]
    return []


def _resolution(comparison: Comparison) -> list[str]:
    """What a small or nearly solved test set cannot show."""
    said = []
    if comparison.step >= COARSE:
        said.append(
            f"One of the {comparison.test_images:,} test images is {comparison.step:.2f} points: smaller differences "
            "mean nothing."
        )
    plain = comparison.means(VANILLA).values() if VANILLA in comparison.values else ()
    if plain and (wrong := (100 - min(plain)) / comparison.step) < NEARLY_SOLVED:
        images = f"{wrong:.1f}".removesuffix(".0")
        said.append(f"The plain student has at most {images} test images wrong: there is little left to gain.")
    return said


def _below(p: float | None) -> bool:
    return p is not None and p < 1 - statistics.LEVEL
