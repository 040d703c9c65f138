"""``run.json``, the manifest of a run. Other programs read it: a changed name here is a change for them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import orjson

from auditor.errors import RunFolderError
from auditor.models import ChangeDetection, Level, RunWarning
from auditor.storage.files import replace_file
from auditor.storage.json_types import (
    CallsPerSecond,
    Count,
    PositiveCallsPerSecond,
    PositiveCount,
    Seconds,
    Sha256,
    Share,
    Timestamp,
)

SCHEMA_VERSION = 2
"""Version of every JSON document that leaves the program."""

MANIFEST = "run.json"

MAX_FAILURE_CODES = MAX_GAPS = 100
"""Codes of failures, and products with a gap of an account, that the manifest lists."""

State = Literal["running", "complete", "partial", "aborted"]
"""State of a run.

``complete``: every device has a conclusive answer. ``partial``: some failed or are pending. ``aborted``: an error
stopped it. ``running``: in progress, or killed.
"""


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
    """

    source: str
    devices: Count
    duplicates: Count
    sha256: str
    limit: PositiveCount | None = None
    excluded_accounts: tuple[str, ...] = ()

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
    def unanswered(self) -> int:
        """Devices without a conclusive answer."""
        return self.failed + self.pending


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests per second.

    Attributes:
        target: sum of the configured quotas; null: an account has none.
        achieved: mean of the run.
        learned: sum of what the platform accepted, as far as it was learned; null: no quota, or nothing learned.
        latency: mean seconds from a request to its response; null: no response yet.
        in_flight: mean number of requests in flight.
    """

    target: PositiveCallsPerSecond | None = None
    achieved: CallsPerSecond = 0.0
    learned: CallsPerSecond | None = None
    latency: Seconds | None = None
    in_flight: CallsPerSecond = 0.0


@dataclass(frozen=True, slots=True)
class Planned:
    """Estimate for the complete fleet at the start of the run, as ``auditor plan`` prints it.

    Attributes:
        requests: number of requests, including retries.
        seconds: duration at the quotas; null: a quota is unknown.
        in_flight: requests in flight that the quotas need; null: a quota is unknown.
    """

    requests: Count
    seconds: Seconds | None
    in_flight: Count | None


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


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Requests to the platform.

    Attributes:
        sent: requests sent, including retries.
        retried: those that were retries.
        throttled: throttling responses.
    """

    sent: Count = 0
    retried: Count = 0
    throttled: Count = 0


@dataclass(frozen=True, slots=True)
class AccountSelection:
    """The devices of an account that a run queries.

    Attributes:
        account: name of the account.
        selected: devices selected for a query, by reason.
        over_budget: devices with a reason for a query that the call budget did not allow from the start.
        carried: devices whose previous results were selected to be carried forward.
        states_requested: devices whose connection states were requested.
        states_unknown: devices whose connection states the platform did not report.
        requests: requests for connection states.
        selected_at: when the selection was made; carried results are at least this old. null: not recorded.
    """

    account: str
    selected: dict[str, Count] = field(default_factory=dict)
    over_budget: Count = 0
    carried: Count = 0
    states_requested: Count = 0
    states_unknown: Count = 0
    requests: RequestCounts = RequestCounts()
    selected_at: Timestamp | None = None


@dataclass(frozen=True, slots=True)
class Recheck:
    """Spot check of carried results: a random sample of the devices to carry is queried.

    Attributes:
        carried: devices whose results were to be carried, including the checked ones.
        checked: devices in the spot check.
        answered: checked devices with a conclusive answer.
        changed: answered devices whose result differs from the previous one.
        rate: estimated fraction of carried results that are outdated; null: no checked device answered.
        low: lower limit of its 95% confidence interval.
        high: upper limit.
    """

    carried: Count
    checked: Count
    answered: Count
    changed: Count
    rate: Share | None = None
    low: Share | None = None
    high: Share | None = None


Strategy = Literal["incremental", "rolling", "sample"]
"""How devices are selected.

``incremental``: those that may have changed since an earlier run. ``rolling``: as many as a budget allows. ``sample``:
a random sample.
"""


@dataclass(frozen=True, slots=True)
class SelectionInfo:
    """The devices that a run queries, where these are not the complete fleet.

    Attributes:
        strategy: how devices are selected. incremental: those that may have changed since an earlier run. rolling: as
            many as a budget allows. sample: a random sample.
        baseline_run: folder of the earlier run whose results are carried forward; null: none.
        change_detection: rule by which connection states decide that a result is carried.
        seed: seed of the random selection.
        max_calls: call budget; null: none.
        sample_size: configured number of devices to sample; null: as many as the precision needs.
        precision: configured half-width of confidence intervals, as a fraction; null: not configured.
        precision_of: population of the shares that have this precision.
        achieved_precision: half the widest 95% confidence interval of these shares at the end; null: not configured, or
            no answer.
        budget_exhausted: whether the budget ended before all selected devices were queried.
        not_reached: selected devices that were not queried and whose previous results are carried instead.
        accounts: accounts whose selection is final.
        recheck: spot check of carried results; null: none.
    """

    strategy: Strategy
    baseline_run: str | None = None
    change_detection: ChangeDetection | None = None
    seed: Count = 0
    max_calls: PositiveCount | None = None
    sample_size: PositiveCount | None = None
    precision: Share | None = None
    precision_of: Level | None = None
    achieved_precision: Share | None = None
    budget_exhausted: bool = False
    not_reached: Count = 0
    accounts: tuple[AccountSelection, ...] = ()
    recheck: Recheck | None = None


