"""One account during an audit: its connections, rate limiters, retries and circuit breaker.

``open_account`` opens one ``AccountSession``, and ``open_accounts`` opens all of them.
"""

import math
import time
from collections.abc import AsyncIterator, Callable, Container, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import anyio

from auditor import __about__
from auditor.client.client import ApiClient
from auditor.client.operations import (
    LIST_OTA_MODULE_VERSIONS_BY_DEVICE,
    OPTIONAL_OPERATIONS,
    Operation,
    module_version_params,
)
from auditor.client.responses import ApiResponse
from auditor.client.transport import FAST_TRANSPORT_RATE, Endpoint
from auditor.concurrency import RunningClock, unwrapping_task_group
from auditor.config.settings import Account, Settings
from auditor.engine.credentials import Credentials
from auditor.engine.device_reader import AnswerTrust, fetch_device, keep_modules
from auditor.engine.key_renewal import KeyRenewal
from auditor.engine.limiters import AccountLimiters
from auditor.engine.progress import AccountProgress
from auditor.engine.sent_requests import SentRequests, count_sent
from auditor.engine.slow_devices import SlowDevices
from auditor.errors import (
    AccountDeniedError,
    AccountStoppedError,
    AuditStoppedError,
    DeviceDeniedError,
    InvalidRequestError,
    OperationDeniedError,
    OperationUnavailableError,
)
from auditor.log import log
from auditor.models import AccessKey, CallResult, Device, DeviceFailure, Outcome, Secret
from auditor.resilience.circuit_breaker import MAX_FAILING_SECONDS, CircuitBreaker
from auditor.resilience.retry import Backoff, PausedTasks, RequestStats, RetryingCaller
from auditor.text.formatting import format_duration

MIN_PREWARM_INTERVAL, MAX_PREWARM_INTERVAL = 0.05, 30.0
"""Seconds between two checks for missing connections; doubled up to the maximum while none can be opened."""

MIN_LOGGED_OFFSET = 60.0
"""Seconds by which the platform's clock must have changed against this machine's to be logged again."""

RESERVED_REQUESTS = 16
"""Requests of a fast account that are recorded in the run folder at a time, which takes some microseconds."""

MAX_OPTIONAL_SECONDS = 30.0
"""Seconds without a usable response after which such an operation is not used, if it has never worked."""

MAX_HOLD = 0.5
"""Seconds for which an answer that names no device is held back at most, see ``AnswerTrust``."""

CONNECTION_HEADROOM = 1.5
"""Number of connections that are kept open, as a multiple of the number that is needed on average."""


@dataclass(frozen=True, slots=True)
class QuotaStatus:
    """How fast an account may be queried, in requests a second.

    ``configured_rate`` is the lowest that a sharing process has configured (None without a quota, or where it is found
    by measurement), ``rate`` what the quota currently allows, as learned (None without a quota). ``retries_waiting``:
    retries exceed their fraction of the quota and wait.
    """

    configured_rate: float | None
    rate: float | None
    other_processes: int
    retries_waiting: bool


