"""The contents of a report as plain values; each count is the result of a query over the run's files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from auditor.analysis.drift import DriftCounts
from auditor.analysis.rollout_states import RolloutState, RolloutThresholds
from auditor.analysis.rollouts import Rollout, StateCount
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


class ProductCoverage(msgspec.Struct, frozen=True):
    """Devices of a product by state; ``unsampled`` counts the pending devices that were not sampled."""

    account: str
    product_key: str | None
    product_name: str | None
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


class CoverageSection(msgspec.Struct, frozen=True):
    """The devices that the report's numbers cover.

    Attributes:
        counts: devices by state.
        products: the products with the most unanswered devices; first those that lack more than a few.
        product_count: number of all products.
        incomplete_products: number of products with a device that has no answer.
        ages: ages of the answers.
        unsampled: devices that were not sampled.
        sample: estimates for the fleet; None if the run is not a sample.
        never_activated: devices whose answer was known without a request, as they were never activated.
    """

    counts: DeviceCounts
    products: tuple[ProductCoverage, ...]
    product_count: int
    incomplete_products: int
    ages: AnswerAges
    unsampled: int = 0
    sample: SampleSummary | None = None
    never_activated: int = 0

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
    """A version of a product's module, its order among the versions of the module, and the product's name."""

    order: VersionOrder = "unordered"
    product_name: str | None = None


class VersionSection(msgspec.Struct, frozen=True):
    """Versions in use.

    Attributes:
        module_count: number of modules; a module of two products counts twice.
        unordered_modules: modules whose newest version is unknown.
        rows: the rows of the inventory with the most devices.
        row_count: number of all rows.
    """

    module_count: int
    unordered_modules: int
    rows: tuple[VersionShare, ...]
    row_count: int


class PastRun(msgspec.Struct, frozen=True):
    """A run of the report, the reported one included.

    Attributes:
        run: name of its folder.
        started_at: its start.
        label: what limits its numbers; None: nothing does.
        devices: devices by state.
        unsampled: devices outside its sample.
        changes: numbers of changes since the run before, by change; None: they were not recorded.
    """

    run: str
    started_at: str
    label: str | None
    devices: DeviceCounts
    unsampled: int = 0
    changes: Mapping[str, int] | None = None

    @property
    def answered(self) -> float | None:
        """Fraction of the devices to query that has a conclusive answer; None if there was none to query."""
        return _answered_fraction(self.devices, self.unsampled)


class ModuleVersions(msgspec.Struct, frozen=True):
    """A module's versions over the runs, those with the most devices.

    Attributes:
        version: the version; None: all others together.
        age: its place among ``AGES``; -1: newer than the target. None: those of several versions.
        devices: its devices by run; None: the run has no device with the module.
    """

    version: str | None
    age: int | None
    devices: tuple[int | None, ...]


class RolloutDetail(msgspec.Struct, frozen=True):
    """The rollout of a module, and the module's versions over the runs.

    Attributes:
        rollout: its state.
        versions: its main versions, the newest first; empty: they do not fit into the page.
        version_count: number of versions in use.
    """

    rollout: Rollout
    versions: tuple[ModuleVersions, ...]
    version_count: int


class UnknownModule(msgspec.Struct, frozen=True):
    """A module of an earlier run that no device reports in this one, because devices of its product have no answer."""

    account: str
    product_key: str | None
    product_name: str | None
    module_name: str
    devices: int
    run: str


AGES = ("on target", "one version behind", "two versions behind", "older", "no known order")
"""Ages of a version: its place before the target of its module. Versions newer than the target are on target."""


class RolloutSection(msgspec.Struct, frozen=True):
    """The rollouts, and the fleet by age of its firmware.

    Attributes:
        runs: the runs, the oldest first; the last one is the reported run.
        rollouts: the rollouts with the most devices, those that need attention first.
        by_state: all of them by state.
        on_target, devices: devices on their module's target, summed over modules; and all devices of these modules.
        previous: place in ``runs`` of the run that the reported one is compared with; None: there is none.
        change: change of ``on_target / devices`` since that run, of the modules in both; None: unknown.
        done_by_run: for each run the number of rollouts whose share was ``done``; None: it is unknown.
        ages: for each run the numbers of devices by ``AGES``, summed over modules; None: the run has no versions.
        thresholds: those that decided the states.
        unknown: modules that are unknown because devices have no answer.
        unknown_by_account: number of all of these by account.
        warnings: warnings about the runs.
        moved_targets: modules whose target is newer than it was in the previous run.
        devices_by_product: devices to query by account and product, of the products with the largest modules.
    """

    runs: tuple[PastRun, ...]
    rollouts: tuple[RolloutDetail, ...]
    by_state: Mapping[RolloutState, StateCount]
    on_target: int
    devices: int
    previous: int | None
    change: float | None
    done_by_run: tuple[float | None, ...]
    ages: tuple[tuple[int, ...] | None, ...]
    thresholds: RolloutThresholds
    unknown: tuple[UnknownModule, ...] = ()
    unknown_by_account: Mapping[str, int] = msgspec.field(default_factory=dict)
    warnings: tuple[RunWarning, ...] = ()
    moved_targets: int = 0
    devices_by_product: Mapping[tuple[str, str | None], int] = msgspec.field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """Fraction of the devices on their module's target; None without any."""
        return self.on_target / self.devices if self.devices else None

    @property
    def previous_run(self) -> PastRun | None:
        """The run that the reported one is compared with."""
        return None if self.previous is None else self.runs[self.previous]

    @property
    def total(self) -> int:
        """Number of all rollouts."""
        return sum(each.rollouts for each in self.by_state.values())

    @property
    def active(self) -> int:
        """Rollouts that are neither done, nor not started, nor unknown."""
        return sum(self.count(state) for state in ("moving", "stalled", "rolled_back"))

    @property
    def unknown_count(self) -> int:
        """Number of all unknown modules."""
        return sum(self.unknown_by_account.values())

    def count(self, state: RolloutState) -> int:
        """Return the number of rollouts in a state."""
        return self.by_state[state].rollouts if state in self.by_state else 0


