"""A stand-in of healthchecks.io: what its pings do to a check, by https://healthchecks.io/docs/http_api/."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from tests.post_server import post_server

CHECK = "5b1c4d4e-7f3a-4d0e-9a55-2a1d3c6f8e01"
"""The secret part of an address."""

_PATH = re.compile(rf"/{CHECK}(?:/(start|fail|log|\d{{1,3}}))?")


@dataclass
class Check:
    """A check of the service: its state, and the pings that it was sent: the signal, its body and the id of the run."""

    address: str = ""
    file: Path = Path()
    status: int = 200
    state: Literal["new", "started", "up", "down"] = "new"
    pings: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def signals(self) -> list[str]:
        return [signal for signal, _, _ in self.pings]

    @property
    def last_body(self) -> str:
        return self.pings[-1][1]

    def receive(self, target: str, body: str) -> int:
        parts = urlsplit(target)
        found = _PATH.fullmatch(parts.path)
        if found is None:
            return 404
        signal = found[1] or "success"
        self.pings.append((signal, body, parse_qs(parts.query)["rid"][0]))
        if self.status == 200 and signal != "log":
            states: dict[str, Literal["started", "up"]] = {"start": "started", "success": "up", "0": "up"}
            self.state = states.get(signal, "down")
        return self.status


@contextmanager
def healthchecks(status: int = 200) -> Iterator[Check]:
    """Run the service with one check, whose address is in a file; it answers pings with a status."""
    check = Check(status=status)

    with (
        post_server(lambda path, _, body: check.receive(path, body.decode()), b"OK") as port,
        TemporaryDirectory() as folder,
    ):
        check.address = f"http://127.0.0.1:{port}/{CHECK}"
        check.file = Path(folder, "address")
        check.file.write_text(check.address)
        yield check
