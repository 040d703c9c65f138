"""Types of JSON documents that are written without one: their JSON Schemas are compared with real output in a test."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from auditor.analysis.drift import DriftCounts
from auditor.analysis.sample_drift import ShareCounts, ShareVerdict
from auditor.models import ModuleVersion, Reason, Status, WarningKind
from auditor.policy.loader import RuleTable
from auditor.policy.model import Severity
from auditor.policy.results import Verdict
from auditor.runs.estimates import SampleSummary
from auditor.runs.inventory import Coverage
from auditor.runs.manifest import SCHEMA_VERSION, DeviceCounts, State
from auditor.runs.selection_info import RequestCounts
from auditor.storage.json_types import (
    CallsPerSecond,
    Count,
    NonEmptyText,
    PositiveCallsPerSecond,
    PositiveCount,
    Share,
    Timestamp,
)


class WarningMessage(msgspec.Struct, frozen=True):
    """A warning in JSON.

    Attributes:
        kind: the reason.
        message: the warning in a sentence.
    """

    kind: WarningKind
    message: str


class DeviceRecord(msgspec.Struct, frozen=True):
    """A conclusive answer: a line of ``devices.jsonl``. No two lines are about one device. Strings come from devices.

    Attributes:
        account: name of the account.
        product_key: product of the device; null: neither the fleet nor the answer has it.
        device_name: name in its product; null: neither has it.
        iot_id: id on the platform; null: neither has it.
        status: ok: modules reported. empty: no module reported. not_found: no such device.
        modules: modules as last reported, in the platform's order.
        total: number of modules that the platform reports; it equals their number.
        pages: pages of the response; 0: the response was an error code.
        attempts: requests sent, including retries; 0: none was needed.
        request_id: id of the last request on the platform; null: none.
        audited_at: when the answer was complete.
        reason: why an empty device reported nothing; absent: unknown.
    """

    account: str
    product_key: str | None
    device_name: str | None
    iot_id: str | None
    status: Status
    modules: tuple[ModuleVersion, ...]
    total: Count
    pages: Count
    attempts: Count
    request_id: str | None
    audited_at: Timestamp
    reason: Reason | UnsetType = UNSET


class FailureRecord(msgspec.Struct, frozen=True):
    """A device without a conclusive answer: a line of ``failures.jsonl``. Strings come from the platform.

    Attributes:
        account: name of the account.
        product_key: product of the device; null: the fleet does not have it.
        device_name: name in its product; null: the fleet does not have it.
        iot_id: id on the platform; null: the fleet does not have it.
        status: always failed.
        code: code of the platform, or of the auditor (``auditor.*``).
        message: message in one line.
        http_status: HTTP status; null: no response.
        attempts: requests sent, including retries.
        request_id: id of the last request on the platform; null: none.
        failed_at: when the device was abandoned.
    """

    account: str
    product_key: str | None
    device_name: str | None
    iot_id: str | None
    status: Literal["failed"]
    code: str
    message: str
    http_status: int | None
    attempts: Count
    request_id: str | None
    failed_at: Timestamp


class MissingModule(msgspec.Struct, frozen=True, kw_only=True):
    """A module of a product that devices never reported.

    Attributes:
        account: name of the account.
        product_key: the product.
        module_name: the module, as the product defines it.
        devices: devices that answered and never reported it.
        answered: devices of the product that answered.
        never_activated: those that were never activated and cannot have reported it.
    """

    account: str
    product_key: str
    module_name: str
    devices: PositiveCount
    answered: Count
    never_activated: Count


class InventoryRow(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a product's module.

    Attributes:
        account: name of the account.
        product_key: the product; null: the fleet names the devices by iot_id and their answers have no product.
        module_name: the module.
        module_version: the version; may be empty.
        devices: devices that run it; in a sampled run, devices of the sample.
        share: fraction of the product's devices with the module that run it, rounded to six digits.
        low: lower limit of the 95% confidence interval of the share; absent: the run is not sampled.
        high: upper limit.
    """

    account: str
    product_key: str | None
    module_name: NonEmptyText
    module_version: str
    devices: PositiveCount
    share: Share
    low: Share | UnsetType = UNSET
    high: Share | UnsetType = UNSET


