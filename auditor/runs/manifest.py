"""``run.json``, the manifest of a run. Other programs read it: a changed name here is a change for them."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import orjson

from auditor.config.settings import count_allowed
from auditor.errors import RunFolderError, find_code, refer_to_code
from auditor.models import ReadModules, RunWarning
from auditor.runs.selection_info import (
    ChangesInfo,
    ExitReason,
    GapInfo,
    MismatchedAccount,
    Planned,
    Rate,
    ReleasesInfo,
    RequestCounts,
    SelectionInfo,
)
from auditor.storage.files import check_contained, open_contained, read_contained, replace_file, translate_os_errors
from auditor.storage.json_types import Count, MaxFailed, PositiveCallsPerSecond, PositiveCount, Sha256, Timestamp

SCHEMA_VERSION = 2
"""Version of every JSON document that leaves the program."""

MANIFEST = "run.json"

MAX_MANIFEST_BYTES = 32 << 20
"""Size up to which a manifest is read. One of 1,000 accounts with 100 gaps each has 20 MB."""

MAX_MANIFEST_VALUES = 2_000_000
"""Upper limit of the number of values in a manifest that is read. That manifest has 1,000,000; each takes memory."""

MAX_NUMBER = 2**53
"""Largest number in a manifest: the sum of those of many accounts can still be written as JSON, with 64 bits."""

_CONFIGURED = frozenset({"settings", "seed", "limit"})

_LONG_NUMBER = re.compile(rb"\d{16}")

DATA_SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".parquet", ".csv")
"""Endings of the names of a run's files."""

MAX_FAILURE_CODES = MAX_GAPS = 100
"""Codes of failures, and products with a gap of an account, that the manifest lists."""

State = Literal["running", "complete", "within_tolerance", "partial", "aborted"]
"""State of a run.

``complete``: every device has a conclusive answer. ``within_tolerance``: some failed or are pending, not more than
``max_failed`` allows. ``partial``: more failed or are pending. ``aborted``: an error stopped it. ``running``: in
progress, or killed.
"""

SUCCESSFUL_STATES: frozenset[str] = frozenset({"complete", "within_tolerance"})
"""States of a run that did what was required of it."""


@dataclass(frozen=True, slots=True)
class AccountInfo:
    """An account of the run.

    Attributes:
        name: name in the settings.
        endpoint: URL of the platform.
        dialect: spelling of the platform's responses: camelCase or PascalCase.
        quota: configured quota in calls per second; null: none.
    """

    name: str
    endpoint: str
    dialect: str
    quota: PositiveCallsPerSecond | None


@dataclass(frozen=True, slots=True)
class FleetInfo:
    """The fleet of the run, ``fleet.parquet``.

    Attributes:
        source: where it came from.
        devices: number of devices; it grows while the platform's device lists are read.
        duplicates: rows of the source that named a device again and were dropped.
        sha256: SHA-256 of ``fleet.parquet``.
        limit: maximum number of devices to take from the source; null: all.
        excluded_accounts: accounts of the settings that the run does not cover (``--account``).
        aliases: devices that are in the fleet twice, by ``iot_id`` in one row and by their names in another.
        possible_aliases: devices that may be named twice: no answer has both names, so it cannot be determined.
        shared_identities: devices whose answer has the names, or the iot_id, of the answer of another device.
    """

    source: str
    devices: Count
    duplicates: Count
    sha256: str
    limit: PositiveCount | None = None
    excluded_accounts: tuple[str, ...] = ()
    aliases: Count = 0
    possible_aliases: Count = 0
    shared_identities: Count = 0

    def describe_aliases(self) -> str | None:
        """Return a sentence about devices that are, or may be, counted twice; None if there are none."""
        if not self.aliases and not self.possible_aliases:
            return None
        ways = "by iot_id in one row and by product_key and device_name in another"
        if not self.aliases:
            return f"up to {self.possible_aliases:,} devices may be in the fleet twice, {ways}; name each in one way"
        more = f", and up to {self.possible_aliases:,} more may be" if self.possible_aliases else ""
        return f"{self.aliases:,} devices are in the fleet and in the counts twice, {ways}{more}; name each in one way"

    def describe_shared_identities(self) -> str | None:
        """Return a sentence about devices whose answers name one device; None if there are none."""
        if not self.shared_identities:
            return None
        of = f"the answers of {self.shared_identities:,} devices have the names or the iot_id of another one's answer"
        return f"{of}, so their versions are not proven; a proxy or gateway between here and the platform may be broken"

    @property
    def cut(self) -> bool:
        """Whether the source may have devices that the run does not cover."""
        return (self.limit is not None and self.devices >= self.limit) or bool(self.excluded_accounts)


