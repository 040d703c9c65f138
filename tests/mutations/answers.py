"""A gateway between a command and the platform that mutates some of the responses."""

import asyncio
import gzip
import re
import threading
from pathlib import Path
from random import Random

from tests.mutations.documents import dump_json, mutate_bytes, mutate_document, parse_json

_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)

_HEADERS = (
    "Retry-After: 1e9", "Retry-After: -1", "Retry-After: nan", "x-acs-retry-after: 99999999999", "Date: Thu, 01 Jan 1970 00:00:00 GMT",
    "Date: Fri, 31 Dec 9999 23:59:59 GMT", "Date: x", "Content-Encoding: gzip", "Content-Encoding: br", "Transfer-Encoding: chunked",
    "Content-Length: 5", "Content-Type: text/html; charset=utf-16", "Location: http://127.0.0.1:1/", "Set-Cookie: a=b", "X-Long: " + "y" * 20_000,
    "Connection: upgrade", "X-\x1b[31m: z",
)  # fmt: skip

_STATUSES = (
    100,
    101,
    200,
    201,
    204,
    206,
    301,
    302,
    304,
    307,
    400,
    401,
    403,
    404,
    407,
    418,
    429,
    500,
    502,
    503,
    504,
    599,
    999,
)


def serve_mutated(platform_port: int, number: int, folder: Path) -> frozenset[int]:
    """Start a gateway in a thread, and make it the endpoint of the settings; return its port."""
    ready = threading.Event()
    ports: list[int] = []

    async def serve() -> None:
        gateway = _Gateway(platform_port, Random(f"answers {number}"))
        server = await asyncio.start_server(gateway.handle, "127.0.0.1", 0, limit=1 << 20)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        await server.serve_forever()

    threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
    ready.wait()
    for path in folder.glob("*.toml"):
        path.write_text(path.read_text().replace(f"127.0.0.1:{platform_port}/", f"127.0.0.1:{ports[0]}/"))
    return frozenset(ports)


class _Gateway:
    def __init__(self, port: int, random: Random) -> None:
        self._port, self._random = port, random
        self._share = random.choice((0.1, 0.3, 1.0))

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection, one after another."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                body = await reader.readexactly(int(length[1])) if length else b""
                answer = await self._forward(head, body)
                mutated = self._mutate(answer) if self._random.random() < self._share else answer
                writer.write(mutated)
                await writer.drain()
                if mutated is not answer and not self._random.randrange(2):
                    break
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async def _forward(self, head: bytes, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head)[:-2] + b"Connection: close\r\n\r\n" + body)
        try:
            answer = await reader.read()
        finally:
            writer.close()
        return re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", answer, count=1)

    def _mutate(self, answer: bytes) -> bytes:
        random = self._random
        head, _, body = answer.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        match random.randrange(8):
            case 0:
                return mutate_bytes(answer, random)[0]
            case 1:
                lines[0] = b"HTTP/1.1 %d x" % random.choice(_STATUSES)
            case 2:
                lines.insert(random.randrange(1, len(lines) + 1), random.choice(_HEADERS).encode())
            case 3:
                body = mutate_bytes(body, random)[0]
            case 4 if not random.randrange(4):
                body = gzip.compress(random.choice((b" ", b"[", b'{"a":')) * (8 << 20), 1)
                lines.append(b"Content-Encoding: gzip")
            case _:
                body = self._mutate_body(body)
        lines = [line for line in lines if not line.lower().startswith(b"content-length") or line.endswith(b": 5")]
        return b"\r\n".join((*lines, b"Content-Length: %d" % len(body))) + b"\r\n\r\n" + body

    def _mutate_body(self, body: bytes) -> bytes:
        try:
            document = parse_json(body)
        except ValueError:
            return mutate_bytes(body, self._random)[0]
        for _ in range(self._random.choice((1, 1, 2, 5))):
            mutate_document(document, self._random)
        return dump_json(document)
