"""A run folder's files and its manifest: names that other programs read, so a change here is a change for them.

What a run tells of whom it chose to ask, where that was not the whole fleet.

What a run tells of how its fleets were listed, and of their products, ``products.jsonl``.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import orjson

from auditor.errors import RunFolderError
from auditor.models import Level, SinceRule
from auditor.storage.files import replace_file

SCHEMA_VERSION = 1


MANIFEST = "run.json"


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
class RequestCounts:
    """Requests sent, those of them that were repeats, and answers that said the quota was used up."""

    sent: int = 0
    retried: int = 0
    throttled: int = 0


_NO_REQUESTS = RequestCounts()


@dataclass(frozen=True, slots=True)
class AccountChoice:
    """Whom of an account's devices a run asks.

    Attributes:
        account: its name.
        asked: devices that were chosen to be asked, by reason.
        beyond: devices with a reason to be asked for which the budget was too small from the first.
        carried: devices whose known answers were chosen to be carried.
        states: devices whose states were asked, ``untold`` of them without an answer.
        requests: that this took.
        chosen_at: when that was, UTC; what is carried is so old news at the least.
    """

    account: str
    asked: dict[str, int] = field(default_factory=dict)
    beyond: int = 0
    carried: int = 0
    states: int = 0
    untold: int = 0
    requests: RequestCounts = _NO_REQUESTS
    chosen_at: str | None = None


@dataclass(frozen=True, slots=True)
class Recheck:
    """How often it was wrong to carry an answer, by asking some of the carried at random all the same.

    Attributes:
        carried: devices whose answers were to be carried, those that were asked all the same among them.
        asked: these.
        answered: those of them that were answered.
        wrong: those of them whose answer is another one by now.
        rate, low, high: the part of the carried whose answer is another one by now, with its 95% confidence interval;
            None where none was answered.
    """

    carried: int
    asked: int
    answered: int
    wrong: int
    rate: float | None = None
    low: float | None = None
    high: float | None = None


Strategy = Literal["since", "rolling", "sample"]
"""``since``: whoever can have changed since an earlier run. ``rolling``: as many as a budget bears. ``sample``: some at
random."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Whom a run chose to ask; its files are ``plan.parquet`` and ``carried.parquet``.

    Attributes:
        strategy: how it chose.
        since: the folder of the earlier run whose answers are carried; None: none is.
        rule: when an answer is carried, where states tell.
        seed: of what was drawn at random.
        calls: the budget in calls; None: none was told.
        sample: so many devices were to be drawn; None: as many as the precision takes.
        precision: how well shares were to be known, as a part; None: that was not asked.
        precision_of: of which shares.
        reached: half the widest 95% confidence interval of these shares at the end; None: not asked, or nothing seen.
        spent: whether the budget ended before all that were chosen were asked.
        unreached: those of them that were not asked, and whose known answers are carried all the same.
        accounts: of each account that has chosen.
        recheck: how often it was wrong to carry; None where nothing was checked.
    """

    strategy: Strategy
    since: str | None = None
    rule: SinceRule | None = None
    seed: int = 0
    calls: int | None = None
    sample: int | None = None
    precision: float | None = None
    precision_of: Level | None = None
    reached: float | None = None
    spent: bool = False
    unreached: int = 0
    accounts: tuple[AccountChoice, ...] = ()
    recheck: Recheck | None = None


@dataclass(frozen=True, slots=True)
class GapFacts:
    """A product of which fewer devices were listed than the platform told of; None: products were.

    ``total`` is what the list itself told last, ``device_count`` the product's own number; None where it told none.
    ``reason``: why it could not be listed, or may have been listed in part; None: only the numbers differ.
    """

    product_key: str | None
    listed: int
    total: int | None
    device_count: int | None
    reason: str | None = None

    def __str__(self) -> str:
        told = max((number for number in (self.total, self.device_count) if number is not None), default=0)
        of, why = f" of {told:,}" if told > self.listed else "", f" ({self.reason})" if self.reason else ""
        if self.product_key is None:
            return f"a gap: {self.listed:,}{of} products listed{why}"
        return f"a gap: product {self.product_key}: {self.listed:,}{of} devices listed{why}"


ListingState = Literal["pending", "partial", "complete"]


@dataclass(frozen=True, slots=True)
class ListingFacts:
    """How the platform's listing of an account's fleet went.

    Attributes:
        account: its name.
        state: ``complete``: every wanted product was listed to its end; ``partial``: there are gaps; ``pending``: not
            listed yet, or not to the end. What is not complete a resume goes on with.
        products: that are wanted.
        devices: in the fleet.
        repeats: rows that named a device again, because others were registered or removed meanwhile.
        excluded: devices that the settings leave out.
        statuses: devices of the fleet by what the listing told of them, such as ``ONLINE``; ``""``: nothing.
        requests: that listing took.
        missing: devices that the platform told of and did not list.
        unlisted: gaps of which it is not known how many devices are missing.
        gap_count, gaps: products with a gap, and the first of them.
    """

    account: str
    state: ListingState = "pending"
    products: int = 0
    devices: int = 0
    repeats: int = 0
    excluded: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    requests: RequestCounts = RequestCounts()
    missing: int = 0
    unlisted: int = 0
    gap_count: int = 0
    gaps: tuple[GapFacts, ...] = ()

    def doubts(self) -> Iterator[str]:
        """Why the fleet may not be whole, a sentence each."""
        if self.state == "pending":
            yield f'the fleet of account "{self.account}" was not listed to its end'
        yield from (f'account "{self.account}": {gap}' for gap in self.gaps[:3])
        if self.gap_count > 3:  # noqa: PLR2004  examples in a sentence
            yield f'account "{self.account}": {self.gap_count - 3:,} products more of which devices are missing'


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


GAPS_SHOWN = 100
"""Products with a gap that the manifest names."""


def file_facts(path: Path) -> FileFacts:
    """A file's name, size and digest."""
    with path.open("rb") as file:
        return FileFacts(path.name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
