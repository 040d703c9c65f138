"""Settings: TOML into frozen values, or one sentence that says which key is wrong and what would do."""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from auditor.config.settings import (
    Account,
    Budget,
    FleetSource,
    NotifySettings,
    Patterns,
    PolicySettings,
    Quotas,
    ReportSettings,
    SecretSource,
    Settings,
    SharedBudget,
)
from auditor.config.validation import (
    SOURCES,
    check_accounts,
    check_following,
    check_source,
    check_which_devices,
    place_of,
)
from auditor.errors import SettingsError

__all__ = [
    "Account",
    "FleetSource",
    "NotifySettings",
    "PolicySettings",
    "ReportSettings",
    "SecretSource",
    "Settings",
    "SharedBudget",
    "load_settings",
    "settings_from",
]


T = TypeVar("T", bound=msgspec.Struct)


def load_settings(path: str | os.PathLike[str]) -> Settings:
    """The settings in a TOML file. Paths in it are relative to the file's own folder.

    Raises:
        SettingsError: the file, the key and what is wrong with it, in one sentence.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # tomllib's own, not UTF-8, a number or a nesting without end
        raise SettingsError(f"{path}: is not TOML: {error}") from error
    return settings_from(table, where=str(path), folder=path.parent)


def settings_from(table: Mapping[str, Any], *, where: str = "settings", folder: Path = Path()) -> Settings:
    """Settings from a table such as ``tomllib`` gives.

    Args:
        table: the keys and values.
        where: named in errors.
        folder: what relative paths are relative to.

    Raises:
        SettingsError: the key and what is wrong with it.
    """
    accounts = table.get("account")
    if not isinstance(accounts, list | tuple) or not accounts:
        raise SettingsError(f"{where}: has no [[account]]; add one with name, endpoint and keys")
    read = tuple(_account(raw, f"{where}: {place_of(raw, number)}", folder) for number, raw in enumerate(accounts, 1))
    settings = _convert({**table, "account": ()}, Settings, where)
    settings = msgspec.structs.replace(
        settings,
        account=read,
        directory=str(folder / settings.directory),
        since=settings.since if settings.since in {None, "last", "none", ""} else str(folder / str(settings.since)),
        budget=_budget(settings.budget, folder),
        policy=_policy(settings.policy, folder),
        report=_report(settings.report, folder),
        notify=_notify(settings.notify, folder),
    )
    _check(settings, where)
    return settings


def _account(raw: object, where: str, folder: Path) -> Account:
    if isinstance(raw, Mapping) and isinstance(raw.get("access_key_secret"), str):
        raise SettingsError(
            f"{where}: access_key_secret is written out; keep it out of the file: access_key_secret = {SOURCES}"
        )
    account = _convert(raw, Account, where)
    if account.access_key_id == "":
        raise SettingsError(f"{where}: access_key_id: is empty")
    sources = {key: getattr(account, key) for key in ("access_key_id", "access_key_secret", "proxy")}
    sources = {key: source for key, source in sources.items() if isinstance(source, SecretSource)}
    for key, source in sources.items():
        check_source(source, f"{where}: {key}")
    fleet = account.fleet
    if fleet is not None and fleet.file not in {None, "-"}:
        fleet = msgspec.structs.replace(fleet, file=str(folder / str(fleet.file)))
    return msgspec.structs.replace(
        account,
        **{key: _located(source, folder) for key, source in sources.items()},
        ca_file=None if account.ca_file is None else str(folder / account.ca_file),
        fleet=fleet,
    )


def _budget(budget: Budget, folder: Path) -> Budget:
    """The budget with paths that are relative to the settings' folder found."""
    if isinstance(budget, str):
        return budget
    return msgspec.structs.replace(
        budget,
        directory=None if budget.directory is None else str(folder / budget.directory),
        password=None if budget.password is None else _located(budget.password, folder),
    )


def _policy(policy: PolicySettings | None, folder: Path) -> PolicySettings | None:
    return PolicySettings(file=str(folder / policy.file)) if policy is not None and policy.file else policy


