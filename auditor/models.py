"""The nouns of an audit: frozen, slotted, without any I/O."""

from dataclasses import dataclass
from typing import Generic, Literal, NoReturn, TypeVar

from auditor.errors import PlatformError

T = TypeVar("T")


Dialect = Literal["tuya", "alibaba"]
"""How a platform spells its answers: camelCase (Tuya) or PascalCase (Alibaba Cloud IoT)."""


Status = Literal["ok", "empty", "not_found"]
"""A conclusive answer: modules reported; none reported; no such device."""


DeviceState = Literal["ok", "empty", "not_found", "failed", "pending"]
"""What became of a device in a run: a conclusive answer; no answer; not asked yet."""


DeviceStatus = Literal["ONLINE", "OFFLINE", "UNACTIVE", "DISABLE"]
"""What the platform's listing says of a device; ``UNACTIVE``: it was never activated."""


Reason = Literal["never_activated"]
"""Why an answer is ``empty``, where that is known: the device was never activated, so it can have reported nothing."""


SinceRule = Literal["strict", "reconnected"]
"""When a device is asked again: it is online or has been since it was read; it came online since."""


Source = Literal["asked", "carried", "unsampled"]
"""Where what a run has of a device comes from: it was asked; an earlier answer is carried; it was not drawn."""


Level = Literal["fleet", "module", "product"]
"""Of whom a version's share is one: of all devices of the fleet; of those that report the module, of all products; of
those of one product that report it."""


class Secret:
    """An access key secret that cannot be printed, formatted, compared, pickled or iterated by accident."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The secret itself; the signer is the one place that asks for it."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return "***"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is never pickled or copied")


@dataclass(frozen=True, slots=True)
class Device:
    """A device as the fleet names it: by ``iot_id``, or by ``product_key`` and ``device_name``, or by both."""

    account: str
    product_key: str | None
    device_name: str | None
    iot_id: str | None

    def __str__(self) -> str:
        if self.product_key is not None and self.device_name is not None:
            return f"{self.product_key}/{self.device_name}"
        return str(self.iot_id)


@dataclass(frozen=True, slots=True)
class ModuleVersion:
    """What one OTA module of a device runs, as the device last reported it."""

    module_name: str
    module_version: str


@dataclass(frozen=True, slots=True)
class ReportedModule:
    """One entry of an answer (the platform's ``SimpleOTAModuleInfo``); None where the platform told nothing."""

    module: ModuleVersion
    product_key: str | None
    device_name: str | None
    iot_id: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a device's modules. Numbers are None where the platform told nothing."""

    number: int | None
    size: int | None
    page_count: int | None
    total: int | None
    reported: tuple[ReportedModule, ...]
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Product:
    """A product as the platform lists it; ``device_count`` is its own word for how many devices it has."""

    product_key: str
    product_name: str | None
    device_count: int | None


@dataclass(frozen=True, slots=True)
class ListedDevice:
    """A device as the platform lists it; None where it told nothing. Times are text as it was told, in UTC."""

    device_name: str
    iot_id: str | None
    device_status: str | None
    utc_create: str | None
    utc_modified: str | None


@dataclass(frozen=True, slots=True)
class ToldState:
    """What a device is doing, as the platform tells it; None where it told nothing. Times are ms since 1970.

    ``changed``: when it came to be in this status; ``online``: when it was online last, or came online last.
    """

    device_name: str | None
    iot_id: str | None
    status: str | None
    changed: int | None
    online: int | None


@dataclass(frozen=True, slots=True)
class Listed(Generic[T]):
    """One page of a list that the platform keeps. Numbers are None where it told nothing.

    ``next_token`` leads to the page after this one.
    """

    items: tuple[T, ...]
    number: int | None
    total: int | None
    next_token: str | None


@dataclass(frozen=True, slots=True)
class Sent(Generic[T]):
    """What came of one question: its answer, or the error that ended it, after ``attempts`` requests."""

    result: T | PlatformError
    attempts: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A device's conclusive answer. ``audited_at`` is in seconds since 1970; ``attempts`` counts requests sent.

    ``attempts`` is 0 where no question was needed; ``reason`` tells why nothing was reported, where that is known.
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


@dataclass(frozen=True, slots=True)
class Failed:
    """A device that could not be answered, and why. ``failed_at`` is in seconds since 1970."""

    device: Device
    code: str
    message: str
    http_status: int | None
    attempts: int
    request_id: str | None
    failed_at: float


Outcome = Answered | Failed
"""What became of one device."""
