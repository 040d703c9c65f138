"""Temporary access keys: when they are renewed, by whom, and what happens when they cannot be."""

import random
from typing import Any

import anyio
import pytest

from auditor.client.operations import LIST_OTA_MODULE_VERSIONS_BY_DEVICE as OPERATION
from auditor.client.responses import ApiResponse
from auditor.config.settings import Account, CredentialsSettings
from auditor.engine.key_renewal import KeyRenewal
from auditor.errors import (
    AccountDeniedError,
    AccountStoppedError,
    CredentialsError,
    KeyExpiredError,
    NotFoundError,
    PlatformError,
    SettingsError,
)
from auditor.models import AccessKey, Secret
from auditor.resilience.circuit_breaker import CircuitBreaker
from auditor.resilience.rate_limiter import UnlimitedRateLimiter
from auditor.resilience.retry import Backoff, RetryingCaller

pytestmark = pytest.mark.anyio

ACCOUNT = Account(name="eu", endpoint="https://e/", credentials=CredentialsSettings(type="default"))


class Platform:
    """A platform and a source of keys with one clock: the platform accepts keys until they expire."""

    def __init__(self, seconds: float = 60.0, skew: float = 0.0) -> None:
        self.now, self.clock_offset, self.skew = 1_000_000.0, 0.0, skew
        self.seconds, self.issued, self.signed_with = seconds, 0, ""
        self.expirations: dict[str, float] = {}
        self.failure: Exception | None = None
        self.denial: PlatformError | None = None
        self.refused = self.accepted = 0
        self.same_key: AccessKey | None = None

    def read(self) -> AccessKey:
        if self.failure is not None:
            raise self.failure
        if self.same_key is not None:
            return self.same_key
        self.issued += 1
        expires_at = self.now + self.skew + self.seconds
        self.expirations[f"key-{self.issued}"] = expires_at
        return AccessKey(f"key-{self.issued}", Secret("s"), Secret(f"t-{self.issued}"), expires_at)

    def use_key(self, key: AccessKey) -> None:
        self.signed_with = key.key_id

    async def call(self, *_: Any, **__: Any) -> ApiResponse:
        if self.denial is not None:
            raise self.denial
        if self.now + self.skew >= self.expirations[self.signed_with]:
            self.refused += 1
            error = AccountDeniedError("InvalidSecurityToken.Expired", "t-1 is expired", http_status=400)
            error.cause = "token"
            raise error
        self.accepted += 1
        return None  # type: ignore[return-value]

    def renewal(self, *, jitter: float = 0.0, first: bool = True) -> KeyRenewal:
        key = self.read() if first else None
        client: Any = self
        return KeyRenewal(ACCOUNT, client, key, read=self.read, wall_clock=lambda: self.now, jitter=lambda: jitter)


async def send(renewal: KeyRenewal) -> None:
    """Send one request as a retrying caller does."""
    if renewal.is_due:
        await renewal.renew()
    assert renewal.is_usable
    await renewal.call(OPERATION, {})


@pytest.mark.parametrize(("seconds", "jitter"), [(60.0, 0.0), (60.0, 0.999), (3600.0, 0.999), (43_200.0, 0.0)])
async def test_a_key_is_renewed_once_before_it_expires_for_hours(seconds: float, jitter: float) -> None:
    platform = Platform(seconds)
    renewal, period = platform.renewal(jitter=jitter), 6 * seconds
    began = platform.now
    while platform.now < began + period:
        await send(renewal)
        platform.now += seconds / 100
    assert platform.refused == 0
    assert 6 <= platform.issued <= 10, "one renewal each time, of a key that has a quarter of its time or less left"


async def test_requests_continue_with_the_present_key_while_one_of_them_renews_it() -> None:
    platform = Platform()
    renewal = platform.renewal()
    platform.now += 50
    began, finish = anyio.Event(), anyio.Event()
    read = platform.read

    def slow() -> AccessKey:
        anyio.from_thread.run_sync(began.set)
        anyio.from_thread.run(finish.wait)
        return read()

    renewal._read = slow
    async with anyio.create_task_group() as group:
        group.start_soon(send, renewal)
        await began.wait()
        for _ in range(20):
            assert not renewal.is_due
            await send(renewal)
        assert platform.signed_with == "key-1"
        finish.set()
    assert (platform.signed_with, platform.issued, platform.accepted) == ("key-2", 2, 21)