class ShareChanges(msgspec.Struct, frozen=True):
    """Numbers of shares by verdict, and the rows of ``ShareDrift.table`` with the largest significant changes."""

    counts: ShareCounts
    rows: tuple[Mapping[str, Any], ...]

    @property
    def omitted(self) -> int:
        """Number of significant changes that are not among ``rows``."""
        return self.counts.grew + self.counts.shrank - len(self.rows)


class ChangeSection(msgspec.Struct, frozen=True):
    """Changes since an earlier run.

    Attributes:
        run: folder name of the earlier run.
        started_at: its start.
        label: what limits its numbers; None if nothing does.
        counts: changes in devices and modules.
        modules: the rows of ``Drift.modules`` with the most changes.
        omitted: number of changed modules that are not among ``modules``.
        warnings: warnings about the earlier run and the comparison.
        shares: changes of shares; None unless one of the runs is a sample.
    """

    run: str
    started_at: str
    label: str | None
    counts: DriftCounts
    modules: tuple[Mapping[str, Any], ...]
    omitted: int
    warnings: tuple[RunWarning, ...]
    shares: ShareChanges | None = None


class PolicySection(msgspec.Struct, frozen=True):
    """Results of a policy.

    Attributes:
        results: a result for each rule, violated rules first.
        omitted: number of rules that are not among ``results``.
        violated: number of violated rules.
        verdicts: number of rules by verdict, and of violated ones by severity.
        examples: some violations: rule, where, and why.
        warnings: warnings about the policy.
        problem: why the policy could not be evaluated; None if it was.
        rules_with_devices: names of the violated rules whose violations name devices.
    """

    results: tuple[RuleResult, ...] = ()
    omitted: int = 0
    violated: int = 0
    verdicts: Mapping[str, int] = msgspec.field(default_factory=dict)
    examples: tuple[tuple[str, str, str], ...] = ()
    warnings: tuple[RunWarning, ...] = ()
    problem: str | None = None
    rules_with_devices: frozenset[str] = frozenset()

    @property
    def undecided(self) -> int:
        """Number of rules without a verdict on any device: none was seen, or no version can be compared."""
        return self.verdicts.get("not_seen", 0) + self.verdicts.get("unparseable", 0)

    @property
    def is_undecided(self) -> bool:
        """Whether no rule has a verdict."""
        return self.undecided > 0 and not self.violated and not self.verdicts.get("compliant", 0)


