"""Reads all pages of one device until the platform's own total is reached, or returns a named failure.

Pages may contradict each other: the platform counts ``total`` for each page, and a device may report in between, which
shifts the pages. So a reading counts only if all its pages agree; otherwise it is repeated from page 1.

A broken proxy may give a request the answer of another one. An answer that names its device shows that, and
``AnswerTrust`` decides when an answer that names none needs a second one that agrees.
"""

import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from msgspec import structs

from auditor.client.operations import (
    LIST_OTA_MODULE_VERSIONS_BY_DEVICE,
    MAX_NAME_LENGTH,
    Operation,
    module_version_params,
)
from auditor.client.responses import ApiResponse, parse_module_page
from auditor.errors import (
    InconsistentResponseError,
    InvalidRequestError,
    NeverActivatedError,
    NotFoundError,
    PlatformError,
)
from auditor.models import (
    CallResult,
    Device,
    DeviceFailure,
    DeviceResult,
    ModuleVersion,
    Outcome,
    Page,
    ReadModules,
    ReportedModule,
)

MAX_READINGS = 4
"""Number of times that a device is read until its pages agree."""

MAX_WITHOUT_DEVICE = 20
"""Number of answers that name no device after which a device fails, if they contradict each other."""

AGREEING = 2
"""Number of answers that must agree, if one that names no device is not believed."""

MISMATCH_RATES = (0.001, 0.005, 0.01, 0.02)
"""Fractions of mismatched answers. For each that is exceeded, one more answer than ``AGREEING`` is needed."""

IDS_PER_GENERATION = 20_000
"""Request ids in each of the two generations that an account remembers."""

RECENT_ANSWERS = 300
"""Answers that name no device whose request ids show whether the account's ids are unique now."""

MAX_MODULES = 5_000
"""Maximum number of modules of one device; a product defines about ten, so a larger total is a broken response."""

MAX_PAGES = 25
"""Maximum number of pages of one device, or as many as MAX_MODULES need if the page size is small."""

MAX_CHARACTERS = 100_000
"""Maximum length of all module names and versions of a device, in characters: every reader can hold such a line."""


class CallOperation(Protocol):
    """Sends one request of an operation within the account's quota, with retries."""

    def __call__(
        self, operation: Operation, parameters: Mapping[str, str], /, *, fresh_connection: bool = False
    ) -> Awaitable[CallResult[ApiResponse]]:
        """Return the result and the number of attempts; see ``ApiClient.call`` for ``fresh_connection``."""


