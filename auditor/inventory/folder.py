"""A run folder's files and its manifest: names that other programs read, so a change here is a change for them."""

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import orjson
import structlog

from auditor.errors import RunFolderError, RunNotWritableError, UsageError
from auditor.inventory.choices import Choice
from auditor.inventory.listings import ListingFacts, RequestCounts

log = structlog.get_logger()

SCHEMA_VERSION = 1

MANIFEST = "run.json"
FLEET = "fleet.parquet"
ANSWERED = "devices.jsonl"
FAILED = "failures.jsonl"
PRODUCTS = "products.jsonl"
PLAN = "plan.parquet"
CARRIED = "carried.parquet"
DEVICES = "devices.parquet"
MODULES = "modules.parquet"
INVENTORY_CSV = "inventory.csv"
INVENTORY_JSON = "inventory.json"

SEALED = (DEVICES, MODULES, INVENTORY_CSV, INVENTORY_JSON)

REPORT_HTML = "report.html"
INVENTORY_XLSX = "inventory.xlsx"

SHOWN = (REPORT_HTML, INVENTORY_XLSX)
"""What is made of a sealed run for people, if the settings say so; no part of its contract, and gone on resume."""

State = Literal["running", "complete", "partial", "aborted"]
"""``complete``: every device has a conclusive answer. ``partial``: some failed or are pending. ``aborted``: stopped
by an error. ``running``: at work, or killed."""


@dataclass(frozen=True, slots=True)
class AccountFacts:
    """An account as it was asked; ``quota`` is in calls a second, None without one."""

    name: str
    endpoint: str
    dialect: str
    quota: float | None


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """``sha256`` is that of ``fleet.parquet``; ``duplicates`` are rows of the source that were dropped.

    ``limit``: only so many devices of the source were wanted; None: all. ``left_out``: accounts of the settings that
    were not wanted.
    """

    source: str
    devices: int
    duplicates: int
    sha256: str
    limit: int | None = None
    left_out: tuple[str, ...] = ()

    @property
    def cut(self) -> bool:
        """Whether there may be devices in the source that were not wanted."""
        return (self.limit is not None and self.devices >= self.limit) or bool(self.left_out)