@dataclass(frozen=True, slots=True)
class GapInfo:
    """A product with fewer listed devices than the platform reported.

    Attributes:
        product_key: the product; null: products are missing from the list of products.
        listed: devices listed, each once.
        total: total that the device list reported last; null: none.
        device_count: device count that the product list reported; null: none.
        reason: why the list was not read to its end, or may be incomplete; null: only the numbers differ.
    """

    product_key: str | None
    listed: Count
    total: Count | None
    device_count: Count | None
    reason: str | None = None

    def __str__(self) -> str:
        reported = max((number for number in (self.total, self.device_count) if number is not None), default=0)
        of, why = f" of {reported:,}" if reported > self.listed else "", f" ({self.reason})" if self.reason else ""
        if self.product_key is None:
            return f"a gap: {self.listed:,}{of} products listed{why}"
        return f"a gap: product {self.product_key}: {self.listed:,}{of} devices listed{why}"


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
    """

    account: str
    state: DiscoveryState = "pending"
    products: Count = 0
    devices: Count = 0
    duplicates: Count = 0
    excluded: Count = 0
    statuses: dict[str, PositiveCount] = field(default_factory=dict)
    requests: RequestCounts = RequestCounts()
    missing: Count = 0
    gaps_of_unknown_size: Count = 0
    gap_count: Count = 0
    gaps: tuple[GapInfo, ...] = ()

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


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of a run folder. It is replaced atomically every few seconds, and never holds a secret.

    Attributes:
        auditor_version: version of the auditor that wrote it.
        name: name of the run, from the settings.
        state: complete: every device has a conclusive answer. partial: some failed or are pending. aborted: an error
            stopped it. running: in progress, or killed.
        started_at: when the run started.
        accounts: accounts of the run.
        fleet: the fleet.
        finished_at: when the run ended; null while it is running.
        devices: devices by state.
        requests: requests of all accounts and sessions.
        rate: requests per second over all sessions.
        planned: estimate at the start; null: unknown.
        failures: failed devices by code, the most frequent first; filled when the run is sealed.
        error: why the run was stopped; null: nothing stopped it.
        files: sealed files; empty before.
        resumed_at: start of each later session.
        settings: settings of the run, for a resume: where the keys are stored, never a secret. null: unknown.
        never_activated: empty devices that were never activated, as the platform reports.
        discovery: discovery of each account whose fleet the platform lists.
        selection: selection of the devices to query; null: the complete fleet.
        carried: devices whose result is carried forward from an earlier run.
        unsampled: pending devices that are not in the sample and are not queried.
        oldest_answer_at: time of the oldest carried result; null: none is carried.
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
    never_activated: Count = 0
    discovery: tuple[DiscoveryInfo, ...] = ()
    selection: SelectionInfo | None = None
    carried: Count = 0
    unsampled: Count = 0
    oldest_answer_at: Timestamp | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def remaining_devices(self) -> int:
        """Devices without a conclusive answer that are to have one."""
        return self.devices.unanswered - self.unsampled


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a run folder.

    Raises:
        RunFolderError: there is none, it is invalid, or it has another schema version.
    """
    path = folder / MANIFEST
    try:
        table = orjson.loads(path.read_bytes())
        version = table.get("schema_version", SCHEMA_VERSION) if isinstance(table, dict) else SCHEMA_VERSION
        if isinstance(version, int) and version != SCHEMA_VERSION:
            writer = str(table.get("auditor_version"))[:40]
            raise RunFolderError(
                f"{path}: has schema_version {version}, this auditor reads {SCHEMA_VERSION}; use the auditor that "
                f"wrote it ({writer!r})"
            )
        return msgspec.convert(table, Manifest)
    except FileNotFoundError:
        raise RunFolderError(f"{folder}: is not a run folder: it has no {MANIFEST}") from None
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
    except (orjson.JSONDecodeError, msgspec.ValidationError) as error:
        raise RunFolderError(f"{path}: is not a manifest: {error}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest atomically: a reader sees the old one or the new one. Raises RunNotWritableError."""
    first = {"schema_version": manifest.schema_version}
    table = first | orjson.loads(orjson.dumps(manifest))
    replace_file(folder / MANIFEST, orjson.dumps(table, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def file_info(path: Path) -> FileInfo:
    """Return a file's name, size and digest."""
    with path.open("rb") as file:
        return FileInfo(path.name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
