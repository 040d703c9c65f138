"""A real Redis server for a test, which can be killed and started again."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

PROGRAM = shutil.which("redis-server")

needs_redis = pytest.mark.skipif(
    PROGRAM is None,
    reason="NOT TESTED: quotas in Redis, because redis-server is missing (Debian: apt install redis-server)",
)


class RedisServer:
    """A server on a port of its own, without persistence."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._options = ("--dir", str(folder), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1", *options)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = [str(PROGRAM), "--port", str(self.port), *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.01)
            else:
                return
        raise RuntimeError("redis-server does not listen")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _command(self, *words: str | bytes) -> bytes:
        command = [
            "redis-cli",
            "-p",
            str(self.port),
            "--raw",
            "-x" if isinstance(words[-1], bytes) else "--no-auth-warning",
        ]
        value = words[-1] if isinstance(words[-1], bytes) else None
        texts = [word for word in words if isinstance(word, str)]
        return subprocess.run([*command, *texts], input=value, capture_output=True, check=True).stdout

    def run(self, line: str) -> None:
        """Run a command of words without spaces."""
        self._command(*line.split())

    def get(self, key: str) -> bytes:
        return self._command("GET", key)[:-1]

    def keys(self, pattern: str) -> list[str]:
        return sorted(self._command("KEYS", pattern).decode().split())

    def set(self, key: str, value: bytes) -> None:
        self._command("SET", key, value)

    def restart(self, *options: str) -> None:
        self.kill()
        self._options += options
        self.start()

    def stall(self) -> None:
        """Stop the process: connections stay, and no request gets a response."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
