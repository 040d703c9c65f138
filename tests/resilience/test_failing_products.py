"""A product for which every request fails: its devices have one attempt each, and the others are not delayed."""

from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import pytest

from auditor.errors import TransientError
from auditor.resilience.circuit_breaker import (
    OPEN_AFTER_FAILURES,
    PRODUCT_FAILURES,
    PRODUCT_SECONDS,
    CircuitBreaker,
    FailingProducts,
)
from auditor.resilience.rate_limiter import UnlimitedRateLimiter
from auditor.resilience.retry import Backoff, RetryingCaller

UNAVAILABLE = TransientError("auditor.HTTP503", "try later")


@dataclass
class Account:
    """An account whose circuit is closed, with a clock that only the test advances."""

    now: float = 1000.0
    breaker: CircuitBreaker = field(init=False)
    products: FailingProducts = field(init=False)

    def __post_init__(self) -> None:
        self.breaker = CircuitBreaker("eu", give_up_after=60, clock=lambda: self.now)
        self.products = FailingProducts(self.breaker)
        self.breaker.record_success()

    def fail(self, product: str, times: int, *, seconds: float = 0.0) -> None:
        """Let requests for a product fail, evenly over some seconds, while others succeed."""
        for _ in range(times):
            self.now += seconds / times
            self.breaker.record_success()
            self.breaker.record_failure(UNAVAILABLE)
            if not self.breaker.is_open:
                self.products.record_failure(product)


def test_a_product_fails_after_many_failures_and_some_seconds() -> None:
    account = Account()
    account.fail("many", 10 * PRODUCT_FAILURES, seconds=0.9 * PRODUCT_SECONDS)
    account.fail("few", PRODUCT_FAILURES - 1, seconds=2 * PRODUCT_SECONDS)
    account.fail("failing", PRODUCT_FAILURES + 1, seconds=1.2 * PRODUCT_SECONDS)
    assert not account.products.is_failing("few")
    assert account.products.is_failing("failing")
    assert not account.products.is_failing("other")
    assert not account.products.is_failing(None)


def test_a_success_ends_it() -> None:
    account = Account()
    account.fail("k1", 2 * PRODUCT_FAILURES, seconds=2 * PRODUCT_SECONDS)
    account.products.record_success("k2")
    account.products.record_success(None)
    assert account.products.is_failing("k1")
    account.products.record_success("k1")
    assert not account.products.is_failing("k1")
    account.fail("k1", PRODUCT_FAILURES, seconds=0.5)
    assert not account.products.is_failing("k1")


def test_an_outage_of_the_account_is_no_evidence_against_a_product() -> None:
    account = Account()
    account.fail("k1", 2 * PRODUCT_FAILURES, seconds=2.0)
    for _ in range(OPEN_AFTER_FAILURES + 1):
        account.now += 1.0
        account.breaker.record_failure(UNAVAILABLE)
    assert account.breaker.is_open
    account.now += 100 * PRODUCT_SECONDS
    assert not account.products.is_failing("k1")
    account.breaker.record_success()
    account.fail("k1", 1)
    assert not account.products.is_failing("k1")
    account.fail("k1", 1, seconds=PRODUCT_SECONDS)
    assert account.products.is_failing("k1")


@pytest.mark.anyio
async def test_devices_of_a_failing_product_have_one_attempt_and_those_of_others_all() -> None:
    account = Account()
    caller = RetryingCaller(
        UnlimitedRateLimiter(), account.breaker, Backoff(max_attempts=4, initial_delay=0.0), jitter=lambda: 0.0
    )
    caller.failing_products = account.products
    account.fail("k1", 2 * PRODUCT_FAILURES, seconds=2 * PRODUCT_SECONDS)

    async def fail() -> str:
        raise UNAVAILABLE

    for product, attempts in (("k1", 1), ("k2", 4), (None, 4)):
        assert (await caller.send(fail, product)).attempts == attempts


@pytest.mark.anyio
async def test_retries_that_wait_end_when_their_product_is_found_to_fail() -> None:
    account = Account()
    caller = RetryingCaller(
        UnlimitedRateLimiter(), account.breaker, Backoff(max_attempts=4, initial_delay=0.01), jitter=lambda: 1.0
    )
    caller.failing_products = account.products
    attempts = []

    async def fail() -> str:
        raise UNAVAILABLE

    async def send() -> None:
        attempts.append((await caller.send(fail, "k1")).attempts)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(send)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        account.fail("k1", 2 * PRODUCT_FAILURES, seconds=2 * PRODUCT_SECONDS)
    assert attempts == [1] * 5
