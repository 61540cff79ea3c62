from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.core.errors import UserError
from kdbench.core.trial import Pair
from kdbench.plan.expressions import parse
from tests.plan.catalog import CATALOG


def names(text: str) -> list[str]:
    return [method.expression for method in parse(text, CATALOG)]


def test_vanilla_is_always_there_and_first() -> None:
    assert names("kd") == ["vanilla", "kd"]
    assert names("kd,vanilla") == ["vanilla", "kd"]


def test_equal_settings_are_one_method() -> None:
    assert names("one+kd, one(kd_weight=1)") == ["vanilla", "one+kd"]
    assert names("one(alpha=0.5),one(),one") == ["vanilla", "one"]


def test_settings_are_canonical() -> None:
    assert names("one( k = 7 , alpha=1e-1, deep=true )+kd")[1] == "one(alpha=0.1,deep=true,k=7)+kd"
    assert names("one(kd_weight=0.9)")[1] == "one(kd_weight=0.9)"
    assert names("kd(kd_weight=1)")[1] == "kd(kd_weight=1)"
    method = parse("one(k=7)", CATALOG)[1]
    assert method.settings == {
        "ce_weight": 1.0,
        "kd_weight": 0.0,
        "kd_temperature": 4.0,
        "alpha": 0.5,
        "deep": False,
        "k": 7,
    }


def test_a_canonical_expression_means_itself() -> None:
    for text in ("one(alpha=0.1,deep=true,k=7)+kd", "kd(kd_temperature=2)", "one(alpha=1e-07)"):
        assert names(text)[1] == text


def test_all_is_the_core_and_all_kd_leaves_out_what_has_kd() -> None:
    assert names("all") == ["vanilla", "kd", "one", "picky"]
    assert names("all,all+kd") == ["vanilla", "kd", "one", "picky", "one+kd", "picky+kd"]


def test_groups() -> None:
    assert names("modern,modern@published") == ["vanilla", "new", "new@published", "new(form=other)@published"]
    every = ["vanilla", "kd", "one", "picky", "extra", "new", "selfish"]
    assert sorted(names("every")) == sorted(every)


def test_published_settings_belong_to_a_pair() -> None:
    method, other = parse("new@published,new(form=other)@published", CATALOG)[1:]
    small, big, unknown = Pair(("big",), "small"), Pair(("big",), "big"), Pair(("small",), "big")
    there = method.on(small)
    assert there is not None
    assert (there.expression, there.settings["beta"], there.stream) == ("new@published", 2.0, "new(beta=2)")
    default = method.on(big)
    assert default is not None
    assert default.stream == "new"  # the random streams of the method alone: equal settings, equal weights
    assert method.on(unknown) is None
    changed = other.on(small)
    assert changed is not None
    assert changed.settings["beta"] == 6.0
    assert other.on(big) is None
    (plain,) = parse("new", CATALOG)[1:]
    assert plain.on(unknown) is plain


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one@published", ["one has no published settings for single pairs", "these have: new"]),
        ("new(beta=3)@published", ["new@published sets beta for each pair"]),
        ("controls+kd", ["'controls+kd' stands for no method"]),
        ("modern+kd", ["'modern+kd' stands for no method"]),
        ("all@published", ["'all@published' stands for no method"]),
        ("new@tuned", ["expected 'published', found 'tuned'"]),
        ("every(alpha=1)", ["'every' takes no settings"]),
        ("oen", ["unknown method 'oen'", "did you mean 'one'?", "list methods"]),
        ("half", ["cannot be used", "kdbench.methods.half", "SyntaxError"]),
        ("one(alfa=1)", ["unknown setting of one 'alfa'", "did you mean 'alpha'?"]),
        ("one(k=1.5)", ["k must be a whole number", "'1.5'"]),
        ("one(deep=maybe)", ["deep must be true or false"]),
        ("one(alpha=x)", ["alpha must be a number"]),
        ("one(alpha=-1)", ["alpha must not be negative"]),
        ("one(k=1,k=2)", ["given twice", "character 9"]),
        ("one(k=1", ["expected ','", "the end", "character 8"]),
        ("one(k)", ["expected '='", "character 6"]),
        ("kd,,one", ["a method's name", "character 4"]),
        ("", ["a method's name", "character 1"]),
        ("one)", ["expected ','", "character 4"]),
        ("one+crd", ["expected 'kd'", "character 5"]),
        ("one;kd", ["an unexpected character", "character 4"]),
        ("kd+kd", ["kd_weight to 1", "0.9 already"]),
        ("one(kd_weight=2)+kd", ["kd_weight to 1", "2.0 already"]),
        ("one+kd(k=1)", ["settings stand before +kd", "character 7"]),
        ("all(k=1)", ["takes no settings"]),
    ],
)
def test_bad_expressions_say_what_and_where(text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(text, CATALOG)
    for word in words:
        assert word in str(caught.value)


@given(st.text(alphabet="onekdalph(),=+.0123456789 -_e\n", max_size=30))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        found = parse(text, CATALOG)
    except UserError:
        pass  # any other exception fails this test
    else:
        assert parse(",".join(method.expression for method in found), CATALOG) == found
