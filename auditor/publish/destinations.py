"""Destinations of runs: one protocol, and one module for each kind.

A kind is named by ``type`` in a table ``[[publish]]``. Other packages add kinds by the entry point group
``auditor.destinations``: the name of an entry point is the type, and it is a class such as ``DatasetDestination``.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import msgspec

from auditor.concurrency import TimeLimit
from auditor.config.secrets import read_secret
from auditor.config.settings import PublishSettings, SecretSource
from auditor.config.toml_tables import TableWords, convert_table
from auditor.errors import SettingsError

ENTRY_POINTS = "auditor.destinations"

BUILT_IN = {
    "files": "auditor.publish.parquet_dataset:DatasetDestination",
    "postgresql": "auditor.publish.postgresql:PostgresqlDestination",
}
"""Classes of the destinations by type, imported where settings name them."""


@runtime_checkable
class Destination(Protocol):
    """A place that has published runs. It is constructed from its settings, without a connection.

    Its methods raise DestinationError with one sentence that has no secret, and end within the time limit.

    Attributes:
        settings_type: the struct of its options.
    """

    settings_type: ClassVar[type[msgspec.Struct]]

    def describe(self) -> str:
        """Return where the runs are, without secrets."""

    def published_runs(self, names: Collection[str], limit: TimeLimit) -> Mapping[str, str]:
        """Return the digest, as of ``run_digest``, of each of these runs that the destination has completely."""

    def publish(self, folder: Path, limit: TimeLimit) -> None:
        """Publish a sealed run in place of what the destination has of it; readers never see a part of it."""


def open_destination(settings: PublishSettings, where: str = "publish") -> Destination:
    """Return the destination of a table ``[[publish]]``; nothing is sent, and no secret is read.

    Raises:
        SettingsError: there is no such type, an option cannot be used, or a package is not installed.
    """
    at = f'{where}: publish "{settings.name}"'
    kind = _find_class(settings.type, at)
    options = {
        key: msgspec.to_builtins(value) if isinstance(value, SecretSource) else value
        for key, value in settings.options.items()
    }
    words = TableWords(lambda path: _struct_at(kind, path), lambda _: "an option")
    converted, sentences = convert_table(options, kind.settings_type, at, words)
    if sentences:
        raise SettingsError(*sentences)
    try:
        destination: Destination = kind(converted)  # type: ignore[call-arg]
    except SettingsError as error:
        raise SettingsError(*(f"{at}: {sentence}" for sentence in error.sentences)) from None
    return destination


def check_destination(settings: PublishSettings, where: str = "publish") -> str:
    """Return where a destination is; check its packages, folder, key files and secrets. Nothing is sent.

    A destination may have a method ``check``, which raises SettingsError if it cannot work on this machine.

    Raises:
        SettingsError: it is not configured as it should be, or lacks something on this machine.
    """
    destination = open_destination(settings, where)
    at = f'{where}: publish "{settings.name}"'
    check = getattr(destination, "check", None)
    try:
        if check is not None:
            check()
    except SettingsError as error:
        raise SettingsError(f"{at}: {error}") from None
    for key, value in settings.options.items():
        if isinstance(value, SecretSource):
            read_secret(value, account=None, key=f"{at}: {key}")
        elif key.endswith("_file") and not os.access(str(value), os.R_OK):
            raise SettingsError(f"{at}: {key}: {value}: is missing, or cannot be read; give the path of a file")
    to = settings.options.get("to")
    if settings.type == "files" and isinstance(to, str) and "://" not in to:
        folder = Path(to) if os.path.lexists(to) else Path(to).absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise SettingsError(f"{at}: to: {folder}: is no directory, or cannot be written; make it, or give another")
    return destination.describe()


def _struct_at(kind: type[Destination], path: str) -> type[msgspec.Struct]:
    return SecretSource if path else kind.settings_type


def _find_class(name: str, at: str) -> type[Destination]:
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        found = getattr(import_module(module), attribute)
    else:
        installed = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
        if name not in installed:
            types = ", ".join([*BUILT_IN, *installed])
            raise SettingsError(f'{at}: type: "{name}" is no type of destination; the types are {types}')
        found = installed[name].load()
    if not hasattr(found, "settings_type"):
        raise SettingsError(f'{at}: type: "{name}" is no destination: its class has no settings_type')
    kind: type[Destination] = found
    return kind


def describe_destinations(tables: Collection[PublishSettings]) -> Iterator[str]:
    """Yield the name and the type of each destination, for messages."""
    for table in tables:
        yield f"{table.name} ({table.type})"
