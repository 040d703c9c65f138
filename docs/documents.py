"""Types of JSON documents that are written without one: their JSON Schemas are compared with real output in a test."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from auditor.cli.progress import AccountState, Stage
from auditor.engine.progress import DiscoveryProgress
from auditor.errors import ExitReasonCode
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
    PositiveCount,
    Seconds,
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
        failed_at: when the last attempt failed.
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


class RunHead(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is compared.

    Attributes:
        run: name of its folder.
        state: its state.
        started_at: when it started.
    """

    run: str
    state: State
    started_at: Timestamp


ShownState = State | Literal["killed"]
"""State of a run as lists show it: one that was killed has the state ``running`` in ``run.json``."""


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """A run of a directory.

    Attributes:
        run: name of its folder.
        name: name of the run, from the settings.
        state: its state.
        started_at: when it started, in UTC.
        finished_at: when it ended, in UTC; null: it is running, or was killed.
        seconds: its duration; null: unknown.
        devices: devices of its fleet.
        ok, empty, not_found, failed, pending: devices by state.
        exit_code: exit code; null: it has not ended.
        exit_reason: word for the reason; null: likewise.
        exit_message: the reason in a sentence; null: likewise.
        readable: whether its devices can be read; false: it is not sealed, or is deleted but for its changes.
    """

    run: str
    name: str
    state: ShownState
    started_at: str
    finished_at: str | None
    seconds: Seconds | None
    devices: Count
    ok: Count
    empty: Count
    not_found: Count
    failed: Count
    pending: Count
    exit_code: int | None
    exit_reason: ExitReasonCode | None
    exit_message: str | None
    readable: bool


class RunsDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of a directory, by ``auditor runs --format json``.

    Attributes:
        schema_version: version of this contract.
        runs: the runs, the newest first.
    """

    schema_version: int = SCHEMA_VERSION
    runs: list[RunRow]


class DeviceVersionRow(msgspec.Struct, frozen=True, kw_only=True):
    """A version that a device ran.

    Attributes:
        account: account of the device.
        product_key: its product; null: unknown.
        device_name: its name; null: unknown.
        iot_id: its identifier; null: unknown.
        module_name: the module.
        module_version: the version.
        since: UTC time of the first answer with it; null: before what is recorded.
        until: UTC time of the first answer with another version; null: it is the current version.
        days: days between the two; at least so many, if ``since`` is null.
        change: what happened then; null: likewise.
        run: folder of the run that found it; null: likewise.
    """

    account: str
    product_key: str | None
    device_name: str | None
    iot_id: str | None
    module_name: str
    module_version: str
    since: str | None
    until: str | None
    days: float
    change: str | None
    run: str | None


class DeviceDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A device over all runs, by ``auditor device --format json``. Strings come from devices: escape them.

    Attributes:
        schema_version: version of this contract.
        run: folder of the newest run.
        recorded_since: start of the first run whose versions are known.
        versions: what the device ran, the newest version of each module first.
    """

    schema_version: int = SCHEMA_VERSION
    run: str
    recorded_since: Timestamp
    versions: list[DeviceVersionRow]


LogTime = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z$"})]


class ConnectionStates(msgspec.Struct, frozen=True, kw_only=True):
    """How far the reading of connection states is.

    Attributes:
        read: devices whose state is read.
        requested: devices whose state is needed.
    """

    read: Count
    requested: Count


class AccountLine(msgspec.Struct, frozen=True, kw_only=True):
    """How far an account is, counted since this process started or resumed the run.

    Attributes:
        name: name of the account.
        state: how it is queried now, in a word.
        done: devices with an outcome, including the failed ones.
        failed: devices without a conclusive answer.
        sent: requests sent.
        throttled: requests that the platform refused for the quota.
        in_flight: requests without an answer yet.
        paused: devices that wait, mostly for a retry.
        requests_per_second: over the last ten seconds.
        configured_rate: requests a second that the quota allows as configured; null: without one.
        learned_rate: requests a second that it currently allows; null: likewise.
        other_processes: number of other processes that share its quota now.
        problem: why the account was stopped, or gives no results now; null: nothing is wrong.
        discovery: progress of its discovery; null: it has finished, or the fleet is a file.
    """

    name: str
    state: AccountState
    done: Count
    failed: Count
    sent: Count
    throttled: Count
    in_flight: Count
    paused: Count
    requests_per_second: CallsPerSecond
    configured_rate: CallsPerSecond | None
    learned_rate: CallsPerSecond | None
    other_processes: Count
    problem: str | None
    discovery: DiscoveryProgress | None


class ProgressLine(msgspec.Struct, frozen=True, kw_only=True):
    """How far an audit is: a line on standard error every five seconds, and when the stage changes.

    Attributes:
        event: name of the event.
        message: the progress in a sentence.
        run: name of the run folder.
        stage: what the audit does now.
        resumed: whether the run was resumed.
        elapsed: seconds since this process started or resumed the run.
        fleet: devices whose discovery has finished.
        devices: devices by state.
        requests: requests of the complete run.
        in_flight: requests without an answer yet.
        requests_per_second: over the last ten seconds.
        target_rate: requests a second that all quotas allow as configured; null: an account has no quota.
        learned_rate: requests a second that all quotas currently allow; null: likewise.
        remaining_seconds: estimate of the seconds until all devices have an outcome; null: unknown.
        other_processes: number of other processes that share one of the quotas now.
        problem: the problem of an account that gives no usable answer; null: there is none.
        discovery: progress of the accounts whose discovery has not finished; null: there are none.
        states: progress of reading connection states; null: none are read now.
        release_pages: pages of released firmware that were read; null: none are read now.
        accounts: progress of each account, those with problems first.
        level: level of the line.
        timestamp: when the line was written, in UTC.
        trace_id: trace that the line belongs to; only while traces are sent.
        span_id: span that the line belongs to; likewise.
    """

    event: Literal["progress"]
    message: str
    run: str
    stage: Stage
    resumed: bool
    elapsed: Seconds
    fleet: Count
    devices: DeviceCounts
    requests: RequestCounts
    in_flight: Count
    requests_per_second: CallsPerSecond
    target_rate: CallsPerSecond | None
    learned_rate: CallsPerSecond | None
    remaining_seconds: Seconds | None
    other_processes: Count
    problem: str | None
    discovery: DiscoveryProgress | None
    states: ConnectionStates | None
    release_pages: int | None
    accounts: list[AccountLine]
    level: Literal["info"]
    timestamp: LogTime
    trace_id: str | UnsetType = UNSET
    span_id: str | UnsetType = UNSET


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
        violations: each module or device that is violated or unparseable, with ``--devices``.
    """

    results: list[RuleResultRow] | UnsetType = UNSET
    violations: list[ViolationRow] | UnsetType = UNSET


class PolicyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file of policy rules.

    Attributes:
        rule: the rules.
    """

    rule: tuple[RuleTable, ...]
