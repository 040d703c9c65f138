"""What the report shows, as plain values: every count comes from a query over the run's files.

Whom the report's numbers are of, as plain values: devices by state, how many were drawn, and how old answers are.
"""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal

from auditor.analysis.drift import DriftCounts
from auditor.analysis.sample_drift import ShareCounts
from auditor.query.freshness import Ages
from auditor.runs.estimates import Sample
from auditor.runs.manifest import DeviceCounts, Manifest

Order = Literal["newest", "older", "unordered"]
"""How a version stands among those of its module; ``unordered``: no rule says which of them is the newest."""


ENOUGH = 0.95
"""The part of a module's devices from which on its rollout counts as done."""


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a product's module; ``share`` is of the devices that report the module.

    ``low`` and ``high`` are the limits of the share where it is an estimate by a sample, else None.
    """

    text: str
    devices: int
    share: float
    order: Order
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Module:
    """A product's module and what its devices run.

    Attributes:
        account: the account of the product.
        product_key: the product; None where the platform did not tell it.
        module_name: the module.
        devices: how many devices report it.
        all_versions: how many versions of it are alive.
        versions: the most frequent ones.
        newest: the version that is newer than every other one, or None where no rule says which.
        on_newest: the part of the devices that run it, None where it is not known.
    """

    account: str
    product_key: str | None
    module_name: str
    devices: int
    all_versions: int
    versions: tuple[Version, ...]
    newest: str | None
    on_newest: float | None

    @property
    def others(self) -> int:
        """Versions that are not among ``versions``."""
        return self.all_versions - len(self.versions)

    @property
    def others_devices(self) -> int:
        """How many devices run these."""
        return self.devices - sum(version.devices for version in self.versions)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the inventory; ``low`` and ``high`` are as in a ``Version``."""

    account: str
    product_key: str | None
    module_name: str
    module_version: str
    devices: int
    share: float
    order: Order
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Shares:
    """Who runs what.

    Attributes:
        modules: the modules with the most devices.
        all_modules: how many modules there are; the same name in two products is two.
        done: modules with at least ``ENOUGH`` of their devices on the newest version.
        unknown: modules of which no rule says which version is the newest.
        rows: the rows of the inventory with the most devices.
        all_rows: how many rows it has.
    """

    modules: tuple[Module, ...]
    all_modules: int
    done: int
    unknown: int
    rows: tuple[Row, ...]
    all_rows: int


@dataclass(frozen=True, slots=True)
class Past:
    """A run of the past: ``label`` says what is wrong with its numbers, None if nothing is."""

    run: str
    started_at: str
    counts: DeviceCounts
    label: str | None


