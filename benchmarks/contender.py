"""One way to ask about every device of a fleet: a signed request each, its answer parsed, a JSON line written.

python benchmarks/contender.py NAME PORT FLEET OUT prints the seconds that the asking took, imports not counted.

Each runs in a process of its own, fifty requests at once. Those that need other people's packages, the vendor's two
SDKs and dlt, import them when they run. Where no library signs, it is written as people would write it.
"""

import asyncio
import base64
import csv
import hashlib
import hmac
import json
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

AT_ONCE = 50
KEY, SECRET = "bench-key", "bench-secret"
ACTION = "ListOTAModuleVersionsByDevice"

Device = tuple[str, str]


def fleet(path: Path) -> Iterator[Device]:
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            yield row["product_key"], row["device_name"]


def parameters_of(device: Device) -> dict[str, str]:
    return {"ProductKey": device[0], "DeviceName": device[1], "CurrentPage": "1", "PageSize": "200"}


def signed(device: Device) -> dict[str, str]:
    """All parameters of a request, signed as the platform's page tells it, written down plainly."""
    parameters = parameters_of(device) | {
        "Action": ACTION,
        "Version": "2018-01-20",
        "Format": "JSON",
        "AccessKeyId": KEY,
        "SignatureMethod": "HMAC-SHA1",
        "SignatureVersion": "1.0",
        "SignatureNonce": str(uuid.uuid4()),
        "Timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    query = "&".join(f"{quote(name, safe='~')}={quote(parameters[name], safe='~')}" for name in sorted(parameters))
    text = f"GET&%2F&{quote(query, safe='~')}"
    digest = hmac.new(f"{SECRET}&".encode(), text.encode(), hashlib.sha1).digest()
    return parameters | {"Signature": base64.b64encode(digest).decode()}


def record(device: Device, answer: dict[str, Any]) -> dict[str, Any]:
    """What is written of an answer, whoever got it."""
    found = {name.lower(): value for name, value in answer.items()}
    if found["success"] is not True:
        raise RuntimeError(f"no answer about {device}: {answer}")
    data = next(iter(found["data"].values()))
    modules = [{name.lower(): value for name, value in each.items()} for each in data]
    return {
        "product_key": device[0],
        "device_name": device[1],
        "modules": [{"module_name": each["modulename"], "module_version": each["moduleversion"]} for each in modules],
        "total": found["total"],
        "request_id": found["requestid"],
    }


async def fan_out(devices: Iterator[Device], ask: Callable[[Device], Awaitable[None]]) -> None:
    async def work() -> None:
        for device in devices:
            await ask(device)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


def threaded(devices: Iterator[Device], out: Path, asker: Callable[[], Callable[[Device], dict[str, Any]]]) -> float:
    """Fifty threads, each with a client of its own, pull one iterator."""
    lock, asking = threading.Lock(), threading.local()
    with out.open("w") as file:

        def work(_: int) -> None:
            asking.ask = asker()
            while True:
                with lock:
                    device = next(devices, None)
                if device is None:
                    return
                line = json.dumps(record(device, asking.ask(device)))
                with lock:
                    file.write(line + "\n")

        began = time.perf_counter()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(work, range(AT_ONCE)))
        return time.perf_counter() - began


def aiohttp_plain(port: int, devices: Iterator[Device], out: Path) -> float:
    """What the first page of aiohttp's documentation leads to."""
    import aiohttp

    async def main() -> None:
        with out.open("w") as file:
            async with aiohttp.ClientSession() as session:

                async def ask(device: Device) -> None:
                    async with session.get(f"http://127.0.0.1:{port}/", params=signed(device)) as response:
                        file.write(json.dumps(record(device, await response.json())) + "\n")

                await fan_out(devices, ask)

    began = time.perf_counter()
    asyncio.run(main())
    return time.perf_counter() - began


def aiohttp_tuned(port: int, devices: Iterator[Device], out: Path) -> float:
    """All that is known to make aiohttp fast, and nothing else: no retries, no pages, no pace, no proof."""
    import aiohttp
    import orjson
    import uvloop
    from yarl import URL

    from auditor.client.signing import Signer
    from auditor.models import Secret

    signer = Signer(KEY, Secret(SECRET), {"Format": "JSON"})
    nonce, number = uuid.uuid4().hex, 0

    async def main() -> None:
        connector = aiohttp.TCPConnector(limit=AT_ONCE)
        jar = aiohttp.DummyCookieJar()
        with out.open("wb", buffering=65_536) as file:
            async with aiohttp.ClientSession(connector=connector, cookie_jar=jar) as session:

                async def ask(device: Device) -> None:
                    nonlocal number
                    number += 1
                    query, _ = signer.sign(
                        "GET",
                        {"Action": ACTION, "Version": "2018-01-20", **parameters_of(device)},
                        timestamp=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                        nonce=f"{nonce}{number}",
                    )
                    url = URL.build(
                        scheme="http", authority=f"127.0.0.1:{port}", path="/", query_string=query, encoded=True
                    )
                    async with session.get(url) as response:
                        answer = orjson.loads(await response.read())
                    file.write(orjson.dumps(record(device, answer), option=orjson.OPT_APPEND_NEWLINE))

                await fan_out(devices, ask)

    began = time.perf_counter()
    uvloop.run(main())
    return time.perf_counter() - began


