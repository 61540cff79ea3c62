"""A study with known truth, and all that may be missing from one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kdbench.core.record import Record
from kdbench.core.trial import VANILLA
from kdbench.report import comparison, statistics
from kdbench.report.charts import style
from kdbench.report.charts.cost import cost, pareto_front
from kdbench.report.charts.gains import gains
from kdbench.report.charts.ranks import ranks
from kdbench.report.results import StudyResults
from kdbench.report.statistics import Difference
from kdbench.report.tables.comparison import comparison as comparison_sheet
from kdbench.report.tables.wins import wins
from tests.report.factory import texts, trained

PAIRS = (
    *(("resnet56", "resnet20"), ("vgg13", "vgg8"), ("wrn_40_2", "wrn_16_2"), ("vgg13", "MobileNetV2")),
    *(("resnet110", "resnet20"), ("ResNet50", "vgg8")),
)
EFFECTS = {"kd": 2.0, "crd": 2.1, "icd": 3.5}


def known(seeds: int = 5, pairs: int = 6, noise: float = 0.2) -> list[Record]:
    """Three methods with set effects over the plain student, seed noise that pairing removes, and own noise."""
    stream = np.random.default_rng(0)
    records = []
    students = {student: (float(stream.normal(70, 5)), stream.normal(0, 1.0, seeds)) for _, student in PAIRS[:pairs]}
    columns = [("", student) for student in students] + list(PAIRS[:pairs])
    for teacher, student in columns:
        level, luck = students[student]
        for method, effect in EFFECTS.items() if teacher else [(VANILLA, 0.0)]:
            for seed in range(seeds):
                top1 = level + float(luck[seed]) + effect + float(stream.normal(0, noise))
                records.append(trained(method, top1, seed, pair=(teacher, student)))
    return records


def test_the_right_winner_is_found() -> None:
    (study,) = StudyResults(known()).comparisons
    assert study.baseline == "kd"
    assert study.methods == [VANILLA, "kd", "crd", "icd"]
    icd, crd, plain = (study.over_pairs[method] for method in ("icd", "crd", VANILLA))
    assert (icd.n, icd.significant) == (6, True)
    assert icd.low is not None
    assert icd.high is not None
    assert icd.low <= 1.5 <= icd.high
    assert crd.mean == pytest.approx(0.1, abs=0.2)
    assert plain.mean == pytest.approx(-2.0, abs=0.3)
    assert study.ranking is not None
    assert next(iter(study.ranking.ranks)) == "icd"
    assert all(found.n == 5 for found in study.over_seeds.values())
    words = " ".join(comparison.sentences(study))
    assert "Over 6 pairs, significantly better than kd: icd (+1." in words
    assert "Best average rank over 6 pairs: icd (1.00 of 4); ranks differ significantly" in words
    frame = comparison_sheet(StudyResults(known())).frame
    whole = {row["method"]: row for row in frame[frame["teacher"] == ""].to_dict("records")}
    assert whole["icd"]["relative_improvement"] == pytest.approx(75, abs=20)  # (3.5 - 2) / 2
    assert len(frame) == 3 * 6 + 3
    won = texts(wins(StudyResults(known())).tables[0])
    assert (won.loc["icd", "kd"], won.loc["icd", "icd"]) == ("6/0/0", "–")


def answer(records: list[Record], baseline: str = "kd") -> list[str]:
    (study,) = StudyResults(records, baseline=baseline).comparisons
    return comparison.answer(study)


def test_two_sentences_answer_which_method_is_best_and_how_sure_that_is() -> None:
    (study,) = StudyResults(known()).comparisons
    icd = study.over_pairs["icd"]
    assert answer(known()) == [
        f"Over 6 pairs: icd has the highest mean accuracy, {icd.mean:.2f} points above kd (95 % interval "
        f"{icd.low:+.2f} to {icd.high:+.2f}; significant); the plain student is 3.37 points below it.",
        "crd is significantly lower (5 %, corrected for all pairs of methods).",
    ]
    # Without icd, a tenth of a point is left between two methods whose noise is twice that.
    first, second = answer([record for record in known() if record.trial.method != "icd"], baseline=VANILLA)
    assert "crd has the highest mean accuracy, 2.0" in first
    assert "above vanilla (95 % interval" in first
    assert second == "kd cannot be told apart from it (5 %, corrected for all pairs of methods)."
    first, second = answer(known(), baseline="icd")
    assert first.startswith("Over 6 pairs: icd has the highest mean accuracy; next is crd, 1.3")
    assert "points below icd (95 % interval -1." in first
    assert second == "crd and kd are significantly lower (5 %, corrected for all pairs of methods)."


@pytest.mark.parametrize(("p", "mean", "near"), [(0.009, 1.0, ["crd"]), (0.008, 1.0, []), (0.008, 0.009, ["crd"])])
def test_what_is_below_the_first_is_below_after_all_pairs_of_methods_and_by_an_image(
    p: float, mean: float, near: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (study,) = StudyResults(known()).comparisons  # four methods, six pairs of them; an image is 0.01 points
    monkeypatch.setattr(statistics, "over_pairs", lambda gaps: Difference(mean, 6, 0.1, 2.0, p))
    assert study.not_below("icd", ["crd"]) == near


def test_the_answer_says_plainly_where_nothing_may_be_claimed() -> None:
    first, second = answer(known(pairs=3))
    assert first.startswith("Over 3 pairs: icd has the highest mean accuracy, 1.")
    assert " points above kd; the plain student is 3.5" in first  # no interval
    assert second.startswith("Nothing is claimed over pairs (5 pairs are needed; there are 3); within them, ")
    assert answer(known(seeds=1))[1] == (
        "Nothing is claimed over pairs (two seeds are needed that all pairs have), nor within them with one seed."
    )
    assert answer(known(seeds=1, pairs=1))[1] == (
        "With one seed no difference can be told from chance, and one pair says nothing of other pairs."
    )
    first, second = answer(known(pairs=1))
    assert first.startswith("resnet56 → resnet20: icd has the highest mean accuracy, 1.")
    assert "significant)" in first
    assert second == "One pair says nothing of other pairs."
    alone = [trained(VANILLA), trained("kd", 71.5)]
    assert answer(alone) == ["kd is 1.50 points above the plain student; there is no other method."]
    assert answer([trained("kd", 71.5)]) == ["Nothing to compare with kd."]
    assert answer([trained("crd", 71.0), trained("icd", 71.0)])[0].startswith("No baseline")


@pytest.mark.parametrize(
    ("claimed", "words"),
    [(True, "significant"), (False, "not significant"), (None, "not claimed: the ranks or a pair say the opposite")],
)
def test_the_answer_claims_what_the_comparison_does(
    claimed: bool | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison.Comparison, "claimed", lambda self, method: claimed)
    assert f"; {words}); the plain student is" in answer(known())[0]


def test_a_method_without_a_test_does_not_silence_the_answer() -> None:
    few = [r for r in known() if r.trial.method != "kd" or (r.trial.teacher, r.trial.arch) in PAIRS[:3]]
    first, second = answer(few, baseline=VANILLA)
    assert "points above vanilla (95 % interval" in first
    assert second == "crd is significantly lower (5 %, corrected for all pairs of methods)."


def test_the_answer_passes_over_chosen_means_small_steps_and_the_plain_student() -> None:
    failed = [
        replace(record, top1=None, status="failed", reason="x")
        if (record.trial.method, record.trial.seed, record.trial.teacher) == ("icd", 0, "ResNet50")
        else record
        for record in known()
    ]
    assert answer(failed)[0].startswith("Over 6 pairs: crd has the highest mean accuracy")
    coarse = [replace(r, trial=replace(r.trial, data=replace(r.trial.data, test=50))) for r in known()]
    assert "points above kd, which is less than one of the 50 test images;" in answer(coarse)[0]
    plain = [replace(r, top1=r.top1 + 9) if r.top1 and r.trial.method == VANILLA else r for r in known()]
    assert answer(plain)[0].endswith("; the plain student's is at least as high.")
    lacking = [r for r in known() if (r.trial.teacher or PAIRS[0][0]) == PAIRS[0][0] or r.trial.method == "kd"]
    assert answer(lacking)[0].startswith("Over 6 pairs: kd has the highest mean accuracy")


def test_differences_that_are_the_same_in_all_seeds_are_called_untested() -> None:
    records = [trained(VANILLA, 70.0 + seed, seed, pair=("", "resnet20")) for seed in range(3)]
    for method, gain in (("kd", 1.0), ("icd", 1.5), ("crd", 1.0)):
        records += [trained(method, 70.0 + seed + gain, seed, pair=PAIRS[0]) for seed in range(3)]
    (study,) = StudyResults(records).comparisons
    assert [study.over_seeds[method, PAIRS[0]].untestable for method in (VANILLA, "icd", "crd")] == [True] * 3
    words = " ".join(comparison.sentences(study))
    assert "Within pairs, 0 of 2 differences to kd are significant" in words
    assert "2 of them are the same in all seeds: without variance there is no test." in words
    frame = comparison_sheet(StudyResults(records)).frame
    assert frame[frame["method"] == "icd"][["p", "low", "high"]].isna().all(axis=None)
    assert (PAIRS[0], "kd") not in study.ties()  # half a point below the best in every seed, untested


def test_pairs_with_equal_gains_give_no_test_over_pairs() -> None:
    records = []
    for student in dict.fromkeys(student for _, student in PAIRS):
        records += [trained(VANILLA, 70.0 + seed, seed, pair=("", student)) for seed in range(2)]
    for teacher, student in PAIRS:
        for method, gain in (("kd", 1.0), ("icd", 1.5)):
            noise = (0.1, -0.1) if method == "icd" else (0.0, 0.0)
            pair = (teacher, student)
            records += [trained(method, 70.0 + seed + gain + noise[seed], seed, pair=pair) for seed in range(2)]
    (study,) = StudyResults(records).comparisons
    words = " ".join(comparison.sentences(study))
    assert "Nothing is claimed over pairs: the means of all pairs are the same." in words


def test_few_pairs_allow_no_claim_however_clear_they_look() -> None:
    """Three pairs that share their networks, as in the README's study; every difference is the same way."""
    (study,) = StudyResults(known(pairs=3)).comparisons
    said = comparison.sentences(study)
    assert "Nothing is claimed over pairs: 5 pairs are needed; there are 3." in said
    assert any(word.endswith("with fewer than 5 pairs ranks are not tested.") for word in said)
    assert not any("better" in word for word in said)
    assert study.over_pairs["icd"].mean == pytest.approx(1.5, abs=0.3)  # the number stands in the tables
    (single_seed,) = StudyResults(known(seeds=1)).comparisons
    said = comparison.sentences(single_seed)
    assert "Nothing is claimed over pairs: two seeds are needed that all pairs have." in said


