"""Data types of an audit: frozen and slotted, without I/O.

The types that every device needs are structs of msgspec, which are built in a fifth of the time of a dataclass.
"""

from dataclasses import dataclass
from typing import Generic, Literal, NoReturn, TypeVar

import msgspec

from auditor.errors import PlatformError

T = TypeVar("T")

Dialect = Literal["tuya", "alibaba"]
"""Spelling of a platform's responses: camelCase (Tuya) or PascalCase (Alibaba Cloud IoT)."""

Status = Literal["ok", "empty", "not_found"]
"""Status of a conclusive answer: modules reported; no module reported; no such device."""

DeviceState = Literal["ok", "empty", "not_found", "failed", "pending"]
"""Status of a device in a run: one of the conclusive answers; no conclusive answer; not queried yet."""

DeviceStatus = Literal["ONLINE", "OFFLINE", "UNACTIVE", "DISABLE"]
"""Status of a device in the platform's device list; ``UNACTIVE``: it was never activated."""

Reason = Literal["never_activated"]
"""Why a result is ``empty``: the device was never activated, so it cannot have reported a module."""

ChangeDetection = Literal["strict", "reconnected"]
"""Which devices may have changed since their last result: those online since then; those that came online since."""

Source = Literal["queried", "carried", "unsampled", "index", "details"]
"""Origin of a device's result in a run: queried; carried forward from an earlier run; not in the sample; read in bulk
from the platform's search index; read in bulk with the details of other devices."""

ReadModules = tuple[Literal["default"], ...]
"""The modules that a run reads, if not all. The platform has a bulk operation for this one."""

ReadMethod = Literal["device", "index", "auto"]
"""How an account is read: device by device; by the platform's search index; by that if its error is small enough."""

UpdateState = Literal["current", "failed", "offered", "reverted", "never_offered"]
"""State of a device's update to the released version of a module.

``current``: it runs that version or a newer one. The others are behind: the update failed, or it waits for the device;
the platform says that it succeeded, and the device runs another version; or no job offers it the version.
"""

Level = Literal["fleet", "module", "product"]
"""Population that a version's share refers to.

The complete fleet; all devices with the module; or the devices of one product with the module.
"""

WarningKind = Literal[
    "partial", "running", "aborted", "incomplete", "unsealed", "limited", "accounts", "sample", "recheck",
    "not_reached", "discovery_gap", "tampered", "unreadable", "order", "partial_runs", "sample_comparison",
    "policy_sample", "expired_exception", "unmatched_rule", "silent", "mismatch", "aliases", "shared_identity",
    "inaccurate_runs", "releases", "modules",
]  # fmt: skip
"""Why numbers do not cover a whole fleet, or are not reliable.

| kind | meaning |
|---|---|
| ``partial``, ``running``, ``aborted``, ``incomplete`` | state of a run in which devices have no answer |
| ``unsealed`` | the run has no versions yet |
| ``limited``, ``accounts`` | the run covers the first devices (``--limit``) or some accounts (``--account``) only |
| ``sample``, ``sample_comparison``, ``policy_sample`` | a run, comparison or policy result is based on a sample |
| ``recheck`` | too many carried results are outdated, as the recheck estimates |
| ``not_reached`` | too many carried results are of devices that may have changed and were not queried |
| ``modules`` | the run read some modules only |
| ``silent`` | no device of an account exists, or reports a module any more |
| ``aliases`` | devices are in the fleet twice, under two names, or that cannot be determined |
| ``shared_identity`` | several devices are listed with one ``iot_id``, or have answers that name one device |
| ``mismatch`` | answers reached the wrong request, and were replaced |
| ``discovery_gap`` | the platform's device list is incomplete |
| ``tampered``, ``unreadable`` | files differ from those that were sealed, or cannot be read |
| ``order`` | the older of two compared runs is the newer one |
| ``partial_runs`` | several runs of a history do not cover the whole fleet |
| ``inaccurate_runs`` | the numbers of several runs of a history may be wrong in part |
| ``releases`` | released firmware, or the tasks of its update jobs, could not be read completely |
| ``expired_exception``, ``unmatched_rule`` | an exception has expired, or a rule matches nothing in the run |
"""