class AccountSession:
    """One account while it is queried: a connection pool, and a rate limiter and retries for each operation's quota.

    ``paused`` counts devices that wait for a retry, or whose answer is held back, and ``fetched`` the devices whose
    outcome was fetched by this process. ``finished``: the account is queried no more; ``stopped`` is why, if it was
    stopped.
    ``states_progress``: for how many devices, of how many, the state is known.
    ``clock`` counts the seconds in which the process ran, and ``sent_requests`` the requests of the run, if it has a
    folder. ``known_devices``: the account answered about them before. With some, it is stopped after
    ``max_failing_seconds`` without a usable answer, and not after ``give_up_after``. ``worked_before``: it answered in
    an earlier session of this run.

    Methods that send requests raise AccountStoppedError if the account is denied, or was never reached.
    """

    def __init__(
        self,
        settings: Settings,
        account: Account,
        client: ApiClient,
        limiters: AccountLimiters,
        *,
        workers: int,
        key_renewal: KeyRenewal | None = None,
        known_devices: Sequence[Device] = (),
        worked_before: bool = False,
        max_failing_seconds: float = MAX_FAILING_SECONDS,
        clock: RunningClock | None = None,
        sent_requests: SentRequests | None = None,
    ) -> None:
        self.name, self.client, self.workers = account.name, client, workers
        self.finished = False
        self.stopped: str | None = None
        self.states_progress: tuple[int, int] | None = None
        self.fetched = self._failed = self._unqueried = 0
        self._settings, self._limiters = settings, limiters
        self.slow_devices = SlowDevices(account)
        self._send = self.slow_devices.watch_requests(client.call if key_renewal is None else key_renewal.call)
        self._key_renewal = key_renewal
        self._clock, self._sent_requests = clock or RunningClock(), sent_requests
        self._breaker = CircuitBreaker(
            account.name,
            give_up_after=max_failing_seconds if known_devices else settings.give_up_after,
            max_failing_seconds=max_failing_seconds,
            worked_before=worked_before,
            clock=self._clock,
        )
        give_up_after = min(settings.give_up_after, MAX_OPTIONAL_SECONDS)
        self._optional_breakers = {
            each.name: CircuitBreaker(account.name, give_up_after=give_up_after, clock=self._clock)
            for each in OPTIONAL_OPERATIONS
        }
        self._callers: dict[str, RetryingCaller] = {}
        self.paused = PausedTasks()
        self._known_requests = tuple(partial(self._probe, device) for device in known_devices)
        self._caller = self._caller_for(LIST_OTA_MODULE_VERSIONS_BY_DEVICE)
        self._logged_offset = 0.0
        self._trust, self._logged_mismatch = AnswerTrust(self._wait_for_a_request), False
        self._reported: set[str | None] = set()  # products that fail

    def _caller_for(self, operation: Operation) -> RetryingCaller:
        if operation.quota_name not in self._callers:
            limiter = self._limiters.for_operation(operation)
            breaker = self._optional_breakers.get(operation.name, self._breaker)
            is_main = operation is LIST_OTA_MODULE_VERSIONS_BY_DEVICE
            self._callers[operation.quota_name] = RetryingCaller(
                limiter,
                breaker,
                Backoff(max_attempts=self._settings.max_attempts),
                retry_budget=self._settings.retry_budget,
                probe=self._known_requests[0] if is_main and len(self._known_requests) == 1 else None,
                known_requests=self._known_requests if is_main else (),
                prober=self._caller if not is_main and breaker is self._breaker else None,
                paused=self.paused if is_main else None,
                key=self._key_renewal,
                clock=self._clock,
                count_sent=self._counter(operation, limiter.rate),
            )
        return self._callers[operation.quota_name]

    def _counter(self, operation: Operation, rate: float | None) -> Callable[[], None]:
        """Return what records a request in the run folder before it is sent."""
        if self._sent_requests is None:
            return lambda: None
        is_fast = rate is None or rate > FAST_TRANSPORT_RATE
        return self._sent_requests.counter(operation.quota_name, self.name, RESERVED_REQUESTS if is_fast else 1)

    async def _probe(self, device: Device) -> ApiResponse:
        operation = LIST_OTA_MODULE_VERSIONS_BY_DEVICE
        return await self._send(operation, module_version_params(device, 1, self._settings.page_size))

    async def fetch(self, device: Device) -> Outcome:
        """Return the outcome of one device."""
        outcome = await fetch_device(
            self.call,
            device,
            trust=self._trust,
            page_size=self._settings.page_size,
            now=self.platform_time,
            may_retry=self._caller.may_retry,
        )
        if self._settings.modules is not None:
            outcome = keep_modules(outcome, self._settings.modules)
        self.fetched += 1
        self._failed += isinstance(outcome, DeviceFailure)
        if self._caller.failing_products.is_failing(device.product_key) and device.product_key not in self._reported:
            self._reported.add(device.product_key)
            log.warning(
                "product_failing",
                account=self.name,
                product_key=device.product_key,
            )
        if self._trust.mismatches and not self._logged_mismatch:
            self._logged_mismatch = True
            log.warning("answer_misdirected", account=self.name)
        return outcome

    def platform_time(self) -> float:
        """Return seconds since 1970 by the platform's clock, since the platform's states carry its time."""
        return time.time() + self.client.clock_offset

    async def call(
        self, operation: Operation, parameters: Mapping[str, str], /, *, fresh_connection: bool = False
    ) -> CallResult[ApiResponse]:
        """Send one request within the operation's quota, with retries; see ``ApiClient.call``."""
        caller, product = self._caller, parameters.get("ProductKey")
        if operation is not LIST_OTA_MODULE_VERSIONS_BY_DEVICE:
            caller, product = self._caller_for(operation), None
        sent = await caller.send(lambda: self._send(operation, parameters, fresh_connection=fresh_connection), product)
        if abs((offset := self.client.clock.offset) - self._logged_offset) >= MIN_LOGGED_OFFSET:
            self._logged_offset = offset
            log.warning("clock_differs", account=self.name, seconds=round(offset))
        return sent

    async def call_optional(
        self, operation: Operation, parameters: Mapping[str, str], /, *, fresh_connection: bool = False
    ) -> CallResult[ApiResponse]:
        """Do the same as ``call`` for an operation that an audit can do without.

        If the access key may not use this operation, or the platform does not have it, this is an
        ``InvalidRequestError``, and the account continues. So it is if one of ``OPTIONAL_OPERATIONS`` fails for all
        requests, or is throttled all the time: then it is an ``OperationUnavailableError``.
        """

        async def request() -> ApiResponse:
            try:
                return await self._send(operation, parameters, fresh_connection=fresh_connection)
            except AccountDeniedError as error:
                if error.cause not in {"permission", "action", "parameter"}:  # the account itself is denied
                    raise
                denied = OperationDeniedError(error)
            raise denied

        try:
            return await self._caller_for(operation).send(request)
        except AccountStoppedError:
            breaker = self._optional_breakers.get(operation.name)
            error = None if breaker is None or breaker.denial is not None else breaker.last_error
            if error is None or (self._key_renewal is not None and self._key_renewal.is_stopped):
                raise
            kind = InvalidRequestError if isinstance(error, DeviceDeniedError) else OperationUnavailableError
            return CallResult(kind(error.code, error.message, http_status=error.http_status), 0)

    async def keep_warm(self) -> None:
        """Keep as many connections open as the rate needs, so that no request waits for a handshake; never return."""
        pause = MIN_PREWARM_INTERVAL
        while True:
            await anyio.sleep(pause)
            rate, stats = self.quota_status.rate, self.stats
            if rate is not None and stats.answered and not self.is_unhealthy:
                needed = rate * stats.seconds / stats.answered
                opened = await self.client.prewarm(math.ceil(CONNECTION_HEADROOM * needed) + 1)
                pause = MIN_PREWARM_INTERVAL if opened else min(2 * pause, MAX_PREWARM_INTERVAL)

    def limit_retries(self, may_retry: Callable[[], bool]) -> None:
        """Let a call budget decide whether a failed request about a device is sent again."""
        self._caller.may_retry = may_retry

    async def require_reached(self) -> None:
        """Check that the platform gave a usable answer at least once; if not, probe it one last time."""
        if self.unreached_error is not None:
            await self._caller.probe_account()
        if (error := self.unreached_error) is not None:
            raise error

    def require_working(self) -> None:
        """Check at a deadline that the account works: results carried for the rest of its devices would hide an outage.

        Nothing is sent, since no time is left. A short outage is none that an audit without a deadline would end for.
        """
        if self._breaker.has_succeeded and self._breaker.failing_seconds >= MAX_FAILING_SECONDS:
            failing = f"no usable answer for the last {format_duration(self._breaker.failing_seconds)} of the audit"
            sentence = f"{failing}; last error: {self._breaker.last_error}"
            raise AccountStoppedError(self.name, sentence, reason_code="unreachable_account")
        if (error := self.unreached_error) is not None:
            raise error

    def finish(self, error: AuditStoppedError | None = None) -> None:
        """Record that the account is queried no more, and the error that stopped it."""
        self.finished, self.stopped = True, None if error is None else str(error)

    def count_unqueried(self) -> None:
        """Count one device whose result needed no request of its own."""
        self._unqueried += 1

    def report_states(self, progress: tuple[int, int] | None) -> None:
        """Record for how many devices, of how many, the connection state is known; None: no states are requested."""
        self.states_progress = progress

    async def _wait_for_a_request(self) -> None:
        """Wait for the time that a request takes on average; another device has the worker meanwhile."""
        with self.paused:
            await anyio.sleep(min(self.stats.seconds / max(self.stats.answered, 1), MAX_HOLD))

    @property
    def mismatches(self) -> int:
        """Number of answers so far that reached the wrong request."""
        return self._trust.mismatches

    @property
    def stats(self) -> RequestStats:
        """Requests for module versions so far."""
        return self._caller.stats

    @property
    def total_sent(self) -> int:
        """Number of requests of all operations so far."""
        return sum(caller.stats.sent for caller in self._callers.values())

    def sent_before(self, *operations: Operation) -> int:
        """Return how many requests of some operations, or of all, earlier processes of the run sent."""
        return 0 if self._sent_requests is None else count_sent(self._sent_requests.before, operations, self.name)

    def request_stats(self, *operations: Operation) -> RequestStats:
        """Return the sum of the requests of some operations so far."""
        stats = [self._callers[each.quota_name].stats for each in operations if each.quota_name in self._callers]
        return RequestStats(
            sent=sum(each.sent for each in stats),
            retried=sum(each.retried for each in stats),
            throttled=sum(each.throttled for each in stats),
            answered=sum(each.answered for each in stats),
            seconds=sum(each.seconds for each in stats),
        )

    def concurrency_for(self, operation: Operation, *similar: Operation) -> int:
        """Return how many requests in flight use an operation's quota at its latency; ``workers`` without a quota.

        Requests of ``similar`` operations count for the mean latency, too.
        """
        rate, stats = self._limiters.for_operation(operation).rate, self.request_stats(operation, *similar)
        if rate is None or not stats.answered:
            return self.workers
        return min(self.workers, math.ceil(CONNECTION_HEADROOM * rate * stats.seconds / stats.answered) + 1)

    @property
    def quota_status(self) -> QuotaStatus:
        """How fast devices may be queried now."""
        limiter = self._limiters.for_operation(LIST_OTA_MODULE_VERSIONS_BY_DEVICE)
        configured = None if limiter.configured_rate == math.inf else limiter.configured_rate
        return QuotaStatus(configured, limiter.rate, limiter.other_participants, self._caller.retry_budget.exhausted)

    @property
    def is_unhealthy(self) -> bool:
        """Whether the circuit is open: the account worked before, in this run or an earlier one, and now it fails."""
        return self._breaker.is_open

    @property
    def lacks_permission(self) -> bool:
        """Whether the platform stopped the account because its key lacks a permission."""
        denial = self._breaker.denial
        return denial is not None and denial.cause == "permission"

    @property
    def unreached_error(self) -> AccountStoppedError | None:
        """The error of an account that was never reached: requests were sent, and none got a usable answer."""
        if self._breaker.has_succeeded or self._breaker.last_error is None:
            return None
        sentence = f"no usable answer; last error: {self._breaker.last_error}"
        return AccountStoppedError(self.name, sentence, reason_code="unreachable_account")

    @property
    def problem(self) -> str | None:
        """Why no results arrive from the account now, if there is a reason."""
        last = f"last error: {self._breaker.last_error}"
        if self.is_unhealthy:
            return f'account "{self.name}": every request fails, probing the platform; {last}'
        if self._caller.retry_budget.exhausted:
            fraction = f"{self._settings.retry_budget:.0%} of the quota"
            return f'account "{self.name}": retries exceed {fraction} and wait; {last}'
        return None if self.unreached_error is None else str(self.unreached_error)

    @property
    def progress(self) -> AccountProgress:
        """Progress of this process with the account."""
        quota = self.quota_status
        return AccountProgress(
            name=self.name,
            sent=self.stats.sent,
            done=self.fetched + self._unqueried,
            failed=self._failed,
            in_flight=self.stats.in_flight,
            rate=quota.rate,
            finished=self.finished,
            stopped=self.stopped,
            problem=None if self.finished else self.problem,
            configured_rate=quota.configured_rate,
            throttled=self.stats.throttled,
            paused=self.paused.count,
            longest_wait=self._caller.longest_wait,
            timeout=self._settings.timeout,
            other_processes=quota.other_processes,
        )


