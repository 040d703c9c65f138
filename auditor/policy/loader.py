"""Rules of a policy: TOML into values, or a sentence for each fault, which says which rule and which key is wrong."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec

from auditor.config.toml_tables import FaultList, TableWords, convert_table, faults_of, read_toml
from auditor.errors import SettingsError
from auditor.policy.model import (
    Condition,
    Deny,
    Exact,
    MaxAge,
    MaxVersions,
    Minimum,
    Newest,
    Policy,
    Released,
    Required,
    Rule,
    RuleException,
    Severity,
)
from auditor.query.versions import can_be_ordered
from auditor.text.durations import parse_duration
from auditor.text.globs import MATCH_ALL

MAX_LIST_ENTRIES, MAX_LIST_LENGTH = 1_000, 10_000
"""Entries of a list, and characters of all entries together: they become regular expressions, in bounded memory."""

MAX_NAME = 100
"""Characters in a rule's name."""

_SHARE = re.compile(r"(?:>=\s*)?(\d{1,3}(?:\.\d{1,6})?)\s*%", re.ASCII)


class RuleTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A policy rule: a scope and one condition.

    Attributes:
        name: name of the rule.
        severity: severity of a violation.
        account, product, module: patterns of what the rule covers.
        where: patterns on attributes of the devices that the rule covers, by name.
        minimum: lowest version allowed.
        exact: the only versions allowed.
        deny: versions that are not allowed.
        required: whether every device must report the module.
        max_versions: maximum number of versions of a product's module.
        newest: share of devices that must run the newest version, such as ``>= 95%``.
        released: share of devices that must run the version that was released last, or a newer one.
        released_within: age of a release from which ``released`` requires it, such as ``14d``; default: immediately.
        max_age: maximum age of an answer, such as ``7d``.
        exception: exceptions from the rule.
    """

    name: str
    severity: Severity = "error"
    account: str | tuple[str, ...] = MATCH_ALL
    product: str | tuple[str, ...] = MATCH_ALL
    module: str | tuple[str, ...] = MATCH_ALL
    where: dict[str, str | tuple[str, ...]] = {}
    minimum: str | None = None
    exact: str | tuple[str, ...] | None = None
    deny: str | tuple[str, ...] | None = None
    required: bool | None = None
    max_versions: int | None = None
    newest: str | None = None
    released: str | None = None
    released_within: str | None = None
    max_age: str | None = None
    exception: tuple[RuleException, ...] = ()


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """Load the rules in a TOML file; raise SettingsError if it is invalid."""
    path = Path(path)
    return Policy(parse_policy(read_toml(path), str(path)), str(path))


def parse_policy(table: Mapping[str, Any], where: str) -> tuple[Rule, ...]:
    """Return the rules in a parsed TOML table; a SettingsError names the file ``where``, rules, keys and all faults."""
    faults = FaultList()
    faults.sentences += [
        f"{where}: {key!r} is not a key of a rules file; each rule is a table [[rule]]"
        for key in table
        if key != "rule"
    ]
    tables = table.get("rule")
    if not isinstance(tables, list) or not tables:
        faults.sentences.append(f"{where}: has no [[rule]]; add one with a name and a condition, such as minimum")
        tables = []
    rules: list[Rule] = []
    names: set[str] = set()
    for number, raw in enumerate(tables, 1):
        at = f"{where}: {_title(raw, number)}"
        name = raw.get("name") if isinstance(raw, Mapping) else None
        if isinstance(name, str):
            if name in names:
                faults.sentences.append(f"{at}: name: another rule has this name; names must be unique")
            names.add(name)
        with faults.collect():
            rules.append(_parse_rule(raw, at))
    faults.refuse()
    return tuple(rules)


def _title(raw: object, number: int) -> str:
    name = raw.get("name") if isinstance(raw, Mapping) else None
    return f'rule {number} ("{name[:MAX_NAME]}")' if isinstance(name, str) and name.isprintable() else f"rule {number}"


_WORDS = TableWords(
    lambda path: RuleException if path == "exception" else RuleTable,
    lambda path: "a key of an exception" if path == "exception" else "a key of a rule",
)


_PLACEHOLDERS: dict[str, object] = {
    "": {"name": "placeholder", "required": True},
    "minimum": "1",
    "exact": "placeholder",
    "deny": "placeholder",
    "required": True,
    "max_versions": 1,
    "newest": "100%",
    "released": "100%",
    "max_age": "1d",
    "exception[]": {"until": date.max, "reason": "placeholder", "device": "placeholder"},
    "exception.until": date.max,
    "exception.device": "placeholder",
    "exception.product": "placeholder",
    "exception.module": "placeholder",
    "exception.version": "placeholder",
}
"""Values that no check refuses, in place of values of a wrong type: so the other keys of the rule are checked, too."""


def _parse_rule(raw: object, at: str) -> Rule:
    """Return a rule; raise SettingsError with all its faults."""
    faults = FaultList()
    table, faults.sentences = convert_table(raw, RuleTable, at, _WORDS, _PLACEHOLDERS)
    if not table.name.strip() or not table.name.isprintable() or len(table.name) > MAX_NAME:
        faults.sentences.append(f"{at}: name: give 1 to {MAX_NAME} printable characters")
    texts = {}
    for key in ("account", "product", "module"):
        with faults.collect():
            texts[key] = _texts(getattr(table, key), f"{at}: {key}")
    where = []
    for name, value in sorted(table.where.items()):
        with faults.collect():
            where.append((name, _texts(value, f"{at}: where: {name}")))
    condition = _parse_condition(table, at, faults)
    if isinstance(condition, MaxAge) and texts.get("module", (MATCH_ALL,)) != (MATCH_ALL,):
        faults.sentences.append(f"{at}: module: max_age applies to whole devices; leave module out")
    for number, exception in enumerate(table.exception, 1):
        faults.sentences += _exception_faults(exception, condition, f"{at}: exception {number}")
    faults.refuse()
    assert condition is not None  # noqa: S101  without one there is a fault
    return Rule(
        table.name,
        table.severity,
        condition,
        texts["account"],
        texts["product"],
        texts["module"],
        table.exception,
        tuple(where),
    )


def _parse_condition(table: RuleTable, at: str, faults: FaultList) -> Condition | None:
    """Return the condition of a rule, or None with its faults added."""
    names = [name for name in CONDITIONS if getattr(table, name) is not None]
    if len(names) != 1:
        found = f"has {' and '.join(names)}" if names else "has no condition"
        faults.sentences.append(f"{at}: {found}; give exactly one of {', '.join(CONDITIONS)}")
    condition: Condition | None = None
    for name in names:
        with faults.collect():
            condition = CONDITIONS[name](getattr(table, name), f"{at}: {name}")
    if table.released_within is not None:
        with faults.collect():
            condition = _add_grace(
                condition, table.released_within, f"{at}: released_within", allowed="released" in names
            )
    return condition if len(names) == 1 else None


def _parse_minimum(version: str, at: str) -> Minimum:
    if not can_be_ordered(version):
        raise SettingsError(f"{at}: {version!r} has no order; give a version such as 1.2.0")
    return Minimum(version)


def _parse_required(value: bool, at: str) -> Required:  # noqa: FBT001  a value of the file
    if not value:
        raise SettingsError(f"{at}: give true, or leave the rule out")
    return Required()


def _parse_max_versions(number: int, at: str) -> MaxVersions:
    if not 1 <= number <= 1_000_000:  # noqa: PLR2004  a limit of settings
        raise SettingsError(f"{at}: give a whole number from 1 up")
    return MaxVersions(number)


def _parse_share(text: str, at: str) -> tuple[Fraction, str]:
    match = _SHARE.fullmatch(text.strip())
    share = Fraction(match[1]) / 100 if match else Fraction(0)
    if match is None or not 0 < share <= 1:
        raise SettingsError(f'{at}: {text!r} is not a share; give one such as "95%"')
    return share, f"{match[1]}%"


def _add_grace(condition: Condition | None, text: str, at: str, *, allowed: bool) -> Condition | None:
    """Return the condition for releases of an age; ``allowed``: the rule has the key released."""
    if not allowed:
        raise SettingsError(f'{at}: is for rules with released; add released = "95%", or leave it out')
    age = _parse_max_age(text, at)
    if not isinstance(condition, Released):
        return condition
    return Released(condition.share, condition.text, age.seconds, age.text)


def _parse_max_age(text: str, at: str) -> MaxAge:
    try:
        return MaxAge(parse_duration(text), text.strip())
    except ValueError as error:
        raise SettingsError(f"{at}: {error}") from None


CONDITIONS: dict[str, Callable[[Any, str], Condition]] = {
    "minimum": _parse_minimum,
    "exact": lambda value, at: Exact(_texts(value, at, empty=True)),
    "deny": lambda value, at: Deny(_texts(value, at)),
    "required": _parse_required,
    "max_versions": _parse_max_versions,
    "newest": lambda value, at: Newest(*_parse_share(value, at)),
    "released": lambda value, at: Released(*_parse_share(value, at)),
    "max_age": _parse_max_age,
}
"""The condition of each key, from its value and the place that errors name."""


def _exception_faults(exception: RuleException, condition: Condition | None, at: str) -> Iterator[str]:
    """Yield a sentence for each fault of an exception."""
    if not exception.description:
        yield f"{at}: matches everything; give device, product, module or version"
    for key in ("device", "product", "module", "version"):
        if (pattern := getattr(exception, key)) is not None:
            yield from faults_of(_texts, pattern, f"{at}: {key}")
    if not exception.reason.strip():
        yield f"{at}: reason: is empty; give the reason of the exception"
    if isinstance(condition, Required | MaxAge) and not exception.whole_devices:
        yield f"{at}: the rule applies to whole devices; leave module and version out"


def _texts(value: str | Iterable[str], at: str, *, empty: bool = False) -> tuple[str, ...]:
    """Return one text or a list of texts as a tuple; ``empty``: texts may be empty, as a version may be."""
    texts = (value,) if isinstance(value, str) else tuple(value)
    if not texts or (not empty and not all(texts)):
        raise SettingsError(f'{at}: is empty; give a text such as "ble", or a list of texts')
    if len(texts) > MAX_LIST_ENTRIES or sum(map(len, texts)) > MAX_LIST_LENGTH:
        raise SettingsError(f"{at}: give at most {MAX_LIST_ENTRIES:,} texts, {MAX_LIST_LENGTH:,} characters in total")
    return texts
