"""Load settings from TOML into immutable values, or refuse them in one sentence that names the key."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from auditor.config.metrics_settings import MetricsSettings, PushgatewaySettings
from auditor.config.paths import resolve_path
from auditor.config.settings import (
    Account,
    ClusterSettings,
    CredentialsSettings,
    FleetSource,
    NotifySettings,
    Patterns,
    PolicySettings,
    PublishSettings,
    Quotas,
    QuotaSharing,
    ReportSettings,
    RolloutSettings,
    SecretSource,
    Settings,
    SharedQuotaSettings,
    split_url,
)
from auditor.config.toml_tables import describe_validation_error, read_toml
from auditor.config.validation import (
    CREDENTIALS_FORMS,
    CREDENTIALS_TYPES,
    SOURCE_FORMS,
    account_label,
    check_credentials,
    check_duration,
    check_reading,
    check_secret_source,
    validate_accounts,
    validate_cluster,
    validate_hooks,
    validate_metrics,
    validate_publish,
    validate_rollouts,
    validate_selection,
)
from auditor.errors import SettingsError
from auditor.text.time_zones import parse_time_zone

T = TypeVar("T", bound=msgspec.Struct)


def load_settings(path: str | os.PathLike[str]) -> Settings:
    """Load the settings in a TOML file. Paths in it are relative to the file's folder; ``~/`` is the home directory.

    Raises:
        SettingsError: the settings cannot be used. The message names the file, the key and what to do.
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
        SettingsError: the settings cannot be used. The message names the key and what to do.
    """
    _refuse_nul(table, where)
    accounts = table.get("account")
    if not isinstance(accounts, list | tuple) or not accounts:
        raise SettingsError(f"{where}: has no [[account]]; add one with name, endpoint and keys")
    parsed = tuple(
        _parse_account(raw, f"{where}: {account_label(raw, number)}", folder) for number, raw in enumerate(accounts, 1)
    )
    _refuse_renamed(table, RENAMED_KEYS, where)
    _refuse_renamed_values(table, where)
    settings = _convert({**table, "account": ()}, Settings, where)
    settings = msgspec.structs.replace(
        settings,
        account=parsed,
        directory=resolve_path(folder, settings.directory),
        since=settings.since
        if settings.since in {None, "last", "none", ""}
        else resolve_path(folder, str(settings.since)),
        quota_sharing=_resolve_quota_sharing(settings.quota_sharing, folder),
        policy=None if settings.policy is None else _resolve(settings.policy, folder, "file"),
        report=_resolve(settings.report, folder, "html", "excel", "metrics"),
        metrics=_resolve_pushgateway(settings.metrics, folder),
        notify=None if settings.notify is None else _resolve(settings.notify, folder),
        publish=tuple(_resolve_destination(each, folder) for each in settings.publish),
        cluster=None if settings.cluster is None else _resolve_storage(settings.cluster, folder),
    )
    _validate(settings, where)
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


def _refuse_nul(table: object, where: str) -> None:
    """Refuse the character NUL in every text: no path, name or header can have it."""
    left = [(where, table)]
    while left:
        at, value = left.pop()
        if isinstance(value, str) and "\0" in value:
            raise SettingsError(f"{at}: has the character NUL; remove it")
        if isinstance(value, Mapping):
            left.extend((f"{at}: {key}", each) for key, each in value.items())
        elif isinstance(value, list | tuple):
            left.extend((at, each) for each in value)


def _refuse_renamed(table: object, renamed: Mapping[str, str], where: str) -> None:
    """Refuse keys of settings that were written before 0.1.0, and give their new names."""
    for key in table if isinstance(table, Mapping) else ():
        if key in renamed:
            raise SettingsError(f"{where}: {key}: this key is now called {renamed[key]}")


def _refuse_renamed_values(table: Mapping[str, Any], where: str) -> None:
    if table.get("quota_sharing") == "alone":
        raise SettingsError(f'{where}: quota_sharing: the value "alone" is now called "none"')
    notify = table.get("notify")
    if isinstance(notify, Mapping) and notify.get("when") == "trouble":
        raise SettingsError(f'{where}: notify: when: the value "trouble" is now called "problems"')


def _parse_account(raw: object, where: str, folder: Path) -> Account:
    if isinstance(raw, Mapping):
        if isinstance(raw.get("access_key_secret"), str):
            raise SettingsError(
                f"{where}: access_key_secret: keep the secret out of the settings: access_key_secret = {SOURCE_FORMS}"
            )
        _refuse_renamed(raw, RENAMED_ACCOUNT_KEYS, where)
        _refuse_renamed(raw.get("fleet"), RENAMED_FLEET_KEYS, f"{where}: fleet")
    account = _convert(raw, Account, where)
    _check_keys(account, where)
    for key in ("access_key_id", "access_key_secret", "proxy"):
        if isinstance(source := getattr(account, key), SecretSource):
            check_secret_source(source, f"{where}: {key}")
    fleet = account.fleet
    if fleet is not None and fleet.file not in {None, "-"}:
        fleet = msgspec.structs.replace(fleet, file=resolve_path(folder, str(fleet.file)))
    ca_file = None if account.ca_file is None else resolve_path(folder, account.ca_file)
    credentials = None if account.credentials is None else _resolve_credentials(account.credentials, folder)
    resolved = _resolve(account, folder)
    return msgspec.structs.replace(resolved, ca_file=ca_file, fleet=fleet, credentials=credentials)


def _check_keys(account: Account, where: str) -> None:
    """Raise SettingsError unless an account has an access key, or credentials that lead to one."""
    if account.credentials is not None:
        for key in ("access_key_id", "access_key_secret"):
            if getattr(account, key) is not None:
                raise SettingsError(f"{where}: {key}: credentials already lead to a key; leave out one of both")
        check_credentials(account.credentials, f"{where}: credentials")
        return
    for key in ("access_key_id", "access_key_secret"):
        if getattr(account, key) is None:
            raise SettingsError(f"{where}: has no {key}")
    if account.access_key_id == "":
        raise SettingsError(f"{where}: access_key_id: is empty")


def _resolve_credentials(table: CredentialsSettings, folder: Path) -> CredentialsSettings:
    resolved = _resolve(table, folder, "oidc_token_file")
    source = None if table.source is None else _resolve_credentials(table.source, folder)
    command = None if table.command is None else _resolve_program(table.command, folder)
    return msgspec.structs.replace(resolved, source=source, command=command)


def _resolve_quota_sharing(sharing: QuotaSharing, folder: Path) -> QuotaSharing:
    if isinstance(sharing, str):
        return sharing
    return _resolve(sharing, folder, "directory", "ca_file")


def _resolve_storage(cluster: ClusterSettings, folder: Path) -> ClusterSettings:
    """Return the settings with a directory relative to a folder; the address of a bucket stays."""
    return cluster if "://" in cluster.storage else _resolve(cluster, folder, "storage")


def _resolve_pushgateway(metrics: MetricsSettings, folder: Path) -> MetricsSettings:
    gateway = metrics.pushgateway
    return metrics if gateway is None else msgspec.structs.replace(metrics, pushgateway=_resolve(gateway, folder))


def _resolve(table: T, folder: Path, *paths: str) -> T:
    """Return a table with its secrets, and those of its ``paths`` that are not empty, relative to a folder."""
    resolved: dict[str, object] = {}
    for key, value in msgspec.structs.asdict(table).items():
        if isinstance(value, SecretSource):
            resolved[key] = _resolve_secret_source(value, folder)
        elif key in paths and isinstance(value, str) and value:
            resolved[key] = resolve_path(folder, value)
    return msgspec.structs.replace(table, **resolved)


def _resolve_destination(table: PublishSettings, folder: Path) -> PublishSettings:
    """Return a destination with absolute paths in its options: secrets, what ends in ``_file``, and ``to``."""
    options = dict(table.options)
    for key, value in options.items():
        if isinstance(value, SecretSource):
            options[key] = _resolve_secret_source(value, folder)
        elif isinstance(value, str) and value and (key.endswith("_file") or (key == "to" and "://" not in value)):
            options[key] = str(Path(resolve_path(folder, value)).absolute())
    return msgspec.structs.replace(table, options=options)


def _resolve_secret_source(source: SecretSource, folder: Path) -> SecretSource:
    """Resolve the path of a secret's file, or that of a command's program if it is given by its path."""
    if source.file is not None:
        return msgspec.structs.replace(source, file=resolve_path(folder, source.file))
    if source.command:
        return msgspec.structs.replace(source, command=_resolve_program(source.command, folder))
    return source


def _resolve_program(command: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    if not command or "/" not in command[0]:
        return command
    # Absolute, for "./key" in a folder "." would become "key", which is searched for in PATH.
    return str(Path(resolve_path(folder, command[0])).absolute()), *command[1:]


def _convert(raw: object, struct: type[T], where: str) -> T:
    try:
        return msgspec.convert(raw, struct)
    except msgspec.ValidationError as error:
        sentence = describe_validation_error(
            error,
            lambda path: _struct_at(path) if path else struct,
            noun=lambda _: "a setting",
            expected=_EXPECTED,
        )
        raise SettingsError(f"{where}: {sentence}") from None


def _struct_at(path: str) -> type[msgspec.Struct]:
    """Return the struct of the table at a path. Every table that is not listed is the source of a secret."""
    return CredentialsSettings if path.endswith(".source") else _TABLES.get(path, SecretSource)


_NAMES = 'glob patterns, such as ["lamp-*"]'

_PATTERNS = '{ product_key = ["k1*"], device_name = ["lamp-*"], status = ["ONLINE"] }, each of them optional'

_COMMAND = 'give the words of a command, such as ["pass", "show", "iot/eu"]'

_EXPECTED = {
    "dialect": 'give "tuya" or "alibaba"',
    "calls_per_second": 'give calls a second, "unlimited" or "auto"',
    "quota_sharing": 'give "machine", "none", { directory = "/run/auditor" } or { redis = "rediss://HOST:6379/0" }',
    "quota_sharing.password": f"give {SOURCE_FORMS}",
    "fleet": 'give { file = "fleet.csv" }, where "-" is standard input, or { products = "all" }',
    "fleet.products": 'give "all", or product keys such as ["k1h9drZble"]',
    "fleet.include": f"give {_PATTERNS}",
    "fleet.exclude": f"give {_PATTERNS}",
    "fleet.include.product_key": f"give {_NAMES}",
    "fleet.include.device_name": f"give {_NAMES}",
    "fleet.exclude.product_key": f"give {_NAMES}",
    "fleet.exclude.device_name": f"give {_NAMES}",
    "fleet.query_never_activated": "give true or false",
    "fetch_product_modules": "give true or false",
    "read": 'give "device", "index" or "auto"',
    "quotas": "give calls a second by operation, such as { QueryDevice = 50 }",
    "fleet.include.status": "give ONLINE, OFFLINE, UNACTIVE or DISABLE",
    "fleet.exclude.status": "give ONLINE, OFFLINE, UNACTIVE or DISABLE",
    "access_key_secret": f"give {SOURCE_FORMS}",
    "proxy": f'give "http://HOST:PORT", "environment", or for an address with a password: {SOURCE_FORMS}',
    "policy": 'give { file = "rules.toml" }',
    "report.html": 'give true, or a path such as "fleet.html"',
    "report.excel": 'give true, or a path such as "fleet.xlsx"',
    "report.metrics": 'give a path such as "/var/lib/node_exporter/textfile/auditor.prom"',
    "report.group_by": 'give names of attributes such as ["site", "ring"]',
    "metrics": 'give { interval = "15s", modules = ["mcu"], max_series = 1000 }',
    "metrics.interval": 'give a duration such as "15s", or "off"',
    "metrics.modules": f"give {_NAMES}",
    "metrics.max_series": "give a whole number, such as 1000",
    "metrics.pushgateway": 'give { address = "https://pushgateway.example:9091" }',
    "metrics.pushgateway.password": f"keep it out of the settings: give {SOURCE_FORMS}",
    "notify.webhook": f'give "https://HOST/PATH", {SOURCE_FORMS}',
    "notify.secret": f"keep it out of the settings: give {SOURCE_FORMS}",
    "notify.when": 'give "always" or "problems"',
    "publish": "give tables [[publish]] with name, type and options",
    "publish.options": 'give options such as { to = "s3://lake/auditor" }',
    "publish.timeout": 'give a duration such as "10m"',
    "since": 'give "last", a run folder, or "none"',
    "change_detection": 'give "strict" or "reconnected"',
    "precision_of": 'give "fleet", "module" or "product"',
    "max_age": 'give a duration such as "30d"',
    "recheck": 'give a percentage such as "1%"',
    "max_index_error": 'give a percentage such as "1%"',
    "fair_share": 'give a percentage such as "90%"',
    "precision": 'give a percentage such as "1%"',
    "modules": 'give ["default"], the only module that the platform reads in bulk, or leave it out for all modules',
    "released": "give true or false",
    "max_job_age": 'give a duration such as "30d"',
    "rollouts": 'give thresholds such as { done = "95%", stalled_after = "3d" }',
    "rollouts.stalled_after": 'give a duration such as "3d"',
    "cluster": 'give { storage = "/mnt/audits" } or { storage = "s3://BUCKET/audits" }',
    "cluster.checkpoint": "give a number of seconds, such as 10",
    "site": 'give the name of a site, such as "frankfurt"',
    "lanes": "give a whole number, such as 3",
    "max_failed": 'give a number of devices, or a percentage of them such as "0.1%"',
} | {
    f"rollouts.{key}": f'give a percentage such as "{example}"'
    for key, example in msgspec.structs.asdict(RolloutSettings()).items() if key != "stalled_after"
} | {
    f"{key}.command": _COMMAND
    for key in (
        "access_key_id", "access_key_secret", "proxy", "quota_sharing.password", "metrics.pushgateway.password",
        "notify.webhook", "notify.secret",
    )
} | {
    f"credentials{sources}{key}": advice
    for sources in ("", ".source", ".source.source")
    for key, advice in {
        "": f"give {CREDENTIALS_FORMS}",
        ".type": f"give one of {CREDENTIALS_TYPES}",
        ".access_key_id": f'give "LTAI…" or {SOURCE_FORMS}',
        ".access_key_secret": f"keep it out of the settings: give {SOURCE_FORMS}",
        ".security_token": f"keep it out of the settings: give {SOURCE_FORMS}",
        ".access_key_id.command": _COMMAND,
        ".access_key_secret.command": _COMMAND,
        ".security_token.command": _COMMAND,
        ".credentials_uri": f'give "http://HOST:PORT/PATH" or {SOURCE_FORMS}',
        ".credentials_uri.command": _COMMAND,
        ".role_session_expiration": "give whole seconds from 900 to 43,200",
        ".command": 'give the words of a command, such as ["vault", "read", "-format=json", "alicloud/creds/auditor"]',
        ".format": 'give "json"',
    }.items()
}  # fmt: skip
"""What to give for a key whose value has the wrong type."""

_TABLES: dict[str, type[msgspec.Struct]] = {
    "credentials": CredentialsSettings,
    "fleet": FleetSource,
    "fleet.include": Patterns,
    "fleet.exclude": Patterns,
    "quotas": Quotas,
    "quota_sharing": SharedQuotaSettings,
    "policy": PolicySettings,
    "report": ReportSettings,
    "metrics": MetricsSettings,
    "metrics.pushgateway": PushgatewaySettings,
    "rollouts": RolloutSettings,
    "notify": NotifySettings,
    "publish": PublishSettings,
    "cluster": ClusterSettings,
}
"""Tables by path."""


def _validate(settings: Settings, where: str) -> None:
    """Check the rules that types cannot express."""
    for key, low, high in (("concurrency", 1, 10_000), ("page_size", 1, 200), ("max_attempts", 1, 100)):
        if not low <= getattr(settings, key) <= high:
            raise SettingsError(f"{where}: {key}: give a whole number from {low} to {high:,}")
    for key in ("timeout", "connect_timeout", "give_up_after"):
        if not 0 < getattr(settings, key) <= 86_400:
            raise SettingsError(f"{where}: {key}: give a number of seconds above 0, at most 86,400")
    if not 0 <= settings.fsync_interval <= 3_600:
        raise SettingsError(f"{where}: fsync_interval: give a number of seconds from 0 (every result) to 3,600")
    if not 0.001 <= settings.retry_budget <= 1:
        raise SettingsError(f"{where}: retry_budget: give a fraction from 0.001 to 1, such as 0.1")
    _check_quota_sharing(settings.quota_sharing, where)
    _check_time_zone(settings.time_zone, where)
    check_duration(settings.max_job_age, f"{where}: max_job_age")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", settings.name):
        raise SettingsError(
            f"{where}: name: use up to 64 letters, digits, '.', '-' and '_'; it is part of a folder's name"
        )
    _check_max_failed(settings.max_failed, where)
    validate_accounts(settings, where)
    validate_selection(settings, where)
    check_reading(settings, f"{where}: ")
    if settings.max_calls is not None and settings.max_calls < len(settings.account):
        raise SettingsError(f"{where}: max_calls: give at least one for each of the {len(settings.account)} accounts")
    validate_rollouts(settings.rollouts, where)
    validate_hooks(settings, where)
    validate_metrics(settings.metrics, f"{where}: metrics")
    validate_publish(settings, where)
    validate_cluster(settings, where)


def _check_max_failed(max_failed: int | str, where: str) -> None:
    if isinstance(max_failed, int):
        valid = max_failed >= 0
    else:
        valid = re.fullmatch(r"\d+(\.\d+)?%", max_failed) is not None and float(max_failed[:-1]) <= 100
    if not valid:
        raise SettingsError(f"{where}: max_failed: {_EXPECTED['max_failed']}")


def _check_time_zone(name: str | None, where: str) -> None:
    try:
        if name is not None:
            parse_time_zone(name)
    except ValueError as error:
        raise SettingsError(f"{where}: time_zone: {error}") from None


def _check_quota_sharing(sharing: QuotaSharing, where: str) -> None:
    if isinstance(sharing, str):
        return
    at = f"{where}: quota_sharing"
    if (sharing.directory is None) == (sharing.redis is None):
        raise SettingsError(f"{at}: give one of directory and redis")
    if sharing.directory is not None and not Path(sharing.directory).is_dir():
        raise SettingsError(f"{at}: {sharing.directory} is not a directory; create one that its users can write to")
    for key in ("username", "password", "ca_file"):
        if sharing.redis is None and getattr(sharing, key) is not None:
            raise SettingsError(f"{at}: {key}: only redis has one; leave it out")
    if sharing.password is not None:
        check_secret_source(sharing.password, f"{at}: password")
    if sharing.redis is not None:
        _check_redis_url(sharing.redis, f"{at}: redis")
        if sharing.username is not None and sharing.password is None:
            raise SettingsError(f"{at}: username: needs a password: password = {SOURCE_FORMS}")
        if sharing.ca_file is not None and not sharing.redis.startswith("rediss://"):
            raise SettingsError(f"{at}: ca_file: is for TLS only; start the address with rediss://, or leave it out")


def _check_redis_url(url: str, at: str) -> None:
    # The address is never quoted: it may contain a password.
    if "@" in url:
        raise SettingsError(f"{at}: leave the password out of the address: password = {SOURCE_FORMS}")
    if split_url(url) is None or not re.fullmatch(r"rediss?://[!-.0->A-~]+(/\d+)?", url):
        raise SettingsError(f"{at}: is not an address such as rediss://HOST:6379/0")
