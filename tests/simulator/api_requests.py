"""A client that signs one request and shows the bare answer."""

import time
from collections.abc import Callable
from dataclasses import dataclass
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
class Seen:
    """One HTTP answer as a client sees it."""

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


def stamp(seconds: float | None = None) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def named(device: SimulatedDevice, page: object = 1, size: object = 200) -> dict[str, str]:
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
    """A rightly signed query; an empty value among ``constants`` leaves a constant out."""
    whole = {"Format": "JSON", "Version": API_VERSION, "Action": ACTION, **(constants or {})}
    signer = Signer(account.access_key_id, account.secret, {name: value for name, value in whole.items() if value})
    query, _ = signer.sign(method, parameters, timestamp=timestamp or stamp(), nonce=nonce or f"{uuid4()}")
    return query


def url_of(platform: Simulator, query: str) -> URL:
    return URL(f"{platform.endpoint}?{query}", encoded=True)


def one_try() -> aiohttp.ClientSession:
    """A session that sends once: aiohttp sends a GET again by itself, byte for byte, when the connection breaks."""
    session = aiohttp.ClientSession()
    session._retry_connection = False
    return session


async def get(platform: Simulator, query: str, *, method: str = "GET", data: str | None = None) -> Seen:
    """The answer to a query sent byte for byte."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"} if data is not None else {}
    async with (
        one_try() as session,
        session.request(method, url_of(platform, query), data=data, headers=headers) as answer,
    ):
        return Seen(answer.status, dict(answer.headers), await answer.read())


async def ask(platform: Simulator, action: str, /, **sent: object) -> Any:
    """The answer of an operation to parameters."""
    return await ask_as(DEFAULT_ACCOUNT, platform, action, **sent)


async def ask_as(account: SimulatedAccount, platform: Simulator, action: str, /, **sent: object) -> Any:
    """The answer of an operation to parameters that an account sends."""
    parameters = {name: str(value) for name, value in sent.items()}
    return (await get(platform, signed_query(parameters, account=account, constants={"Action": action}))).json


async def code_of(platform: Simulator, action: str, sent: dict[str, str]) -> str:
    """The code of an operation's refusal, which is a whole answer under HTTP 200."""
    seen = await get(platform, signed_query(sent, constants={"Action": action}))
    document = {name[:1].lower() + name[1:]: value for name, value in seen.json.items()}
    assert (seen.status, document["success"]) == (200, False)
    assert document.keys() == {"success", "code", "errorMessage", "requestId"}
    return str(document["code"])


def wait_until(count: Callable[[], int], *, reaches: int) -> None:
    """Holds up everything, the platform too, until a count is large enough."""
    end = time.monotonic() + 10
    while count() < reaches:
        assert time.monotonic() < end, f"it never came to {reaches}"
        time.sleep(0.001)


PRODUCT_REFUSALS = [
    ("", "iot.prod.NullProductKey"),
    ("k1 nonsense", "iot.prod.InvalidFormattedProductkey"),
    ("k1nowhere", "iot.prod.NotExistedProduct"),
]
"""What every operation says to a product key that is none."""
