"""Types of JSON documents that compare runs; see ``documents``."""

from typing import Literal

import msgspec
from documents import RunCoverage, RunHead, ShownState, WarningMessage
from msgspec import UNSET, UnsetType

from auditor.analysis.rollout_states import RolloutState, UnknownReason
from auditor.analysis.rollouts import NoDate
from auditor.analysis.sample_drift import ShareVerdict
from auditor.runs.manifest import SCHEMA_VERSION, DeviceCounts, State
from auditor.storage.json_types import (
    Count,
    NonEmptyText,
    PositiveCount,
    Share,
    Timestamp,
)


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


class NamedDeviceChange(DeviceChange, frozen=True, kw_only=True):
    """A change of one device since a run.

    Attributes:
        product_name: name of its product; null: unknown.
    """

    product_name: str | None


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
        groups: numbers of changes by the columns of ``--group-by``, of which null means none: each row has these
            columns, and one for each change.
    """

    schema_version: int = SCHEMA_VERSION
    old: RunCoverage
    new: RunCoverage
    verdicts: dict[ShareVerdict, Count] | UnsetType = UNSET
    modules: list[ModuleDriftRow] | UnsetType = UNSET
    changes: list[DeviceChange] | UnsetType = UNSET
    shares: list[ShareChange] | UnsetType = UNSET
    groups: list[dict[str, Count | str | None]] | UnsetType = UNSET


class VersionChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change of a product's module from one version to another.

    Attributes:
        account: account of the devices.
        product_key: product of the devices; null: unknown.
        product_name: name of that product; null: unknown.
        module_name: the module; null: the change is one of devices.
        change: what happened.
        old_version: version in the older run; null: none, or the change is one of devices.
        new_version: version in the newer run; null: likewise.
        devices: number of devices.
    """

    account: str
    product_key: str | None
    product_name: str | None
    module_name: str | None
    change: Literal["upgraded", "downgraded", "changed", "appeared", "vanished", "joined", "left", "not_seen"]
    old_version: str | None
    new_version: str | None
    devices: PositiveCount


class ChangesDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What changed since a run, by ``auditor diff --since --format json``. Strings come from devices: escape them.

    Attributes:
        schema_version: version of this contract.
        old: the older run.
        new: the newer run.
        counts: rows by change; joined, left and not_seen count devices.
        versions: changes from version to version, the most frequent first.
        changes: changes by device, with ``--devices``.
        groups: numbers of changes by the columns of ``--group-by``, of which null means none: each row has these
            columns, and one for each change.
    """

    schema_version: int = SCHEMA_VERSION
    old: RunHead
    new: RunHead
    counts: dict[str, Count]
    versions: list[VersionChange] | UnsetType = UNSET
    changes: list[NamedDeviceChange] | UnsetType = UNSET
    groups: list[dict[str, Count | str | None]] | UnsetType = UNSET


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
    state: ShownState
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


class RolloutRow(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout: a product's module and its target version; see docs/rollouts.md.

    Attributes:
        account: name of the account.
        product_key: the product; null: unknown.
        product_name: its name; null: unknown.
        module_name: the module.
        state: state of the rollout.
        reason: why the state is unknown; null: it is not.
        target: version that devices should run; null: none is known.
        target_source: whether it was released, or is the newest in use; null: no target.
        released_at: when its firmware was created, in UTC; null: unknown.
        devices: devices that report the module.
        on_target: devices that run the target or a newer version.
        behind: the other ones.
        failed: devices behind whose update failed; null: no tasks were read.
        offered: devices behind that an update waits for.
        reverted: devices behind whose update succeeded.
        never_offered: devices behind without an update.
        share: fraction on the target; null: unknown.
        low: lower limit of the share.
        high: upper limit.
        change: change of the share per day, as a fraction; null: no run before counts.
        runs_in_state: newest runs in a row with this state.
        expected_at: date by which it is done; null: unknown, or it is.
        no_date: why a moving rollout has no date; null: it has one, or does not move.
    """

    account: str
    product_key: str | None
    product_name: str | None
    module_name: NonEmptyText
    state: RolloutState
    reason: UnknownReason | None
    target: str | None
    target_source: Literal["released", "newest"] | None
    released_at: str | None
    devices: Count
    on_target: Count
    behind: Count
    failed: Count | None
    offered: Count | None
    reverted: Count | None
    never_offered: Count | None
    share: Share | None
    low: Share | None
    high: Share | None
    change: float | None
    runs_in_state: Count
    expected_at: str | None
    no_date: NoDate | None


class StateTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Rollouts in a state.

    Attributes:
        rollouts: their number.
        devices: devices with their modules.
        behind: those behind the targets.
    """

    rollouts: Count
    devices: Count
    behind: Count


class RolloutsDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Rollouts, by ``auditor history --rollouts --format json``. Strings come from devices: escape them.

    Attributes:
        schema_version: version of this contract.
        name: name of the runs.
        run: folder of the run whose numbers they are; null: no run has any.
        states: all rollouts by state.
        rollouts: those with the most devices; the first ones need attention.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    run: str | None
    states: dict[str, StateTotals]
    rollouts: list[RolloutRow]


class HistoryDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Versions over the runs of one name, by ``auditor history --format json``. Strings come from devices: escape them.

    Attributes:
        schema_version: version of this contract.
        name: name of the runs.
        runs: the runs, the oldest first.
        warnings: why the history may be incomplete or wrong.
        rows: a row for each version in each run.
        groups: with ``--group-by``, such rows for each group, with the columns that are named there.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    runs: list[HistoryRun]
    warnings: list[WarningMessage]
    rows: list[HistoryRow] | UnsetType = UNSET
    groups: list[dict[str, Count | Share | str | None]] | UnsetType = UNSET
