"""Rules of the settings that types cannot express: accounts, selection, rollouts, and runs on several machines."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import msgspec

from auditor.config.proxy import validate_proxy
from auditor.config.settings import (
    Account,
    CredentialsSettings,
    CredentialsType,
    FleetSource,
    RolloutSettings,
    SecretSource,
    SelectionSettings,
    Settings,
    parse_percentage,
    split_url,
)
from auditor.config.toml_tables import faults_of, raises_faults
from auditor.errors import SettingsError
from auditor.text.durations import parse_duration

MAX_LANES = 100
"""Shards of one account."""

SOURCE_FORMS = '{ env = "NAME" }, { file = "/path" } or { command = ["PROGRAM", …] }'
"""Where a secret may be stored, as errors say it."""


CREDENTIALS_TYPES = ", ".join(f'"{each}"' for each in get_args(CredentialsType))

CREDENTIALS_FORMS = '{ type = "…", … } or { command = ["PROGRAM", …], format = "json" }'
"""What credentials may be, as errors say it."""

MAX_SOURCES = 2
"""Roles that may lead from the first credentials to the key: each is assumed with the key of the one before."""

_SESSION_KEYS = ("role_session_name", "role_session_expiration", "sts_endpoint")

_Keys = tuple[tuple[str, ...], tuple[str, ...]]

_CREDENTIALS_KEYS: Mapping[CredentialsType, _Keys] = {
    "access_key": (("access_key_id", "access_key_secret"), ()),
    "sts": (("access_key_id", "access_key_secret", "security_token"), ()),
    "ram_role_arn": (("role_arn", "source"), (*_SESSION_KEYS, "external_id")),
    "oidc_role_arn": (("role_arn", "oidc_provider_arn", "oidc_token_file"), _SESSION_KEYS),
    "ecs_ram_role": ((), ("role_name",)),
    "credentials_uri": (("credentials_uri",), ()),
    "profile": (("profile",), ()),
    "default": ((), ()),
}
"""Keys that a type of credentials needs, and those that it may have."""

_COMMAND_KEYS: _Keys = (("command", "format"), ())

_FORMAT = 'format = "json"'


def unnamed_account(number: int) -> str:
    """Return how errors call an account without a usable name."""
    return f"account {number}"


def account_label(raw: object, number: int) -> str:
    """Return how errors call an account: by its number, from 1, and its name if that is printable."""
    name, unnamed = raw.get("name") if isinstance(raw, Mapping) else None, unnamed_account(number)
    return f'{unnamed} ("{name}")' if isinstance(name, str) and name.isprintable() and name != unnamed else unnamed


@raises_faults
def validate_accounts(settings: Settings, where: str) -> Iterator[str]:
    """Raise SettingsError for the rules that an account, or all of them together, break."""
    names = [account.name for account in settings.account]
    places = [f"{where}: {account_label({'name': name}, number)}" for number, name in enumerate(names, 1)]
    for at, account in zip(places, settings.account, strict=True):
        if not account.name or not account.name.isprintable():
            yield f"{at}: name: give a name of printable characters"
        elif names.count(account.name) > 1:
            yield f'{where}: two accounts are named "{account.name}"; names must be unique'
        yield from _account_faults(account, at)
    sound = ((at, each) for at, each in zip(places, settings.account, strict=True) if is_http_url(each.endpoint))
    yield from faults_of(
        check_distinct_quotas, ((at, each, each.credentials or each.access_key_id) for at, each in sound)
    )


@raises_faults
def check_distinct_quotas(accounts: Iterable[tuple[str, Account, object]]) -> Iterator[str]:
    """Raise SettingsError if two accounts have the same endpoint and key, for they would use the same quota.

    Args:
        accounts: label for errors, account, and access key id (or where that is stored).
    """
    quotas: dict[tuple[object, ...], tuple[str, str]] = {}
    for at, account, key_id in accounts:
        if account.calls_per_second == "unlimited":
            continue
        first, other = quotas.setdefault((*account.host_and_port, key_id), (at, account.name))
        if first != at:
            yield (
                f'{at}: has the same endpoint and key as account "{other}", so both would use one quota; '
                "merge them into one account with one fleet"
            )


def check_secret_source(source: SecretSource, at: str) -> None:
    """Raise SettingsError if the source of a secret has no place, several, or an empty command."""
    if sum(each is not None for each in (source.env, source.file, source.command)) != 1:
        raise SettingsError(f"{at}: give one of {SOURCE_FORMS}")
    if source.command is not None and not (source.command and source.command[0]):
        raise SettingsError(f"{at}: command: is empty; give a program and its arguments")
    if any("\0" in text for text in (source.env or "", source.file or "", *(source.command or ()))):
        raise SettingsError(f"{at}: has the character NUL; remove it")


@raises_faults
def check_credentials(table: CredentialsSettings, at: str, sources: int = 0) -> Iterator[str]:
    """Raise SettingsError for the rules that credentials break; ``sources`` roles are assumed with them."""
    yield from _credentials_key_faults(table, at)
    if table.command is not None and not (table.command and table.command[0]):
        yield f"{at}: command: is empty; give a program and its arguments"
    for key, value in msgspec.structs.asdict(table).items():
        if isinstance(value, SecretSource):
            yield from faults_of(check_secret_source, value, f"{at}: {key}")
        elif isinstance(value, str) and not (value and value.isprintable()):
            yield f"{at}: {key}: is empty or has control characters; give a text"
    yield from _role_faults(table, at)
    if table.credentials_uri:  # an empty one is reported above
        yield from faults_of(_check_plain_uri, table.credentials_uri, f"{at}: credentials_uri")
    if table.source is not None and sources == MAX_SOURCES:
        yield f"{at}: source: more than {MAX_SOURCES} roles in a row; assume fewer"
    elif table.source is not None:
        yield from faults_of(check_credentials, table.source, f"{at}: source", sources + 1)


def _credentials_key_faults(table: CredentialsSettings, at: str) -> Iterator[str]:
    """Yield a sentence for each key that is not one of the way to an access key, or that it lacks."""
    if (table.type is None) == (table.command is None):
        yield f"{at}: give {CREDENTIALS_FORMS}; the types are {CREDENTIALS_TYPES}"
        return
    label = "a command" if table.type is None else f'type "{table.type}"'
    needed, optional = _COMMAND_KEYS if table.type is None else _CREDENTIALS_KEYS[table.type]
    for key, value in msgspec.structs.asdict(table).items():
        if value is not None and key not in {*needed, *optional, "type"}:
            yield f"{at}: {key}: {label} has no such key; leave it out"
        if value is None and key in needed:
            yield f"{at}: {label} needs {_FORMAT if key == 'format' else key}"


def _role_faults(table: CredentialsSettings, at: str) -> Iterator[str]:
    if table.role_arn and not re.fullmatch(r"acs:ram::\d+:role/\S+", table.role_arn):
        yield f"{at}: role_arn: is not a name such as acs:ram::123456789:role/auditor"
    seconds = table.role_session_expiration
    if seconds is not None and not 900 <= seconds <= 43_200:
        yield f"{at}: role_session_expiration: give whole seconds from 900 to 43,200"
    if table.sts_endpoint and not re.fullmatch(r"[A-Za-z0-9.-]+", table.sts_endpoint):
        yield f"{at}: sts_endpoint: give the name of a host such as sts.cn-shanghai.aliyuncs.com"


def _check_plain_uri(uri: str | SecretSource, at: str) -> None:
    """Raise SettingsError if an address in the settings is none, or contains a password or a query."""
    if isinstance(uri, str):
        check_credentials_uri(uri, at)
        if "@" in uri or "?" in uri:
            raise SettingsError(
                f"{at}: keep passwords out of the settings: store the complete address in "
                '{ env = "NAME" } or { file = "/path" }'
            )


def check_credentials_uri(uri: str, at: str) -> None:
    """Raise SettingsError if this is not the address of a service. It is never quoted: it may contain a password."""
    if not is_http_url(uri):
        raise SettingsError(f"{at}: is not an address such as http://HOST:PORT/PATH")


@raises_faults
def check_endpoint(endpoint: str, at: str) -> Iterator[str]:
    """Raise SettingsError if this is not the address of a platform. It is never quoted: it may contain a password."""
    if not is_http_url(endpoint):
        yield f"{at}: is not an address such as https://HOST:PORT/"
    elif (parts := urlsplit(endpoint)).path not in {"", "/"} or re.search(r"[?#]", endpoint) or "@" in parts.netloc:
        yield f"{at}: leave out everything but https://HOST:PORT/"


def _account_faults(account: Account, at: str) -> Iterator[str]:
    yield from faults_of(check_endpoint, account.endpoint, f"{at}: endpoint")
    yield from _quota_faults(account, at)
    if account.dialect == "alibaba" and not account.region_id:
        yield f'{at}: region_id: the dialect alibaba needs one, such as region_id = "cn-shanghai"'
    if account.fleet is not None:
        yield from _fleet_faults(account.fleet, f"{at}: fleet")
    if account.ca_file is not None and not Path(account.ca_file).is_file():
        yield f"{at}: ca_file: {account.ca_file} is not a file"
    if isinstance(account.proxy, str):
        yield from faults_of(validate_proxy, account.proxy, f"{at}: proxy")


def _quota_faults(account: Account, at: str) -> Iterator[str]:
    if not isinstance(account.calls_per_second, str) and not 0.001 <= account.calls_per_second <= 1_000_000:
        yield f'{at}: calls_per_second: give calls a second from 0.001 to 1,000,000, or "unlimited" or "auto"'
    if not 0 < account.quota_share <= 1:
        yield f"{at}: quota_share: give a fraction above 0 and up to 1"
    elif account.calls_per_second == "auto" and account.quota_share != 1:
        yield f'{at}: quota_share: needs a known quota; leave out quota_share, or calls_per_second = "auto"'
    for operation, quota in msgspec.to_builtins(account.quotas).items():
        if quota is not None and not 0.001 <= quota <= 1_000_000:
            yield f"{at}: quotas: {operation}: give calls a second from 0.001 to 1,000,000"


def _fleet_faults(fleet: FleetSource, at: str) -> Iterator[str]:
    if (fleet.file is None) == (fleet.products is None):
        yield f'{at}: give one of file = "fleet.csv" and products = "all" or ["k1…"]'
    elif fleet.file is not None and fleet != FleetSource(file=fleet.file):
        yield f"{at}: include, exclude and query_never_activated need products, not a file"
    if fleet.products is not None and fleet.products != "all":
        keys = fleet.products
        if not keys or not all(keys) or len(set(keys)) < len(keys):
            yield f'{at}: products: give "all", or product keys, each of them once'
    for key, patterns in (("include", fleet.include), ("exclude", fleet.exclude)):
        if not all((*patterns.product_key, *patterns.device_name)):
            yield f"{at}: {key}: a pattern is empty; leave it out, or give one such as lamp_*"


@raises_faults
def validate_selection(settings: SelectionSettings, where: str) -> Iterator[str]:
    """Raise SettingsError for the rules that the settings of the selection break."""
    for key, low, high in (("max_calls", 1, 10**12), ("sample_size", 1, 10**12), ("seed", 0, 2**63 - 1)):
        value = getattr(settings, key)
        if value is not None and not low <= value <= high:
            yield f"{where}: {key}: give a whole number from {low} up"
    if settings.since == "":
        yield f'{where}: since: is empty; give "last", a run folder, or "none"'
    if settings.max_age is not None:
        yield from faults_of(check_duration, settings.max_age, f"{where}: max_age")
    for key in ("recheck", "max_index_error", "fair_share", "precision"):
        if (text := getattr(settings, key)) is not None and not _is_percentage(text):
            yield f'{where}: {key}: {text!r} is not a percentage from 0% to 100%; give one such as "1%"'
    yield from _sample_faults(settings, where)


@raises_faults
def check_reading(settings: Settings, where: str = "") -> Iterator[str]:
    """Raise SettingsError if a way to read many devices in one call does not fit the other settings."""
    yield from _module_faults(settings, where)
    for account in settings.account:
        if account.read == "device":
            continue
        at = f'{where}account "{account.name}": read = "{account.read}"'
        if not account.uses_discovery:
            yield f'{at}: the index lists the devices itself; set fleet = {{ products = "all" }}'
        if account.read == "auto" and settings.max_calls is not None:
            yield (
                f"{at}: all devices are queried if the index has too many wrong results, and max_calls limits that; "
                'set read = "index", or leave out max_calls'
            )


def _module_faults(settings: Settings, where: str) -> Iterator[str]:
    if settings.modules is None:
        return
    if settings.modules != ("default",):
        yield f'{where}modules: give ["default"], or leave it out for all modules'
    for key in ("max_calls", "precision"):
        if getattr(settings, key) is not None:
            yield f"{where}modules: a call reads 100 devices, and {key} counts single ones; leave out one of both"
    for account in settings.account:
        if account.read != "device":
            yield (
                f'{where}modules: account "{account.name}" has read = "{account.read}", and the index has all modules '
                "of a device in one call; leave out one of both"
            )


def check_duration(text: str, at: str) -> None:
    """Raise SettingsError if a text is no duration."""
    try:
        parse_duration(text)
    except ValueError as error:
        raise SettingsError(f"{at}: {error}") from None


def _sample_faults(settings: SelectionSettings, where: str) -> Iterator[str]:
    precision = settings.precision
    if precision is not None and _is_percentage(precision) and not 0 < parse_percentage(precision) < 0.5:
        yield f'{where}: precision: give one above 0% and below 50%, such as "1%"'
    if settings.sample_size is not None and precision is not None:
        yield f"{where}: precision: sample_size already says how many devices; give one of both"
    if settings.is_sample and (settings.max_calls is not None or settings.since not in {None, "none"}):
        key = "precision" if settings.sample_size is None else "sample_size"
        yield f"{where}: {key}: a sample is of the complete fleet; leave out since and max_calls"


@raises_faults
def validate_rollouts(rollouts: RolloutSettings, where: str) -> Iterator[str]:
    """Raise SettingsError for the rules that the thresholds of rollouts break."""
    yield from faults_of(check_duration, rollouts.stalled_after, f"{where}: rollouts: stalled_after")
    for key in ("done", "moving", "rolled_back", "started", "selected", "answered"):
        if not _is_percentage(text := getattr(rollouts, key)) or not parse_percentage(text):
            example = getattr(RolloutSettings(), key)
            yield f'{where}: rollouts: {key}: {text!r} is not a percentage above 0%; give one such as "{example}"'
    started, done = rollouts.started, rollouts.done
    if _is_percentage(started) and _is_percentage(done) and parse_percentage(started) > parse_percentage(done) > 0:
        yield f"{where}: rollouts: started: is more than done; give a smaller percentage"


def stored_rollouts(settings: Mapping[str, object] | None) -> RolloutSettings:
    """Return the thresholds of rollouts in the settings of a run; the defaults if they are unknown or invalid."""
    try:
        rollouts = msgspec.convert((settings or {}).get("rollouts", {}), RolloutSettings)
        validate_rollouts(rollouts, "")
    except (msgspec.ValidationError, SettingsError):
        return RolloutSettings()
    return rollouts


def _is_percentage(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?%", text, re.ASCII) is not None and float(text[:-1]) <= 100


def is_http_url(url: str) -> bool:
    """Return whether a text is an HTTP address of printable characters."""
    parts = split_url(url)
    return parts is not None and parts.scheme in {"http", "https"} and re.search(r"[^!-~]", url) is None


@raises_faults
def validate_cluster(settings: Settings, where: str) -> Iterator[str]:
    """Raise SettingsError for the rules that [cluster], or the site or lanes of an account, break."""
    for number, account in enumerate(settings.account, 1):
        at = f"{where}: {account_label({'name': account.name}, number)}"
        if account.lanes is not None and not 1 <= account.lanes <= MAX_LANES:
            yield f"{at}: lanes: give a whole number from 1 to {MAX_LANES}"
        elif account.lanes not in {None, 1} and account.uses_discovery:
            reason = "its devices are not known before one shard has read the list; give it a fleet file, or one lane"
            yield f"{at}: lanes: a fleet that the platform lists is one shard: {reason}"
        if account.site is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", account.site):
            yield f"{at}: site: use up to 64 letters, digits, '.', '-' and '_'"
    cluster = settings.cluster
    if cluster is not None and not cluster.storage:
        yield f"{where}: cluster: storage: is empty; give a directory, or an address such as s3://BUCKET"
    elif cluster is not None and Path(cluster.storage).absolute() == Path(settings.directory).absolute():
        advice = "runs of shards are no run folders; give each a directory of its own"
        yield f'{where}: cluster: storage: is the directory that "directory" names, too; {advice}'
    if cluster is not None and not 0.1 <= cluster.checkpoint <= 600:
        yield f"{where}: cluster: checkpoint: give a number of seconds from 0.1 to 600"
