"""A study: everything that decides its results, resolved once, whether typed, read from a file or built in Python.

A study file is TOML. `[study]` holds the options below, as lists or as the command line has them, and paths relative to
the file; `[run]` the options that change no result, such as `out` and `device`; `[recipe.NAME]` recipes of its own.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from kdbench.core.catalog import Catalog
from kdbench.core.data import DataRequest
from kdbench.core.errors import UserError, plain, unknown_name
from kdbench.core.recipe import Recipe
from kdbench.core.trial import Pair
from kdbench.plan import expressions, pairs, recipes
from kdbench.plan.expressions import Method
from kdbench.plan.parsing import parse_classes, parse_seeds

Options = TypeVar("Options")


@dataclass(frozen=True)
class StudyOptions:
    """The options that decide results, by their long names; None: the default that `resolve` chooses."""

    methods: str = "all"
    pairs: str = "all"
    seeds: str = "3"
    dataset: str = "cifar100"
    size: int | None = None
    classes: str | None = None
    subset: int | None = None
    val_fraction: float | None = None
    label_column: str | None = None
    test_fraction: float | None = None
    recipe: str | None = None
    epochs: int | None = None
    lr: float | None = None
    max_grad_norm: float | None = None
    precision: str = "auto"
    teacher: Path | None = None
    teacher_dir: Path | None = None


SELECT = ("last", "last10", "validation", "best")
"""Which epoch counts, see report/epoch_rules.py."""

KEEP_WEIGHTS = ("all", "teachers", "none")
"""Final weights that stay: of every trial, of vanilla trials (which may teach), or none once the study has ended."""


SMALL_PIXELS = 64
"""Up to this many pixels a side, a processor trains more images a second with one thread in each of several jobs than
with several threads in one: docs/performance.md."""


@dataclass(frozen=True)
class RunOptions:
    """The options that change no result, by their long names."""

    out: Path = Path("results")
    device: str = "auto"
    jobs: str = "auto"  # cohorts trained side by side, see runner/parallel.py
    gpus_per_job: float | None = None  # share of a GPU; None: a whole one
    threads: int | None = None
    compile: bool = False  # networks by torch.compile; rounding differs
    cluster: str | None = None  # auto, local or HOST:PORT of a Ray cluster
    data_dir: Path | None = None
    checkpoint_every: str = "auto"
    rerun: str | None = None
    baseline: str = "kd"  # that methods are compared with
    select: str = "last"  # which epoch counts, see report/epoch_rules.py
    plugins: Path | None = None  # file or folder of methods, data sets and recipes
    keep_weights: str = "all"  # one of KEEP_WEIGHTS
    time_limit: str | None = None  # after which an orderly stop begins


def check_baseline(methods: Iterable[str], baseline: str) -> None:
    """Raise UserError if the baseline is none of the methods; the default one may be missing."""
    known = dict.fromkeys(methods)
    if baseline not in known and baseline != RunOptions.baseline:
        raise unknown_name("baseline", baseline, known, f"there are {', '.join(known)}")


@dataclass(frozen=True)
class Study:
    """Data, recipe, methods, pairs and seeds of a comparison."""

    data: DataRequest
    recipe: Recipe
    methods: tuple[Method, ...]  # vanilla first
    pairs: tuple[Pair, ...]  # architectures under their canonical names
    seeds: tuple[int, ...]
    precision: str = "auto"
    options: StudyOptions = field(default_factory=StudyOptions)  # from which it was resolved
    own_recipe: Mapping[str, Any] | None = None  # the table of its recipe, if that is not one of kdbench's

    def toml(self) -> str:
        """A study file that resolves to the same study, whatever the defaults will be then."""
        resolved = replace(
            self.options,
            dataset=_absolute_dataset(self.options.dataset, Path()),
            methods=",".join(method.expression for method in self.methods),
            pairs=",".join(map(str, self.pairs)),
            seeds=",".join(map(str, self.seeds)) + "," * (len(self.seeds) == 1),
            recipe=self.recipe.name,
            size=self.recipe.size,
            epochs=self.recipe.epochs,
            precision=self.precision,
            teacher=self.options.teacher and self.options.teacher.resolve(),
            teacher_dir=self.options.teacher_dir and self.options.teacher_dir.resolve(),
        )
        tables = {"study": asdict(resolved)}
        if self.own_recipe is not None:
            tables[f"recipe.{self.recipe.name}"] = dict(self.own_recipe)
        return "\n".join(f"[{name}]\n{_entries(table)}" for name, table in tables.items())


def resolve(
    options: StudyOptions, catalog: Callable[[], Catalog], own_recipes: Mapping[str, Mapping[str, Any]] | None = None
) -> Study:
    """The study that the options describe. `catalog` is called last, since it imports torch. Raises UserError."""
    recipe = recipes.recipe(
        options.recipe or recipes.default(options.dataset),
        own_recipes or {},
        epochs=options.epochs,
        lr=options.lr,
        size=options.size,
        max_grad_norm=options.max_grad_norm,
    )
    seeds, chosen_pairs = parse_seeds(options.seeds), pairs.parse(options.pairs, options.dataset)
    classes = parse_classes(options.classes) if options.classes else None
    fraction = options.val_fraction or 0.0
    held_out = options.test_fraction or 0.0
    data = DataRequest(options.dataset, recipe.size, classes, options.subset, fraction, options.label_column, held_out)
    if options.precision not in PRECISIONS:
        raise unknown_name("precision", options.precision, PRECISIONS, f"there are {', '.join(PRECISIONS)}")
    known = catalog()
    canonical = [
        Pair(tuple(known.model(arch).name for arch in pair.teachers), known.model(pair.student).name)
        for pair in chosen_pairs
    ]
    methods = expressions.parse(options.methods, known)
    unique = tuple(dict.fromkeys(canonical))
    own = (own_recipes or {}).get(recipe.name)
    return Study(data, recipe, methods, unique, seeds, options.precision, options, own)


PRECISIONS = ("auto", "bf16", "fp32")


def convert_options(
    kind: type[Options], given: Mapping[str, Any], where: str = "", folder: Path | None = None
) -> Options:
    """Options from what a person gave, which may be a list where the command line takes commas.

    `where` says in errors where they stand, and relative paths are taken from `folder`. Raises UserError.
    """
    hints = get_type_hints(kind)
    values = {}
    for name, value in given.items():
        if name not in hints:
            raise unknown_name("option", name, hints, f"{where}there are {', '.join(hints)}")
        if value is not None:
            values[name] = _convert(hints[name], value, f"{where}{name}", folder)
    return kind(**values)


def _convert(hint: Any, value: Any, name: str, folder: Path | None) -> Any:
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
    if plain(str(value)) != str(value):
        raise UserError(f"{name} has control characters, or characters that are no Unicode: {plain(str(value))!r}")
    if name.endswith("dataset") and isinstance(value, str):
        return _absolute_dataset(value, folder) if folder else value
    if Path in kinds and isinstance(value, str | Path):
        path = Path(value).expanduser()
        return path if folder is None else folder / path
    if str in kinds and isinstance(value, list | tuple | range):
        words = [str(word) for word in value]
        return f"{words[0]}," if len(words) == 1 and name.endswith("seeds") else ",".join(words)
    for kind in kinds:
        if type(value) is kind or (kind is float and type(value) is int):
            return kind(value)
    if str in kinds and type(value) in (int, float):
        return str(value)
    names = {str: "a text or a list", int: "a whole number", float: "a number", Path: "a path", bool: "true or false"}
    raise UserError(f"{name} must be {' or '.join(names[kind] for kind in kinds)}, not {value!r}")


OPTION_NAMES = tuple(item.name for kind in (StudyOptions, RunOptions) for item in fields(kind))
"""The long options, without their hyphens."""


def _absolute_dataset(text: str, folder: Path) -> str:
    """`folder:pets` -> `folder:/there/pets`."""
    kind, colon, path = text.partition(":")
    return f"{kind}:{os.path.abspath(folder / Path(path).expanduser())}" if colon and path else text


@dataclass(frozen=True)
class StudyFile:
    """The tables of a study file, as they stand."""

    study: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_options(
    given: Mapping[str, Any], path: Path | None = None
) -> tuple[StudyOptions, RunOptions, Mapping[str, Mapping[str, Any]]]:
    """The options of a study file, with those that were given in their place, and the file's recipes.

    Raises UserError.
    """
    file = _read_study_file(path) if path else StudyFile()
    folder = path.parent if path else None

    def merged(kind: type[Options], table: Mapping[str, Any], section: str) -> Options:
        of_file = vars(convert_options(kind, table, f"{path}: [{section}] ", folder))
        known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
        own = {name: value for name, value in given.items() if name in known and value is not None}
        converted = vars(convert_options(kind, own))
        return kind(**{**of_file, **{name: converted[name] for name in own}})

    study, run = merged(StudyOptions, file.study, "study"), merged(RunOptions, file.run, "run")
    for name, value, choices in (("select", run.select, SELECT), ("keep_weights", run.keep_weights, KEEP_WEIGHTS)):
        if value not in choices:
            raise unknown_name("value", value, choices, f"{name} is one of {', '.join(choices)}")
    if run.select == "validation" and not study.val_fraction:
        raise UserError("--select validation needs images held out by --val-fraction")
    return study, run, file.recipe


def _read_study_file(path: Path) -> StudyFile:
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    known = {item.name for item in fields(StudyFile)}
    for name, table in tables.items():
        if name not in known:
            raise unknown_name("table", name, known, f"{path} may have [study], [run] and [recipe.NAME]")
        nested = table.values() if name == "recipe" and isinstance(table, dict) else ()
        if not all(isinstance(item, dict) for item in (table, *nested)):
            raise UserError(f"{path}: {name} must be a table")
    return StudyFile(**tables)


def _entries(table: Mapping[str, Any]) -> str:
    """TOML takes numbers, lists, true, false and strings as JSON writes them."""
    lines = []
    for name, value in table.items():
        if value is not None:
            text = json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
            lines.append(f"{name} = {text}\n")
    return "".join(lines)
