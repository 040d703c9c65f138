"""Load settings from TOML into immutable values, or refuse them: a sentence for each fault, which names the key."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from auditor.config.hook_validation import validate_hooks, validate_metrics, validate_publish
from auditor.config.resolution import resolve_account, resolve_settings
from auditor.config.settings import (
    Account,
    QuotaSharing,
    SecretSource,
    Settings,
    split_url,
)
from auditor.config.settings_tables import EXPECTED, PLACEHOLDERS, account_placeholders, struct_at
from auditor.config.toml_tables import FaultList, TableWords, convert_table, faults_of, raises_faults, read_toml
from auditor.config.validation import (
    SOURCE_FORMS,
    account_label,
    check_credentials,
    check_duration,
    check_reading,
    check_secret_source,
    validate_accounts,
    validate_cluster,
    validate_rollouts,
    validate_selection,
)
from auditor.errors import SettingsError
from auditor.text.time_zones import parse_time_zone

T = TypeVar("T", bound=msgspec.Struct)


def load_settings(path: str | os.PathLike[str]) -> Settings:
    """Load the settings in a TOML file. Paths in it are relative to the file's folder; ``~/`` is the home directory.

    Raises:
        SettingsError: the settings cannot be used. The text names the file, the key and what to do, for every fault.
    """
    path = Path(path)
    return parse_settings(read_toml(path), where=str(path), folder=path.parent)


def parse_settings(table: Mapping[str, Any], *, where: str = "settings", folder: Path = Path()) -> Settings:
    """Return the settings in a table, such as ``tomllib`` returns it.

    Args:
        table: keys and values.
        where: name of the source, for errors.
        folder: folder that relative paths are relative to.

    Raises:
        SettingsError: the settings cannot be used. The text names the key and what to do, for every fault.
    """
    faults = FaultList()
    if nul := list(_nul_faults(table, where)):
        raise SettingsError(*nul)
    accounts = table.get("account")
    if not isinstance(accounts, list | tuple) or not accounts:
        faults.sentences.append(f"{where}: has no [[account]]; add one with name, endpoint and keys")
        accounts = ()
    parsed = tuple(_parse_account(raw, number, where, folder, faults) for number, raw in enumerate(accounts, 1))
    table = _without_renamed(table, RENAMED_KEYS, where, faults)
    table = _without_renamed_values(table, where, faults)
    settings = _convert({**table, "account": ()}, Settings, where, faults, PLACEHOLDERS)
    settings = msgspec.structs.replace(resolve_settings(settings, folder), account=parsed)
    faults.sentences += faults_of(_validate, settings, where)
    faults.refuse()
    return settings


RENAMED_KEYS = {
    "at_once": "concurrency",
    "attempts": "max_attempts",
    "fsync_every": "fsync_interval",
    "budget": "quota_sharing",
    "since_rule": "change_detection",
    "calls": "max_calls",
    "guaranteed": "fair_share",
    "sample": "sample_size",
}

RENAMED_ACCOUNT_KEYS = {
    "per_second": "calls_per_second",
    "share": "quota_share",
    "expected_modules": "fetch_product_modules",
}

RENAMED_FLEET_KEYS = {"ask_never_activated": "query_never_activated"}


def _nul_faults(table: object, where: str) -> Iterator[str]:
    """Yield a sentence for every text with the character NUL: no path, name or header can have it."""
    left = [(where, table)]
    while left:
        at, value = left.pop()
        if isinstance(value, str) and "\0" in value:
            yield f"{at}: has the character NUL; remove it"
        if isinstance(value, Mapping):
            left.extend((f"{at}: {key}", each) for key, each in value.items())
        elif isinstance(value, list | tuple):
            left.extend((at, each) for each in value)


def _without_renamed(
    table: Mapping[str, Any], renamed: Mapping[str, str], where: str, faults: FaultList
) -> Mapping[str, Any]:
    """Return a table without the keys of settings that were written before 0.1.0; their new names are faults."""
    faults.sentences += [f"{where}: {key}: this key is now called {renamed[key]}" for key in table if key in renamed]
    return {key: value for key, value in table.items() if key not in renamed}


def _without_renamed_values(table: Mapping[str, Any], where: str, faults: FaultList) -> Mapping[str, Any]:
    kept = dict(table)
    if table.get("quota_sharing") == "alone":
        faults.sentences.append(f'{where}: quota_sharing: the value "alone" is now called "none"')
        del kept["quota_sharing"]
    if isinstance(table.get("notify"), Mapping):
        faults.sentences.append(f"{where}: notify: this table is now called [[notify]]; {EXPECTED['notify']}")
        del kept["notify"]
    return kept


def _parse_account(raw: object, number: int, where: str, folder: Path, faults: FaultList) -> Account:
    """Return an account; values that cannot be used are faults, and are replaced by others."""
    at = f"{where}: {account_label(raw, number)}"
    placeholders = account_placeholders(raw, number)
    if isinstance(raw, Mapping):
        raw = _without_renamed(raw, RENAMED_ACCOUNT_KEYS, at, faults)
        if isinstance(fleet := raw.get("fleet"), Mapping):
            raw = {**raw, "fleet": _without_renamed(fleet, RENAMED_FLEET_KEYS, f"{at}: fleet", faults)}
        if isinstance(raw.get("access_key_secret"), str):
            advice = f"keep the secret out of the settings: access_key_secret = {SOURCE_FORMS}"
            faults.sentences.append(f"{at}: access_key_secret: {advice}")
            raw = {**raw, "access_key_secret": placeholders["access_key_secret"]}
    account = _convert(raw, Account, at, faults, placeholders)
    faults.sentences += faults_of(_check_keys, account, at)
    for key in ("access_key_id", "access_key_secret", "proxy"):
        if isinstance(source := getattr(account, key), SecretSource):
            faults.sentences += faults_of(check_secret_source, source, f"{at}: {key}")
    return resolve_account(account, folder)


@raises_faults
def _check_keys(account: Account, where: str) -> Iterator[str]:
    """Raise SettingsError unless an account has an access key, or credentials that lead to one."""
    keys = ("access_key_id", "access_key_secret")
    if account.credentials is not None:
        for key in keys:
            if getattr(account, key) is not None:
                yield f"{where}: {key}: credentials already lead to a key; leave out one of both"
        yield from faults_of(check_credentials, account.credentials, f"{where}: credentials")
        return
    yield from (f"{where}: has no {key}" for key in keys if getattr(account, key) is None)
    if account.access_key_id == "":
        yield f"{where}: access_key_id: is empty"


def _convert(raw: object, struct: type[T], where: str, faults: FaultList, placeholders: Mapping[str, object]) -> T:
    words = TableWords(lambda path: struct_at(path) if path else struct, lambda _: "a setting", EXPECTED)
    table, sentences = convert_table(raw, struct, where, words, placeholders)
    faults.sentences += sentences
    return table


@raises_faults
def _validate(settings: Settings, where: str) -> Iterator[str]:
    """Check the rules that types cannot express."""
    for key, low, high in (("concurrency", 1, 10_000), ("page_size", 1, 200), ("max_attempts", 1, 100)):
        if not low <= getattr(settings, key) <= high:
            yield f"{where}: {key}: give a whole number from {low} to {high:,}"
    for key in ("timeout", "connect_timeout", "give_up_after"):
        if not 0 < getattr(settings, key) <= 86_400:
            yield f"{where}: {key}: give a number of seconds above 0, at most 86,400"
    if not 0 <= settings.fsync_interval <= 3_600:
        yield f"{where}: fsync_interval: give a number of seconds from 0 (every result) to 3,600"
    if not 0.001 <= settings.retry_budget <= 1:
        yield f"{where}: retry_budget: give a fraction from 0.001 to 1, such as 0.1"
    yield from _sharing_faults(settings.quota_sharing, where)
    yield from faults_of(_check_time_zone, settings.time_zone, where)
    yield from faults_of(check_duration, settings.max_job_age, f"{where}: max_job_age")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", settings.name):
        yield f"{where}: name: use up to 64 letters, digits, '.', '-' and '_'; it is part of a folder's name"
    yield from _max_failed_faults(settings.max_failed, where)
    yield from faults_of(validate_accounts, settings, where)
    yield from faults_of(validate_selection, settings, where)
    yield from faults_of(check_reading, settings, f"{where}: ")
    if settings.max_calls is not None and settings.max_calls < len(settings.account):
        yield f"{where}: max_calls: give at least one for each of the {len(settings.account)} accounts"
    yield from faults_of(validate_rollouts, settings.rollouts, where)
    yield from faults_of(validate_hooks, settings, where)
    yield from faults_of(validate_metrics, settings.metrics, f"{where}: metrics")
    yield from faults_of(validate_publish, settings, where)
    yield from faults_of(validate_cluster, settings, where)


def _max_failed_faults(max_failed: int | str, where: str) -> Iterator[str]:
    if isinstance(max_failed, int):
        valid = max_failed >= 0
    else:
        valid = re.fullmatch(r"\d+(\.\d+)?%", max_failed) is not None and float(max_failed[:-1]) <= 100
    if not valid:
        yield f"{where}: max_failed: {EXPECTED['max_failed']}"


def _check_time_zone(name: str | None, where: str) -> None:
    try:
        if name is not None:
            parse_time_zone(name)
    except ValueError as error:
        raise SettingsError(f"{where}: time_zone: {error}") from None


def _sharing_faults(sharing: QuotaSharing, where: str) -> Iterator[str]:
    if isinstance(sharing, str):
        return
    at = f"{where}: quota_sharing"
    if (sharing.directory is None) == (sharing.redis is None):
        yield f"{at}: give one of directory and redis"
    if sharing.directory is not None and not Path(sharing.directory).is_dir():
        yield f"{at}: {sharing.directory} is not a directory; create one that its users can write to"
    for key in ("username", "password", "ca_file"):
        if sharing.redis is None and getattr(sharing, key) is not None:
            yield f"{at}: {key}: only redis has one; leave it out"
    if sharing.password is not None:
        yield from faults_of(check_secret_source, sharing.password, f"{at}: password")
    if sharing.redis is not None:
        yield from _redis_faults(sharing.redis, f"{at}: redis")
        if sharing.username is not None and sharing.password is None:
            yield f"{at}: username: needs a password: password = {SOURCE_FORMS}"
        if sharing.ca_file is not None and not sharing.redis.startswith("rediss://"):
            yield f"{at}: ca_file: is for TLS only; start the address with rediss://, or leave it out"


def _redis_faults(url: str, at: str) -> Iterator[str]:
    # The address is never quoted: it may contain a password.
    if "@" in url:
        yield f"{at}: leave the password out of the address: password = {SOURCE_FORMS}"
    elif split_url(url) is None or not re.fullmatch(r"rediss?://[!-.0->A-~]+(/\d+)?", url):
        yield f"{at}: is not an address such as rediss://HOST:6379/0"
