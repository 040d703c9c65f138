"""A webhook in a thread: for tests whose audits and hooks have an event loop or a process of their own."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.post_server import post_server

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

    def receive(_path: str, headers: Mapping[str, str], body: bytes) -> int:
        receiver.headers.append(dict(headers))
        receiver.bodies.append(body)
        return receiver.statuses[min(len(receiver.bodies), len(receiver.statuses)) - 1]

    with post_server(receive) as port, TemporaryDirectory() as folder:
        receiver.address = f"http://127.0.0.1:{port}/{TOKEN}?key={TOKEN}"
        receiver.file = Path(folder, "address")
        receiver.file.write_text(receiver.address)
        yield receiver