@dataclass(frozen=True, slots=True)
class Adoption:
    """A module over time.

    Attributes:
        module: the module as it is in the run that the page is of.
        versions: the versions that stand for themselves, the newest first where it is known; the last one may be None,
            which stands for all others.
        shares: for each run of the past, the part of the devices that runs each of ``versions``; None where the run
            tells nothing of the module.
    """

    module: Module
    versions: tuple[str | None, ...]
    shares: tuple[tuple[float, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class History:
    """The runs up to this one, the oldest first, and the largest modules in them."""

    runs: tuple[Past, ...]
    modules: tuple[Adoption, ...]
    doubts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModuleChange:
    """What became of a product's module since an earlier run, in devices."""

    account: str
    product_key: str | None
    module_name: str
    presence: str
    same: int
    upgraded: int
    downgraded: int
    changed: int
    appeared: int
    vanished: int
    not_seen: int

    @property
    def moved(self) -> int:
        """Devices of which something is known to have changed."""
        return self.upgraded + self.downgraded + self.changed + self.appeared + self.vanished


@dataclass(frozen=True, slots=True)
class ShareChange:
    """A version's share that changed, in words; ``level`` is ``product``, or ``fleet`` for all devices of the run."""

    level: str
    account: str | None
    product_key: str | None
    module_name: str
    module_version: str
    before: str
    after: str
    change: str
    verdict: str


@dataclass(frozen=True, slots=True)
class ShareChanges:
    """How many shares came to what, and those that changed most."""

    counts: ShareCounts
    rows: tuple[ShareChange, ...]

    @property
    def changed(self) -> int:
        """Shares that changed by more than chance."""
        return self.counts.grew + self.counts.shrank

    @property
    def more(self) -> int:
        """Those of them that are not among ``rows``."""
        return self.changed - len(self.rows)


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed since an earlier run: counts, the modules with the most changes, and shares if a run is a sample."""

    run: str
    started_at: str
    label: str | None
    counts: DriftCounts
    modules: tuple[ModuleChange, ...]
    more: int
    doubts: tuple[str, ...]
    shares: ShareChanges | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A rule and what was found."""

    name: str
    text: str
    severity: str
    verdict: str
    unit: str
    message: str
    compliant: int
    violated: int
    unparseable: int
    not_seen: int
    excepted: int
    unsampled: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """What the rules say; ``examples`` are some violations: rule, where, and why; ``problem``: why they say nothing."""

    verdicts: tuple[Verdict, ...]
    more: int
    violated: int
    examples: tuple[tuple[str, str, str], ...]
    doubts: tuple[str, ...]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Failed devices of one code, one of them and what was told of it."""

    code: str
    devices: int
    example: str
    message: str


@dataclass(frozen=True, slots=True)
class Account:
    """An account and what asking it took; ``quota`` is in calls a second as it was told, None without one."""

    name: str
    quota: float | None
    devices: int
    answered: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Effort:
    """A product and how often its devices were asked."""

    account: str
    product_key: str | None
    devices: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """Slow or failing parts of the audit, the worst first, and how many codes and accounts there are in all."""

    failures: tuple[Failure, ...]
    all_failures: int
    accounts: tuple[Account, ...]
    all_accounts: int
    products: tuple[Effort, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """A product's devices by state; ``unsampled`` of those that are pending were not drawn into the sample."""

    account: str
    product_key: str | None
    counts: DeviceCounts
    unsampled: int = 0

    @property
    def devices(self) -> int:
        """All of them."""
        return fleet_of(self.counts)

    @property
    def parts(self) -> dict[str, int]:
        """By what became of them."""
        return parts_of(self.counts, self.unsampled)

    @property
    def answered(self) -> float | None:
        """The part that has a conclusive answer, of those that were to have one; None where none was."""
        return _answered(self.counts, self.unsampled)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Whom the numbers are of.

    Attributes:
        counts: devices by state.
        products: those with the greatest part unanswered, the worst first.
        all_products: how many there are.
        lacking: how many of them have a device without an answer.
        ages: how old the answers are.
        unsampled: devices that were not drawn into the sample.
        sample: what the sample tells of the fleet; None where the run is none.
    """

    counts: DeviceCounts
    products: tuple[Product, ...]
    all_products: int
    lacking: int
    ages: Ages
    unsampled: int = 0
    sample: Sample | None = None

    @property
    def fleet(self) -> int:
        """Devices that were asked for."""
        return fleet_of(self.counts)

    @property
    def wanted(self) -> int:
        """Devices that were to be answered: all, or those that were drawn."""
        return self.fleet - self.unsampled

    @property
    def parts(self) -> dict[str, int]:
        """Devices by what became of them."""
        return parts_of(self.counts, self.unsampled)

    @property
    def answered(self) -> float:
        """The part of the fleet, or of what was drawn of it, that has a conclusive answer."""
        return _answered(self.counts, self.unsampled) or 0.0

    @property
    def first(self) -> datetime | None:
        """When the oldest answer was given, None without any."""
        return self.ages.first

    @property
    def last(self) -> datetime | None:
        """When the newest was."""
        return self.ages.last


@dataclass(frozen=True, slots=True)
class Page:
    """All of the report.

    Attributes:
        folder: the name of the run folder.
        manifest: what ``run.json`` says.
        labels: words for what is wrong with the numbers, such as ``partial`` and ``tampered``; none if nothing is.
        doubts: the same in sentences.
        coverage: whom the numbers are of.
        shares: who runs what.
        history: over time; None where no earlier run lies with this one.
        changes: since the run before; None where there is none.
        policy: what the rules say; None without rules.
        trouble: what was slow or failed.
        unread: what of the past could not be read, a sentence each.
        written_at: when the page was written.
    """

    folder: str
    manifest: Manifest
    labels: tuple[str, ...]
    doubts: tuple[str, ...]
    coverage: Coverage
    shares: Shares
    history: History | None
    changes: Changes | None
    policy: Policy | None
    trouble: Trouble
    unread: tuple[str, ...]
    written_at: datetime

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known before any of it is believed, a sentence each."""
        problem = None if self.policy is None else self.policy.problem
        return (*self.doubts, *self.unread, *(() if problem is None else (problem,)))


def parts_of(counts: DeviceCounts, unsampled: int) -> dict[str, int]:
    """Devices by what became of them: those that were not drawn into a sample are none that are pending."""
    return asdict(counts) | {"pending": counts.pending - unsampled, "unsampled": unsampled}


def fleet_of(counts: DeviceCounts) -> int:
    """All devices of a fleet."""
    return counts.ok + counts.empty + counts.not_found + counts.unanswered


def _answered(counts: DeviceCounts, unsampled: int) -> float | None:
    wanted = fleet_of(counts) - unsampled
    return 1 - (counts.unanswered - unsampled) / wanted if wanted else None