class InventoryDocument(Coverage, frozen=True, kw_only=True):
    """Inventory of a run: how many devices run which version of which module.

    Rows are sorted by account, product and module, the most frequent version first. Strings come from devices: escape
    them.

    Attributes:
        sample: what the sample shows of the complete fleet; absent: the run is not sampled.
        modules_missing: modules that products define and devices never reported; absent: no product's modules are
            known.
        warnings: files that differ from the sealed ones; only in the output of ``auditor inventory``, if there are any.
        inventory: a row for each version.
    """

    sample: SampleSummary | UnsetType = UNSET
    modules_missing: list[MissingModule] | UnsetType = UNSET
    warnings: list[WarningMessage] | UnsetType = UNSET
    inventory: list[InventoryRow]


class RunCoverage(Coverage, frozen=True, kw_only=True):
    """A run and how many devices its numbers are based on.

    Attributes:
        run: name of the run folder.
        state: state of the run.
        started_at: when the run started.
        warnings: why the numbers may be incomplete or wrong.
    """

    run: str
    state: State
    started_at: Timestamp
    warnings: list[WarningMessage]


class ModuleDriftRow(msgspec.Struct, frozen=True, kw_only=True):
    """Changes of a product's module between two runs, in devices.

    Attributes:
        account: name of the account.
        product_key: the product; null: unknown.
        module_name: the module.
        presence: whether devices report the module in both runs, or only in the new or the old one.
        old_devices: devices with the module in the old run.
        new_devices: devices with the module in the new run.
        same: devices with the same version in both.
        upgraded: devices with a newer version.
        downgraded: devices with an older version.
        changed: devices with another version that is neither.
        appeared: devices that report the module in the new run only.
        vanished: devices that report the module in the old run only.
        joined: devices with the module that are present in the new run only.
        left: devices with the module that are present in the old run only.
        not_seen: devices with the module that failed or are pending in one run.
        unsampled: devices with the module that are not in the sample of one run.
    """

    account: str
    product_key: str | None
    module_name: NonEmptyText
    presence: Literal["added", "removed", "kept"]
    old_devices: Count
    new_devices: Count
    same: Count
    upgraded: Count
    downgraded: Count
    changed: Count
    appeared: Count
    vanished: Count
    joined: Count
    left: Count
    not_seen: Count
    unsampled: Count


class DeviceChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change of one device between two runs.

    Attributes:
        account: name of the account.
        product_key: product of the device; null: unknown.
        device_name: name in its product; null: unknown.
        iot_id: id on the platform; null: unknown.
        module_name: the module; null: the change is of the device itself.
        change: what changed.
        old_version: version in the old run; null: none.
        new_version: version in the new run; null: none.
    """

    account: str
    product_key: str | None
    device_name: str | None
    iot_id: str | None
    module_name: str | None
    change: Literal[
        "upgraded", "downgraded", "changed", "appeared", "vanished", "joined", "left", "not_seen", "unsampled"
    ]
    old_version: str | None
    new_version: str | None


class ShareChange(msgspec.Struct, frozen=True, kw_only=True):
    """Change of a version's share between two samples.

    Attributes:
        level: population of the share.
        account: name of the account; null: all accounts.
        product_key: the product; null: all products, or unknown.
        module_name: the module.
        module_version: the version; may be empty.
        old_share: share in the old run; null: unknown.
        old_low: lower limit of its 95% confidence interval.
        old_high: upper limit.
        new_share: share in the new run; null: unknown.
        new_low: lower limit of its 95% confidence interval.
        new_high: upper limit.
        change: the new share minus the old one; null: unknown.
        change_low: lower limit of its 95% confidence interval.
        change_high: upper limit.
        verdict: whether the change is significant.
    """

    level: Literal["product", "fleet"]
    account: str | None
    product_key: str | None
    module_name: NonEmptyText
    module_version: str
    old_share: Share | None
    old_low: Share | None
    old_high: Share | None
    new_share: Share | None
    new_low: Share | None
    new_high: Share | None
    change: float | None
    change_low: float | None
    change_high: float | None
    verdict: ShareVerdict


class DiffDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Comparison of two runs, by ``auditor diff --format json``. Strings come from devices: escape them.

    Attributes:
        schema_version: version of this contract.
        old: the older run.
        new: the newer run.
        verdicts: number of shares by verdict; only with ``shares``.
        modules: changes by module, for ``auditor diff``.
        changes: changes by device, for ``auditor diff --devices``.
        shares: changes of shares, for ``auditor diff --shares``.
    """

    schema_version: int = SCHEMA_VERSION
    old: RunCoverage
    new: RunCoverage
    verdicts: dict[ShareVerdict, Count] | UnsetType = UNSET
    modules: list[ModuleDriftRow] | UnsetType = UNSET
    changes: list[DeviceChange] | UnsetType = UNSET
    shares: list[ShareChange] | UnsetType = UNSET