def test_a_baseline_that_lacks_a_pair_and_a_method_with_few_seeds_silence_no_other() -> None:
    records = [r for r in known() if not (r.trial.method == "kd" and r.trial.arch == "MobileNetV2")]
    records += [trained("rkd", 50.0, 0, pair=pair) for pair in PAIRS]
    (study,) = StudyResults(records).comparisons
    assert study.unranked == ("kd",)
    said = comparison.sentences(study)
    assert any(word.startswith("Over 6 pairs, significantly better than kd: icd (+1.") for word in said)
    assert any(", 5 pairs)" in word for word in said)
    assert "No test over pairs for rkd: two seeds are needed that all pairs have." in said


def test_what_is_tied_is_tied_with_the_best_that_is_shown_as_such() -> None:
    """The mean of the seeds that were left is a chosen one, and never the best."""
    scores = {"bbb": (80.0, 80.4, 80.1), "ccc": (80.1, 80.2, 80.0), "aaa": (90.0, 90.1)}
    records = [trained(m, top1, seed, pair=PAIRS[0]) for m, of in scores.items() for seed, top1 in enumerate(of)]
    records.append(trained("aaa", None, 2, pair=PAIRS[0], status="failed", reason="x"))
    (study,) = StudyResults(records).comparisons
    assert study.ties() == {(PAIRS[0], "ccc")}


