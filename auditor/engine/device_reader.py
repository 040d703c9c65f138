"""All pages of one device, read until the platform's own total is reached, or a named failure of that device.

A page is not a law: the platform counts ``total`` anew for every page, a device may report in between, and a page
may slide. So a reading counts only if it agrees with itself; one that does not is read again from page 1.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from auditor.client.operations import LIST_OTA_MODULE_VERSIONS_BY_DEVICE, Operation, module_versions_of
from auditor.client.responses import Answer, page_of
from auditor.errors import InconsistentPagesError, NeverActivatedError, NotFoundError, PlatformError
from auditor.models import Answered, Device, Failed, ModuleVersion, Outcome, Page, ReportedModule, Sent, Status

READINGS = 4
"""How often a device is read until its pages agree."""


MODULES_LIMIT = 5_000
"""Modules of one device at most; a product defines about ten, so a larger total is a broken answer."""


NAME_LIMIT = 256
"""Characters of a product key, device name or iot_id in an answer at most, as in a fleet."""


CHARACTERS_LIMIT = 100_000
"""Characters of all of a device's module names and versions at most: a line that every reader can hold."""


class Call(Protocol):
    """Sends one operation's request within the account's quota, with repeats."""

    def __call__(self, operation: Operation, parameters: Mapping[str, str], /) -> Awaitable[Sent[Answer]]:
        """What came of it."""


async def read_device(
    call: Call,
    device: Device,
    *,
    page_size: int = LIST_OTA_MODULE_VERSIONS_BY_DEVICE.page_size,
    now: Callable[[], float] = time.time,
) -> Outcome:
    """What one device runs: its conclusive answer, or why there is none.

    Args:
        call: sends one request, paced and repeated.
        device: whom to ask about.
        page_size: modules a page, 1 to 200.
        now: seconds since 1970.

    Raises:
        AccountStoppedError: passed on from ``call``.
    """
    attempts = 0
    for _ in range(READINGS):
        ledger = _Ledger(device)
        end = await _read_once(call, ledger, page_size)
        attempts += ledger.attempts
        if not isinstance(end, InconsistentPagesError):
            break
    if isinstance(end, Page):
        modules = tuple(ledger.modules.values())
        status: Status = "ok" if modules else "empty"
        return Answered(ledger.identity, status, modules, len(modules), ledger.pages, attempts, end.request_id, now())
    if isinstance(end, NotFoundError | NeverActivatedError):
        known = isinstance(end, NotFoundError)
        return Answered(
            device, "not_found" if known else "empty", (), 0, 0, attempts, end.request_id, now(),
            None if known else "never_activated",
        )  # fmt: skip
    return Failed(device, end.code, end.message, end.http_status, attempts, end.request_id, now())


def never_activated(device: Device, now: float) -> Answered:
    """What is known of a device without a question that the platform's list says was never activated."""
    return Answered(device, "empty", (), 0, 0, 0, None, now, "never_activated")


async def _read_once(call: Call, ledger: "_Ledger", page_size: int) -> Page | PlatformError:
    """The last page of a reading that is whole, or the error that ended it."""
    operation = LIST_OTA_MODULE_VERSIONS_BY_DEVICE
    while True:
        sent = await call(operation, module_versions_of(ledger.asked, ledger.pages + 1, page_size))
        ledger.attempts += sent.attempts
        if isinstance(sent.result, PlatformError):
            return sent.result
        try:
            page = page_of(operation, sent.result)
            if ledger.complete_with(page):
                return page
        except InconsistentPagesError as disagreement:
            disagreement.request_id = sent.result.request_id
            return disagreement


class _Ledger:
    """One reading's account of what the pages said so far."""

    __slots__ = ("_told", "asked", "attempts", "characters", "identity", "modules", "pages", "total")

    def __init__(self, device: Device) -> None:
        self.asked = device
        self.identity = device
        self._told: tuple[str | None, ...] | None = None
        self.modules: dict[str, ModuleVersion] = {}
        self.total: int | None = None
        self.characters = 0
        self.pages = 0
        self.attempts = 0

    def complete_with(self, page: Page) -> bool:
        """Takes the next page; True when the device is complete.

        Raises:
            InconsistentPagesError: the page contradicts the request, the pages before, or itself.
        """
        self.pages += 1
        if page.number is not None and page.number != self.pages:
            raise InconsistentPagesError(f"asked for page {self.pages}, got page {page.number}")
        if page.total is None:
            raise InconsistentPagesError(f"page {self.pages} tells no total, so nothing proves that it is complete")
        if page.total > MODULES_LIMIT:
            raise InconsistentPagesError(f"a total of {page.total} modules, more than {MODULES_LIMIT}")
        if self.total is not None and self.total != page.total:
            raise InconsistentPagesError(f"the total changed from {self.total} to {page.total}")
        self.total = page.total
        for reported in page.reported:
            self._add(reported)
        have = len(self.modules)
        if have > self.total:
            raise InconsistentPagesError(f"{have} modules where the total is {self.total}")
        if have < self.total and not page.reported:
            raise InconsistentPagesError(f"page {self.pages} is empty at {have} of {self.total} modules")
        return have == self.total

    def _add(self, reported: ReportedModule) -> None:
        told = (reported.product_key, reported.device_name, reported.iot_id)
        if told != self._told:  # nearly always the first module alone: the others tell the same, and need no look
            self._identify(*told)
            self._told = told
        # Module names are unique in a product regardless of case (Alibaba's page on OTA modules).
        name = reported.module.module_name.casefold()
        if name in self.modules:
            raise InconsistentPagesError(f"module {reported.module.module_name} comes twice")
        self.modules[name] = reported.module
        self.characters += len(name) + len(reported.module.module_version)
        if self.characters > CHARACTERS_LIMIT:
            raise InconsistentPagesError(f"module names and versions of more than {CHARACTERS_LIMIT:,} characters")

    def _identify(self, product_key: str | None, device_name: str | None, iot_id: str | None) -> None:
        """Takes what an entry tells of whose it is."""
        identity = self.identity
        for known, told in (
            (identity.iot_id, iot_id),
            (identity.product_key, product_key),
            (identity.device_name, device_name),
        ):
            if told is not None and len(told) > NAME_LIMIT:
                raise InconsistentPagesError(f"a name of {len(told):,} characters, more than {NAME_LIMIT}")
            if known is not None and told is not None and known != told:
                raise InconsistentPagesError(f"asked for {known}, got an answer about {told}")
        self.identity = Device(
            identity.account,
            identity.product_key or product_key,
            identity.device_name or device_name,
            identity.iot_id or iot_id,
        )
