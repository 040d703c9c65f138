"""What the report shows, as plain values: every count comes from a query over the run's files."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from auditor.inventory.drift import DriftCounts
from auditor.inventory.folder import DeviceCounts, Manifest
from auditor.report.share_changes import ShareChanges
from auditor.report.whom import Coverage

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