@asynccontextmanager
async def open_account(
    settings: Settings,
    account: Account,
    credentials: Credentials,
    workers: int,
    known_devices: Sequence[Device] = (),
    *,
    worked_before: bool = False,
    max_failing_seconds: float = MAX_FAILING_SECONDS,
    priority: bool = False,
    clock: RunningClock | None = None,
    sent_requests: SentRequests | None = None,
) -> AsyncIterator[AccountSession]:
    """Open one account, for up to ``workers`` requests in flight; raise SettingsError if its quota cannot be shared.

    With ``priority`` it precedes others that share its quota. The other arguments are those of ``AccountSession``.
    """
    endpoint = Endpoint(
        url=account.endpoint,
        region_id=account.region_id,
        instance_id=account.instance_id,
        ca_file=account.ca_file,
        connect_timeout=settings.connect_timeout,
        timeout=settings.timeout,
        connections=workers,
        user_agent=f"auditor/{__about__.VERSION}",
        proxy=credentials.proxy,
        calls_per_second=math.inf if account.calls_per_second == "unlimited" else account.rate,
    )
    limiters = AccountLimiters(
        settings, account, credentials.identity, priority=priority, password=credentials.redis_password
    )
    key = credentials.key or AccessKey("", Secret(""))
    async with ApiClient(endpoint, key.key_id, key.secret) as client, limiters:
        renewal = None if account.credentials is None else KeyRenewal(account, client, credentials.key)
        yield AccountSession(
            settings,
            account,
            client,
            limiters,
            workers=workers,
            key_renewal=renewal,
            known_devices=known_devices,
            worked_before=worked_before,
            max_failing_seconds=max_failing_seconds,
            clock=clock,
            sent_requests=sent_requests,
        )