class AnswerTrust:
    """Decides which answers of an account are believed without a second one.

    An answer is believed if each of its pages with modules names the requested device. Modules without its names, which
    no platform documents, are never believed alone: where no answer names a device, late ones would never show. An
    answer without modules (none reported, no such device) could be that to any request, too. It is believed until one
    of these shows that answers reach the wrong request:

    - An answer named another device than the next one, or a second answer contradicted the first (``mismatches``).
    - The answer has a request id that an earlier one that names no device had: a late or repeated answer. Ids carry
      this information only where they are unique. Some gateways give one id to all answers, so ids count as long as
      at most two thirds of the last ``RECENT_ANSWERS`` were repeated. Such a gateway costs an account one or two more
      requests; one that begins with it later costs at most ``RECENT_ANSWERS``.

    An answer that is not believed is requested again on a connection that no other answer can arrive on, until two
    agree. If even there mismatches are so frequent that two could be wrong (``MISMATCH_RATES``), one must be ahead of
    every other answer by three to six. If two answers are exchanged, both are on their way at the same time.
    So the first one that names no device is held back for the time of one request, in which the other one shows the
    exchange. The ids of at least ``IDS_PER_GENERATION`` answers are remembered: more than arrive while a connection is
    idle.

    Args:
        hold: waits for the time of one request; None does not wait.

    Attributes:
        mismatches: answers that reached the wrong request.
        undecided_mismatches: answers about another device while the requested device is still being read.
    """

    def __init__(self, hold: Callable[[], Awaitable[None]] | None = None) -> None:
        self.mismatches = self.undecided_mismatches = 0
        self.hold = hold
        self._fresh_readings = self._fresh_mismatches = 0
        self._recent: set[str] = set()
        self._older: set[str] = set()
        self._repeated: deque[bool] = deque(maxlen=RECENT_ANSWERS)

    @property
    def is_suspicious(self) -> bool:
        """Whether answers reach the wrong request."""
        return self.mismatches + self.undecided_mismatches > 0

    async def is_suspicious_after_hold(self) -> bool:
        """Hold an answer back for the time of one request; return whether answers reach the wrong request then."""
        if self.hold is not None:
            await self.hold()
        return self.is_suspicious

    @property
    def needed(self) -> int:
        """Number of answers that must agree; above ``AGREEING``, how far they must be ahead of every other answer."""
        rate = self._fresh_mismatches / max(self._fresh_readings, 1)
        return AGREEING + sum(rate > each for each in MISMATCH_RATES)

    def record_reading(self, mismatch: str | None, earlier_mismatches: list[str], *, fresh_connection: bool) -> None:
        """Record one reading of a device.

        Args:
            mismatch: which other device it was about; None: no other.
            earlier_mismatches: those of earlier readings of the device that are undecided; updated.
            fresh_connection: whether it used a fresh connection.
        """
        self._fresh_readings += fresh_connection
        self._fresh_mismatches += fresh_connection and mismatch is not None
        if earlier_mismatches and mismatch != earlier_mismatches[-1]:
            # If all answers name the same other device, this is how the platform names it, and no mistake on the way.
            self.mismatches += len(earlier_mismatches)
            self.undecided_mismatches -= len(earlier_mismatches)
            earlier_mismatches.clear()
        if mismatch is not None:
            earlier_mismatches.append(mismatch)
            self.undecided_mismatches += 1

    def record_contradictions(self, answers: int) -> None:
        """Record how many answers that name no device were contradicted by the one that is believed."""
        self.mismatches += answers
        self._fresh_mismatches += max(answers - 1, 0)  # the first one mostly used a kept connection

    def needs_confirmation(self, request_id: str | None) -> bool:
        """Record an answer that names no device; return True if a second one must agree with it."""
        if request_id is None:
            return self.is_suspicious
        repeated = request_id in self._recent or request_id in self._older
        self._repeated.append(repeated)
        if not repeated:
            if len(self._recent) >= IDS_PER_GENERATION:
                self._older, self._recent = self._recent, set()
            self._recent.add(request_id)
        return self.is_suspicious or (repeated and 3 * sum(self._repeated) <= 2 * len(self._repeated))


async def fetch_device(
    call: CallOperation,
    device: Device,
    *,
    trust: AnswerTrust | None = None,
    page_size: int = LIST_OTA_MODULE_VERSIONS_BY_DEVICE.page_size,
    now: Callable[[], float] = time.time,
    may_retry: Callable[[], bool] = lambda: True,
) -> Outcome:
    """Return what one device runs, or why that is not known; AccountStoppedError is passed on from ``call``.

    Args:
        call: sends a request.
        device: the device.
        trust: what is known about answers of this account; None: nothing.
        page_size: number of modules per page, 1 to 200.
        now: returns seconds since 1970.
        may_retry: returns whether the device may be read again.
    """
    reading = _DeviceReading(device, page_size)
    outcome = await _read_once(call, reading)
    attempts = reading.attempts
    if not (reading.names_device and isinstance(outcome, Page)):  # nearly every device is believed
        trust = trust or AnswerTrust()
        reading, outcome, attempts = await _read_until_believed(call, reading, outcome, trust, may_retry)
    if isinstance(outcome, Page):
        identity, modules = reading.identity, tuple(reading.modules.values())
        total, pages = len(modules), reading.pages
        return DeviceResult(
            identity, "ok" if modules else "empty", modules, total, pages, attempts, outcome.request_id, now()
        )
    if isinstance(outcome, NotFoundError | NeverActivatedError):
        if isinstance(outcome, NotFoundError):
            return DeviceResult(device, "not_found", (), 0, 0, attempts, outcome.request_id, now())
        return DeviceResult(device, "empty", (), 0, 0, attempts, outcome.request_id, now(), "never_activated")
    return DeviceFailure(
        device, outcome.code, outcome.message, outcome.http_status, attempts, outcome.request_id, now()
    )


