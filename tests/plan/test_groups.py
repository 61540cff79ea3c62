"""Every group in every form, over the methods that there are."""

from __future__ import annotations

import pytest

from kdbench.core.catalog import GROUP_NAMES
from kdbench.core.errors import UserError
from kdbench.distill import registry
from kdbench.plan.expressions import parse
from kdbench.runner.catalog import build_catalog

EMPTY = {("all", "@published"), ("all", "@published+kd"), ("controls", "+kd"), ("controls", "@published+kd")}


@pytest.mark.parametrize("form", ["", "+kd", "@published", "@published+kd"])
@pytest.mark.parametrize("group", GROUP_NAMES)
def test_a_group_gives_methods_or_says_that_it_has_none(group: str, form: str) -> None:
    catalog = build_catalog()
    published = [
        (name, entry)
        for name, info in registry.infos().items()
        for entry in info.published
        if info.group in GROUP_NAMES[group]
    ]
    if (group, form) in EMPTY:
        with pytest.raises(UserError, match="stands for no method"):
            parse(group + form, catalog)
        return
    methods = parse(group + form, catalog)[1:]
    assert methods
    if form == "@published":
        assert len(methods) == len(published)
    again = parse(",".join(method.expression for method in methods), catalog)[1:]
    assert again == methods
