"""Records -> which method is better than the baseline, by how much, and whether that is significant."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kdbench.core.trial import VANILLA
from kdbench.report import statistics
from kdbench.report.groups import Group, method_key
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


def sentences(comparison: Comparison) -> list[str]:
    """What the numbers allow to be said, and what they do not, as plain sentences."""
    if comparison.baseline is None:
        return ["No baseline: neither the method asked for nor the plain student was trained."]
    others = [method for method in comparison.methods if method not in (comparison.baseline, VANILLA)]
    if not others:
        return [f"Nothing to compare with {comparison.baseline}."]
    pairs = {pair for of in comparison.values.values() for pair in of}
    said = _over_pairs(comparison, others, len(pairs)) if len(pairs) > 1 else []
    if len(pairs) == 1:
        said.append("One pair: nothing can be said of other pairs.")
    seeds = max(d.n for d in comparison.over_seeds.values()) if comparison.over_seeds else 0
    if seeds < 2:
        said.append("One seed: differences within a pair have no interval, and no p-value is given.")
    else:
        cells = [(m, p, d) for (m, p), d in comparison.over_seeds.items() if m in others]
        apart = sum(_below(comparison.corrected[m, p]) for m, p, _ in cells)
        said.append(
            f"Within pairs, {apart} of {len(cells)} differences to {comparison.baseline} are significant "
            f"(paired by seed, {statistics.LEVEL:.0%}, Holm-corrected)."
        )
        if untested_cells := sum(test.untestable for _, _, test in cells):
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
        said.append(f"The plain student has at most {wrong:.1f} test images wrong: there is little left to gain.")
    return said


def _below(p: float | None) -> bool:
    return p is not None and p < 1 - statistics.LEVEL
