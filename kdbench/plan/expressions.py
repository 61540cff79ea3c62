"""Method expressions: `icd`, `icd+kd`, `kd(kd_temperature=2)`, `icd(alpha=0.1)+kd`.

list       := expression { "," expression }
expression := NAME [ "(" [ setting { "," setting } ] ")" ] [ "+" "kd" ]
setting    := NAME "=" VALUE
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kdbench.core.catalog import Catalog, MethodInfo, Setting
from kdbench.core.errors import UserError, unknown_name
from kdbench.core.trial import VANILLA, Value

_TOKEN = re.compile(r"\s*(?:(?P<punct>[(),=+])|(?P<word>[-\w.]+(?:(?<=\d[eE])\+\d+)?))")
_LIST = "see `python bench.py list methods`"


@dataclass(frozen=True)
class Method:
    """A method with its settings resolved. Two are equal iff they train alike."""

    expression: str  # canonical
    name: str
    settings: Mapping[str, Value]  # all of them


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

    def expression(self) -> tuple[str, dict[str, str], bool]:
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
        plus = self.token == "+"
        if plus:
            self.take("+")
            self.take("kd")
            if self.token == "(":
                raise self.error("settings stand before +kd, as in NAME(SETTING=VALUE)+kd,")
        return name, settings, plus


def parse(text: str, catalog: Catalog) -> tuple[Method, ...]:
    """The methods that an expression list names, without repetition, `vanilla` first. Raises UserError."""
    parser = _Parser(text)
    methods = [_resolve(VANILLA, {}, False, catalog)]
    while True:
        name, settings, plus = parser.expression()
        if name == "all":
            if settings:
                raise UserError(f"'all' takes no settings; {_LIST}")
            core = [info.name for info in catalog.methods.values() if info.group == "paper"]
            methods += [
                _resolve(core_name, {}, plus, catalog)
                for core_name in core
                if not (plus and _has_kd(catalog, core_name))
            ]
        else:
            methods.append(_resolve(name, settings, plus, catalog))
        if parser.token is None:
            break
        parser.take(",")
    return tuple({method.expression: method for method in methods}.values())


def _has_kd(catalog: Catalog, name: str) -> bool:
    return any(setting.name == "kd_weight" and setting.default for setting in catalog.methods[name].settings)


def _resolve(name: str, words: Mapping[str, str], plus: bool, catalog: Catalog) -> Method:
    info = catalog.methods.get(name)
    if info is None:
        for module, reason in catalog.broken.items():
            if module.rpartition(".")[2] == name:
                raise UserError(f"the method {name!r} cannot be used: {module} failed to import: {reason}")
        raise unknown_name("method", name, [*catalog.methods, "all"], _LIST)
    declared = {setting.name: setting for setting in info.settings}
    settings: dict[str, Value] = {setting.name: setting.default for setting in info.settings}
    for key, word in words.items():
        if key not in declared:
            raise unknown_name(f"setting of {name}", key, declared, f"{name} has {', '.join(declared)}")
        settings[key] = _value(word, declared[key], name)
    if plus:
        if _has_kd(catalog, name) or "kd_weight" in words:
            already = settings["kd_weight"]
            raise UserError(f"{name}: +kd sets kd_weight to 1, but it is {already} already; leave out +kd")
        settings["kd_weight"] = 1.0
    if problem := info.check(settings):
        raise UserError(f"{name}: {problem}")
    return Method(_canonical(info, settings), name, settings)


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