async def test_many_requests_that_meet_an_expired_key_lead_to_one_renewal() -> None:
    platform = Platform()
    renewal = platform.renewal()
    platform.now += 3600
    assert not renewal.is_usable
    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(send, renewal)
    assert (platform.issued, platform.accepted, platform.refused) == (2, 50, 0)


@pytest.mark.parametrize("skew", [3600.0, -3600.0, 0.0])
async def test_a_refused_key_is_renewed_once_and_the_request_is_sent_again(skew: float) -> None:
    """Also where the clocks differ, so that each key seems to be expired, or to be valid for an hour more."""
    platform = Platform(skew=skew)
    renewal = platform.renewal()
    for key in list(platform.expirations):
        platform.expirations[key] -= 60
    with pytest.raises(KeyExpiredError):
        await send(renewal)
    with pytest.raises(KeyExpiredError):  # another request that was sent with it
        await renewal.call(OPERATION, {})
    for _ in range(10):
        await send(renewal)
    assert (platform.issued, platform.accepted) == (2, 10)


async def test_a_request_that_was_sent_with_an_earlier_key_renews_nothing() -> None:
    platform = Platform()
    renewal = platform.renewal()
    call = platform.call

    async def late(*_: Any, **__: Any) -> ApiResponse:
        await renewal_of_another()
        error = AccountDeniedError("InvalidSecurityToken.Expired", "")
        error.cause = "token"
        raise error

    async def renewal_of_another() -> None:
        platform.now += 50
        await renewal.renew()

    platform.call = late  # type: ignore[method-assign]
    with pytest.raises(KeyExpiredError):
        await renewal.call(OPERATION, {})
    platform.call = call  # type: ignore[method-assign]
    await send(renewal)
    assert platform.issued == 2


async def test_a_second_key_that_is_refused_as_well_denies_the_account() -> None:
    platform = Platform()
    renewal = platform.renewal()
    platform.denial = AccountDeniedError("InvalidAccessKeyId.NotFound", "no such key")
    platform.denial.cause = "key"
    with pytest.raises(KeyExpiredError):
        await send(renewal)
    with pytest.raises(AccountDeniedError) as denied:
        await send(renewal)
    assert denied.value.advice == "the renewed access key is refused, too: check credentials"
    assert platform.issued == 2


@pytest.mark.parametrize("cause", ["permission", "account", "region"])
async def test_a_denial_that_no_other_key_changes_renews_nothing(cause: Any) -> None:
    platform = Platform()
    renewal = platform.renewal()
    platform.denial = AccountDeniedError("Forbidden", "")
    platform.denial.cause = cause
    with pytest.raises(AccountDeniedError):
        await send(renewal)
    assert platform.issued == 1


async def test_an_answer_about_a_device_proves_that_a_renewed_key_is_accepted() -> None:
    platform = Platform()
    renewal = platform.renewal()
    for _ in range(3):
        platform.denial = AccountDeniedError("InvalidSecurityToken.Expired", "")
        platform.denial.cause = "token"
        with pytest.raises(KeyExpiredError):
            await send(renewal)
        platform.denial = NotFoundError("iot.device.NotExistedDevice")
        with pytest.raises(NotFoundError):
            await send(renewal)
    assert platform.issued == 4


async def test_a_renewal_that_fails_is_repeated_while_the_key_is_valid_and_stops_the_account_after_that() -> None:
    platform = Platform()
    renewal = platform.renewal()
    sentence = 'account "eu": credentials: the default chain gives no access key: it is refused: NoPermission'
    platform.failure, attempts = CredentialsError(sentence, refused=True), 0
    read = renewal._read

    def counted() -> AccessKey:
        nonlocal attempts
        attempts += 1
        return read()

    renewal._read = counted
    while platform.now < 1_000_000 + 54:
        await send(renewal)
        platform.now += 0.1
    assert 2 <= attempts <= 8, "each after half of the time that is left"
    platform.now += 10
    for _ in range(3):
        with pytest.raises(AccountStoppedError) as stopped:
            await send(renewal)
        assert str(stopped.value) == sentence
        assert stopped.value.reason_code == "refused_account"
    assert platform.refused == 0


