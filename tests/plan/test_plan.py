from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from kdbench.core.catalog import Cost, Costs
from kdbench.core.data import DataInfo, DataRequest
from kdbench.core.errors import UserError
from kdbench.core.jobs import CohortJob
from kdbench.core.trial import CheckpointInterval, Pair, Plan, TeacherSource
from kdbench.plan import pairs, recipes
from kdbench.plan.estimate import estimate_disk, estimate_seconds, format_bytes, format_duration
from kdbench.plan.expand import expand
from kdbench.plan.expressions import parse
from kdbench.plan.parsing import parse_classes, parse_interval, parse_seeds
from kdbench.plan.study import Study
from tests.plan.catalog import CATALOG, DATA


def study(methods: str = "kd,one,picky", seeds: tuple[int, ...] = (0, 1), pair: str = "big:small") -> Study:
    chosen = pairs.parse(pair, "cifar100")
    request = DataRequest("cifar100", 32)
    return Study(request, recipes.recipe("paper"), parse(methods, CATALOG), chosen, seeds, "fp32")


def plan(
    study: Study,
    completed: frozenset[str] = frozenset(),
    data: DataInfo = DATA,
    files: Mapping[str, TeacherSource] | None = None,
) -> Plan:
    return expand(study, data, CATALOG, completed, files)


def test_teachers_come_first_with_seed_0_only_and_students_with_every_seed() -> None:
    planned = plan(study())
    shape = [
        (c.seed, [source.arch for source in c.teachers], [(t.arch, t.method) for t in c.trials])
        for c in planned.cohorts
    ]
    assert shape == [
        (0, [], [("big", "vanilla"), ("small", "vanilla")]),
        (1, [], [("small", "vanilla")]),
        (0, ["big"], [("small", "kd"), ("small", "one")]),
        (1, ["big"], [("small", "kd"), ("small", "one")]),
    ]
    assert [(trial.method, trial.seed, reason) for trial, reason in planned.not_applicable] == [
        ("picky", 0, "it needs equal channels"),
        ("picky", 1, "it needs equal channels"),
    ]


def test_trials_say_of_what_kind_their_method_is_and_which_settings_are_no_defaults() -> None:
    trials = {trial.method: trial for trial in plan(study("kd,one,one(alpha=0.25)+kd")).trials}
    assert {method: trial.kind for method, trial in trials.items()} == {
        method: CATALOG.methods[trial.base].kind for method, trial in trials.items()
    }
    assert trials["one"].changed == ()
    assert set(trials["one(alpha=0.25)+kd"].changed or ()) == {"alpha", "kd_weight"}


def test_published_settings_are_those_of_the_pair() -> None:
    planned = plan(study("new,new@published", seeds=(0,), pair="big:small,small:small"))
    first, second = (cohort.trials for cohort in planned.cohorts[1:])
    assert [(trial.method, trial.settings["beta"], trial.stream) for trial in first] == [
        ("new", 8.0, ""),
        ("new@published", 2.0, "new(beta=2)"),
    ]
    assert [trial.method for trial in second] == ["new"]
    assert [(trial.pair, trial.method, reason) for trial, reason in planned.not_applicable] == [
        ("small:small", "new@published", "its authors published no settings for this pair")
    ]


def test_a_teacher_is_trained_with_seed_0_also_when_students_have_other_seeds() -> None:
    first = plan(study(seeds=(5,))).cohorts[0]
    assert (first.seed, [trial.arch for trial in first.trials]) == (0, ["big"])


def test_one_vanilla_trial_serves_all_pairs() -> None:
    planned = plan(study(pair="big:small,small:small", seeds=(0,)))
    assert [trial.arch for trial in planned.pending if trial.method == "vanilla"] == ["big", "small"]


def test_networks_that_diverge_at_the_usual_learning_rate_have_a_smaller_one() -> None:
    assert {trial.arch: trial.lr for trial in plan(study()).pending} == {"big": 0.05, "small": 0.01}


def test_completed_trials_are_left_out_and_a_new_method_trains_alone() -> None:
    before = plan(study("kd"))
    after = plan(study("kd,one"), frozenset(trial.fingerprint for trial in before.pending))
    assert {trial.method for trial in after.pending} == {"one"}
    assert len(after.completed) == len(before.pending)


def test_a_teacher_from_a_file_is_not_trained_and_changes_the_students() -> None:
    asked = study()
    files = {"big": TeacherSource("big", file="/somewhere/big.pth", sha256="ab" * 32)}
    planned = plan(asked, files=files)
    assert "big" not in {trial.arch for trial in planned.pending}
    own = {trial.fingerprint for trial in plan(asked).pending if trial.method == "kd"}
    assert not own & {trial.fingerprint for trial in planned.pending}
    moved = {"big": TeacherSource("big", file="/elsewhere/teacher.pth", sha256="ab" * 32)}
    assert {t.fingerprint for t in plan(asked, files=moved).pending} == {t.fingerprint for t in planned.pending}


