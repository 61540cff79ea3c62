"""Study -> Plan: which trials, which of them are done, in which cohorts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from kdbench.core.catalog import Catalog
from kdbench.core.data import DataInfo
from kdbench.core.errors import UserError
from kdbench.core.trial import SELF, VANILLA, Cohort, Plan, TeacherSource, Trial
from kdbench.plan.expressions import Method
from kdbench.plan.study import Study


def expand(
    study: Study,
    data: DataInfo,
    catalog: Catalog,
    completed: Collection[str] = (),
    files: Mapping[str, TeacherSource] | None = None,
) -> Plan:
    """All trials of a study, whose precision must be known by now.

    `completed` are the fingerprints of records that need no training, `files` the teachers' checkpoints by
    architecture. Raises UserError if the images are too few or too small.

    Vanilla trials come first, one cohort a seed: teachers (seed 0, unless they come from a file) and students.
    Then one cohort for each pair and seed.
    """
    files = files or {}
    _check_sizes(study, data, catalog)
    done: list[Trial] = []
    cohorts: list[Cohort] = []
    not_applicable: list[tuple[Trial, str]] = []

    def add(seed: int, teachers: tuple[TeacherSource, ...], trials: list[Trial]) -> None:
        done.extend(trial for trial in trials if trial.fingerprint in completed)
        if todo := [trial for trial in trials if trial.fingerprint not in completed]:
            cohorts.append(Cohort(data, study.recipe, seed, study.precision, teachers, tuple(todo)))

    make = _Maker(study, data, catalog)
    vanilla, *_ = study.methods
    teacher_archs = [arch for pair in study.pairs for arch in pair.teachers if arch not in files]
    students = [pair.student for pair in study.pairs]
    for seed in sorted({0, *study.seeds}):
        archs = students if seed in study.seeds else make.own_teachers(students)
        archs = [*(teacher_archs if seed == 0 else []), *archs]
        add(seed, (), [make.trial(vanilla, arch, (), seed) for arch in dict.fromkeys(archs)])

    for pair in study.pairs:
        teachers = tuple(files.get(arch) or make.source(vanilla, arch) for arch in pair.teachers)
        supported: list[Method] = []
        for method in study.methods:
            if method.name == VANILLA:
                continue
            there = method.on(pair)
            if there is None:
                reason: str | None = "its authors published no settings for this pair"
            else:
                reason = catalog.incompatibility(there.name, there.settings, pair, data)
            if reason:
                refused = [make.trial(there or method, pair.student, teachers, seed) for seed in study.seeds]
                done.extend(trial for trial in refused if trial.fingerprint in completed)
                not_applicable.extend((trial, reason) for trial in refused if trial.fingerprint not in completed)
            elif there:
                supported.append(there)
        for seed in study.seeds:
            add(seed, teachers, [make.trial(method, pair.student, teachers, seed) for method in supported])
    return Plan(tuple(cohorts), tuple(done), tuple(not_applicable))


def _check_sizes(study: Study, data: DataInfo, catalog: Catalog) -> None:
    if data.train < study.recipe.batch_size:
        raise UserError(
            f"{data.label} has {data.train} training images, less than one batch of "
            f"{study.recipe.batch_size}: take more images or classes"
        )
    for arch in dict.fromkeys(arch for pair in study.pairs for arch in pair.archs):
        smallest = catalog.model(arch).smallest
        if data.size < smallest:
            raise UserError(
                f"{arch} needs images of at least {smallest}x{smallest} pixels, and this study has "
                f"{data.size}x{data.size}: choose another pair or --size {smallest}"
            )


@dataclass(frozen=True)
class _Maker:
    study: Study
    data: DataInfo
    catalog: Catalog

    def source(self, vanilla: Method, arch: str) -> TeacherSource:
        """A network trained on the labels alone, with seed 0."""
        return TeacherSource(arch, trial=self.trial(vanilla, arch, (), 0).fingerprint)

    def own_teachers(self, students: Sequence[str]) -> Sequence[str]:
        """The students, if one of the methods needs them trained on the labels alone with seed 0."""
        return students if any(self._needs_itself(method) for method in self.study.methods) else []

    def _needs_itself(self, method: Method) -> bool:
        return SELF in self.catalog.methods[method.name].extra_teachers(method.settings)

    def trial(self, method: Method, arch: str, teachers: tuple[TeacherSource, ...], seed: int) -> Trial:
        recipe = self.study.recipe
        vanilla, *_ = self.study.methods
        info = self.catalog.methods[method.name]
        defaults = {setting.name: setting.default for setting in info.settings}
        extra = {SELF: self.source(vanilla, arch)} if teachers and self._needs_itself(method) else {}
        return Trial(
            data=self.data,
            recipe=recipe,
            arch=arch,
            lr=recipe.small_lr if self.catalog.model(arch).small_lr else recipe.lr,
            teachers=teachers,
            method=method.expression,
            base=method.name,
            settings=method.settings,
            code=info.code,
            seed=seed,
            precision=self.study.precision,
            extra_teachers=extra,
            stream=method.stream,
            kind=info.kind,
            changed=tuple(name for name, value in method.settings.items() if value != defaults.get(name)),
        )
