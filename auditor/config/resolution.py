"""Make the paths of settings relative to the folder of their file."""

from pathlib import Path
from typing import TypeVar

import msgspec

from auditor.config.paths import resolve_path
from auditor.config.settings import (
    Account,
    ClusterSettings,
    CredentialsSettings,
    PublishSettings,
    QuotaSharing,
    SecretSource,
    Settings,
)

T = TypeVar("T", bound=msgspec.Struct)


def resolve_settings(settings: Settings, folder: Path) -> Settings:
    """Return settings with paths relative to a folder."""
    return msgspec.structs.replace(
        settings,
        directory=resolve_path(folder, settings.directory),
        since=settings.since
        if settings.since in {None, "last", "none", ""}
        else resolve_path(folder, str(settings.since)),
        quota_sharing=_resolve_quota_sharing(settings.quota_sharing, folder),
        policy=None if settings.policy is None else _resolve(settings.policy, folder, "file"),
        report=_resolve(settings.report, folder, "html", "excel", "metrics"),
        notify=tuple(_resolve(each, folder) for each in settings.notify),
        ping=None if settings.ping is None else resolve_secret_source(settings.ping, folder),
        publish=tuple(_resolve_destination(each, folder) for each in settings.publish),
        cluster=None if settings.cluster is None else _resolve_storage(settings.cluster, folder),
    )


def resolve_account(account: Account, folder: Path) -> Account:
    """Return an account with paths relative to a folder."""
    fleet = account.fleet
    if fleet is not None and fleet.file not in {None, "-"}:
        fleet = msgspec.structs.replace(fleet, file=resolve_path(folder, str(fleet.file)))
    ca_file = None if account.ca_file is None else resolve_path(folder, account.ca_file)
    credentials = None if account.credentials is None else _resolve_credentials(account.credentials, folder)
    resolved = _resolve(account, folder)
    return msgspec.structs.replace(resolved, ca_file=ca_file, fleet=fleet, credentials=credentials)


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


def _resolve(table: T, folder: Path, *paths: str) -> T:
    """Return a table with its secrets, and those of its ``paths`` that are not empty, relative to a folder."""
    resolved: dict[str, object] = {}
    for key, value in msgspec.structs.asdict(table).items():
        if isinstance(value, SecretSource):
            resolved[key] = resolve_secret_source(value, folder)
        elif key in paths and isinstance(value, str) and value:
            resolved[key] = resolve_path(folder, value)
    return msgspec.structs.replace(table, **resolved)


def _resolve_destination(table: PublishSettings, folder: Path) -> PublishSettings:
    """Return a destination with absolute paths in its options: secrets, what ends in ``_file``, and ``to``."""
    options = dict(table.options)
    for key, value in options.items():
        if isinstance(value, SecretSource):
            options[key] = resolve_secret_source(value, folder)
        elif isinstance(value, str) and value and (key.endswith("_file") or (key == "to" and "://" not in value)):
            options[key] = str(Path(resolve_path(folder, value)).absolute())
    return msgspec.structs.replace(table, options=options)


def resolve_secret_source(source: SecretSource, folder: Path) -> SecretSource:
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