def test_a_claim_that_ranks_or_pairs_deny_is_not_made() -> None:
    (study,) = StudyResults(known()).comparisons
    assert study.claimed("icd") is True
    assert study.claimed("crd") is False
    assert replace(study, test_images=50).claimed("icd") is None  # 1.5 points, less than one image of 50
    worse = {(m, p): replace(d, mean=-d.mean) if p == PAIRS[0] else d for (m, p), d in study.over_seeds.items()}
    against = replace(study, over_seeds=worse)
    assert against.claimed("icd") is None
    assert any(
        word.startswith("Not claimed, though significant over pairs: icd;") for word in comparison.sentences(against)
    )
    assert study.ranking is not None
    swapped = {"icd": 2.0, "kd": 1.0}
    assert replace(study, ranking=replace(study.ranking, ranks=swapped)).claimed("icd") is None


def test_small_and_nearly_solved_test_sets_and_an_unbeaten_student_are_named() -> None:
    (study,) = StudyResults(known()).comparisons
    assert not any("test images" in word or "plain student" in word for word in comparison.sentences(study))
    small = replace(study, test_images=360)
    assert "One of the 360 test images is 0.28 points: smaller differences mean nothing." in comparison.sentences(small)
    solved = [trained(VANILLA, 99.0, 0, pair=("", "resnet20")), trained("kd", 98.0, 0, pair=PAIRS[0])]
    solved += [trained("icd", 97.0, 0, pair=PAIRS[0])]
    said = comparison.sentences(replace(StudyResults(solved).comparisons[0], test_images=360))
    assert "No method is above the plain student." in said
    assert "The plain student has at most 3.6 test images wrong: there is little left to gain." in said
    two = [*solved, trained(VANILLA, 50.0, 0, pair=("", "vgg8")), trained("kd", 51.0, 0, pair=PAIRS[1])]
    said = comparison.sentences(StudyResults(two).comparisons[0])
    assert "No method is above the plain student in 1 of 2 pairs: resnet56:resnet20." in said


