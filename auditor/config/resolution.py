"""Paths as people write them: in a home directory, or relative to the folder of a settings file."""

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from auditor.config.sections import MetricsSettings
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


def expand_home(path: str) -> str:
    """Return a path with the home directory for ``~``, ``~/`` or ``~user/`` at its start, as shells do.

    Anywhere else ``~`` is a character: ``~fleet.csv`` is a file of this name, and so is the path of an unknown user.
    """
    # PurePath would raise for an unknown user, and for the name of a file.
    return os.path.expanduser(path) if path == "~" or (path.startswith("~") and "/" in path) else path  # noqa: PTH111


def resolve_path(folder: Path, path: str) -> str:
    """Return a path of the settings in a folder, as a path of the working directory."""
    return str(folder / expand_home(path))


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
        metrics=_resolve_pushgateway(settings.metrics, folder),
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


def _resolve_pushgateway(metrics: MetricsSettings, folder: Path) -> MetricsSettings:
    gateway = metrics.pushgateway
    return metrics if gateway is None else msgspec.structs.replace(metrics, pushgateway=_resolve(gateway, folder))


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