class DeviceGroup(msgspec.Struct, frozen=True):
    """Devices with the same attributes.

    Attributes:
        values: text of each attribute, which may be cut; None: the devices have none.
        devices: number of devices.
        failed: number of them that failed.
        on_target: fraction of their installed modules with a target that run it; None: there are none.
    """

    values: tuple[str | None, ...]
    devices: int
    failed: int
    on_target: float | None


class GroupSection(msgspec.Struct, frozen=True):
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


class FailureGroup(msgspec.Struct, frozen=True):
    """Failed devices with one error code; ``example`` is one of them, with its ``message``."""

    code: str
    devices: int
    example: str
    message: str


class AccountEffort(msgspec.Struct, frozen=True):
    """Devices and attempts of an account.

    Attributes:
        quota: its configured calls a second; None: none.
        devices, answered, failed: devices to query, those with a conclusive answer, and those that failed.
        attempts: requests for them.
        code, message: the most frequent failure of its devices; empty: none failed.
    """

    name: str
    quota: float | None
    devices: int
    answered: int
    failed: int
    attempts: int
    code: str = ""
    message: str = ""


class RequestEffort(msgspec.Struct, frozen=True):
    """Devices of a product that were queried, and the attempts they took."""

    account: str
    product_key: str | None
    product_name: str | None
    devices: int
    attempts: int


class ProblemSection(msgspec.Struct, frozen=True):
    """Slow or failing parts of the audit, the worst first, and the numbers of all error codes and accounts."""

    failures: tuple[FailureGroup, ...]
    failure_count: int
    accounts: tuple[AccountEffort, ...]
    account_count: int
    products: tuple[RequestEffort, ...]


class SuccessfulRun(msgspec.Struct, frozen=True):
    """The last run before the reported one that was a success: name of its folder, and its start."""

    run: str
    started_at: str


class Report(msgspec.Struct, frozen=True):
    """All contents of a report.

    Attributes:
        folder: name of the run folder.
        path: its path, as it was given, for commands.
        directory: path of the directory of earlier runs, likewise.
        manifest: its ``run.json``.
        labels: what limits the numbers in a word each, such as ``partial`` and ``tampered``.
        warnings: why the numbers do not cover the whole fleet, or are not reliable.
        coverage: the devices that the numbers cover.
        versions: versions in use.
        rollouts: the rollouts, the runs, and the fleet by age of its firmware.
        changes: changes since the previous run; None if there is none.
        policy: results of the policy; None without one.
        rules: path of the policy's file, likewise; None without one.
        problems: slow or failing parts of the audit.
        unreadable: earlier runs that could not be read, a sentence each.
        written_at: when the report was written.
        groups: devices by attributes; None: none are configured.
        newer: manifest of a newer run that ended without success; None: there is none.
        last_success: the last earlier run that was a success; None: the directory has none.
    """

    folder: str
    path: str
    directory: str
    manifest: Manifest
    labels: tuple[str, ...]
    warnings: tuple[RunWarning, ...]
    coverage: CoverageSection
    versions: VersionSection
    rollouts: RolloutSection
    changes: ChangeSection | None
    policy: PolicySection | None
    problems: ProblemSection
    unreadable: tuple[str, ...]
    written_at: datetime
    groups: GroupSection | None = None
    rules: str | None = None
    newer: Manifest | None = None
    last_success: SuccessfulRun | None = None

    @property
    def has_answers(self) -> bool:
        """Whether any device has a conclusive answer."""
        return self.coverage.counts.answered > 0

    @property
    def state(self) -> str:
        """The run's state: that of its manifest, or ``killed``."""
        return "killed" if "killed" in self.labels else self.manifest.state

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