def test_one_seed_and_one_pair_say_what_they_cannot() -> None:
    (study,) = StudyResults(known(seeds=1, pairs=1)).comparisons
    assert all(found.p is None for found in (*study.over_seeds.values(), *study.over_pairs.values()))
    assert set(study.corrected.values()) == {None}
    assert study.ranking is not None
    assert study.ranking.friedman is None
    words = comparison.sentences(study)
    assert "One pair: nothing can be said of other pairs." in words
    assert any(word.startswith("One seed: differences within a pair have no interval") for word in words)
    assert not any("p =" in word for word in words)
    assert comparison_sheet(StudyResults(known(seeds=1, pairs=1))).frame["p"].isna().all()


def test_missing_cells_and_other_baselines() -> None:
    records = [record for record in known() if not (record.trial.method == "crd" and record.trial.arch == "vgg8")]
    records += [trained("fsp", None, pair=PAIRS[0], status="n/a", reason="other sizes")]
    records += [trained("icd", None, 7, pair=PAIRS[0], status="failed", reason="out of memory")]
    (study,) = StudyResults(records).comparisons
    assert study.unranked == ("crd",)
    assert study.over_pairs["crd"].n == 4
    assert "fsp" not in study.methods
    assert "Not ranked, because they lack a pair: crd." in comparison.sentences(study)
    assert StudyResults(records, baseline="icd").comparisons[0].baseline == "icd"
    assert StudyResults(records, baseline="nothing").comparisons[0].baseline == VANILLA
    assert StudyResults([r for r in records if r.trial.method == VANILLA]).comparisons == []


def test_charts_show_what_there_is() -> None:
    place, whole, single = ("cifar100", "paper"), StudyResults(known()), StudyResults(known(seeds=1, pairs=1))
    (study,) = whole.comparisons
    with style.house_style():
        assert ranks(single, place) is None
        assert ranks(whole, place) is not None
        gained = gains(whole, place)
        assert gained is not None
        words = [text.get_text() for text in gained.axes[0].texts]
        assert len(words) == 18
        assert words[0] == f"{study.over_seeds[VANILLA, PAIRS[0]].mean:+.1f}" or len(set(words)) > 1
        costs = cost(whole, place)
        assert costs is not None
        assert {text.get_text() for text in costs.axes[0].texts} == set(EFFECTS)


def test_a_few_failures_do_not_set_the_scale_of_gains_and_many_methods_do_not_cover_the_costs() -> None:
    records = [trained(VANILLA, 69.0), trained("kd", 70.0), *(trained(f"m{n}", 70 + n / 20) for n in range(30))]
    place = ("cifar100", "paper")
    with style.house_style():
        for failed, limit in (([], 1.45), ([trained("failing", 10.0)], 1.35)):  # nine tenths of 32 are up to 1.35
            found = gains(StudyResults([*records, *failed]), place)
            assert found is not None
            assert found.axes[0].images[0].get_clim() == pytest.approx((-limit, limit), abs=0.03)
            assert len(found.axes[0].texts) == 31 + len(failed)
        costs = cost(StudyResults(records), place)
        assert costs is not None
        assert {text.get_text() for text in costs.axes[0].texts} == {"kd", "m29"}  # the baseline and the front
        assert len([line for line in costs.axes[0].lines if line.get_marker() in ("o", "s")]) == 31


def test_the_front_has_what_nothing_beats() -> None:
    points = {"a": (1.0, 1.0), "b": (2.0, 3.0), "c": (3.0, 2.0), "d": (2.0, 1.0), "e": (1.0, 1.0)}
    assert pareto_front(points) == ["a", "e", "b"]