@dataclass(frozen=True, slots=True)
class DeviceCounts:
    """Devices by state; they always add up to the fleet.

    Attributes:
        ok: devices that reported modules.
        empty: devices that answered and reported no module.
        not_found: devices that the platform does not have.
        failed: devices without a conclusive answer.
        pending: devices that were not queried yet, or, in a sampled run, are not in the sample.
    """

    ok: Count = 0
    empty: Count = 0
    not_found: Count = 0
    failed: Count = 0
    pending: Count = 0

    @property
    def answered(self) -> int:
        """Devices with a conclusive answer."""
        return self.ok + self.empty + self.not_found

    @property
    def unanswered(self) -> int:
        """Devices without a conclusive answer."""
        return self.failed + self.pending

    @property
    def fleet(self) -> int:
        """All devices."""
        return self.answered + self.unanswered


@dataclass(frozen=True, slots=True)
class FailureInfo:
    """Failed devices by code.

    Attributes:
        code: code of the platform, or of the auditor (``auditor.*``).
        devices: number of devices that failed with it.
        example: one of them.
    """

    code: str
    devices: PositiveCount
    example: str


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A sealed file of the run folder.

    Attributes:
        name: its name.
        bytes: its size.
        sha256: its SHA-256.
    """

    name: str
    bytes: Count
    sha256: Sha256


DiscoveryState = Literal["pending", "partial", "complete"]


@dataclass(frozen=True, slots=True)
class DiscoveryInfo:
    """Discovery of an account's fleet from the platform's device lists.

    Attributes:
        account: name of the account.
        state: complete: every configured product was listed to its end. partial: there are gaps. pending: not finished.
            A resume continues what is not complete.
        products: number of configured products.
        devices: devices in the fleet.
        duplicates: rows that named a device again, because others were registered or removed meanwhile.
        excluded: devices that the settings exclude.
        statuses: devices of the fleet by reported status, such as ``ONLINE``; "": none reported.
        requests: requests for the lists; they are not among the run's requests.
        missing: devices that the platform reported and did not list.
        gaps_of_unknown_size: gaps with an unknown number of missing devices.
        gap_count: products with a gap.
        gaps: the first of them.
        shared_iot_ids: devices that were listed with the iot_id of another one, and are named without it.
    """

    account: str
    state: DiscoveryState = "pending"
    products: Count = 0
    devices: Count = 0
    duplicates: Count = 0
    excluded: Count = 0
    statuses: dict[str, PositiveCount] = field(default_factory=dict)
    requests: RequestCounts = field(default_factory=RequestCounts)
    missing: Count = 0
    gaps_of_unknown_size: Count = 0
    gap_count: Count = 0
    gaps: tuple[GapInfo, ...] = ()
    shared_iot_ids: Count = 0

    def describe_gaps(self) -> Iterator[str]:
        """Yield why the device list may be incomplete, one sentence for each reason."""
        if self.state == "pending":
            yield "its device list is incomplete"
        yield from map(str, self.gaps[:3])
        if self.gap_count > 3:  # noqa: PLR2004  examples in a sentence
            yield f"{self.gap_count - 3:,} more products with missing devices"

    def warnings(self, run: str = "") -> Iterator[RunWarning]:
        """Yield a warning for each reason, of the run folder ``run``."""
        for gap in self.describe_gaps():
            yield RunWarning("discovery_gap", run, f'account "{self.account}": {gap}')

    def describe_shared_iot_ids(self) -> str | None:
        """Return a sentence about devices that were listed with the iot_id of another one; None if there are none."""
        if not self.shared_iot_ids:
            return None
        of = f'account "{self.account}": {self.shared_iot_ids:,} devices were listed with the iot_id of another one'
        return f"{of}; they are queried by product_key and device_name"


@dataclass(frozen=True, slots=True)
class SilentAccount:
    """An account whose answers are not believed, and not carried to later runs.

    Attributes:
        account: name of the account.
        reason: not_found: not one of its devices exists. empty: no device reports a module, and some did before.
        devices: devices that were queried and answered.
    """

    account: str
    reason: Literal["not_found", "empty"]
    devices: PositiveCount

    def __str__(self) -> str:
        nothing = "exists on the platform" if self.reason == "not_found" else "reports a module, and some did before"
        cause = "region_id, instance_id or the permission of its access key is probably wrong"
        return f'account "{self.account}": none of {self.devices:,} queried devices {nothing}; {cause}'


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of a run folder. It is replaced atomically every few seconds, and never holds a secret.

    Attributes:
        auditor_version: version of the auditor that wrote it.
        name: name of the run, from the settings.
        state: complete: every device has a conclusive answer. within_tolerance: some failed or are pending, not more
            than max_failed allows. partial: more failed or are pending. aborted: an error stopped it. running: in
            progress, or killed.
        started_at: when the run started.
        accounts: accounts of the run.
        fleet: the fleet.
        finished_at: when the run ended; null while it is running.
        devices: devices by state.
        requests: requests of all accounts and audit sessions.
        rate: requests per second over all audit sessions.
        planned: estimate at the start; null: unknown.
        failures: failed devices by code, the most frequent first; filled when the run is sealed.
        error: why the run was stopped; null: nothing stopped it.
        files: sealed files; empty before.
        resumed_at: start of each later session.
        settings: settings of the run: where the keys are stored, never a secret. Nothing acts on them. null: unknown.
        settings_sha256: SHA-256 of ``settings``, under which the user who ran it remembers them; null: unknown.
        settings_file: file that the settings were loaded from; null: unknown.
        clock_offset: seconds added to this machine's clock, which is wrong by the platform's responses; null: none.
        never_activated: empty devices that were never activated, as the platform reports.
        discovery: discovery of each account whose fleet the platform lists.
        selection: selection of the devices to query; null: the complete fleet.
        carried: devices whose result is carried forward from an earlier run.
        unsampled: pending devices that are not in the sample and are not queried.
        oldest_answer_at: time of the oldest carried result; null: none is carried.
        silent: accounts whose answers are not believed; the run is then partial, and no later run carries them.
        mismatched: accounts whose answers reached the wrong request.
        max_failed: devices that may fail, stay pending or be missing in a list, as a number or a percentage of them,
            as configured when the run ended; null: it has not ended.
        exit_code: exit code of the command that ran the audit, its policy included; null: it has not ended.
        exit_reason: why it has this exit code; null: it has not ended.
        trial: whether the run was started with flags that limit it or put it in another directory. Its hooks then write
            no file outside of its folder and post nothing, unless that is requested.
        changes: changes since the previous run; null: there is none, or the run does not cover the fleet.
        releases: released firmware, as it was read of each account.
        modules: the only modules that the run read of its devices; null: all. A device that reports others is empty.
        problems: while it is running, why accounts have no answers now; empty when it has ended.
        schema_version: version of this contract.
    """

    auditor_version: str
    name: str
    state: State
    started_at: Timestamp
    accounts: tuple[AccountInfo, ...]
    fleet: FleetInfo
    finished_at: Timestamp | None = None
    devices: DeviceCounts = field(default_factory=DeviceCounts)
    requests: RequestCounts = field(default_factory=RequestCounts)
    rate: Rate = field(default_factory=Rate)
    planned: Planned | None = None
    failures: tuple[FailureInfo, ...] = ()
    error: str | None = None
    files: tuple[FileInfo, ...] = ()
    resumed_at: tuple[Timestamp, ...] = ()
    settings: dict[str, object] | None = None
    settings_sha256: Sha256 | None = None
    settings_file: str | None = None
    clock_offset: float | None = None
    never_activated: Count = 0
    discovery: tuple[DiscoveryInfo, ...] = ()
    selection: SelectionInfo | None = None
    carried: Count = 0
    unsampled: Count = 0
    oldest_answer_at: Timestamp | None = None
    silent: tuple[SilentAccount, ...] = ()
    mismatched: tuple[MismatchedAccount, ...] = ()
    max_failed: MaxFailed | None = None
    exit_code: int | None = None
    exit_reason: ExitReason | None = None
    trial: bool = False
    changes: ChangesInfo | None = None
    releases: tuple[ReleasesInfo, ...] = ()
    modules: ReadModules | None = None
    problems: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __repr__(self) -> str:
        return f"<Manifest {self.name!r}: {self.state}, started {self.started_at}, {self.devices}>"

    @property
    def silent_accounts(self) -> frozenset[str]:
        """Names of the accounts whose answers are not believed."""
        return frozenset(each.account for each in self.silent)

    @property
    def remaining_devices(self) -> int:
        """Devices without a conclusive answer that are to have one."""
        return self.devices.unanswered - self.unsampled

    @property
    def missing_devices(self) -> int:
        """Devices that the platform reported and did not list. They count as failed."""
        return sum(discovery.missing for discovery in self.discovery)

    @property
    def covers_fleet(self) -> bool:
        """Whether the run is about the whole fleet: it is no sample, and no flag limits it."""
        sampled = self.selection is not None and self.selection.strategy == "sample"
        return not (self.fleet.cut or self.unsampled or sampled)

    @property
    def is_success(self) -> bool:
        """Whether the run covers the fleet, and has as many answers as ``max_failed`` requires."""
        return self.state in SUCCESSFUL_STATES and self.covers_fleet and not self.silent

    @property
    def exceeds_tolerance(self) -> bool:
        """Whether more devices failed, are pending, not listed or share an identity than ``max_failed`` allows."""
        allowed = count_allowed(self.max_failed or 0, self._required_devices)
        return self.remaining_devices + self.missing_devices + self.fleet.shared_identities > allowed

    @property
    def _required_devices(self) -> int:
        return self.fleet.devices - self.unsampled + self.missing_devices

    def describe_shared_names(self) -> Iterator[str]:
        """Yield a sentence about each reason why several devices have one name."""
        shared = (self.fleet.describe_shared_identities(), *(each.describe_shared_iot_ids() for each in self.discovery))
        yield from (sentence for sentence in shared if sentence is not None)

    def describe_unanswered(self) -> str:
        """Return how many devices have no answer: ``25 of 9,156 devices failed (0.273%, limit 0.5%)``."""
        failed, pending, missing = self.devices.failed, self.devices.pending - self.unsampled, self.missing_devices
        shared = self.fleet.shared_identities
        parts = [f"{failed:,} failed"] if failed else []
        parts += [f"{pending:,} {'is' if pending == 1 else 'are'} pending"] if pending else []
        parts += [f"{missing:,} {'was' if missing == 1 else 'were'} not listed"] if missing else []
        parts += [f"{shared:,} are named like another in the answers"] if shared else []
        count, _, first = (parts[0] if parts else "0 failed").partition(" ")
        of = f"{count} of {self._required_devices:,} {'sampled ' if self.unsampled else ''}devices {first}"
        share = (failed + pending + missing + shared) / max(1, self._required_devices)
        return f"{' and '.join([of, *parts[1:]])} ({100 * share:.3g}%, limit {self.max_failed or 0})"

    def describe_success(self) -> ExitReason:
        """Return the reason of a run that ends with 0: everything has an answer, or enough has."""
        if self.remaining_devices or self.missing_devices or self.fleet.shared_identities:
            return ExitReason("within_tolerance", self.describe_unanswered())
        sampled = " sampled" if self.unsampled else ""
        about = "" if self.modules is None else f" about the module {', '.join(self.modules)}"
        return ExitReason("success", f"all {self._required_devices:,}{sampled} devices have an answer{about}")

    def describe_exit(self) -> str | None:
        """Return the exit code with its reason, the last line of a log, and where an error code in it is described.

        None: the run has not ended.
        """
        if self.exit_code is None or self.exit_reason is None:
            return None
        reason, message = self.exit_reason.code, self.exit_reason.message
        return refer_to_code(f"exit {self.exit_code} ({reason}): {message}", find_code(message, reason))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a run folder, and check that all of its files are files of this folder.

    Raises:
        RunFolderError: there is none, it is invalid, or it has another schema version; or a file of the run is a link,
            a pipe or a device, has a second name that another user may have made, or belongs to another user than the
            folder.
    """
    path = folder / MANIFEST
    try:
        _check_files(folder)
        content = read_contained(folder, MANIFEST, max_bytes=MAX_MANIFEST_BYTES)
        if sum(map(content.count, (b",", b"[", b"{"))) > MAX_MANIFEST_VALUES:
            raise RunFolderError(f"{path}: is not a manifest: it has more than {MAX_MANIFEST_VALUES:,} values")
        table = orjson.loads(content)
        version = table.get("schema_version", SCHEMA_VERSION) if isinstance(table, dict) else SCHEMA_VERSION
        if isinstance(version, int) and version != SCHEMA_VERSION:
            writer = str(table.get("auditor_version"))[:40]
            raise RunFolderError(
                f"{path}: has schema_version {version}, this auditor reads {SCHEMA_VERSION}; use the auditor that "
                f"wrote it ({writer!r})"
            )
        if _LONG_NUMBER.search(content) and _has_long_number(table):
            raise RunFolderError(f"{path}: is not a manifest: it has a number above {MAX_NUMBER:,}")
        return msgspec.convert(table, Manifest)
    except FileNotFoundError:
        raise RunFolderError(f"{folder}: is not a run folder: it has no {MANIFEST}") from None
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
    except (orjson.JSONDecodeError, msgspec.ValidationError) as error:
        raise RunFolderError(f"{path}: is not a manifest: {error}") from error


def _has_long_number(value: object) -> bool:
    """Return whether a whole number in a document is above the limit. What a user configures may be."""
    if isinstance(value, dict):
        return any(_has_long_number(each) for key, each in value.items() if key not in _CONFIGURED)
    if isinstance(value, list):
        return any(map(_has_long_number, value))
    return isinstance(value, int) and abs(value) > MAX_NUMBER


def _check_files(folder: Path) -> None:
    """Raise RunFolderError if a file of a run would be followed to another place, or could not be read to its end."""
    with os.scandir(folder) as entries:
        files = [(entry.name, entry.inode()) for entry in entries if entry.name.endswith(DATA_SUFFIXES)]
    links = Counter(inode for _, inode in files)  # older versions rotated failures by a second name in the folder
    for name, inode in files:
        if not name.startswith("."):
            with translate_os_errors(f"{folder / name}: cannot be read", RunFolderError):
                check_contained(folder, name, max_links=links[inode])


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest atomically: a reader sees the old one or the new one. Raises RunNotWritableError."""
    first = {"schema_version": manifest.schema_version}
    table = first | orjson.loads(orjson.dumps(manifest))
    replace_file(folder / MANIFEST, orjson.dumps(table, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def file_info(path: Path) -> FileInfo:
    """Return a file's name, size and digest."""
    with open_contained(path.parent, path.name) as file:
        return FileInfo(path.name, os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())
