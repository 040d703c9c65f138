"""Where a budget lies that auditors on several machines share: in Redis, under one key."""

import asyncio
import math
import secrets
import struct
import time
from collections.abc import Callable, Coroutine
from typing import NamedTuple, TypeVar

import anyio
import structlog

from auditor.errors import SettingsError
from auditor.models import Secret
from auditor.resilience.adaptive_rate import MOST_MOMENTS
from auditor.resilience.quota_backends import News
from auditor.resilience.shared_quota import PRESENT, Budget, cells_for, move
from auditor.text.formatting import safe

log = structlog.get_logger()


T = TypeVar("T")


TIMEOUT = 1.0
"""Seconds that Redis may take for an answer, connecting to it included; it counts as lost then."""


RETRY = 1.0
"""Seconds between two tries to reach a Redis that was lost."""


HOLD = RETRY + TIMEOUT + 1.25
"""Seconds in which nothing is sent by who comes back, or finds that what lay there is gone.

It is until the others are back as well, or have noticed, and the second after that; else some would send their careful
part beside the whole quota.
"""


KEPT = 300_000
"""Milliseconds after which Redis forgets a budget that nobody asks."""


FEWEST_MOMENTS, SECONDS, MOMENTS_UNTOLD = 64, 3, 1_024
"""How many moments are remembered: so many at least, those of so many seconds, and so many where no quota is told."""


STEP = 1.0
"""Seconds by which the server's clock may be set back and be waited for; more is made up for, see ``_follow``."""


TRIES = 5
"""Times that the server is asked for its clock at first; the quickest answer counts."""


ERA = 1.0
"""Times are those of the server's clock, so they mean the same after any start of anything."""


REPLACE = """
local lies, clock = redis.call('GET', KEYS[1]) or '', redis.call('TIME')
if string.sub(lies, 1, 8) ~= ARGV[1] then return {clock[1], clock[2], lies} end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return clock
"""
"""Writes if nobody has written since the stamp, else reads: one round trip where WATCH, GET and EXEC would take three.

https://redis.io/docs/latest/develop/programmability/eval-intro/ says that a script runs as one.
"""


_HEAD = struct.Struct("<8sd")
"""What lies before the budget's memory: the stamp of who wrote last, and how far times are ahead of the server's."""


class _LostError(Exception):
    """Redis does not answer, or refuses; the text says why."""


class _Reply(NamedTuple):
    """What Redis said.

    ``low`` and ``high``: between these the server's clock is ahead of ours, in seconds. ``lies``: what lies there,
    empty if nothing does; None if ours was written.
    """

    low: float
    high: float
    lies: bytes | None


class Server:
    """A Redis server.

    Args:
        address: ``redis://HOST:6379/0``, or ``rediss://`` for TLS.
        password: of its default user; None without one.

    Raises:
        SettingsError: the library for it is not installed.
    """

    def __init__(self, address: str, password: Secret | None = None) -> None:
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import ConnectionError as NoConnectionError
            from redis.exceptions import RedisError
        except ImportError as error:
            sentence = "budget: redis: the library for it is not installed: pip install 'auditor[redis]'"
            raise SettingsError(sentence) from error
        self._address = address
        self._errors = (RedisError, OSError)
        # Once more, for a connection that was idle may have been closed without a word.
        again = Retry(NoBackoff(), 1, supported_errors=(NoConnectionError,))
        secret = None if password is None else password.reveal()
        # In the older protocol a server that wants a password says so, and nothing here needs the newer one.
        self._client = Redis.from_url(address, password=secret, protocol=2, retry=again)
        self.offset = 0.0

    async def open(self) -> None:
        """Connects, and learns the server's clock: ``offset`` is by how many seconds it is ahead of ours.

        Raises:
            SettingsError: it does not answer, or refuses.
        """
        try:
            replies = [await self.replace("auditor:", b"nothing ", b"") for _ in range(TRIES)]
        except _LostError as error:
            await self.close()
            raise SettingsError(
                f"budget: redis: {self._address} cannot be used: {error}; mend the address or the password, or start it"
            ) from None
        quickest = min(replies, key=lambda reply: reply.high - reply.low)
        self.offset = (quickest.low + quickest.high) / 2

    async def replace(self, key: str, stamp: bytes, value: bytes) -> _Reply:
        """Writes a value that begins with a new stamp, if what lies there begins with ``stamp``; see ``REPLACE``.

        Raises:
            _LostError: Redis does not answer, or refuses.
        """
        began = time.monotonic()
        try:
            with anyio.fail_after(TIMEOUT):
                seconds, microseconds, *lies = await self._client.eval(REPLACE, 1, key, stamp, value, str(KEPT))
        except TimeoutError:
            raise _LostError(f"no answer in {TIMEOUT:g} s") from None
        except self._errors as error:
            raise _LostError(safe(str(error)).rstrip(".") or type(error).__name__) from None
        now = int(seconds) + int(microseconds) / 1e6
        return _Reply(now - time.monotonic(), now - began, lies[0] if lies else None)

    async def close(self) -> None:
        """Closes the connections."""
        with anyio.move_on_after(TIMEOUT, shield=True):
            await self._client.aclose()


