"""Names of hosts into addresses, without a wait of one host's for another's."""

import asyncio
import contextlib
import socket
import threading

from aiohttp.abc import AbstractResolver, ResolveResult


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
