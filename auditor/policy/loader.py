"""Rules of a policy: TOML into values, or one sentence that says which rule and which key is wrong."""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date as Date  # noqa: N812  `date` alone is the name of a parameter
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec

from auditor.errors import SettingsError, UsageError
from auditor.policy.model import (
    Condition,
    Deny,
    Exact,
    MaxAge,
    MaxVersions,
    Minimum,
    Newest,
    Required,
    Rule,
    RuleException,
    Rules,
    Severity,
)
from auditor.query.versions import can_be_ordered
from auditor.text.durations import seconds_of
from auditor.text.globs import EVERYTHING

__all__ = ["CONDITIONS", "Rule", "RuleException", "Rules", "load_rules", "rules_from"]


CONDITIONS = ("minimum", "exact", "deny", "required", "max_versions", "newest", "max_age")


LIST, LENGTH = 1_000, 10_000
"""Entries of a list, and characters of all of them: regular expressions are made of them, in bounded memory."""


NAME = 100
"""Characters of a rule's name."""


_SHARE = re.compile(r"(?:>=\s*)?(\d{1,3}(?:\.\d{1,6})?)\s*%", re.ASCII)


class _ExceptionTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    until: Date
    reason: str
    device: str | None = None
    product: str | None = None
    module: str | None = None
    version: str | None = None


class _RuleTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    severity: Severity = "error"
    account: str | tuple[str, ...] = EVERYTHING
    product: str | tuple[str, ...] = EVERYTHING
    module: str | tuple[str, ...] = EVERYTHING
    minimum: str | None = None
    exact: str | tuple[str, ...] | None = None
    deny: str | tuple[str, ...] | None = None
    required: bool | None = None
    max_versions: int | None = None
    newest: str | None = None
    max_age: str | None = None
    exception: tuple[_ExceptionTable, ...] = ()