class SharedRedis:
    """A budget in Redis. Each look replaces it whole if nobody else has in between, else it is looked at again.

    When Redis is lost in the middle, each goes on with the part of the rate that is his when those who were present
    share it evenly, and half of it where that is not known. All together keep the quota then, but for one case: he whom
    Redis is lost to, while the others reach it, is to them as one who died, and they take up his part; refusals will
    teach both.

    Args:
        server: where; it is open.
        name: of the budget; the same for all who share it.
        told: requests a second; infinite looks for them.
    """

    def __init__(self, server: Server, name: str, told: float) -> None:
        self._server, self._key, self._told = server, f"auditor:{name}", told
        moments = MOMENTS_UNTOLD if told == math.inf else max(FEWEST_MOMENTS, math.ceil(SECONDS * told))
        self._lay(bytes(8 * cells_for(min(moments, MOST_MOMENTS))))
        self._stamp, self._ahead = b"", 0.0
        self._offset, self._now, self._seen_at = server.offset, 0.0, -math.inf
        self._news: list[News] = []
        self._turn = anyio.Lock()
        self._alone = False
        self._tasks: set[asyncio.Task[None]] = set()

    def _lay(self, known: bytes, others: int = 0) -> None:
        self._known, self._memory = known, bytearray(known)
        self.budget = Budget(self._told, memoryview(self._memory).cast("d"))
        self.budget.others = others

    def clock(self) -> float:
        """See ``Ledger``; it is the server's clock."""
        self._now = max(self._now, time.monotonic() + self._offset)
        return self._now

    async def look(self, work: Callable[[Budget], T]) -> T:
        """See ``Ledger``."""
        async with self._turn:
            if not self._alone:
                try:
                    return await self._share(work)
                except _LostError as error:
                    self._go_alone(str(error))
            result = self._after_news(work)
            self._news.clear()
            return result

    def tell(self, news: News, *, at_once: bool = False) -> None:
        """See ``Ledger``."""
        self._news.append(news)
        if at_once:
            self._begin(self._pass_on())

    async def _pass_on(self) -> None:
        if self._news:
            await self.look(lambda _: None)

    async def _share(self, work: Callable[[Budget], T]) -> T:
        while True:
            self._recall()
            news = len(self._news)
            result = self._after_news(work)
            self.budget.store(ERA)
            stamp, memory = secrets.token_bytes(8), bytes(self._memory)
            reply = await self._server.replace(self._key, self._stamp, _HEAD.pack(stamp, self._ahead) + memory)
            if reply.lies is None:
                self._stamp, self._known = stamp, memory
                del self._news[:news]
                self._follow(reply)
                self._seen_at = self.clock()
                return result
            gone = not reply.lies and self._stamp
            self._learn(reply.lies)
            self._follow(reply)
            if gone:
                log.info("Redis has lost the shared budget, so it is begun anew", seconds=HOLD)
                await anyio.sleep(HOLD)

    def _recall(self) -> None:
        """What was known last; of a work that came to nothing nothing stays."""
        self._memory[:] = self._known
        self.budget.load(self._told, ERA, self.clock())

    def _after_news(self, work: Callable[[Budget], T]) -> T:
        for news in self._news:
            news(self.budget)
        return work(self.budget)

    def _learn(self, lies: bytes) -> None:
        """What another one has written. The larger memory counts, so that all have room for what they were told."""
        self._stamp = lies[:8]
        cells, rest = divmod(len(lies) - _HEAD.size, 8)
        if rest or not cells_for(1) <= cells <= cells_for(MOST_MOMENTS):
            self._known = bytes(len(self._known))  # nothing, or nothing of ours
            return
        _, ahead = _HEAD.unpack_from(lies)
        self._ahead = ahead if 0 <= ahead < math.inf else 0.0
        known = lies[_HEAD.size :]
        if len(known) < len(self._known):
            larger = bytearray(len(self._known))
            move(memoryview(known).cast("d"), memoryview(larger).cast("d"))
            known = bytes(larger)
        if len(known) > len(self._known):
            self._lay(known, self.budget.others)
        self._known = known

    def _follow(self, reply: _Reply) -> None:
        """Sets the clock right, by no more than is surely wrong.

        A server whose clock was set back would make ours stand still as long, and with it all that waits: all who
        share add to its times what they miss then.
        """
        behind = self._offset - self._ahead - reply.high
        if behind > STEP:
            self._ahead += behind
        self._offset = min(max(self._offset, reply.low + self._ahead), reply.high + self._ahead)

    def _go_alone(self, reason: str) -> None:
        self._recall()
        others = self.budget.others
        if self.clock() - self._seen_at > PRESENT:
            others = max(others, 1)
        rate = self.budget.rate
        self.budget.bound = rate.now * (1 + rate.margin) / (1 + others)
        self._alone = True
        log.warning(
            "Redis is lost: a careful part of the quota is used until it answers again",
            per_second=round(self.budget.bound, 3),
            others=others,
            reason=reason,
        )
        self._begin(self._come_back())

    async def _come_back(self) -> None:
        while True:
            await anyio.sleep(RETRY)
            try:
                await self._server.replace("auditor:", b"nothing ", b"")
            except _LostError:
                continue
            break
        async with self._turn:
            await anyio.sleep(HOLD)
            self._stamp, self._known = b"", bytes(len(self._known))  # what the others say counts
            self.budget.bound = math.inf
            self._alone = False
        log.warning("Redis answers again: the quota is shared")

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """See ``Ledger``. The server is closed by who opened it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