async def test_a_renewal_that_fails_for_a_moment_delays_requests_and_fails_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    platform = Platform()
    renewal = platform.renewal(first=False)
    delays = pausing(monkeypatch, platform, recover_after=3)
    platform.failure = CredentialsError("it cannot be reached", refused=False)
    await send(renewal)
    assert (platform.accepted, len(delays)) == (1, 3)


def pausing(monkeypatch: pytest.MonkeyPatch, platform: Platform, *, recover_after: int | None = None) -> list[float]:
    """Let the pauses of a renewal pass immediately, on all clocks; return them."""
    delays: list[float] = []
    elapsed = [0.0]

    async def sleep(seconds: float) -> None:
        delays.append(seconds)
        platform.now += seconds
        elapsed[0] += seconds
        if len(delays) == recover_after:
            platform.failure = None

    monkeypatch.setattr("auditor.engine.key_renewal.anyio.sleep", sleep)
    monkeypatch.setattr("auditor.engine.key_renewal.time.monotonic", lambda: elapsed[0])
    return delays


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (CredentialsError("it cannot be reached", refused=False), "unreachable_account"),
        (SettingsError("the command vault exited with 2"), "refused_account"),
    ],
)
async def test_an_expired_key_that_cannot_be_renewed_for_a_minute_stops_the_account(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, reason: str
) -> None:
    platform = Platform()
    renewal = platform.renewal(first=False)
    delays = pausing(monkeypatch, platform)
    platform.failure = failure
    with pytest.raises(AccountStoppedError, match=r'^account "eu": ') as stopped:
        await send(renewal)
    assert stopped.value.reason_code == reason
    assert 60 <= sum(delays) <= 75


async def test_a_source_that_returns_the_refused_key_again_stops_the_account() -> None:
    platform = Platform()
    renewal = platform.renewal()
    platform.same_key = renewal._key
    platform.expirations["key-1"] = 0
    with pytest.raises(KeyExpiredError):
        await send(renewal)
    with pytest.raises(
        AccountStoppedError, match=r"InvalidSecurityToken.Expired, and credentials give the same key again; replace it"
    ):
        await send(renewal)


async def test_a_source_that_keeps_a_key_until_shortly_before_its_end_is_requested_a_few_times() -> None:
    platform = Platform(3600)
    renewal = platform.renewal()
    first, reads = renewal._key, 0
    read = platform.read

    def cached() -> AccessKey:
        nonlocal reads
        reads += 1
        return first if platform.now < 1_000_000 + 3540 and first else read()

    renewal._read = cached
    while platform.now < 1_000_000 + 7000:
        await send(renewal)
        platform.now += 3
    assert platform.refused == 0
    assert reads <= 10


async def test_a_key_without_expiration_is_used_until_it_is_refused() -> None:
    platform = Platform()
    renewal = platform.renewal(first=False)
    platform.same_key = AccessKey("key-0", Secret("s"), Secret("t"))
    platform.expirations["key-0"] = platform.now + 500
    for _ in range(50):
        await send(renewal)
        platform.now += 9
    platform.same_key, platform.now = None, platform.now + 100
    with pytest.raises(KeyExpiredError):
        await send(renewal)
    await send(renewal)
    assert platform.signed_with == "key-1"


async def test_a_simulated_hour_with_keys_of_a_minute_fail_no_request_and_repeat_none() -> None:
    """A retrying caller with many workers: requests wait for a renewal before they have a permit, and none is lost."""
    platform = Platform(60.0)
    renewal = platform.renewal()
    breaker = CircuitBreaker("eu", give_up_after=60, clock=lambda: platform.now)
    caller = RetryingCaller(UnlimitedRateLimiter(), breaker, Backoff(max_attempts=1), key=renewal)
    chance = random.Random(7)
    permits: list[float] = []

    async def work() -> None:
        while platform.now < 1_000_000 + 3600:
            sent = await caller.send(lambda: renewal.call(OPERATION, {}))
            assert sent.result is None
            platform.now += chance.choice((0.5, 0.5, 2.0, 9.0))
            permits.append(platform.now)

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(work)
    assert (platform.refused, caller.stats.retried) == (0, 0)
    assert platform.accepted == caller.stats.sent == len(permits)
    assert 3600 / 60 <= platform.issued <= 3600 / 30
