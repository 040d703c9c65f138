"""A PostgreSQL server of the tests: a cluster in a temporary directory, on a Unix socket, and on TCP with TLS."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg
import pytest

ADMIN = "admin"

SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "20",
    "shared_buffers": "16MB",
    "autovacuum": "off",
    "log_min_messages": "fatal",
}
"""The server is not durable, since it ends with the tests; and small."""


def find_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, which Debian has in no PATH; None: there is none."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if (other := shutil.which("initdb")) is not None:
        found.append(Path(os.path.realpath(other)).parent)
    return max(found, key=lambda path: path.parent.name, default=None)


needs_postgresql = pytest.mark.skipif(
    find_programs() is None,
    reason="NOT TESTED: publishing to PostgreSQL, because it is missing (Debian: apt install postgresql)",
)


@dataclass(frozen=True)
class Server:
    """A running server."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    def connect(self, user: str = ADMIN, database: str = "postgres", **options: Any) -> psycopg.Connection:
        return psycopg.connect(
            host=str(self.folder), port=self.port, user=user, dbname=database, autocommit=True, **options
        )

    def query(self, sql: str, *parameters: object, database: str = "postgres") -> list[tuple[Any, ...]]:
        with self.connect(database=database) as connection:
            cursor = connection.execute(sql.encode(), parameters or None)
            return cursor.fetchall() if cursor.description is not None else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def run_server(
    *,
    tcp_rules: str = "",
    files: Mapping[str, bytes] = MappingProxyType({}),
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Server]:
    """Run a server until the block ends. It refuses to run as root, so root runs it as nobody.

    ``settings`` differ from ``SETTINGS``. ``files`` are put into the server's directory, and ``tcp_rules`` are lines of ``pg_hba.conf`` for TCP; a socket is trusted.
    """
    programs = find_programs()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="postgresql-", dir="/tmp"))  # a socket's path has at most 107 bytes
    user: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    data, port = folder / "data", _free_port()
    try:
        if user:
            shutil.chown(folder, "nobody", "nogroup")
        command = [
            str(programs / "initdb"),
            "-D",
            str(data),
            "-U",
            ADMIN,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder, **user)
        for name, content in files.items():
            (data / name).write_bytes(content)
            (data / name).chmod(0o600)
            if user:
                shutil.chown(data / name, "nobody", "nogroup")
        (data / "pg_hba.conf").write_text(f"local all all trust\n{tcp_rules}\n")
        address = "127.0.0.1" if tcp_rules else ""
        options = SETTINGS | {"unix_socket_directories": str(folder), "listen_addresses": address, "port": str(port)}
        arguments = [f"-c{name}={value}" for name, value in {**options, **settings}.items()]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [programs / "postgres", "-D", data, *arguments], cwd=folder, stdout=log, stderr=log, **user
            )
        try:
            server = Server(folder, port, process)
            _wait(server)
            yield server
        finally:
            process.send_signal(signal.SIGQUIT)  # ends its sessions without waiting for them
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(server: Server) -> None:
    for _ in range(600):
        with suppress(psycopg.OperationalError):
            server.connect().close()
            return
        assert server.process.poll() is None, (server.folder / "log").read_text()
        time.sleep(0.05)
    raise TimeoutError
