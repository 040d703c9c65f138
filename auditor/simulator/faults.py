"""What goes wrong between a client and a platform, drawn by chance: the same seed, the same misfortunes.

Answers that look well and are wrong, for tests of a client that must not believe every page.
"""

import random
from bisect import bisect_right
from dataclasses import dataclass
from email.utils import formatdate
from itertools import accumulate
from typing import Literal, get_args

from auditor.models import Dialect
from auditor.simulator.responses import HTML, JSON, Document, Refused, Reply, refusal

FaultKind = Literal[
    "reset",
    "cut",
    "unavailable",
    "internal",
    "html",
    "garbage",
    "business",
    "throttle",
    "silence",
    "nonce",
    "drip",
    "http10",
]
"""See the attributes of ``Faults``."""


KINDS: tuple[FaultKind, ...] = get_args(FaultKind)


STALLS: tuple[FaultKind, ...] = ("silence", "drip")
"""The kinds that cost a client its whole timeout."""


PROXY_PAGE = b"<!DOCTYPE html>\n<html><head><title>Bad gateway</title></head><body><h1>Try later</h1></body></html>\n"
"""What a proxy in between answers instead of the platform."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """The probability of each fault per request, 0 to 1; together at most 1.

    Attributes:
        reset: the connection is aborted before the answer.
        cut: the headers promise more bytes than come, then the connection is closed.
        unavailable: HTTP 503 and the gateway's ``ServiceUnavailable``.
        internal: HTTP 500, empty or with a proxy's page.
        html: HTTP 200 and a proxy's page.
        garbage: HTTP 200 and a body that is no JSON.
        business: HTTP 200 and ``iot.system.SystemException``.
        throttle: HTTP 429 or 400 and a ``Throttling`` code under the quota, with or without a hint when to return.
        silence: no answer for ``silence_seconds``, then the connection is closed.
        nonce: the gateway's ``SignatureNonceUsed``.
        drip: a body that comes a byte at a time for ``silence_seconds``, then the connection is closed.
        http10: the right answer, as HTTP/1.0 and without a length: the body ends with the connection.
    """

    reset: float = 0.0
    cut: float = 0.0
    unavailable: float = 0.0
    internal: float = 0.0
    html: float = 0.0
    garbage: float = 0.0
    business: float = 0.0
    throttle: float = 0.0
    silence: float = 0.0
    nonce: float = 0.0
    drip: float = 0.0
    http10: float = 0.0
    silence_seconds: float = 30.0

    def __post_init__(self) -> None:
        if any(chance < 0 for chance in self.chances) or sum(self.chances) > 1 + 1e-9:
            raise ValueError(f"the probabilities of faults are 0 to 1 and together at most 1: {self}")
        if self.silence_seconds < 0:
            raise ValueError(f"silence_seconds must not be negative: {self.silence_seconds}")

    @property
    def chances(self) -> tuple[float, ...]:
        """The probabilities in the order of ``KINDS``."""
        return tuple(getattr(self, kind) for kind in KINDS)

    @classmethod
    def evenly(cls, total: float, *, silence: float | None = None, silence_seconds: float = 30.0) -> "Faults":
        """A total probability, split evenly over all kinds, of which silence and drip count as one.

        Args:
            total: the probability, 0 to 1, that a request meets any fault.
            silence: the part of ``total`` that silence and drip get together, since they cost a client its whole
                timeout; None: as much as each of the others.
            silence_seconds: how long they last.
        """
        others = [kind for kind in KINDS if kind not in STALLS]
        stalls = total / (len(others) + 1) if silence is None else silence
        if not 0 <= stalls <= total:
            raise ValueError(f"silence is a part of the total {total}, not {silence}")
        even = dict.fromkeys(others, (total - stalls) / len(others))
        even |= dict.fromkeys(STALLS, stalls / len(STALLS))
        return cls(**even, silence_seconds=silence_seconds)


class FaultSource:
    """Draws faults; one random sequence for all, so that a seed repeats a run request by request."""

    def __init__(self, faults: Faults, seed: int) -> None:
        self._bounds = tuple(accumulate(faults.chances))
        self._random = random.Random(seed)  # noqa: S311  repeatable misfortune, no secret

    def draw(self) -> FaultKind | None:
        """The fault that the next request meets, or None."""
        if not self._bounds[-1]:
            return None
        place = bisect_right(self._bounds, self._random.random())
        return KINDS[place] if place < len(KINDS) else None

    def reply(self, kind: FaultKind, *, request_id: str, dialect: Dialect, answer_format: str, now: float) -> Reply:
        """The HTTP answer of a fault that has one of its own; ``now`` is the server's time."""
        if kind in {"internal", "html", "garbage"}:
            return self._proxy(kind)
        refused, headers = self._platform(kind, now)
        reply = refusal(refused, request_id, dialect, answer_format)
        return Reply(reply.status, reply.body, reply.content_type, headers)

    def _proxy(self, kind: FaultKind) -> Reply:
        """What something between the client and the platform says."""
        if kind == "internal":
            return self._random.choice((Reply(500, b"", HTML), Reply(500, PROXY_PAGE, HTML)))
        if kind == "html":
            return Reply(200, PROXY_PAGE, HTML)
        return Reply(200, b'{"success": true, "data": {"simpleOTAModuleInfo": [\xff\xfe', JSON)

    def _platform(self, kind: FaultKind, now: float) -> tuple[Refused, dict[str, str]]:
        """What the platform itself says, and its headers."""
        if kind == "business":
            return Refused("iot.system.SystemException", "A system exception occurred."), {}
        if kind == "unavailable":
            return Refused("ServiceUnavailable", "The request has failed due to a temporary failure.", 503), {}
        if kind == "nonce":
            return Refused("SignatureNonceUsed", "Specified signature nonce was used already.", 400), {}
        code, status, headers = self._random.choice(
            (
                ("Throttling", 429, {"Retry-After": "1"}),
                ("Throttling.Api", 429, {"Retry-After": formatdate(now + 1, usegmt=True)}),
                ("Throttling.User", 400, {"x-acs-retry-after": "100"}),
                ("Throttling", 400, {}),
            )
        )
        return Refused(code, "Request was denied due to request throttling.", status), headers