async def open_accounts(
    stack: AsyncExitStack,
    settings: Settings,
    credentials: Iterable[Credentials],
    workers: Iterable[int],
    known_devices: Mapping[str, Sequence[Device]] | None = None,
    *,
    worked_before: Container[str] = (),
    max_failing_seconds: float = MAX_FAILING_SECONDS,
    priority: bool = False,
    clock: RunningClock | None = None,
    sent_requests: SentRequests | None = None,
) -> list[AccountSession]:
    """Open all accounts concurrently, see ``open_account``; ``stack`` closes them, even after an error.

    ``known_devices`` are by the account's name, and ``worked_before`` has names of accounts.
    """
    opened: dict[str, AccountSession] = {}

    async def enter(account: Account, own: Credentials, limit: int) -> None:
        context = open_account(
            settings,
            account,
            own,
            limit,
            (known_devices or {}).get(account.name, ()),
            worked_before=account.name in worked_before,
            max_failing_seconds=max_failing_seconds,
            priority=priority,
            clock=clock,
            sent_requests=sent_requests,
        )
        opened[account.name] = await stack.enter_async_context(context)

    async with unwrapping_task_group() as group:
        for each in zip(settings.account, credentials, workers, strict=True):
            group.start_soon(enter, *each)
    return [opened[account.name] for account in settings.account]
