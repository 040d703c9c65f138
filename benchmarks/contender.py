"""Clients that query every device of a fleet: one signed request each, its response parsed, a JSON line written.

python benchmarks/contender.py NAME PORT FLEET OUT prints the seconds that the queries took, without imports.

Each client runs in its own process, with fifty concurrent requests. Clients that need the packages of others (the
vendor's two SDKs, dlt) import them when they run. Where no library signs, the code is as a user would write it.
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

CONCURRENCY = 50
KEY, SECRET = "bench-key", "bench-secret"
ACTION = "ListOTAModuleVersionsByDevice"

Device = tuple[str, str]


def read_fleet(path: Path) -> Iterator[Device]:
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            yield row["product_key"], row["device_name"]


def device_parameters(device: Device) -> dict[str, str]:
    return {"ProductKey": device[0], "DeviceName": device[1], "CurrentPage": "1", "PageSize": "200"}


def signed_parameters(device: Device) -> dict[str, str]:
    """Return all parameters of a request, signed as the platform documents it, in the simplest way."""
    parameters = device_parameters(device) | {
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
    """Return the object to write for a response, the same for all clients."""
    found = {name.lower(): value for name, value in answer.items()}
    if found["success"] is not True:
        raise RuntimeError(f"no result for {device}: {answer}")
    data = next(iter(found["data"].values()))
    modules = [{name.lower(): value for name, value in each.items()} for each in data]
    return {
        "product_key": device[0],
        "device_name": device[1],
        "modules": [{"module_name": each["modulename"], "module_version": each["moduleversion"]} for each in modules],
        "total": found["total"],
        "request_id": found["requestid"],
    }


async def run_workers(devices: Iterator[Device], query_device: Callable[[Device], Awaitable[None]]) -> None:
    async def work() -> None:
        for device in devices:
            await query_device(device)

    await asyncio.gather(*(work() for _ in range(CONCURRENCY)))


def run_threads(
    devices: Iterator[Device], out: Path, new_query: Callable[[], Callable[[Device], dict[str, Any]]]
) -> float:
    """Run fifty threads, each with its own client, that take devices from one iterator; return the seconds."""
    lock, local = threading.Lock(), threading.local()
    with out.open("w") as file:

        def work(_: int) -> None:
            local.query = new_query()
            while True:
                with lock:
                    device = next(devices, None)
                if device is None:
                    return
                line = json.dumps(record(device, local.query(device)))
                with lock:
                    file.write(line + "\n")

        started = time.perf_counter()
        with ThreadPoolExecutor(CONCURRENCY) as threads:
            list(threads.map(work, range(CONCURRENCY)))
        return time.perf_counter() - started


def aiohttp_plain(port: int, devices: Iterator[Device], out: Path) -> float:
    """Use aiohttp as the first page of its documentation shows."""
    import aiohttp

    async def main() -> None:
        with out.open("w") as file:
            async with aiohttp.ClientSession() as session:

                async def query_device(device: Device) -> None:
                    async with session.get(f"http://127.0.0.1:{port}/", params=signed_parameters(device)) as response:
                        file.write(json.dumps(record(device, await response.json())) + "\n")

                await run_workers(devices, query_device)

    started = time.perf_counter()
    asyncio.run(main())
    return time.perf_counter() - started


def aiohttp_tuned(port: int, devices: Iterator[Device], out: Path) -> float:
    """Use everything that makes aiohttp fast, without retries, further pages, a rate limit or verification."""
    import aiohttp
    import orjson
    import uvloop
    from yarl import URL

    from auditor.client.signing import Signer
    from auditor.models import Secret

    signer = Signer(KEY, Secret(SECRET), {"Format": "JSON"})
    nonce, number = uuid.uuid4().hex, 0

    async def main() -> None:
        connector = aiohttp.TCPConnector(limit=CONCURRENCY)
        jar = aiohttp.DummyCookieJar()
        with out.open("wb", buffering=65_536) as file:
            async with aiohttp.ClientSession(connector=connector, cookie_jar=jar) as session:

                async def query_device(device: Device) -> None:
                    nonlocal number
                    number += 1
                    query, _ = signer.sign(
                        "GET",
                        {"Action": ACTION, "Version": "2018-01-20", **device_parameters(device)},
                        timestamp=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                        nonce=f"{nonce}{number}",
                    )
                    url = URL.build(
                        scheme="http", authority=f"127.0.0.1:{port}", path="/", query_string=query, encoded=True
                    )
                    async with session.get(url) as response:
                        answer = orjson.loads(await response.read())
                    file.write(orjson.dumps(record(device, answer), option=orjson.OPT_APPEND_NEWLINE))

                await run_workers(devices, query_device)

    started = time.perf_counter()
    uvloop.run(main())
    return time.perf_counter() - started


def stream(port: int, devices: Iterator[Device], out: Path) -> float:
    """Use auditor's Python API: outcomes as they arrive, without a run folder."""
    import msgspec
    import uvloop

    import auditor

    # Loaded now, because imports do not count.
    stream_outcomes, parse_settings = auditor.stream_outcomes, auditor.parse_settings
    source = (auditor.Device("bench", key, name, None) for key, name in devices)

    async def main() -> None:
        (out.parent / "secret").write_text(SECRET)
        settings = parse_settings(settings_table(port, CONCURRENCY), folder=out.parent)
        with out.open("wb", buffering=65_536) as file:
            async with stream_outcomes(settings, source) as found:
                async for outcome in found:
                    file.write(msgspec.json.encode(outcome) + b"\n")

    started = time.perf_counter()
    uvloop.run(main())
    return time.perf_counter() - started