def stream(port: int, devices: Iterator[Device], out: Path) -> float:
    """auditor's library: outcomes as they come, without a run folder."""
    import orjson
    import uvloop

    import auditor

    outcomes, settings_from = auditor.outcomes, auditor.settings_from  # loaded now: imports are not counted
    source = (auditor.Device("bench", key, name, None) for key, name in devices)

    async def main() -> None:
        (out.parent / "secret").write_text(SECRET)
        settings = settings_from(settings_table(port, AT_ONCE), folder=out.parent)
        with out.open("wb", buffering=65_536) as file:
            async with outcomes(settings, source) as found:
                async for outcome in found:
                    file.write(orjson.dumps(outcome, option=orjson.OPT_APPEND_NEWLINE))

    began = time.perf_counter()
    uvloop.run(main())
    return time.perf_counter() - began


def settings_table(port: int, at_once: int) -> dict[str, Any]:
    account = {
        "name": "bench",
        "endpoint": f"http://127.0.0.1:{port}/",
        "access_key_id": KEY,
        "access_key_secret": {"file": "secret"},
        "per_second": "unlimited",
    }
    return {"at_once": at_once, "account": [account]}


def sdk_core(port: int, devices: Iterator[Device], out: Path) -> float:
    """The vendor's older SDK, aliyun-python-sdk-iot, in threads."""
    from aliyunsdkcore.client import AcsClient
    from aliyunsdkiot.request.v20180120.ListOTAModuleVersionsByDeviceRequest import (
        ListOTAModuleVersionsByDeviceRequest,
    )

    def asker() -> Callable[[Device], dict[str, Any]]:
        client = AcsClient(KEY, SECRET, "cn-shanghai", port=port, auto_retry=False)

        def ask(device: Device) -> dict[str, Any]:
            request = ListOTAModuleVersionsByDeviceRequest()
            request.set_endpoint("127.0.0.1")
            request.set_protocol_type("http")
            for name, value in parameters_of(device).items():
                getattr(request, f"set_{name}")(value)
            answer: dict[str, Any] = json.loads(client.do_action_with_exception(request))
            return answer

        return ask

    return threaded(devices, out, asker)


def sdk_tea(port: int, devices: Iterator[Device], out: Path) -> float:
    """The vendor's newer SDK, alibabacloud-iot20180120, in threads."""
    from alibabacloud_iot20180120.client import Client
    from alibabacloud_iot20180120.models import ListOTAModuleVersionsByDeviceRequest
    from alibabacloud_tea_openapi.models import Config
    from alibabacloud_tea_util.models import RuntimeOptions

    def asker() -> Callable[[Device], dict[str, Any]]:
        address = f"127.0.0.1:{port}"
        client = Client(Config(access_key_id=KEY, access_key_secret=SECRET, endpoint=address, protocol="http"))
        options = RuntimeOptions(autoretry=False)

        def ask(device: Device) -> dict[str, Any]:
            request = ListOTAModuleVersionsByDeviceRequest(
                product_key=device[0], device_name=device[1], current_page=1, page_size=200
            )
            answer: dict[str, Any] = client.list_otamodule_versions_by_device_with_options(
                request, options
            ).body.to_map()
            return answer

        return ask

    return threaded(devices, out, asker)


def dlt(port: int, devices: Iterator[Device], out: Path) -> float:
    """dlt's REST client, in threads."""
    from dlt.sources.helpers.rest_client import RESTClient

    def asker() -> Callable[[Device], dict[str, Any]]:
        client = RESTClient(base_url=f"http://127.0.0.1:{port}")

        def ask(device: Device) -> dict[str, Any]:
            answer: dict[str, Any] = client.get("/", params=signed(device)).json()
            return answer

        return ask

    return threaded(devices, out, asker)


CONTENDERS = (aiohttp_tuned, aiohttp_plain, stream, sdk_core, sdk_tea, dlt)


def main(name: str, port: str, devices: str, out: str) -> None:
    contender = {each.__name__: each for each in CONTENDERS}[name]
    print(contender(int(port), fleet(Path(devices)), Path(out)))


if __name__ == "__main__":
    main(*sys.argv[1:])
