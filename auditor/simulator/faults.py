"""Faults and corrupted responses of the simulated platform.

Faults are random: the same seed gives the same faults. Corrupted responses have a valid form and wrong content.
"""

import random
from bisect import bisect_right
from dataclasses import dataclass, replace
from email.utils import formatdate
from itertools import accumulate
from typing import Literal, get_args

from auditor.models import Dialect
from auditor.simulator.forms import MODEL_FORMS, ResponseForms
from auditor.simulator.responses import HTML, JSON, Document, RequestRejected, SimulatedResponse, error_response

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
"""Faults that take a client its complete timeout."""

PROXY_PAGE = b"<!DOCTYPE html>\n<html><head><title>Bad gateway</title></head><body><h1>Try later</h1></body></html>\n"
"""Response of a proxy instead of the platform."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Probability of each fault per request, 0 to 1; together at most 1.

    Attributes:
        reset: the connection is aborted before the response.
        cut: the body is shorter than its Content-Length, then the connection is closed.
        unavailable: HTTP 503 and the gateway's ``ServiceUnavailable``.
        internal: HTTP 500, empty or with the page of a proxy.
        html: HTTP 200 and the page of a proxy.
        garbage: HTTP 200 and a body that is not JSON.
        business: HTTP 200 and ``iot.system.SystemException``.
        throttle: HTTP 429 or 400 and a ``Throttling`` code under the quota, with or without a delay.
        silence: no response for ``silence_seconds``, then the connection is closed.
        nonce: the gateway's ``SignatureNonceUsed``.
        drip: a body that is sent a byte at a time for ``silence_seconds``, then the connection is closed.
        http10: the correct response, as HTTP/1.0 without a length: the body ends with the connection.
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
        if any(each < 0 for each in self.probabilities) or sum(self.probabilities) > 1 + 1e-9:
            raise ValueError(f"probabilities of faults must be 0 to 1, and at most 1 together: {self}")
        if self.silence_seconds < 0:
            raise ValueError(f"silence_seconds must not be negative: {self.silence_seconds}")

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Probabilities in the order of ``KINDS``."""
        return tuple(getattr(self, kind) for kind in KINDS)

    @classmethod
    def evenly(cls, total: float, *, silence: float | None = None, silence_seconds: float = 30.0) -> "Faults":
        """Return a total probability split evenly over all kinds, where silence and drip count as one.

        Args:
            total: probability, 0 to 1, of any fault per request.
            silence: fraction of requests with silence or drip, of ``total``; None: as many as with each other fault.
            silence_seconds: their duration.
        """
        others = [kind for kind in KINDS if kind not in STALLS]
        stalls = total / (len(others) + 1) if silence is None else silence
        if not 0 <= stalls <= total:
            raise ValueError(f"silence must be at most the total {total}, not {silence}")
        even = dict.fromkeys(others, (total - stalls) / len(others))
        even |= dict.fromkeys(STALLS, stalls / len(STALLS))
        return cls(**even, silence_seconds=silence_seconds)


class FaultSource:
    """Random faults: one sequence for all requests, so a seed reproduces a run."""

    def __init__(self, faults: Faults, seed: int) -> None:
        self._bounds = tuple(accumulate(faults.probabilities))
        self._random = random.Random(seed)  # noqa: S311  reproducible, no secret

    def next_fault(self) -> FaultKind | None:
        """Return the fault of the next request, or None."""
        if not self._bounds[-1]:
            return None
        place = bisect_right(self._bounds, self._random.random())
        return KINDS[place] if place < len(KINDS) else None

    def response(
        self,
        kind: FaultKind,
        now: float,
        request_id: str,
        dialect: Dialect,
        response_format: str,
        *,
        forms: ResponseForms = MODEL_FORMS,
    ) -> SimulatedResponse:
        """Return the HTTP response of a fault that has one; ``now`` is the server's time."""
        match kind:
            case "internal":
                return SimulatedResponse(500, (b"", PROXY_PAGE)[self._random.randrange(2)], HTML)
            case "html":
                return SimulatedResponse(200, PROXY_PAGE, HTML)
            case "garbage":
                return SimulatedResponse(200, b'{"success": true, "data": {"simpleOTAModuleInfo": [\xff\xfe', JSON)
        error, headers = self._platform_error(kind, now)
        return replace(error_response(error, request_id, dialect, response_format, forms=forms), headers=headers)

    def _platform_error(self, kind: FaultKind, now: float) -> tuple[RequestRejected, dict[str, str]]:
        """Return the error of the platform itself, and its headers."""
        if kind == "business":
            return RequestRejected("iot.system.SystemException", "A system exception occurred."), {}
        if kind == "unavailable":
            return RequestRejected("ServiceUnavailable", "The request has failed due to a temporary failure.", 503), {}
        if kind == "nonce":
            return RequestRejected("SignatureNonceUsed", "Specified signature nonce was used already.", 400), {}
        forms: tuple[tuple[str, int, dict[str, str]], ...] = (
            ("Throttling", 429, {"Retry-After": "1"}),
            ("Throttling.Api", 429, {"Retry-After": formatdate(now + 1, usegmt=True)}),
            ("Throttling.User", 400, {"x-acs-retry-after": "100"}),
            ("Throttling", 400, {}),
        )
        code, status, headers = forms[self._random.randrange(len(forms))]
        return RequestRejected(code, "Request was denied due to request throttling.", status), headers


Corruption = Literal[
    "always_page_1",
    "always_page_1_echo_1",
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
"""How a response is corrupted:

- ``always_page_1``: every page holds page 1's modules, under the requested number; ``…_echo_1``: under the number 1.
- ``empty_page_early``: pages from 2 on are empty while the total says more.
- ``data_null``, ``data_hollow``: ``data`` is null or ``{}``, and total and pageCount are 0.
- ``data_hollow_with_total``: ``data`` is ``{}`` while the total is 3 on 1 page.
- ``data_array``: ``data`` is the bare array; everything else is correct.
- ``no_total``: the total is missing. ``page_count_1``: pageCount is 1 whatever the total.
- ``total_grows``: page 1 is correct, and each later page reports one module more.
- ``other_device``: the entries have another device's name and id.
"""


def corrupted_page(corruption: Corruption | None, page: int) -> int:
    """Return the page whose modules are in the response to a request for ``page``."""
    return 1 if corruption in {"always_page_1", "always_page_1_echo_1"} else page


def corrupted_total(corruption: Corruption | None, total: int, page: int) -> int:
    """Return the total that ``page`` reports instead of the correct ``total``."""
    match corruption:
        case "data_null" | "data_hollow":
            return 0
        case "data_hollow_with_total":
            return 3
        case "total_grows":
            return total + page - 1
        case _:
            return total


def corrupt(corruption: Corruption, document: Document, entries: list[dict[str, str]], page: int) -> None:
    """Corrupt the rest of a correct response, in place; ``entries`` are its modules."""
    match corruption:
        case "always_page_1_echo_1":
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
                entry["deviceName"] = "another-device"
                entry["iotId"] = entry["iotId"][::-1]
        case _:
            pass