def test_the_fingerprint_knows_what_matters_and_nothing_else() -> None:
    trial = plan(study()).pending[-1]
    assert trial.id.endswith(trial.fingerprint)
    same = [
        replace(trial, data=replace(trial.data, label="other", sources={"a": "b"})),
        replace(trial, recipe=replace(trial.recipe, label="other", name="other")),
    ]
    different = [
        replace(trial, data=replace(trial.data, content="0")),
        replace(trial, recipe=replace(trial.recipe, epochs=6)),
        replace(trial, recipe=replace(trial.recipe, milestones=(1.0,))),
        replace(trial, lr=0.1),
        replace(trial, arch="big"),
        replace(trial, settings={**trial.settings, "alpha": 0.25}),
        replace(trial, code="edited"),
        replace(trial, seed=9),
        replace(trial, precision="bf16"),
    ]
    assert {equal.fingerprint for equal in same} == {trial.fingerprint}
    assert len({variant.fingerprint for variant in (trial, *different)}) == len(different) + 1
    assert replace(trial, seed=9).variant == trial.variant


def test_too_small_images_and_sets_are_refused() -> None:
    with pytest.raises(UserError, match="small needs images of at least 16x16 pixels"):
        plan(study(), data=replace(DATA, size=8))
    with pytest.raises(UserError, match="40 training images, less than one batch of 64"):
        plan(study(), data=replace(DATA, train=40))


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (0, 1, 2)), ("0,1,7", (0, 1, 7)), ("7,", (7,)), ("1,1", (1,)), (" 2 ", (0, 1))]
)
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "1,,2", "1.5", "99999"])
def test_bad_seeds(text: str) -> None:
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


def test_classes() -> None:
    assert parse_classes("0-3, 8") == (0, 1, 2, 3, 8)
    for text in ("", "5", "3-1", "a-b", "1;2"):
        with pytest.raises(UserError, match="--classes"):
            parse_classes(text)


def test_pairs() -> None:
    assert len(pairs.parse("all", "cifar100")) == 13
    assert pairs.parse("same,cross", "cifar10") == pairs.parse("all", "cifar10")
    assert len(pairs.parse("all", "digits")) == 3
    assert pairs.parse("a:b,a:b", "digits") == (Pair(("a",), "b"),)
    for text in ("", "wrn", "a:", ":b", "a:b:c", "a+:b", "+:b", "a+a:b"):
        with pytest.raises(UserError, match="pair"):
            pairs.parse(text, "cifar100")
    with pytest.raises(UserError, match="did you mean 'cross'"):
        pairs.parse("corss", "cifar100")


def test_pairs_with_several_teachers() -> None:
    (pair,) = pairs.parse("resnet56+resnet32:resnet20", "cifar100")
    assert (pair.teachers, pair.student) == (("resnet32", "resnet56"), "resnet20")  # sorted: their order means nothing
    assert str(pair) == "resnet32+resnet56:resnet20"
    assert pairs.parse("b+a:s,a+b:s", "cifar100") == (Pair(("a", "b"), "s"),)
    (pair,) = pairs.parse("timm/resnet34:pretrained+resnet56:timm/resnet18:pretrained", "cifar100")
    assert pair == Pair(("resnet56", "timm/resnet34:pretrained"), "timm/resnet18:pretrained")


def test_each_teacher_is_trained_once_and_students_wait_for_all() -> None:
    planned = plan(study("kd", seeds=(1,), pair="big+small:small,big:small"))
    vanilla = {trial.arch: trial for trial in planned.pending if trial.method == "vanilla" and trial.seed == 0}
    assert list(vanilla) == ["big", "small"]
    pair = next(cohort for cohort in planned.cohorts if len(cohort.teachers) == 2)
    assert [source.trial for source in pair.teachers] == [vanilla[arch].fingerprint for arch in ("big", "small")]
    assert set(pair.sources) == {f"trial:{trial.fingerprint}" for trial in vanilla.values()}
    (trial,) = pair.trials
    assert (trial.teacher, trial.pair) == ("big+small", "big+small:small")
    fewer = next(cohort for cohort in planned.cohorts if len(cohort.teachers) == 1).trials[0]
    assert trial.fingerprint != fewer.fingerprint


def test_a_method_that_needs_the_trained_student_waits_for_its_vanilla_trial_of_seed_0() -> None:
    planned = plan(study("kd,selfish", seeds=(5,)))
    first = planned.cohorts[0]
    assert (first.seed, [trial.arch for trial in first.trials]) == (0, ["big", "small"])
    small = first.trials[1]
    pair = planned.cohorts[-1]
    assert f"trial:{small.fingerprint}" in pair.sources
    selfish = next(trial for trial in pair.trials if trial.method == "selfish")
    assert selfish.extra_teachers["self"].trial == small.fingerprint
    assert replace(selfish, extra_teachers={}).fingerprint != selfish.fingerprint
    alone = {trial.method: trial.fingerprint for trial in plan(study("kd", seeds=(5,))).pending}
    assert alone["kd"] in {trial.fingerprint for trial in pair.trials}  # the others are as they were


