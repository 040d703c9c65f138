"""Connections to one account's platform, straight or through a proxy, and what goes wrong below HTTP in a sentence.

Names of hosts into addresses, without a wait of one host's for another's.
"""

import asyncio
import contextlib
import socket
import ssl
import threading

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from auditor.client.transport_errors import _in_the_way
from auditor.errors import SettingsError


def trust(ca_file: str | None) -> ssl.SSLContext:
    """The authorities in a PEM file, or the system's, as what TLS connections are verified with.

    Raises:
        SettingsError: the file holds no certificates.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise SettingsError(f"ca_file: {ca_file} holds no certificates to trust: {error}") from error


class Connector(aiohttp.TCPConnector):
    """A pool that gives out no connection on which something came that nobody asked for.

    aiohttp looks for that when a connection goes back into the pool; what comes later, while it lies there, would be
    taken for the answer to the next request: another device's answer.
    """

    def __init__(self, *, limit: int, tls: ssl.SSLContext | bool = True) -> None:
        super().__init__(limit=limit, ssl=tls, keepalive_timeout=30, resolver=Resolver())
        self._like: aiohttp.ClientRequest | None = None

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  aiohttp's own signature
    ) -> Connection:
        """See ``aiohttp.BaseConnector``; raises ProxyError if it is the proxy that is in the way."""
        self._like = req  # one account has one endpoint: connections for one request are good for all
        began = asyncio.get_running_loop().time()
        connection = await self._connected(req, traces, timeout)
        if not _spoken_on(connection):
            return connection
        until = None if timeout.connect is None else began + timeout.connect
        try:
            async with asyncio.timeout_at(until):  # or who speaks first would be called for ever
                while _spoken_on(connection):
                    connection.close()
                    connection = await self._connected(req, traces, timeout)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _connected(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  as above
    ) -> Connection:
        """A connection of the pool, or a new one; raises ProxyError if it is the proxy that is in the way."""
        try:
            return await super().connect(req, traces, timeout)
        except aiohttp.ClientSSLError:  # with whom the proxy connects us
            raise
        except (aiohttp.ClientError, OSError) as error:
            if req.proxy is None:
                raise
            place = f"{req.proxy.host_subcomponent}:{req.proxy.port}"
            raise _in_the_way(error, f"the proxy {place}", req.host) from None

    async def warm(self, connections: int, timeout: aiohttp.ClientTimeout) -> bool:  # noqa: ASYNC109  as above
        """Opens as many connections as are missing, once a request has shown where to; False if none could be."""
        idle = sum(len(pooled) for pooled in self._conns.values())
        missing = min(connections, self.limit) - len(self._acquired) - idle
        if self._like is None or missing <= 0:
            return True
        all_have_begun = asyncio.Event()

        async def open_one(request: aiohttp.ClientRequest) -> None:
            connection = await self.connect(request, [], timeout)
            try:
                await all_have_begun.wait()
            finally:
                connection.release()

        # Those in the pool are taken as well, so that the others are new ones, and given back at once.
        opening = [asyncio.ensure_future(open_one(self._like)) for _ in range(idle + missing)]
        try:
            await asyncio.sleep(0)
            all_have_begun.set()
            ends = await asyncio.gather(*opening, return_exceptions=True)  # what fails is told by requests
        finally:
            for each in opening:
                each.cancel()
        return sum(end is None for end in ends) > idle


def _spoken_on(connection: Connection) -> bool:
    """Whether something came on a connection that nobody asked for, or it cannot be used for another reason."""
    return connection.protocol is not None and connection.protocol.should_close


class Resolver(AbstractResolver):
    """Asks the system for addresses, each time in a thread that neither the loop's end nor the process's waits for.

    The loop's own threads are few and waited for. Where the servers of some names are silent, which the system bears
    for a minute, all others would wait behind them, and so would the end.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See ``aiohttp.abc.AbstractResolver``."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def tell(found: list[ResolveResult] | Exception) -> None:
            if answer.done():  # nobody waits any more
                return
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def ask() -> None:
            found: list[ResolveResult] | Exception
            try:
                found = _addresses(host, port, family)
            except Exception as error:  # noqa: BLE001  it is raised where the answer is awaited
                found = error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell, found)

        threading.Thread(target=ask, name="auditor-name", daemon=True).start()
        return await answer

    async def close(self) -> None:
        """See ``aiohttp.abc.AbstractResolver``."""


def _addresses(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    found = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [
        ResolveResult(
            hostname=host,
            # With the interface's name where an address of IPv6 is one of its own.
            host=socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0],
            port=port,
            family=kind,
            proto=protocol,
            flags=numeric,
        )
        for kind, _, protocol, _, address in found
    ]
