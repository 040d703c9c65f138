"""The contents of a report as plain values; each count is the result of a query over the run's files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from auditor.analysis.drift import DriftCounts
from auditor.analysis.sample_drift import ShareCounts
from auditor.models import RunWarning
from auditor.policy.results import RuleResult
from auditor.query.describe import describe_warning
from auditor.query.freshness import AnswerAges
from auditor.query.run import VersionCount
from auditor.runs.estimates import SampleSummary
from auditor.runs.manifest import DeviceCounts, Manifest

VersionOrder = Literal["newest", "older", "unordered"]
"""Order of a version in its module; ``unordered``: no rule decides which version is the newest."""

COMPLETE_ROLLOUT = 0.95
"""Fraction of a module's devices on the newest version from which its rollout counts as complete."""


@dataclass(frozen=True, slots=True)
class ProductCoverage:
    """Devices of a product by state; ``unsampled`` counts the pending devices that were not sampled."""

    account: str
    product_key: str | None
    counts: DeviceCounts
    unsampled: int = 0

    @property
    def devices(self) -> int:
        """All devices of the product."""
        return self.counts.fleet

    @property
    def by_state(self) -> dict[str, int]:
        """Devices by state; devices that were not sampled are not pending."""
        return count_by_state(self.counts, self.unsampled)

    @property
    def answered(self) -> float | None:
        """Fraction of the devices to query that has a conclusive answer; None if there was none to query."""
        return _answered_fraction(self.counts, self.unsampled)


@dataclass(frozen=True, slots=True)
class CoverageSection:
    """The devices that the report's numbers cover.

    Attributes:
        counts: devices by state.
        products: the products with the largest fraction of unanswered devices, the worst first.
        product_count: number of all products.
        incomplete_products: number of products with a device that has no answer.
        ages: ages of the answers.
        unsampled: devices that were not sampled.
        sample: estimates for the fleet; None if the run is not a sample.
    """

    counts: DeviceCounts
    products: tuple[ProductCoverage, ...]
    product_count: int
    incomplete_products: int
    ages: AnswerAges
    unsampled: int = 0
    sample: SampleSummary | None = None

    @property
    def fleet(self) -> int:
        """All devices in scope."""
        return self.counts.fleet

    @property
    def sampled(self) -> int:
        """Devices to query: the sample, or the fleet if the run is not a sample."""
        return self.fleet - self.unsampled

    @property
    def by_state(self) -> dict[str, int]:
        """Devices by state; devices that were not sampled are not pending."""
        return count_by_state(self.counts, self.unsampled)

    @property
    def answered(self) -> float:
        """Fraction of the fleet, or of the sample, that has a conclusive answer."""
        return _answered_fraction(self.counts, self.unsampled) or 0.0


@dataclass(frozen=True, slots=True)
class VersionShare(VersionCount):
    """A version of a product's module, and its order among the versions of the module."""

    order: VersionOrder = "unordered"


@dataclass(frozen=True, slots=True)
class ModuleShares:
    """A product's module and the versions that its devices run.

    Attributes:
        account: the account of the product.
        product_key: the product; None if the platform did not report it.
        module_name: the module.
        devices: number of devices that report the module.
        version_count: number of versions in use.
        versions: the most frequent versions.
        newest: the version that is newer than all others in use; None if no rule decides.
        on_newest: fraction of the devices that run it; None if it is unknown.
    """

    account: str
    product_key: str | None
    module_name: str
    devices: int
    version_count: int
    versions: tuple[VersionShare, ...]
    newest: str | None
    on_newest: float | None

    @property
    def other_versions(self) -> int:
        """Number of versions that are not among ``versions``."""
        return self.version_count - len(self.versions)

    @property
    def other_devices(self) -> int:
        """Number of devices that run one of these."""
        return self.devices - sum(version.devices for version in self.versions)


@dataclass(frozen=True, slots=True)
class VersionSection:
    """Versions in use.

    Attributes:
        modules: the modules with the most devices.
        module_count: number of modules; a module of two products counts twice.
        complete_rollouts: modules with at least ``COMPLETE_ROLLOUT`` of their devices on the newest version.
        unordered_modules: modules whose newest version is unknown.
        rows: the rows of the inventory with the most devices.
        row_count: number of all rows.
    """

    modules: tuple[ModuleShares, ...]
    module_count: int
    complete_rollouts: int
    unordered_modules: int
    rows: tuple[VersionShare, ...]
    row_count: int


@dataclass(frozen=True, slots=True)
class PastRun:
    """A run in the history: its folder's name, its start, and what limits its numbers, None if nothing does."""

    run: str
    started_at: str
    label: str | None


