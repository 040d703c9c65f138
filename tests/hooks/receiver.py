"""A webhook in a thread: for tests whose audits and hooks have an event loop or a process of their own."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TOKEN = "T0KEN-in-the-address"


@dataclass
class Receiver:
    """A webhook that answers with one status after the other, keeps to the last one, and records headers and bodies."""

    statuses: Sequence[int]
    address: str = ""
    file: Path = Path()
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    @property
    def event(self) -> dict[str, Any]:
        """The body that was posted last."""
        loaded: dict[str, Any] = json.loads(self.bodies[-1])
        return loaded

    @property
    def payload(self) -> dict[str, Any]:
        """The run in the body that was posted last."""
        data: dict[str, Any] = self.event["data"]
        return data

    def tables(self, **keys: object) -> list[dict[str, object]]:
        """The setting `notify` with this webhook, whose address is in a file."""
        return [{"name": "hook", "webhook": {"file": str(self.file)}, **keys}]

    def toml(self, more: str = "") -> str:
        return f'[[notify]]\nname = "hook"\nwebhook = {{ file = "{self.file}" }}\n{more}\n'


@contextmanager
def receiving(*statuses: int) -> Iterator[Receiver]:
    receiver = Receiver(statuses or (200,))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.headers.append(dict(self.headers.items()))
            receiver.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(receiver.statuses[min(len(receiver.bodies), len(receiver.statuses)) - 1])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  its own name
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.address = f"http://127.0.0.1:{server.server_address[1]}/{TOKEN}?key={TOKEN}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        with TemporaryDirectory() as folder:
            receiver.file = Path(folder, "address")
            receiver.file.write_text(receiver.address)
            yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