@dataclass(frozen=True, slots=True)
class DeviceCounts:
    """Devices by state; they always add up to the fleet's."""

    ok: int = 0
    empty: int = 0
    not_found: int = 0
    failed: int = 0
    pending: int = 0

    @property
    def unanswered(self) -> int:
        """Devices without a conclusive answer."""
        return self.failed + self.pending


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests a second: what the quotas allow (None without a quota), and what was reached.

    ``allowed`` is what the quotas bear as far as was learned by now (None without one), ``latency`` the mean of the
    seconds from a request to its answer (None before the first), and ``in_flight`` the requests in flight on average.
    """

    target: float | None = None
    achieved: float = 0.0
    allowed: float | None = None
    latency: float | None = None
    in_flight: float = 0.0


@dataclass(frozen=True, slots=True)
class Planned:
    """What was expected when the run began: requests, seconds at the quotas, and requests in flight that they need.

    ``seconds`` and ``in_flight`` are None where a quota is not known.
    """

    requests: int
    seconds: float | None
    in_flight: int | None


@dataclass(frozen=True, slots=True)
class FailureFacts:
    """Failed devices of one code, and one of them as an example."""

    code: str
    devices: int
    example: str


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file of the folder, its size in bytes and its digest."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """``run.json``. Times are UTC such as ``2026-11-22T02:00:03.123Z``; ``error`` says why a run was stopped.

    ``settings`` are those of the run, so that it can be resumed: where its keys lie, and never a secret. Requests and
    the rate are of all its stretches, from ``started_at`` and from each time in ``resumed_at``; ``planned`` is of the
    whole fleet, as ``auditor plan`` told it at the start. ``never_activated`` are those of the ``empty`` devices of
    which it is known that they never were; ``listings`` are of the accounts whose fleets the platform lists.
    """

    auditor_version: str
    name: str
    state: State
    started_at: str
    accounts: tuple[AccountFacts, ...]
    fleet: FleetFacts
    finished_at: str | None = None
    devices: DeviceCounts = field(default_factory=DeviceCounts)
    requests: RequestCounts = field(default_factory=RequestCounts)
    rate: Rate = field(default_factory=Rate)
    planned: Planned | None = None
    failures: tuple[FailureFacts, ...] = ()
    error: str | None = None
    files: tuple[FileFacts, ...] = ()
    resumed_at: tuple[str, ...] = ()
    settings: dict[str, object] | None = None
    never_activated: int = 0
    listings: tuple[ListingFacts, ...] = ()
    choice: Choice | None = None
    carried: int = 0
    unsampled: int = 0
    oldest: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def to_ask(self) -> int:
        """Devices without a conclusive answer that are to have one."""
        return self.devices.unanswered - self.unsampled


def refuse_own_file(path: Path) -> None:
    """Refuses to write what is a run's own, which nothing but an audit may change.

    Raises:
        UsageError: the path is a file of a run folder.
    """
    own = (MANIFEST, FLEET, ANSWERED, FAILED, PRODUCTS, PLAN, CARRIED, *SEALED)
    if path.name in own and (path.parent / MANIFEST).is_file():
        raise UsageError(f"{path}: is a file of a run, which nothing may change; give another path")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a run folder.

    Raises:
        RunFolderError: there is none, or it is not one.
    """
    path = folder / MANIFEST
    try:
        manifest = msgspec.convert(orjson.loads(path.read_bytes()), Manifest)
    except FileNotFoundError:
        raise RunFolderError(f"{folder}: is not a run folder: it has no {MANIFEST}") from None
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
    except (orjson.JSONDecodeError, msgspec.ValidationError) as error:
        raise RunFolderError(f"{path}: is not a manifest: {error}") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise RunFolderError(
            f"{path}: has schema_version {manifest.schema_version}; this auditor reads {SCHEMA_VERSION}: use the "
            f"auditor that wrote it ({manifest.auditor_version[:40]!r})"
        )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replaces the manifest atomically; a reader sees the old one or the new one, never a part.

    Raises:
        RunNotWritableError: the folder cannot be written.
    """
    first = {"schema_version": manifest.schema_version}
    table = first | orjson.loads(orjson.dumps(manifest))
    replace_file(folder / MANIFEST, orjson.dumps(table, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file anew beside itself and puts it in place once it is on disk.

    Raises:
        RunNotWritableError: the folder cannot be written.
    """
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            file.write(content)
        put_in_place(new, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise RunNotWritableError(f"{path} cannot be written: {error.strerror}") from error


def put_in_place(new: Path, path: Path) -> None:
    """Makes a finished file the one at ``path``, durably: its bytes first, then its name.

    Raises:
        OSError: what the operating system says.
    """
    to_disk(new)
    new.replace(path)
    to_disk(path.parent)


def to_disk(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on disk.

    Raises:
        OSError: what the operating system says.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def runs_in(directory: Path) -> tuple[list[tuple[Manifest, Path]], list[RunFolderError]]:
    """The runs in a directory, the newest first, and what is wrong with those whose manifest cannot be read.

    Hidden folders are not looked at, and links are not followed.

    Raises:
        RunFolderError: the directory cannot be read.
    """
    runs, broken = [], []
    try:
        folders = [path for path in directory.iterdir() if not path.name.startswith(".") and not path.is_symlink()]
    except OSError as error:
        raise RunFolderError(f"{directory}: cannot be read: {error.strerror}") from error
    for folder in folders:
        if (folder / MANIFEST).is_file():  # and not gone since: another process may prune
            try:
                runs.append((read_manifest(folder), folder))
            except RunFolderError as error:
                broken.append(error)
    runs.sort(key=lambda run: (run[0].started_at, run[1].name), reverse=True)
    return runs, broken


def find_run(path: Path) -> Path:
    """The run folder that a path means: itself, or the newest run in a folder of runs.

    Raises:
        RunFolderError: neither; or none of the runs in it can be read, and what is wrong with the first.
    """
    try:
        if (path / MANIFEST).is_file():
            return path
        if not path.is_dir():
            raise RunFolderError(f"{path}: is no folder")
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
    runs, broken = runs_in(path)
    for problem in broken:
        log.warning("a run is passed over", reason=str(problem))
    if runs:
        return runs[0][1]
    if broken:
        raise broken[0]
    raise RunFolderError(f"{path}: is not a run folder: it has no {MANIFEST}, and no run lies in it")