async def _read_until_believed(
    call: CallOperation,
    reading: "_DeviceReading",
    outcome: Page | PlatformError,
    trust: AnswerTrust,
    may_retry: Callable[[], bool],
) -> tuple["_DeviceReading", Page | PlatformError, int]:
    """Read a device again until a reading is believed, if the first one, with its outcome, is not.

    Return the last reading, how it ended, and the attempts of all readings. See ``fetch_device`` for the others.
    """
    attempts = reading.attempts
    readings = 0
    without_device: Counter[object] | None = None
    mismatched: list[str] = []
    fresh_connection = False
    while True:
        mismatch = str(outcome) if reading.is_mismatched else None
        trust.record_reading(mismatch, mismatched, fresh_connection=fresh_connection)
        if isinstance(outcome, InconsistentResponseError):
            readings += 1
            fresh_connection |= reading.is_mismatched
            if readings == MAX_READINGS or not may_retry():
                break
        elif (answer := _answer_without_device(outcome, reading)) is None:
            trust.record_contradictions(without_device.total() if without_device and isinstance(outcome, Page) else 0)
            break
        else:
            needs_confirmation = trust.needs_confirmation(outcome.request_id) or bool(reading.modules)
            may_be_believed = not needs_confirmation and without_device is None
            if may_be_believed and not await trust.is_suspicious_after_hold():
                break
            without_device = Counter() if without_device is None else without_device
            without_device[answer] += 1
            fresh_connection = True
            others = max((count for each, count in without_device.items() if each != answer), default=0)
            lead = without_device[answer] - (others if trust.needed > AGREEING else 0)
            if lead >= trust.needed:
                trust.record_contradictions(without_device.total() - without_device[answer])
                break
            if without_device.total() == MAX_WITHOUT_DEVICE or not may_retry():
                count = without_device.total()
                outcome = InconsistentResponseError(f"{count} answers that name no device contradict each other")
                break
        reading = _DeviceReading(reading.device, reading.page_size)
        outcome = await _read_once(call, reading, fresh_connection=fresh_connection)
        attempts += reading.attempts
    trust.undecided_mismatches -= len(mismatched)
    return reading, outcome, attempts


def _answer_without_device(outcome: Page | PlatformError, reading: "_DeviceReading") -> object:
    """Return the content of an answer that names no device; None if it names one, or is no answer."""
    if isinstance(outcome, Page):
        return None if reading.names_device else tuple(reading.modules.values())
    conclusive = isinstance(outcome, NotFoundError | NeverActivatedError | InvalidRequestError)
    return outcome.code.lower() if conclusive else None


def keep_modules(outcome: Outcome, names: ReadModules) -> Outcome:
    """Return an outcome with only the modules of these names."""
    if not isinstance(outcome, DeviceResult) or not outcome.modules:
        return outcome
    modules = tuple(each for each in outcome.modules if each.module_name.casefold() in names)
    return structs.replace(outcome, modules=modules, total=len(modules), status="ok" if modules else "empty")


def never_activated_result(device: Device, now: float) -> DeviceResult:
    """Return the result of a device that the platform lists as never activated, which needs no request."""
    return DeviceResult(device, "empty", (), 0, 0, 0, None, now, "never_activated")


async def _read_once(
    call: CallOperation, reading: "_DeviceReading", *, fresh_connection: bool = False
) -> Page | PlatformError:
    """Return the last page of a complete reading, or the error that ended it."""
    while True:
        parameters = module_version_params(reading.device, reading.pages + 1, reading.page_size)
        sent = await call(LIST_OTA_MODULE_VERSIONS_BY_DEVICE, parameters, fresh_connection=fresh_connection)
        reading.attempts += sent.attempts
        if isinstance(sent.result, PlatformError):
            return sent.result
        request_id = sent.result.request_id
        try:
            page = parse_module_page(sent.result)
            del sent  # it may be large, and the next page takes time
            if reading.add_page(page):
                return page
        except InconsistentResponseError as inconsistency:
            inconsistency.request_id = request_id
            return inconsistency


