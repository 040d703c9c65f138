"""Reads all pages of one device until the platform's own total is reached, or returns a named failure.

Pages may contradict each other: the platform counts ``total`` for each page, and a device may report in between, which
shifts the pages. So a reading counts only if all its pages agree; otherwise it is repeated from page 1.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from auditor.client.operations import (
    LIST_OTA_MODULE_VERSIONS_BY_DEVICE,
    MAX_NAME_LENGTH,
    Operation,
    module_version_params,
)
from auditor.client.responses import ApiResponse, parse_module_page
from auditor.errors import InconsistentResponseError, NeverActivatedError, NotFoundError, PlatformError
from auditor.models import CallResult, Device, DeviceFailure, DeviceResult, ModuleVersion, Outcome, Page, ReportedModule

MAX_READINGS = 4
"""Number of times that a device is read until its pages agree."""

MAX_MODULES = 5_000
"""Maximum number of modules of one device; a product defines about ten, so a larger total is a broken response."""

MAX_CHARACTERS = 100_000
"""Maximum length of all module names and versions of a device, in characters: every reader can hold such a line."""


class CallOperation(Protocol):
    """Sends one request of an operation within the account's quota, with retries."""

    def __call__(self, operation: Operation, parameters: Mapping[str, str], /) -> Awaitable[CallResult[ApiResponse]]:
        """Return the result and the number of attempts."""


async def fetch_device(
    call: CallOperation,
    device: Device,
    *,
    page_size: int = LIST_OTA_MODULE_VERSIONS_BY_DEVICE.page_size,
    now: Callable[[], float] = time.time,
) -> Outcome:
    """Return what one device runs, or why that is not known; AccountStoppedError is passed on from ``call``.

    ``page_size`` is the number of modules per page, 1 to 200; ``now`` returns seconds since 1970.
    """
    attempts = 0
    for _ in range(MAX_READINGS):
        reading = _PageAccumulator(device)
        end = await _read_once(call, reading, page_size)
        attempts += reading.attempts
        if not isinstance(end, InconsistentResponseError):
            break
    if isinstance(end, Page):
        identity, modules = reading.identity, tuple(reading.modules.values())
        total, pages = len(modules), reading.pages
        return DeviceResult(
            identity, "ok" if modules else "empty", modules, total, pages, attempts, end.request_id, now()
        )
    if isinstance(end, NotFoundError | NeverActivatedError):
        if isinstance(end, NotFoundError):
            return DeviceResult(device, "not_found", (), 0, 0, attempts, end.request_id, now())
        return DeviceResult(device, "empty", (), 0, 0, attempts, end.request_id, now(), "never_activated")
    return DeviceFailure(device, end.code, end.message, end.http_status, attempts, end.request_id, now())


def never_activated_result(device: Device, now: float) -> DeviceResult:
    """Return the result of a device that the platform lists as never activated, which needs no request."""
    return DeviceResult(device, "empty", (), 0, 0, 0, None, now, "never_activated")


async def _read_once(call: CallOperation, reading: "_PageAccumulator", page_size: int) -> Page | PlatformError:
    """Return the last page of a complete reading, or the error that ended it."""
    while True:
        parameters = module_version_params(reading.device, reading.pages + 1, page_size)
        sent = await call(LIST_OTA_MODULE_VERSIONS_BY_DEVICE, parameters)
        reading.attempts += sent.attempts
        if isinstance(sent.result, PlatformError):
            return sent.result
        try:
            page = parse_module_page(sent.result)
            if reading.add_page(page):
                return page
        except InconsistentResponseError as inconsistency:
            inconsistency.request_id = sent.result.request_id
            return inconsistency


class _PageAccumulator:
    """What the pages of one reading have contained so far."""

    __slots__ = ("_last_identity", "attempts", "characters", "device", "identity", "modules", "pages", "total")

    def __init__(self, device: Device) -> None:
        self.device = device
        self.identity = device
        self._last_identity: tuple[str | None, ...] | None = None
        self.modules: dict[str, ModuleVersion] = {}
        self.total: int | None = None
        self.characters = 0
        self.pages = 0
        self.attempts = 0

    def add_page(self, page: Page) -> bool:
        """Add the next page; return True when the device is complete."""
        self.pages += 1
        if page.number is not None and page.number != self.pages:
            raise InconsistentResponseError(f"requested page {self.pages}, got page {page.number}")
        if page.total is None:
            raise InconsistentResponseError(f"page {self.pages} has no total, so completeness cannot be proven")
        if page.total > MAX_MODULES:
            raise InconsistentResponseError(f"a total of {page.total} modules, more than {MAX_MODULES}")
        if self.total is not None and self.total != page.total:
            raise InconsistentResponseError(f"the total changed from {self.total} to {page.total}")
        self.total = page.total
        for reported in page.reported:
            self._add_module(reported)
        have = len(self.modules)
        if have > self.total:
            raise InconsistentResponseError(f"{have} modules where the total is {self.total}")
        if have < self.total and not page.reported:
            raise InconsistentResponseError(f"page {self.pages} is empty at {have} of {self.total} modules")
        return have == self.total

    def _add_module(self, reported: ReportedModule) -> None:
        identity = (reported.product_key, reported.device_name, reported.iot_id)
        if identity != self._last_identity:  # nearly always the first module alone: the others repeat it
            self._merge_identity(*identity)
            self._last_identity = identity
        # Module names are unique in a product regardless of case (Alibaba's page on OTA modules).
        name = reported.module.module_name.casefold()
        if name in self.modules:
            raise InconsistentResponseError(f"module {reported.module.module_name} is listed twice")
        self.modules[name] = reported.module
        self.characters += len(name) + len(reported.module.module_version)
        if self.characters > MAX_CHARACTERS:
            raise InconsistentResponseError(f"module names and versions of more than {MAX_CHARACTERS:,} characters")

    def _merge_identity(self, product_key: str | None, device_name: str | None, iot_id: str | None) -> None:
        """Add the names that an entry reports for the device."""
        identity = self.identity
        for expected, reported in (
            (identity.iot_id, iot_id),
            (identity.product_key, product_key),
            (identity.device_name, device_name),
        ):
            if reported is not None and len(reported) > MAX_NAME_LENGTH:
                raise InconsistentResponseError(f"a name of {len(reported):,} characters, more than {MAX_NAME_LENGTH}")
            if expected is not None and reported is not None and expected != reported:
                raise InconsistentResponseError(f"requested {expected}, got an answer about {reported}")
        self.identity = Device(
            identity.account,
            identity.product_key or product_key,
            identity.device_name or device_name,
            identity.iot_id or iot_id,
        )