class RuleResultRow(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a policy rule.

    Attributes:
        verdict: the worst verdict of its units.
        severity: severity of the rule.
        rule: name of the rule.
        unit: what the rule counts.
        violated: units that violate the rule.
        unparseable: units with versions that cannot be compared.
        not_seen: units without an answer.
        exempt: units with an exception.
        compliant: units that comply.
        requirement: the rule in words.
        message: the result in a sentence.
        unsampled: units that are not in the sample.
        share: estimated share of compliant units; null: the run is not sampled.
        low: lower limit of its 95% confidence interval.
        high: upper limit.
    """

    verdict: Verdict
    severity: Severity
    rule: str
    unit: Literal["devices", "modules"]
    violated: Count
    unparseable: Count
    not_seen: Count
    exempt: Count
    compliant: Count
    requirement: str
    message: str
    unsampled: Count
    share: Share | None
    low: Share | None
    high: Share | None


class ViolationRow(msgspec.Struct, frozen=True, kw_only=True):
    """A device or module that violates a policy rule, or has a version that cannot be compared.

    Attributes:
        rule: name of the rule.
        severity: severity of the rule.
        verdict: the verdict.
        account: name of the account.
        product_key: the product; null: unknown.
        device_name: name of the device; null: unknown, or the rule is about modules.
        iot_id: id of the device; null: unknown, or the rule is about modules.
        module_name: the module; null: the device does not report it, or the rule is about devices.
        module_version: the version; null: none.
        reason: why.
    """

    rule: str
    severity: Severity
    verdict: Verdict
    account: str
    product_key: str | None
    device_name: str | None
    iot_id: str | None
    module_name: str | None
    module_version: str | None
    reason: str


class PolicyDocument(RunCoverage, frozen=True, kw_only=True):
    """Result of a policy, by ``auditor policy --format json``. Strings come from devices: escape them.

    Attributes:
        results: result of each rule.
        violations: each violation, with ``--violations``.
    """

    results: list[RuleResultRow] | UnsetType = UNSET
    violations: list[ViolationRow] | UnsetType = UNSET


class HistoryRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run of a history.

    Attributes:
        run: name of the run folder.
        state: state of the run.
        started_at: when the run started.
        sealed: whether the run is sealed.
        devices: devices by state.
        warnings: why its numbers may be incomplete or wrong.
        unsampled: devices that are not in the sample; absent: the run is not sampled.
    """

    run: str
    state: State
    started_at: Timestamp
    sealed: bool
    devices: DeviceCounts
    warnings: list[WarningMessage]
    unsampled: PositiveCount | UnsetType = UNSET


class HistoryRow(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a product's module in a run.

    Attributes:
        started_at: when the run started.
        run: name of the run folder.
        state: state of the run.
        account: name of the account.
        product_key: the product; null: unknown.
        module_name: the module.
        module_version: the version; may be empty.
        devices: devices that run it.
        share: fraction of the product's devices with the module that run it.
    """

    started_at: Timestamp
    run: str
    state: State
    account: str
    product_key: str | None
    module_name: NonEmptyText
    module_version: str
    devices: Count
    share: Share | None


class HistoryDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Versions over the runs of one name, by ``auditor history --format json``. Strings come from devices: escape them.

    Attributes:
        schema_version: version of this contract.
        name: name of the runs.
        runs: the runs, the oldest first.
        warnings: why the history may be incomplete or wrong.
        rows: a row for each version in each run.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    runs: list[HistoryRun]
    warnings: list[WarningMessage]
    rows: list[HistoryRow]


class WebhookRate(msgspec.Struct, frozen=True, kw_only=True):
    """Requests per second.

    Attributes:
        target: sum of the configured quotas; null: an account has none.
        achieved: mean of the run.
    """

    target: PositiveCallsPerSecond | None
    achieved: CallsPerSecond


class WebhookFailure(msgspec.Struct, frozen=True, kw_only=True):
    """Failed devices by code.

    Attributes:
        code: code of the platform, or of the auditor (``auditor.*``).
        devices: number of devices that failed with it.
    """

    code: str
    devices: PositiveCount


class WebhookRule(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a policy rule.

    Attributes:
        rule: name of the rule.
        severity: severity of the rule.
        verdict: the worst verdict of its units.
        unit: what the rule counts.
        compliant: units that comply.
        violated: units that violate the rule.
        unparseable: units with versions that cannot be compared.
        not_seen: units without an answer.
        exempt: units with an exception.
        unsampled: units that are not in the sample.
        share: estimated share of compliant units; null: the run is not sampled.
        low: lower limit of its 95% confidence interval.
        high: upper limit.
        message: the result in a sentence.
    """

    rule: str
    severity: Severity
    verdict: Verdict
    unit: Literal["devices", "modules"]
    compliant: Count
    violated: Count
    unparseable: Count
    not_seen: Count
    exempt: Count
    unsampled: Count
    share: Share | None
    low: Share | None
    high: Share | None
    message: str


class WebhookPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the policy.

    Attributes:
        failed: whether the run fails by its policy.
        problem: why the policy was not evaluated; null: it was.
        rules: results, violated rules first.
        omitted: number of rules that are not listed.
    """

    failed: bool
    problem: str | None
    rules: list[WebhookRule]
    omitted: Count


class WebhookDrift(msgspec.Struct, frozen=True, kw_only=True):
    """Changes since the previous run of the same name.

    Attributes:
        since: name of the previous run folder.
        counts: numbers of changes.
        warnings: why the comparison may be incomplete or wrong.
        shares: numbers of shares by verdict; null: no run is sampled.
    """

    since: str
    counts: DriftCounts
    warnings: list[WarningMessage]
    shares: ShareCounts | None


class WebhookBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of the request that reports a run to a webhook.

    Attributes:
        schema_version: version of this contract.
        name: name of the run.
        run: name of the run folder.
        state: state of the run.
        exit_code: exit code of the audit.
        started_at: when the run started.
        finished_at: when the run ended; null: it is running.
        error: why the run was stopped; null: nothing stopped it.
        devices: devices by state.
        carried: devices whose result is carried forward.
        oldest_answer_at: time of the oldest carried result; null: none is carried.
        requests: requests of all accounts.
        rate: requests per second.
        failures: failed devices by code.
        policy: result of the policy; null: none is configured.
        drift: changes since the previous run; null: there is none that can be compared.
        warnings: why the numbers may be incomplete or wrong.
        problems: hooks that failed, a sentence each.
        text: all of it in sentences, with markup characters escaped for chats.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    run: str
    state: State
    exit_code: int
    started_at: Timestamp
    finished_at: Timestamp | None
    error: str | None
    devices: dict[str, Count]
    carried: Count
    oldest_answer_at: Timestamp | None
    requests: RequestCounts
    rate: WebhookRate
    failures: list[WebhookFailure]
    policy: WebhookPolicy | None
    drift: WebhookDrift | None
    warnings: list[WarningMessage]
    problems: list[str]
    text: str


class PolicyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file of policy rules.

    Attributes:
        rule: the rules.
    """

    rule: tuple[RuleTable, ...]