@dataclass(frozen=True, slots=True)
class RunWarning:
    """Why numbers do not cover a whole fleet, or are not reliable.

    Attributes:
        kind: the reason.
        run: folder of the run as it was given; empty where no single run is meant.
        detail: the reason in a sentence that does not name the folder.
    """

    kind: WarningKind
    run: str
    detail: str


class Secret:
    """An access key secret that cannot be printed, formatted, compared, pickled or iterated by accident."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the secret itself; only the signer calls this."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return "***"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is never pickled or copied")


@dataclass(frozen=True, slots=True)
class AccessKey:
    """What signs requests: an access key, and the security token of a temporary one.

    ``expires_at`` is in seconds since 1970; None: never, or unknown.
    """

    key_id: str
    secret: Secret
    token: Secret | None = None
    expires_at: float | None = None

    def is_same(self, other: "AccessKey") -> bool:
        """Return whether both are one key with one token."""
        mine, theirs = (
            (each.key_id, each.secret.reveal(), None if each.token is None else each.token.reveal())
            for each in (self, other)
        )
        return mine == theirs


class Device(msgspec.Struct, frozen=True, gc=False):
    """A device as the fleet names it: by ``iot_id``, or by ``product_key`` and ``device_name``, or by all three."""

    account: str
    product_key: str | None
    device_name: str | None
    iot_id: str | None

    def __str__(self) -> str:
        if self.product_key is not None and self.device_name is not None:
            return f"{self.product_key}/{self.device_name}"
        return str(self.iot_id)


class ModuleVersion(msgspec.Struct, frozen=True, gc=False):
    """Version of one OTA module of a device, as the device last reported it.

    Attributes:
        module_name: name of the module; unique in a device, regardless of case.
        module_version: its version; may be empty.
    """

    module_name: str
    module_version: str


class ReportedModule(msgspec.Struct, frozen=True, gc=False):
    """One entry of a response (``SimpleOTAModuleInfo``); None where the platform reported no value."""

    module: ModuleVersion
    product_key: str | None
    device_name: str | None
    iot_id: str | None


class Page(msgspec.Struct, frozen=True, gc=False):
    """One page of a device's modules; None where the platform reported no value."""

    number: int | None
    total: int | None
    reported: tuple[ReportedModule, ...]
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Product:
    """A product in the platform's product list; None where no value was reported.

    Attributes:
        device_count: number of devices that the platform reports.
        node_type: ``device`` or ``gateway``, or another value as it is reported.
    """

    product_key: str
    product_name: str | None
    device_count: int | None
    node_type: str | None = None


@dataclass(frozen=True, slots=True)
class ListedDevice:
    """A device in the platform's device list; None where no value was reported. Times are the reported text, in UTC."""

    device_name: str
    iot_id: str | None
    device_status: str | None
    utc_create: str | None
    utc_modified: str | None
    nickname: str | None = None


