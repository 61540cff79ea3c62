"""Method expressions: `icd`, `icd+kd`, `kd(kd_temperature=2)`, `icd(alpha=0.1)+kd`, `dkd@published`.

list       := expression { "," expression }
expression := NAME [ "(" [ setting { "," setting } ] ")" ] [ "@published" ] [ "+" "kd" ]
setting    := NAME "=" VALUE

A group's name (`all`, `modern`, `controls`, `every`) stands for its methods. `GROUP+kd` takes those that match features
or relations or contrast them, `GROUP@published` those whose authors published settings for single pairs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from kdbench.core.catalog import GROUP_NAMES, Catalog, MethodInfo, Published, Setting
from kdbench.core.errors import UserError, unknown_name
from kdbench.core.trial import PUBLISHED, VANILLA, Pair, Value

_TOKEN = re.compile(r"\s*(?:(?P<punct>[(),=+@])|(?P<word>[-\w.]+(?:(?<=\d[eE])\+\d+)?))")
_LIST = "see `python bench.py list methods`"


@dataclass(frozen=True)
class Method:
    """A method with its settings resolved. Two are equal iff they train alike."""

    expression: str  # canonical
    name: str
    settings: Mapping[str, Value]  # all of them
    stream: str = ""  # the expression that names its random streams, if that is another
    by_pair: Mapping[str, Method] | None = field(default=None, compare=False)  # of `@published`: pair -> method there

    def on(self, pair: Pair) -> Method | None:
        """The method with the settings that it has on a pair; None if there are none."""
        return self if self.by_pair is None else self.by_pair.get(str(pair))


@dataclass(frozen=True)
class _Written:
    """An expression as it was written."""

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    published: bool = False
    plus: bool = False


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0
        self.token: str | None = None
        self.next = 0
        self.advance()

    def advance(self) -> None:
        self.place = self.next + len(self.text[self.next :]) - len(self.text[self.next :].lstrip())
        if self.place >= len(self.text):
            self.token, self.next = None, len(self.text)
            return
        match = _TOKEN.match(self.text, self.next)
        if not match:
            raise self.error("an unexpected character")
        self.token, self.next = match.group().strip(), match.end()

    def error(self, problem: str) -> UserError:
        return UserError(f"--methods {self.text!r}: {problem} at character {self.place + 1}; {_LIST}")

    def take(self, wanted: str) -> None:
        if self.token != wanted:
            raise self.error(f"expected {wanted!r}, found {self.found()}")
        self.advance()

    def word(self, what: str) -> str:
        token = self.token
        if token is None or not re.fullmatch(r"[-+\w.]+", token) or token == "+":
            raise self.error(f"expected {what}, found {self.found()}")
        self.advance()
        return token

    def found(self) -> str:
        return "the end" if self.token is None else repr(self.token)

    def expression(self) -> _Written:
        name = self.word("a method's name")
        settings: dict[str, str] = {}
        if self.token == "(":
            self.take("(")
            while self.token != ")":
                place = self.place
                key = self.word("a setting")
                self.take("=")
                if key in settings:
                    self.place = place
                    raise self.error(f"the setting {key!r} is given twice")
                settings[key] = self.word("a value")
                if self.token != ")":
                    self.take(",")
            self.take(")")
        published = self.token == "@"
        if published:
            self.take("@")
            self.take(PUBLISHED[1:])
        plus = self.token == "+"
        if plus:
            self.take("+")
            self.take("kd")
            if self.token == "(":
                raise self.error("settings stand before +kd, as in NAME(SETTING=VALUE)+kd,")
        return _Written(name, settings, published, plus)


def parse(text: str, catalog: Catalog) -> tuple[Method, ...]:
    """The methods that an expression list names, without repetition, `vanilla` first. Raises UserError."""
    parser = _Parser(text)
    methods = [_resolve(_Written(VANILLA), catalog)]
    while True:
        written = parser.expression()
        members = _members(written, catalog) if written.name in GROUP_NAMES else [written]
        methods += [_resolve(member, catalog) for member in members]
        if parser.token is None:
            break
        parser.take(",")
    return tuple({method.expression: method for method in methods}.values())


def _members(written: _Written, catalog: Catalog) -> list[_Written]:
    """The expressions that a group's name stands for."""
    if written.settings:
        raise UserError(f"{written.name!r} takes no settings; {_LIST}")
    infos = [info for info in catalog.methods.values() if info.group in GROUP_NAMES[written.name]]
    if written.plus:
        infos = [info for info in infos if info.kind not in ("logits", "control") and not _has_kd(info)]
    members = [_Written(info.name, plus=written.plus) for info in infos]
    if written.published:  # each of a method's published forms
        forms = [(info, entry.given) for info in infos for entry in info.published]
        members = [
            _Written(info.name, {name: _text(value) for name, value in given.items()}, True, written.plus)
            for info, given in forms
        ]
    if not members:
        whole = written.name + PUBLISHED * written.published + "+kd" * written.plus
        raise UserError(f"{whole!r} stands for no method; {_LIST}")
    return members