class _DeviceReading:
    """One reading of a device: checks its pages, and has what they contained so far.

    ``names_device``: each page with modules named the requested device; ``is_mismatched``: an entry named another one.
    """

    __slots__ = (
        "_last_identity", "_page_names_device", "attempts", "characters", "device", "identity", "is_mismatched",
        "modules", "names_device", "page_size", "pages", "total",
    )  # fmt: skip

    def __init__(self, device: Device, page_size: int) -> None:
        self.device = device
        self.page_size = page_size
        self.identity = device
        self.names_device = self.is_mismatched = self._page_names_device = False
        self._last_identity: tuple[str | None, ...] | None = None
        self.modules: dict[str, ModuleVersion] = {}
        self.total: int | None = None
        self.characters = 0
        self.pages = 0
        self.attempts = 0

    def add_page(self, page: Page) -> bool:
        """Check the next page and add it; return True when the device is complete."""
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
        self._last_identity, self._page_names_device = None, False
        self._add_modules(page.reported)
        if page.reported:
            self.names_device = self._page_names_device and (self.names_device or self.pages == 1)
        have = len(self.modules)
        if have > self.total:
            raise InconsistentResponseError(f"{have} modules where the total is {self.total}")
        if have < self.total and not page.reported:
            raise InconsistentResponseError(f"page {self.pages} is empty at {have} of {self.total} modules")
        if have == self.total:
            return True
        max_pages = max(MAX_PAGES, -(-MAX_MODULES // self.page_size))
        if have * max_pages < self.total * self.pages:
            sentence = f"{have} of {self.total} modules on {self.pages} pages, so there are more than {max_pages}"
            raise InconsistentResponseError(sentence)
        return False

    def _add_modules(self, entries: Iterable[ReportedModule]) -> None:
        for reported in entries:
            module, identity = reported.module, (reported.product_key, reported.device_name, reported.iot_id)
            if identity != self._last_identity:  # nearly always the first module alone: the others repeat it
                self._merge_identity(*identity)
                self._last_identity = identity
            # Module names are unique in a product regardless of case (Alibaba's page on OTA modules).
            name = module.module_name.casefold()
            if name in self.modules:
                raise InconsistentResponseError(f"module {module.module_name} is listed twice")
            self.modules[name] = module
            self.characters += len(name) + len(module.module_version)
            if self.characters > MAX_CHARACTERS:
                sentence = f"module names and versions of more than {MAX_CHARACTERS:,} characters"
                raise InconsistentResponseError(sentence)

    def _merge_identity(self, product_key: str | None, device_name: str | None, iot_id: str | None) -> None:
        """Add the names of an entry to the device; raise InconsistentResponseError if they are of another one."""
        identity, device = self.identity, self.device
        # A device name is unique in its product only.
        if (device.iot_id is not None and iot_id == device.iot_id) or (
            device.device_name is not None and (product_key, device_name) == (device.product_key, device.device_name)
        ):
            self._page_names_device = True
        for expected, reported in (
            (identity.iot_id, iot_id),
            (identity.product_key, product_key),
            (identity.device_name, device_name),
        ):
            if reported is not None and len(reported) > MAX_NAME_LENGTH:
                raise InconsistentResponseError(f"a name of {len(reported):,} characters, more than {MAX_NAME_LENGTH}")
            if expected is not None and reported is not None and expected != reported:
                self.is_mismatched = True
                raise InconsistentResponseError(f"requested {expected}, got an answer about {reported}")
        self.identity = Device(
            identity.account,
            identity.product_key or product_key,
            identity.device_name or device_name,
            identity.iot_id or iot_id,
        )
