"""A simulated S3 (``moto``) behind a proxy with TLS, which answers 503 and cuts connections as a test requests.

The proxy is our own and not nginx, because its failures come from a seed, and because it can lose the answer of a
request that the storage has carried out, or the second half of a body.
"""

import asyncio
import atexit
import io
import os
import random
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web
from yarl import URL

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("AUDITOR_S3_PYTHON", ROOT / ".s3" / "bin" / "python"))

needs_s3 = pytest.mark.skipif(
    not PYTHON.exists() or find_spec("obstore") is None,
    reason="NOT TESTED: object storages, because obstore or .s3 is missing (make .s3/.installed)",
)


@dataclass
class S3:
    """An object storage with a bucket ``lake``.

    Attributes:
        endpoint: address of the proxy.
        ca_file: the authority of its certificate.
        failures: fraction of the requests that fail.
        status: of the answers that are failures.
        requests: methods, paths and headers of all requests.
        pause: seconds before an answer, if it or the request has more than 1 MB.
    """

    endpoint: str
    ca_file: Path
    random: random.Random
    failures: float = 0.0
    status: int = 503
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    pause: float = 0.0

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that uses it without options."""
        return {
            "AWS_ACCESS_KEY_ID": "AKID",
            "AWS_SECRET_ACCESS_KEY": "SECRETCANARY",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "SSL_CERT_FILE": str(self.ca_file),
        }

    @property
    def options(self) -> dict[str, str]:
        """Options of a store, without credentials."""
        return {"endpoint": self.endpoint, "region": "us-east-1", "ca_file": str(self.ca_file)}


@cache
def _simulated_port() -> int:
    """Start the storage for the tests of this process, once: its libraries take seconds to load."""
    process = subprocess.Popen([PYTHON, Path(__file__).with_name("s3_process.py")], stdin=-1, stdout=-1, stderr=-3)
    assert process.stdout is not None
    atexit.register(process.kill)
    return int(process.stdout.readline())


@contextmanager
def simulated_s3(folder: Path, *, seed: int = 1) -> Iterator[S3]:
    """Yield a storage whose objects other tests of this process see too: use a prefix of your own."""
    authority = trustme.CA()
    folder.mkdir(exist_ok=True)
    ca_file = folder / "s3-ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    tls = trustme_context(authority)
    s3 = S3("", ca_file, random.Random(seed))
    target = URL(f"http://127.0.0.1:{_simulated_port()}")
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with aiohttp.ClientSession(auto_decompress=False) as session:

            async def handle(request: web.Request) -> web.StreamResponse:
                return await _forward(s3, request, session, target)

            app = web.Application(client_max_size=1 << 30)
            app.router.add_route("*", "/{path:.*}", handle)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
            await site.start()
            s3.endpoint = f"https://127.0.0.1:{runner.addresses[0][1]}"
            started.set()
            await stop.wait()
            await runner.cleanup()
            await asyncio.sleep(0.05)  # connections that were cut are closed by the loop

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    started.wait(10)
    try:
        yield s3
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def trustme_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def _forward(s3: S3, request: web.Request, session: aiohttp.ClientSession, target: URL) -> web.StreamResponse:
    """Return the storage's answer; or fail before it has the request, after, or amidst the answer."""
    s3.requests.append((request.method, request.raw_path, dict(request.headers)))
    kind = s3.random.choice(("answer", "cut", "lose", "half")) if s3.random.random() < s3.failures else None
    body = await request.read()
    await asyncio.sleep(s3.pause * (len(body) > 1 << 20))
    if kind == "answer":
        return web.Response(status=s3.status, text="<Error><Code>SlowDown</Code></Error>")
    if kind == "cut":
        return _cut(request)
    headers = {name: value for name, value in request.headers.items() if name.lower() != "transfer-encoding"}
    url = URL(f"{target}{request.raw_path}", encoded=True)
    async with session.request(request.method, url, data=io.BytesIO(body), headers=headers) as found:
        content = await found.read()
        await asyncio.sleep(s3.pause * (len(content) > 1 << 20))
        if kind == "lose" or (kind == "half" and not content):
            return _cut(request)
        response = web.StreamResponse(status=found.status)
        for name, value in found.headers.items():
            if name.lower() not in {"connection", "transfer-encoding", "date", "server"}:
                response.headers[name] = value
        if request.method != "HEAD":
            response.content_length = len(content)
        await response.prepare(request)
        if request.method != "HEAD":
            await response.write(content[: len(content) // 2] if kind == "half" else content)
        if kind == "half":
            return _cut(request, response)
        await response.write_eof()
        return response


def _cut(request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return response or web.Response()