def _has_kd(info: MethodInfo) -> bool:
    return any(setting.name == "kd_weight" and setting.default for setting in info.settings)


def _resolve(written: _Written, catalog: Catalog) -> Method:
    name = written.name
    info = catalog.methods.get(name)
    if info is None:
        for module, reason in catalog.broken.items():
            if module.rpartition(".")[2] == name:
                raise UserError(f"the method {name!r} cannot be used: {module} failed to import: {reason}")
        raise unknown_name("method", name, [*catalog.methods, *GROUP_NAMES], _LIST)
    declared = {setting.name: setting for setting in info.settings}
    given: dict[str, Value] = {}
    for key, word in written.settings.items():
        if key not in declared:
            raise unknown_name(f"setting of {name}", key, declared, f"{name} has {', '.join(declared)}")
        given[key] = _value(word, declared[key], name)
    method = _method(info, given, written.plus)
    if not written.published:
        return method
    entry = _published(info, method.settings, catalog)
    if fixed := [key for key in given if any(key in settings for settings in entry.pairs.values())]:
        raise UserError(f"{name}{PUBLISHED} sets {', '.join(fixed)} for each pair: leave out one of the two")
    by_pair = {}
    for pair, settings in entry.pairs.items():
        there = _method(info, {**settings, **given}, written.plus)
        by_pair[pair] = Method(_with_published(method.expression), name, there.settings, there.expression)
    return Method(_with_published(method.expression), name, method.settings, method.expression, by_pair)


def _method(info: MethodInfo, given: Mapping[str, Value], plus: bool) -> Method:
    settings: dict[str, Value] = {setting.name: setting.default for setting in info.settings} | dict(given)
    if plus:
        if _has_kd(info) or "kd_weight" in given:
            already = settings["kd_weight"]
            raise UserError(f"{info.name}: +kd sets kd_weight to 1, but it is {already} already; leave out +kd")
        settings["kd_weight"] = 1.0
    if problem := info.check(settings):
        raise UserError(f"{info.name}: {problem}")
    return Method(_canonical(info, settings), info.name, settings)


def _published(info: MethodInfo, settings: Mapping[str, Value], catalog: Catalog) -> Published:
    """What the authors published for these settings. Raises UserError if that is nothing."""
    entries = [entry for entry in info.published if entry.given.items() <= settings.items()]
    if not entries:
        methods = ", ".join(other.name for other in catalog.methods.values() if other.published)
        which = f"{info.name} with these settings" if info.published else info.name
        raise UserError(f"{which} has no published settings for single pairs; these have: {methods or 'none'}")
    return max(entries, key=lambda entry: len(entry.given))


def _with_published(expression: str) -> str:
    """`dkd+kd` -> `dkd@published+kd`."""
    stem = expression.removesuffix("+kd")
    return f"{stem}{PUBLISHED}{expression[len(stem) :]}"


def _value(word: str, setting: Setting, method: str) -> Value:
    try:
        match setting.kind:
            case "bool":
                return {"true": True, "1": True, "false": False, "0": False}[word.lower()]
            case "int":
                return int(word)
            case "float":
                return float(word) + 0.0  # -0 is 0
            case _:
                return word
    except (KeyError, ValueError):
        kind = {"bool": "true or false", "int": "a whole number", "float": "a number"}[setting.kind]
        raise UserError(f"{method}: {setting.name} must be {kind}, not {word!r}") from None


def _canonical(info: MethodInfo, settings: Mapping[str, Value]) -> str:
    defaults = {setting.name: setting.default for setting in info.settings}
    changed = {name: settings[name] for name in defaults if settings[name] != defaults[name]}
    plus = not defaults["kd_weight"] and changed.get("kd_weight") == 1.0
    if plus:
        del changed["kd_weight"]
    inside = ",".join(f"{name}={_text(value)}" for name, value in changed.items())
    return info.name + (f"({inside})" if inside else "") + ("+kd" if plus else "")


def _text(value: Value) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
