"""Request -> Plan: which trials, which of them are done, in which cohorts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from kdbench.plan.expressions import Method
from kdbench.spec import VANILLA, Catalogue, Cohort, DataInfo, Pair, Plan, Recipe, Teacher, Trial, UserError


@dataclass(frozen=True)
class Request:
    """What was asked for, resolved; `files` are the teachers' checkpoints by architecture."""

    data: DataInfo
    recipe: Recipe
    methods: tuple[Method, ...]
    pairs: tuple[Pair, ...]
    seeds: tuple[int, ...]
    precision: str
    files: Mapping[str, Teacher]


def expand(request: Request, catalogue: Catalogue, standing: Collection[str]) -> Plan:
    """All trials of a request; `standing` are the fingerprints of records that need no training.

    Vanilla trials come first, one cohort a seed: teachers (seed 0, unless they come from a file) and students.
    Then one cohort for each pair and seed.
    """
    _check_sizes(request, catalogue)
    done: list[Trial] = []
    cohorts: list[Cohort] = []
    verdicts: list[tuple[Trial, str]] = []

    def add(seed: int, teacher: Teacher | None, trials: list[Trial]) -> None:
        done.extend(trial for trial in trials if trial.fingerprint in standing)
        if todo := [trial for trial in trials if trial.fingerprint not in standing]:
            cohorts.append(Cohort(request.data, request.recipe, seed, request.precision, teacher, tuple(todo)))

    make = _Maker(request, catalogue)
    vanilla, *_ = request.methods
    teachers = list(dict.fromkeys(p.teacher for p in request.pairs if p.teacher not in request.files))
    students = list(dict.fromkeys(p.student for p in request.pairs))
    for seed in sorted({0, *request.seeds}):
        archs = (teachers if seed == 0 else []) + (students if seed in request.seeds else [])
        add(seed, None, [make.trial(vanilla, arch, None, seed) for arch in dict.fromkeys(archs)])

    for pair in request.pairs:
        origin = request.files.get(pair.teacher)
        teacher = origin or Teacher(pair.teacher, trial=make.trial(vanilla, pair.teacher, None, 0).fingerprint)
        served: list[Method] = []
        for method in request.methods:
            if method.name == VANILLA:
                continue
            if reason := catalogue.obstacle(method.name, method.settings, pair, request.data):
                refused = [make.trial(method, pair.student, teacher, seed) for seed in request.seeds]
                done.extend(trial for trial in refused if trial.fingerprint in standing)
                verdicts.extend((trial, reason) for trial in refused if trial.fingerprint not in standing)
            else:
                served.append(method)
        for seed in request.seeds:
            add(seed, teacher, [make.trial(method, pair.student, teacher, seed) for method in served])
    return Plan(tuple(cohorts), tuple(done), tuple(verdicts))


def _check_sizes(request: Request, catalogue: Catalogue) -> None:
    if request.data.train < request.recipe.batch_size:
        raise UserError(
            f"{request.data.label} has {request.data.train} training images, less than one batch of "
            f"{request.recipe.batch_size}: take more images or classes"
        )
    for arch in dict.fromkeys(name for pair in request.pairs for name in (pair.teacher, pair.student)):
        smallest = catalogue.model(arch).smallest
        if request.data.size < smallest:
            raise UserError(
                f"{arch} needs images of at least {smallest}x{smallest} pixels, and this study has "
                f"{request.data.size}x{request.data.size}: choose another pair or --size {smallest}"
            )


@dataclass(frozen=True)
class _Maker:
    request: Request
    catalogue: Catalogue

    def trial(self, method: Method, arch: str, teacher: Teacher | None, seed: int) -> Trial:
        recipe = self.request.recipe
        return Trial(
            data=self.request.data,
            recipe=recipe,
            arch=arch,
            lr=recipe.lr_light if self.catalogue.model(arch).light else recipe.lr,
            teacher=teacher,
            method=method.expression,
            settings=method.settings,
            code=self.catalogue.methods[method.name].code,
            seed=seed,
            precision=self.request.precision,
        )
