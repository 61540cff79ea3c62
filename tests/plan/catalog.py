"""A catalog for tests of the plan: three methods, no torch."""

from __future__ import annotations

from collections.abc import Mapping

from kdbench.core.catalog import Catalog, MethodInfo, ModelInfo, Published, Setting
from kdbench.core.data import DataInfo
from kdbench.core.errors import unknown_name
from kdbench.core.trial import Pair, Value

SHARED = (
    Setting("ce_weight", "float", 1.0, ""),
    Setting("kd_weight", "float", 0.0, ""),
    Setting("kd_temperature", "float", 4.0, ""),
)


def method(
    name: str,
    *settings: Setting,
    kind: str = "features",
    group: str = "paper",
    extra_teachers: tuple[str, ...] = (),
    published: tuple[Published, ...] = (),
) -> MethodInfo:
    merged = {setting.name: setting for setting in (*SHARED, *settings)}

    def check(values: Mapping[str, Value]) -> str | None:
        return "alpha must not be negative" if float(values.get("alpha", 0.0)) < 0 else None

    return MethodInfo(
        name=name,
        paper="-",
        year=None,
        kind=kind,
        group=group,
        summary="",
        settings=tuple(merged.values()),
        code=f"code-{name}",
        module=f"kdbench.methods.{name}",
        check=check,
        extra_teachers=lambda settings: extra_teachers,
        published=published,
    )


def model(name: str) -> ModelInfo:
    known = {"big": ModelInfo("big", "f", False, 8), "small": ModelInfo("small", "f", True, 16)}
    if name not in known:
        raise unknown_name("model", name, known, "see the list")
    return known[name]


def incompatibility(name: str, settings: Mapping[str, Value], pair: Pair, data: DataInfo) -> str | None:
    return "it needs equal channels" if name == "picky" else None


METHODS = {
    info.name: info
    for info in (
        method("vanilla", kind="control", group="control"),
        method("kd", Setting("kd_weight", "float", 0.9, ""), kind="logits"),
        method(
            "one", Setting("alpha", "float", 0.5, ""), Setting("deep", "bool", False, ""), Setting("k", "int", 4, "")
        ),
        method("picky"),
        method("extra", group="own"),
        method(
            "new",
            Setting("beta", "float", 8.0, ""),
            Setting("form", "str", "plain", ""),
            kind="logits",
            group="modern",
            published=(
                Published("their table", {"big:small": {"beta": 2.0}, "big:big": {"beta": 8.0}}),
                Published("their appendix", {"big:small": {"beta": 6.0}}, given={"form": "other"}),
            ),
        ),
        method("selfish", group="own", extra_teachers=("self",)),
    )
}
CATALOG = Catalog(METHODS, model, incompatibility, {"kdbench.methods.half": "SyntaxError: invalid syntax"})
DATA = DataInfo("toy", "c0ffee", 10, 1000, 100, 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), True)