def load_rules(path: str | os.PathLike[str]) -> Rules:
    """The rules in a TOML file.

    Raises:
        SettingsError: the file, the rule, the key and what is wrong with it, in one sentence.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # tomllib's own, not UTF-8, a number or a nesting without end
        raise SettingsError(f"{path}: is not TOML: {error}") from error
    return Rules(rules_from(table, str(path)), str(path))


def rules_from(table: Mapping[str, Any], where: str) -> tuple[Rule, ...]:
    """Rules from a table such as ``tomllib`` gives; ``where`` is named in errors.

    Raises:
        SettingsError: the rule, the key and what is wrong with it.
    """
    for key in table:
        if key != "rule":
            raise SettingsError(f"{where}: {key!r} is not a key of a rules file; each rule is a table [[rule]]")
    given = table.get("rule")
    if not isinstance(given, list) or not given:
        raise SettingsError(f"{where}: has no [[rule]]; add one with a name and a condition, such as minimum")
    rules: list[Rule] = []
    for number, raw in enumerate(given, 1):
        at = f"{where}: {_place(raw, number)}"
        rule = _rule(_convert(raw, at), at)
        if any(rule.name == other.name for other in rules):
            raise SettingsError(f"{at}: name: another rule has it; give every rule a name of its own")
        rules.append(rule)
    return tuple(rules)


def _place(raw: object, number: int) -> str:
    name = raw.get("name") if isinstance(raw, Mapping) else None
    return f'rule {number} ("{name[:NAME]}")' if isinstance(name, str) and name.isprintable() else f"rule {number}"


def _convert(raw: object, at: str) -> _RuleTable:
    try:
        return msgspec.convert(raw, _RuleTable)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
    path = re.sub(r"\[(\d+)\]", lambda found: f" {int(found[1]) + 1}", path.rstrip("`")).replace(".", ": ")
    if (unknown := re.search(r"unknown field `(.*)`", message)) is not None:
        kind = _ExceptionTable if path.startswith("exception") else _RuleTable
        known = [field.name for field in msgspec.structs.fields(kind)]
        near = difflib.get_close_matches(unknown[1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        message = f"{unknown[1]!r} is not a key of {'an exception' if kind is _ExceptionTable else 'a rule'}; {hint}"
    elif (missing := re.search(r"missing required field `(.*)`", message)) is not None:
        message = f"has no {missing[1]}"
    else:
        message = message[0].lower() + message[1:]
    raise SettingsError(f"{at}: {path and f'{path}: '}{message}")


def _rule(table: _RuleTable, at: str) -> Rule:
    if not table.name.strip() or not table.name.isprintable() or len(table.name) > NAME:
        raise SettingsError(f"{at}: name: give one of up to {NAME} characters that can be printed")
    given = [name for name in CONDITIONS if getattr(table, name) is not None]
    if len(given) != 1:
        found = f"has {' and '.join(given)}" if given else "has no condition"
        raise SettingsError(f"{at}: {found}; give exactly one of {', '.join(CONDITIONS)}")
    accounts, products, modules = (
        _texts(getattr(table, key), f"{at}: {key}") for key in ("account", "product", "module")
    )
    condition = _condition(table, at)
    if isinstance(condition, MaxAge) and modules != (EVERYTHING,):
        raise SettingsError(f"{at}: module: max_age judges devices, whatever they report; leave module out")
    exceptions = tuple(
        _exception(each, condition, f"{at}: exception {number}") for number, each in enumerate(table.exception, 1)
    )
    return Rule(table.name, table.severity, condition, accounts, products, modules, exceptions)


def _condition(table: _RuleTable, at: str) -> Condition:  # noqa: PLR0911  one for each
    if table.minimum is not None:
        if not can_be_ordered(table.minimum):
            raise SettingsError(f"{at}: minimum: {table.minimum!r} is not a version that others are ordered against")
        return Minimum(table.minimum)
    if table.exact is not None:
        return Exact(_texts(table.exact, f"{at}: exact", empty=True))
    if table.deny is not None:
        return Deny(_texts(table.deny, f"{at}: deny"))
    if table.required is not None:
        if not table.required:
            raise SettingsError(f"{at}: required: give true, or leave the rule out")
        return Required()
    if table.max_versions is not None:
        if not 1 <= table.max_versions <= 1_000_000:  # noqa: PLR2004  a limit of settings
            raise SettingsError(f"{at}: max_versions: give a whole number from 1 up")
        return MaxVersions(table.max_versions)
    if table.newest is not None:
        return _newest(table.newest, f"{at}: newest")
    return _max_age(table.max_age or "", f"{at}: max_age")


def _newest(text: str, at: str) -> Newest:
    found = _SHARE.fullmatch(text.strip())
    share = Fraction(found[1]) / 100 if found else Fraction(0)
    if found is None or not 0 < share <= 1:
        raise SettingsError(f'{at}: {text!r} is no part of the devices; give one such as "95%"')
    return Newest(share, f"{found[1]}%")


def _max_age(text: str, at: str) -> MaxAge:
    try:
        seconds = seconds_of(text)
    except UsageError:
        raise SettingsError(f'{at}: {text!r} is no length of time; give one such as "36h" or "90m"') from None
    return MaxAge(seconds, text.strip())


def _exception(table: _ExceptionTable, condition: Condition, at: str) -> RuleException:
    found = RuleException(**{field: getattr(table, field) for field in table.__struct_fields__})
    if not found.text:
        raise SettingsError(f"{at}: is for everything; give device, product, module or version")
    for key in ("device", "product", "module", "version"):
        if (pattern := getattr(table, key)) is not None:
            _texts(pattern, f"{at}: {key}")
    if not table.reason.strip():
        raise SettingsError(f"{at}: reason: is empty; say why, for those who read it later")
    if isinstance(condition, Required | MaxAge) and not found.whole_devices:
        raise SettingsError(f"{at}: the rule judges devices as a whole; leave module and version out")
    return found


def _texts(given: str | Iterable[str], at: str, *, empty: bool = False) -> tuple[str, ...]:
    """One text or a list of them, as a tuple; ``empty``: texts may be empty, as a version may be."""
    texts = (given,) if isinstance(given, str) else tuple(given)
    if not texts or (not empty and not all(texts)):
        raise SettingsError(f'{at}: is empty; give a text such as "ble", or a list of them')
    if len(texts) > LIST or sum(map(len, texts)) > LENGTH:
        raise SettingsError(f"{at}: give {LIST:,} at most, of {LENGTH:,} characters together")
    return texts