def _report(report: ReportSettings, folder: Path) -> ReportSettings:
    paths = ((key, getattr(report, key)) for key in ("html", "excel", "metrics"))
    located = {key: str(folder / path) for key, path in paths if isinstance(path, str) and path}
    return msgspec.structs.replace(report, **located)


def _notify(notify: NotifySettings | None, folder: Path) -> NotifySettings | None:
    if notify is None:
        return None
    sources = ((key, getattr(notify, key)) for key in ("webhook", "secret"))
    located = {key: _located(source, folder) for key, source in sources if isinstance(source, SecretSource)}
    return msgspec.structs.replace(notify, **located)


def _located(source: SecretSource, folder: Path) -> SecretSource:
    """The place of a secret, its path found: a file's, or that of a command whose program is named by one."""
    if source.file is not None:
        return msgspec.structs.replace(source, file=str(folder / source.file))
    if source.command is not None and "/" in source.command[0]:
        # Absolute, for "./key" in a folder "." would become "key", which is looked for elsewhere.
        program = str((folder / source.command[0]).absolute())
        return msgspec.structs.replace(source, command=(program, *source.command[1:]))
    return source


def _convert(raw: object, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{where}: {_sentence(str(error), kind)}") from None


_KEY_LENGTH = 80
"""Characters of an unknown key that are told at most."""


_NAMES = 'names in a list, in which * and ? stand for others, such as ["lamp-*"]'


_PATTERNS = '{ product_key = ["k1*"], device_name = ["lamp-*"], status = ["ONLINE"] }, of which none is needed'


_WANTED = {
    "dialect": 'give "tuya" or "alibaba"',
    "per_second": 'give calls a second, "unlimited", or "auto"',
    "budget": 'give "machine", "alone", { directory = "/run/auditor" } or { redis = "redis://HOST:6379/0" }',
    "budget.password": f"give {SOURCES}",
    "fleet": 'give { file = "fleet.csv" }, where "-" is standard input, or { products = "all" }',
    "fleet.products": 'give "all", or product keys such as ["k1h9drZble"]',
    "fleet.include": f"give {_PATTERNS}",
    "fleet.exclude": f"give {_PATTERNS}",
    "fleet.include.product_key": f"give {_NAMES}",
    "fleet.include.device_name": f"give {_NAMES}",
    "fleet.exclude.product_key": f"give {_NAMES}",
    "fleet.exclude.device_name": f"give {_NAMES}",
    "fleet.ask_never_activated": "give true or false",
    "expected_modules": "give true or false",
    "quotas": "give calls a second by operation, such as { QueryDevice = 50 }",
    "fleet.include.status": "give ONLINE, OFFLINE, UNACTIVE or DISABLE",
    "fleet.exclude.status": "give ONLINE, OFFLINE, UNACTIVE or DISABLE",
    "access_key_secret": f"give {SOURCES}",
    "proxy": f'give "http://HOST:PORT", "environment", or where an address with a password lies: {SOURCES}',
    "policy": 'give { file = "rules.toml" }',
    "report.html": 'give true, or a path such as "fleet.html"',
    "report.excel": 'give true, or a path such as "fleet.xlsx"',
    "report.metrics": 'give a path such as "/var/lib/node_exporter/textfile/auditor.prom"',
    "notify.webhook": f'give "https://HOST/PATH", {SOURCES}',
    "notify.secret": f"keep it out of the file: give {SOURCES}",
    "notify.when": 'give "always" or "trouble"',
    "since": 'give "last", a run folder, or "none"',
    "since_rule": 'give "strict" or "reconnected"',
    "precision_of": 'give "fleet", "module" or "product"',
    "max_age": 'give a length of time such as "30d"',
    "recheck": 'give a part such as "1%"',
    "guaranteed": 'give a part such as "90%"',
    "precision": 'give a part such as "1%"',
    "max_failed": 'give a number of devices, or a part of them such as "0.1%"',
}


_TABLES: dict[str, type[msgspec.Struct]] = {
    "fleet": FleetSource,
    "fleet.include": Patterns,
    "fleet.exclude": Patterns,
    "quotas": Quotas,
    "budget": SharedBudget,
    "policy": PolicySettings,
    "report": ReportSettings,
    "notify": NotifySettings,
}
"""The tables in which a key may be unknown; every other one says where a secret lies."""


def _sentence(text: str, kind: type[Any]) -> str:
    """Msgspec's text with the path first, and for an unknown key the nearest known name."""
    message, _, path = text.partition(" - at `$.")
    at = f"{path.rstrip('`')}: " if path else ""
    if re.search(r"\.command(\[|`)", path):
        return f'{at}give the words of a command, such as ["pass", "show", "iot/eu"]'
    if (unknown := re.search(r"unknown field `(.*)`", message)) is None:
        return at + _WANTED.get(re.sub(r"\[\d+\]|`", "", path), message[0].lower() + message[1:])
    if path:
        kind = _TABLES.get(path.rstrip("`"), SecretSource)
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    key = unknown[1] if len(unknown[1]) <= _KEY_LENGTH else f"{unknown[1][:_KEY_LENGTH]}…"
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return f"{at}{key} is not a setting; {hint}"


def _check(settings: Settings, where: str) -> None:
    """Rules that types cannot say.

    Raises:
        SettingsError: the first that is broken.
    """
    for key, low, high in (("at_once", 1, 10_000), ("page_size", 1, 200), ("attempts", 1, 100)):
        if not low <= getattr(settings, key) <= high:
            raise SettingsError(f"{where}: {key}: give a whole number from {low} to {high:,}")
    for key in ("timeout", "connect_timeout", "give_up_after"):
        if not 0 < getattr(settings, key) <= 86_400:
            raise SettingsError(f"{where}: {key}: give a number of seconds above 0, and 86,400 at most")
    if not 0 <= settings.fsync_every <= 3_600:
        raise SettingsError(f"{where}: fsync_every: give a number of seconds from 0 (every answer) to 3,600")
    if not 0.001 <= settings.retry_budget <= 1:
        raise SettingsError(f"{where}: retry_budget: give a part from 0.001 to 1, such as 0.1")
    _check_budget(settings.budget, where)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", settings.name):
        raise SettingsError(f"{where}: name: use letters, digits, '.', '-' and '_', 64 at most; it names a folder")
    _check_max_failed(settings.max_failed, where)
    check_accounts(settings, where)
    check_which_devices(settings, where)
    if settings.calls is not None and settings.calls < len(settings.account):
        raise SettingsError(f"{where}: calls: give at least one for each of the {len(settings.account)} accounts")
    check_following(settings, where)


def _check_max_failed(allowed: int | str, where: str) -> None:
    if isinstance(allowed, int):
        good = allowed >= 0
    else:
        good = re.fullmatch(r"\d+(\.\d+)?%", allowed) is not None and float(allowed[:-1]) <= 100
    if not good:
        raise SettingsError(f"{where}: max_failed: {_WANTED['max_failed']}")


def _check_budget(budget: Budget, where: str) -> None:
    if isinstance(budget, str):
        return
    if (budget.directory is None) == (budget.redis is None):
        raise SettingsError(f"{where}: budget: give one of directory and redis")
    if budget.directory is not None and not Path(budget.directory).is_dir():
        raise SettingsError(
            f"{where}: budget: {budget.directory} is not a directory; make one that its users can write"
        )
    if budget.password is not None:
        if budget.redis is None:
            raise SettingsError(f"{where}: budget: password: is that of redis; leave it out")
        check_source(budget.password, f"{where}: budget: password")
    if budget.redis is not None:
        _check_redis(budget.redis, f"{where}: budget: redis")


def _check_redis(address: str, at: str) -> None:
    # Never quoted: it may hold a password.
    if "@" in address:
        raise SettingsError(f"{at}: leave the password out of the address: password = {SOURCES}")
    try:
        parts = urlsplit(address)
        good = bool(parts.hostname) and parts.port != 0
    except ValueError:  # as in an endpoint
        good = False
    if not good or not re.fullmatch(r"rediss?://[!-.0->A-~]+(/\d+)?", address):
        raise SettingsError(f"{at}: is not an address such as redis://HOST:6379/0")
