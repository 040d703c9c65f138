"""A client that signs one request and returns the raw response."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import aiohttp
import orjson
from yarl import URL

from auditor.client.operations import API_VERSION
from auditor.client.signing import Signer
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import SimulatedDevice

ACTION = "ListOTAModuleVersionsByDevice"


@dataclass(frozen=True, slots=True)
class RawResponse:
    """One HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def code(self) -> str:
        document = self.json
        return str(document.get("Code", document.get("code")))


def format_timestamp(seconds: float | None = None) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def china_time(text: str) -> float:
    """Milliseconds since 1970 of a time without a zone."""
    return datetime.strptime(f"{text} +0800", "%Y-%m-%d %H:%M:%S %z").timestamp() * 1000


def device_params(device: SimulatedDevice, page: object = 1, size: object = 200) -> dict[str, str]:
    return {
        "ProductKey": device.product_key,
        "DeviceName": device.device_name,
        "CurrentPage": str(page),
        "PageSize": str(size),
    }


def signed_query(
    parameters: dict[str, str],
    *,
    method: str = "GET",
    account: SimulatedAccount = DEFAULT_ACCOUNT,
    nonce: str | None = None,
    timestamp: str | None = None,
    constants: dict[str, str] | None = None,
) -> str:
    """A correctly signed query; an empty value in ``constants`` omits a constant."""
    common = {"Format": "JSON", "Version": API_VERSION, "Action": ACTION, **(constants or {})}
    signer = Signer(account.access_key_id, account.secret, {name: value for name, value in common.items() if value})
    query, _ = signer.sign(method, parameters, timestamp=timestamp or format_timestamp(), nonce=nonce or f"{uuid4()}")
    return query


def url_of(platform: Simulator, query: str) -> URL:
    return URL(f"{platform.endpoint}?{query}", encoded=True)


def single_attempt() -> aiohttp.ClientSession:
    """A session without retries: aiohttp retries a GET when the connection is closed."""
    session = aiohttp.ClientSession()
    session._retry_connection = False
    return session


async def get(platform: Simulator, query: str, *, method: str = "GET", data: str | None = None) -> RawResponse:
    """Response to a query that is sent unchanged."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"} if data is not None else {}
    async with (
        single_attempt() as session,
        session.request(method, url_of(platform, query), data=data, headers=headers) as response,
    ):
        return RawResponse(response.status, dict(response.headers), await response.read())


async def call(platform: Simulator, action: str, /, **parameters: object) -> Any:
    """Response of an operation."""
    return await call_as(DEFAULT_ACCOUNT, platform, action, **parameters)


async def call_as(account: SimulatedAccount, platform: Simulator, action: str, /, **parameters: object) -> Any:
    """Response of an operation to an account."""
    texts = {name: str(value) for name, value in parameters.items()}
    return (await get(platform, signed_query(texts, account=account, constants={"Action": action}))).json


async def error_code(platform: Simulator, action: str, parameters: dict[str, str]) -> str:
    """Code of an error of an operation, which has HTTP status 200."""
    response = await get(platform, signed_query(parameters, constants={"Action": action}))
    document = {name[:1].lower() + name[1:]: value for name, value in response.json.items()}
    assert (response.status, document["success"]) == (200, False)
    assert document.keys() == {"success", "code", "errorMessage", "requestId"}
    return str(document["code"])


def wait_until(count: Callable[[], int], *, reaches: int) -> None:
    """Block the process, including the platform, until a count is large enough."""
    end = time.monotonic() + 10
    while count() < reaches:
        assert time.monotonic() < end, f"the count did not reach {reaches}"
        time.sleep(0.001)


PRODUCT_ERRORS = [
    ("", "iot.prod.NullProductKey"),
    ("k1 nonsense", "iot.prod.InvalidFormattedProductkey"),
    ("k1nowhere", "iot.prod.NotExistedProduct"),
]
"""Errors of every operation for an invalid product key."""
