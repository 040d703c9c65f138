"""Types of the body of a webhook request; see ``documents``."""

from typing import Annotated, Literal

import msgspec
from documents import WarningMessage

from auditor.analysis.drift import DriftCounts
from auditor.analysis.sample_drift import ShareCounts
from auditor.policy.model import Severity
from auditor.policy.results import Verdict
from auditor.runs.manifest import SCHEMA_VERSION, State
from auditor.runs.selection_info import ExitReason, RequestCounts
from auditor.storage.json_types import (
    CallsPerSecond,
    Count,
    PositiveCallsPerSecond,
    PositiveCount,
    Share,
    Timestamp,
)


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


class WebhookRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that has ended.

    Attributes:
        name: name of the run.
        run: name of the run folder.
        state: state of the run.
        exit_code: exit code of the audit.
        exit_reason: why it has this exit code; null: it has not ended.
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
    """

    name: str
    run: str
    state: State
    exit_code: int
    exit_reason: ExitReason | None
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


class WebhookEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Body of a request to a webhook, which is signed as Standard Webhooks requires.

    Attributes:
        schema_version: version of this contract.
        type: what happened: a run ended, or the webhook is tested.
        id: id of the event, as in the header webhook-id; an event that is sent again has the same.
        timestamp: when it happened.
        text: the event for people, with markup characters escaped for chats.
        data: the run; null: a test.
    """

    schema_version: int = SCHEMA_VERSION
    type: Literal["run.finished", "test"]
    id: Annotated[str, msgspec.Meta(extra_json_schema={"pattern": "^msg_[0-9a-f]{32}$"})]
    timestamp: Timestamp
    text: str
    data: WebhookRun | None