Lie = Literal[
    "repeats_page_1",
    "repeats_page_1_echo_1",
    "empty_page_early",
    "data_null",
    "data_hollow",
    "data_array",
    "data_hollow_with_total",
    "no_total",
    "page_count_1",
    "total_grows",
    "other_device",
]
"""What an answer gets wrong:

- ``repeats_page_1``: every page holds page 1's modules, under the number asked for; ``…_echo_1``: under the number 1.
- ``empty_page_early``: pages from 2 on are empty while the total says more.
- ``data_null``, ``data_hollow``: ``data`` is null or ``{}``, and total and pageCount are 0.
- ``data_hollow_with_total``: ``data`` is ``{}`` while the total is 3 on 1 page.
- ``data_array``: ``data`` is the bare array; everything else is right.
- ``no_total``: the total is left out. ``page_count_1``: pageCount is 1 whatever the total.
- ``total_grows``: page 1 tells the truth, each page after it one module more.
- ``other_device``: the entries carry another device's name and id.
"""


def page_shown(lie: Lie | None, asked: int) -> int:
    """The page whose modules are shown when page ``asked`` is asked for."""
    return 1 if lie in {"repeats_page_1", "repeats_page_1_echo_1"} else asked


def total_shown(lie: Lie | None, total: int, page: int) -> int:
    """The total that page ``page`` tells when ``total`` is the truth."""
    match lie:
        case "data_null" | "data_hollow":
            return 0
        case "data_hollow_with_total":
            return 3
        case "total_grows":
            return total + page - 1
        case _:
            return total


def bend(lie: Lie, document: Document, entries: list[dict[str, str]], page: int) -> None:
    """Makes the rest of a true answer to page ``page`` wrong, in place; ``entries`` are the modules in it."""
    match lie:
        case "repeats_page_1_echo_1":
            document["currentPage"] = 1
        case "empty_page_early" if page > 1:
            entries.clear()
        case "data_null":
            document["data"] = None
        case "data_hollow" | "data_hollow_with_total":
            document["data"] = {}
        case "data_array":
            document["data"] = entries
        case "no_total":
            del document["total"]
        case "page_count_1":
            document["pageCount"] = 1
        case "other_device":
            for entry in entries:
                entry["deviceName"] = "somebody-else"
                entry["iotId"] = entry["iotId"][::-1]
        case _:
            pass