@dataclass(frozen=True, slots=True)
class ModuleAdoption:
    """Shares of a module's versions over time.

    Attributes:
        module: the module in the reported run.
        versions: the versions with a share of their own, the newest first if it is known. A last one that is None
            means all others.
        shares: for each run, the fraction of the devices that runs each of ``versions``; None if the run has no
            device with the module.
    """

    module: ModuleShares
    versions: tuple[str | None, ...]
    shares: tuple[tuple[float, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class HistorySection:
    """The runs up to the reported one, the oldest first, and the largest modules in them."""

    runs: tuple[PastRun, ...]
    modules: tuple[ModuleAdoption, ...]
    warnings: tuple[RunWarning, ...]


@dataclass(frozen=True, slots=True)
class ShareChanges:
    """Numbers of shares by verdict, and the rows of ``ShareDrift.table`` with the largest significant changes."""

    counts: ShareCounts
    rows: tuple[Mapping[str, Any], ...]

    @property
    def omitted(self) -> int:
        """Number of significant changes that are not among ``rows``."""
        return self.counts.grew + self.counts.shrank - len(self.rows)


@dataclass(frozen=True, slots=True)
class ChangeSection:
    """Changes since an earlier run.

    Attributes:
        started_at: start of the earlier run.
        label: what limits its numbers; None if nothing does.
        counts: changes in devices and modules.
        modules: the rows of ``Drift.modules`` with the most changes.
        omitted: number of changed modules that are not among ``modules``.
        warnings: warnings about the earlier run and the comparison.
        shares: changes of shares; None unless one of the runs is a sample.
    """

    started_at: str
    label: str | None
    counts: DriftCounts
    modules: tuple[Mapping[str, Any], ...]
    omitted: int
    warnings: tuple[RunWarning, ...]
    shares: ShareChanges | None = None


@dataclass(frozen=True, slots=True)
class PolicySection:
    """Results of a policy.

    Attributes:
        results: a result for each rule, violated rules first.
        omitted: number of rules that are not among ``results``.
        violated: number of violated rules.
        examples: some violations: rule, where, and why.
        warnings: warnings about the policy.
        problem: why the policy could not be evaluated; None if it was.
    """

    results: tuple[RuleResult, ...] = ()
    omitted: int = 0
    violated: int = 0
    examples: tuple[tuple[str, str, str], ...] = ()
    warnings: tuple[RunWarning, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """Devices with the same attributes.

    Attributes:
        values: text of each attribute, which may be cut; None: the devices have none.
        devices: number of devices.
        failed: number of them that failed.
        on_newest: fraction of their modules with a known newest version that run it; None: there are none.
    """

    values: tuple[str | None, ...]
    devices: int
    failed: int
    on_newest: float | None


@dataclass(frozen=True, slots=True)
class GroupSection:
    """Devices by attributes.

    Attributes:
        names: names of the attributes.
        rows: the groups with the most devices.
        combined: number of further groups.
        others: the devices of these together; None: there are none.
    """

    names: tuple[str, ...]
    rows: tuple[DeviceGroup, ...]
    combined: int
    others: DeviceGroup | None


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failed devices with one error code; ``example`` is one of them, with its ``message``."""

    code: str
    devices: int
    example: str
    message: str


@dataclass(frozen=True, slots=True)
class AccountEffort:
    """Devices and attempts of an account; ``quota`` is its configured calls a second, None without one."""

    name: str
    quota: float | None
    devices: int
    answered: int
    attempts: int


@dataclass(frozen=True, slots=True)
class RequestEffort:
    """Devices of a product that were queried, and the attempts they took."""

    account: str
    product_key: str | None
    devices: int
    attempts: int


@dataclass(frozen=True, slots=True)
class ProblemSection:
    """Slow or failing parts of the audit, the worst first, and the numbers of all error codes and accounts."""

    failures: tuple[FailureGroup, ...]
    failure_count: int
    accounts: tuple[AccountEffort, ...]
    account_count: int
    products: tuple[RequestEffort, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """All contents of a report.

    Attributes:
        folder: name of the run folder.
        manifest: its ``run.json``.
        labels: what limits the numbers in a word each, such as ``partial`` and ``tampered``.
        warnings: why the numbers do not cover the whole fleet, or are not reliable.
        coverage: the devices that the numbers cover.
        versions: versions in use.
        history: earlier runs; None if the directory has none.
        changes: changes since the previous run; None if there is none.
        policy: results of the policy; None without one.
        problems: slow or failing parts of the audit.
        unreadable: earlier runs that could not be read, a sentence each.
        written_at: when the report was written.
        groups: devices by attributes; None: none are configured.
    """

    folder: str
    manifest: Manifest
    labels: tuple[str, ...]
    warnings: tuple[RunWarning, ...]
    coverage: CoverageSection
    versions: VersionSection
    history: HistorySection | None
    changes: ChangeSection | None
    policy: PolicySection | None
    problems: ProblemSection
    unreadable: tuple[str, ...]
    written_at: datetime
    groups: GroupSection | None = None

    @property
    def caveats(self) -> tuple[str, ...]:
        """Sentences on everything that limits the report."""
        problem = None if self.policy is None else self.policy.problem
        warnings = (describe_warning(each, Path(each.run).name) for each in self.warnings)
        return (*warnings, *self.unreadable, *(() if problem is None else (problem,)))


def count_by_state(counts: DeviceCounts, unsampled: int) -> dict[str, int]:
    """Return devices by state; devices that were not sampled are not pending."""
    return asdict(counts) | {"pending": counts.pending - unsampled, "unsampled": unsampled}


def _answered_fraction(counts: DeviceCounts, unsampled: int) -> float | None:
    sampled = counts.fleet - unsampled
    return 1 - (counts.unanswered - unsampled) / sampled if sampled else None