def test_recipes() -> None:
    paper = recipes.recipe("paper")
    assert (paper.epochs, paper.milestones, paper.batch_size, paper.weight_decay) == (240, (150, 180, 210), 64, 5e-4)
    assert paper.published()
    short = recipes.recipe("paper", epochs=6)
    assert (short.label, short.milestones) == ("paper@6", (3.75, 4.5, 5.25))
    assert not short.published()
    assert recipes.recipe("paper", epochs=240) == paper
    assert recipes.recipe("quick").milestones == (18.75, 22.5, 26.25)
    assert recipes.recipe("quick", lr=0.1, size=64).label == "quick,lr=0.1,64px"
    assert recipes.recipe("paper", lr=0.1).small_lr == 0.1
    assert (recipes.default("digits"), recipes.default("cifar10")) == ("digits", "paper")
    with pytest.raises(UserError, match="did you mean 'quick'"):
        recipes.recipe("quik")
    for wrong in ({"epochs": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"size": 4}):
        with pytest.raises(UserError):
            recipes.recipe("paper", **wrong)


def test_largest_gradients_are_part_of_the_recipe_only_where_asked_for() -> None:
    plain, clipped = (
        plan(replace(study(), recipe=recipes.recipe("paper", max_grad_norm=norm))) for norm in (None, 5.0)
    )
    assert clipped.pending[0].recipe_label == "paper,clip=5"
    assert not clipped.pending[0].recipe.published()
    assert clipped.pending[0].fingerprint != plain.pending[0].fingerprint
    assert "max_grad_norm" not in plain.pending[0].recipe.key  # an option that is off changes no fingerprint
    for wrong in (0.0, -1.0, float("inf")):
        with pytest.raises(UserError, match="--max-grad-norm"):
            recipes.recipe("paper", max_grad_norm=wrong)


def test_intervals() -> None:
    assert parse_interval("auto") is None
    assert parse_interval("5") == CheckpointInterval(epochs=5)
    assert parse_interval(" 10min") == CheckpointInterval(minutes=10)
    assert parse_interval("0.5 m") == CheckpointInterval(minutes=0.5)
    assert parse_interval("2minutes") == CheckpointInterval(minutes=2)
    assert parse_interval("1h") == CheckpointInterval(minutes=60)
    assert parse_interval("90s") == CheckpointInterval(minutes=1.5)
    for wrong in ("", "0", "0min", "-1", "1.5", "ten", "5d", "1 hour"):
        with pytest.raises(UserError, match="neither a number of epochs"):
            parse_interval(wrong)


def test_the_disk_space_adds_up() -> None:
    planned = plan(study("kd,one", seeds=(0,)))
    costs = Costs({"big": Cost(1, 1, 10_000_000), "small": Cost(1, 1, 1_000_000)}, checkpoint_bytes={"one": 500_000})
    kept, states = estimate_disk(list(map(CohortJob, planned.cohorts)), costs)
    assert kept - 13_000_000 == pytest.approx(4 * 104_192)  # weights; and records with 240 epochs
    assert states == (20_000_000 + 2_000_000) + 20_000_000  # the teacher's cohort, its largest file written twice
    assert [format_bytes(count) for count in (3 * 2**20, 3 * 2**30, 30 * 2**30)] == ["3 MiB", "3,072 MiB", "30.0 GiB"]


def test_the_estimate_adds_up() -> None:
    planned = plan(study("kd", seeds=(0,)))
    costs = {"big": Cost(train=0.3, forward=0.1), "small": Cost(train=0.03, forward=0.01)}
    images = 1000 // 64 * 64
    vanilla = images * (0.3 + 0.03) + 100 * (0.1 + 0.01)
    pair = images * (0.03 + 0.1) + 100 * 0.01
    assert estimate_seconds(list(map(CohortJob, planned.cohorts)), Costs(costs)) == pytest.approx(
        240 * (vanilla + pair)
    )
    extra = images * 0.005
    assert estimate_seconds(list(map(CohortJob, planned.cohorts)), Costs(costs, {"kd": 0.005})) == pytest.approx(
        240 * (vanilla + pair + extra)
    )
    early = 30 * images * (0.03 + 0.1)  # 30 epochs of 240, without evaluation
    assert estimate_seconds(
        list(map(CohortJob, planned.cohorts)), Costs(costs, {}, frozenset({"kd"}))
    ) == pytest.approx(240 * (vanilla + pair) + early)
    assert [format_duration(value) for value in (5, 600, 12000, 400000)] == ["5 s", "10 min", "3 h 20 min", "4.6 days"]