def settings_table(port: int, concurrency: int) -> dict[str, Any]:
    account = {
        "name": "bench",
        "endpoint": f"http://127.0.0.1:{port}/",
        "access_key_id": KEY,
        "access_key_secret": {"file": "secret"},
        "calls_per_second": "unlimited",
    }
    return {"concurrency": concurrency, "account": [account]}


def sdk_core(port: int, devices: Iterator[Device], out: Path) -> float:
    """Use the vendor's older SDK, aliyun-python-sdk-iot, in threads."""
    from aliyunsdkcore.client import AcsClient
    from aliyunsdkiot.request.v20180120.ListOTAModuleVersionsByDeviceRequest import (
        ListOTAModuleVersionsByDeviceRequest,
    )

    def new_query() -> Callable[[Device], dict[str, Any]]:
        client = AcsClient(KEY, SECRET, "cn-shanghai", port=port, auto_retry=False)

        def query_device(device: Device) -> dict[str, Any]:
            request = ListOTAModuleVersionsByDeviceRequest()
            request.set_endpoint("127.0.0.1")
            request.set_protocol_type("http")
            for name, value in device_parameters(device).items():
                getattr(request, f"set_{name}")(value)
            answer: dict[str, Any] = json.loads(client.do_action_with_exception(request))
            return answer

        return query_device

    return run_threads(devices, out, new_query)


def sdk_tea(port: int, devices: Iterator[Device], out: Path) -> float:
    """Use the vendor's newer SDK, alibabacloud-iot20180120, in threads."""
    from alibabacloud_iot20180120.client import Client
    from alibabacloud_iot20180120.models import ListOTAModuleVersionsByDeviceRequest
    from alibabacloud_tea_openapi.models import Config
    from alibabacloud_tea_util.models import RuntimeOptions

    def new_query() -> Callable[[Device], dict[str, Any]]:
        address = f"127.0.0.1:{port}"
        client = Client(Config(access_key_id=KEY, access_key_secret=SECRET, endpoint=address, protocol="http"))
        options = RuntimeOptions(autoretry=False)

        def query_device(device: Device) -> dict[str, Any]:
            request = ListOTAModuleVersionsByDeviceRequest(
                product_key=device[0], device_name=device[1], current_page=1, page_size=200
            )
            answer: dict[str, Any] = client.list_otamodule_versions_by_device_with_options(
                request, options
            ).body.to_map()
            return answer

        return query_device

    return run_threads(devices, out, new_query)


def dlt(port: int, devices: Iterator[Device], out: Path) -> float:
    """Use dlt's REST client, in threads."""
    from dlt.sources.helpers.rest_client.client import RESTClient

    def new_query() -> Callable[[Device], dict[str, Any]]:
        client = RESTClient(base_url=f"http://127.0.0.1:{port}")

        def query_device(device: Device) -> dict[str, Any]:
            answer: dict[str, Any] = client.get("/", params=signed_parameters(device)).json()
            return answer

        return query_device

    return run_threads(devices, out, new_query)


CONTENDERS = (aiohttp_tuned, aiohttp_plain, stream, sdk_core, sdk_tea, dlt)


def main(name: str, port: str, devices: str, out: str) -> None:
    contender = {each.__name__: each for each in CONTENDERS}[name]
    print(contender(int(port), read_fleet(Path(devices)), Path(out)))


if __name__ == "__main__":
    main(*sys.argv[1:])