@dataclass(frozen=True, slots=True)
class IndexedDevice(ListedDevice):
    """A device in the platform's search index, with the versions that the index has of it.

    Attributes:
        modules: None: they cannot be read.
        tags: names and values.
        groups: ids of the groups that it is in.
    """

    modules: tuple[ModuleVersion, ...] | None = None
    tags: tuple[tuple[str, str], ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReportedTime:
    """A time that the platform reported.

    Attributes:
        milliseconds: since 1970, the latest that a rounded time can mean; None: a value was reported, and is no time.
        has_zone: False for text without a time zone, whose ``milliseconds`` are counted as if it were UTC.
    """

    milliseconds: int | None
    has_zone: bool = True


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """Connection state of a device as the platform reports it; None where no value was reported.

    ``changed``: when it entered this status; ``last_online``: when it was last online, or came online.
    """

    product_key: str | None
    device_name: str | None
    iot_id: str | None
    status: str | None
    changed: ReportedTime | None
    last_online: ReportedTime | None


@dataclass(frozen=True, slots=True)
class DeviceDetails:
    """Details of a device as the platform reports them; None where no value was reported.

    Attributes:
        version: version of the module ``default``.
    """

    product_key: str | None
    device_name: str | None
    iot_id: str | None
    status: str | None
    version: str | None


@dataclass(frozen=True, slots=True)
class Firmware:
    """An upgrade package of a product; None where no value was reported. Times are in milliseconds since 1970.

    Attributes:
        version: version that it installs; ``source_version``: version that it can be installed on.
        verification: ``not_needed``, ``unverified``, ``verified``, ``verifying`` or ``failed``.
        kind: ``full`` or ``difference``.
        size: bytes.
    """

    firmware_id: str
    firmware_name: str | None
    module_name: str
    version: str | None
    source_version: str | None
    verification: str | None
    kind: str | None
    size: int | None
    created: int | None
    modified: int | None


@dataclass(frozen=True, slots=True)
class UpdateJob:
    """A job that installs firmware on devices; None where no value was reported. Times are as in ``Firmware``.

    Attributes:
        status: ``PLANNED``, ``IN_PROGRESS``, ``COMPLETED`` or ``CANCELED``.
        kind: ``VERIFY_FIRMWARE`` or ``UPGRADE_FIRMWARE``.
        selection: ``STATIC`` or ``DYNAMIC``; ``target``: ``ALL``, ``SPECIFIC``, ``GRAY`` or ``GROUP``.
    """

    job_id: str
    status: str | None
    kind: str | None
    selection: str | None
    target: str | None
    created: int | None
    started: int | None
    ended: int | None


@dataclass(frozen=True, slots=True)
class UpdateTask:
    """The update of one device by a job; None where no value was reported. Times are as in ``Firmware``.

    Attributes:
        status: one of the client's ``TASK_STATUSES``, or another value as it is reported.
        message: what the platform says about it, such as why it failed.
        progress: percentage.
    """

    task_id: str | None
    product_key: str | None
    device_name: str | None
    iot_id: str | None
    source_version: str | None
    version: str | None
    status: str | None
    message: str | None
    progress: int | None
    created: int | None
    modified: int | None


@dataclass(frozen=True, slots=True)
class ListPage(Generic[T]):
    """One page of one of the platform's lists; None where it reported no value. The token requests the next page."""

    items: tuple[T, ...]
    number: int | None
    total: int | None
    next_token: str | None


class CallResult(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """Result of one call: its value, or the error that ended it, after ``attempts`` requests."""

    result: T | PlatformError
    attempts: int


class DeviceResult(msgspec.Struct, frozen=True, gc=False):
    """A device's conclusive answer. ``audited_at`` is in seconds since 1970; ``attempts`` counts requests sent.

    ``attempts`` is 0 where no request was needed; ``reason`` says why no module was reported. ``source`` says which
    operation answered: the one for a device, or the one for the details of many.
    """

    device: Device
    status: Status
    modules: tuple[ModuleVersion, ...]
    total: int
    pages: int
    attempts: int
    request_id: str | None
    audited_at: float
    reason: Reason | None = None
    source: Literal["queried", "details"] = "queried"


class DeviceFailure(msgspec.Struct, frozen=True, gc=False):
    """A device without a conclusive answer, and why. ``failed_at`` is in seconds since 1970."""

    device: Device
    code: str
    message: str
    http_status: int | None
    attempts: int
    request_id: str | None
    failed_at: float


Outcome = DeviceResult | DeviceFailure
"""Outcome of the query of one device."""
