"""The commands as a user runs them: in a process of their own, against a platform on a real socket."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from tests import forked
from tests.forked import ForkedCommand

SECRET = "simulated-secret"


@dataclass(frozen=True)
class Platform:
    """A simulated platform in a process of its own, with settings that fit it."""

    endpoint: str
    settings: Path
    process: ForkedCommand


Auditor = Callable[..., subprocess.CompletedProcess[str]]
StartPlatform = Callable[..., Platform]


@pytest.fixture
def auditor(tmp_path: Path) -> Auditor:
    def run(*arguments: object, stdin: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return forked.run(*arguments, cwd=tmp_path, stdin=stdin, env=os.environ | (env or {}))

    return run


def read_terminal(ours: int) -> bytes:
    """Return what was written to a terminal until its other end is closed, and close it."""
    shown = b""
    with suppress(OSError):  # how a pseudoterminal ends
        while block := os.read(ours, 65536):
            shown += block
    os.close(ours)
    return shown


def command(arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", "auditor", *map(str, arguments)]


@pytest.fixture
def start_platform(tmp_path: Path) -> Iterator[StartPlatform]:
    with ExitStack() as running:
        numbers = count()

        def start(*options: object) -> Platform:
            folder = tmp_path / f"platform-{next(numbers)}"
            words = ("simulate", "--port", 0, "--latency", 0, 5, "--write", folder, *options)
            process, output = running.enter_context(forked.serving(*words, cwd=tmp_path))
            printed = dict(output.readline().split(maxsplit=1) for _ in range(4))
            return Platform(printed["endpoint"].strip(), Path(printed["settings"].strip()), process)

        yield start


@pytest.fixture
def platform(start_platform: StartPlatform) -> Platform:
    return start_platform("--devices", 120, "--per-second", 0)


def settings_file(folder: Path, endpoint: str, **changes: object) -> Path:
    """Settings for one account whose keys lie in the environment and whose fleet is three devices."""
    (folder / "fleet.csv").write_text("product_key,device_name\nk1,dev-1\nk1,dev-2\nk1,dev-3\n")
    account: dict[str, object] = {
        "name": "eu",
        "endpoint": endpoint,
        "access_key_id": "simulated-key",
        "access_key_secret": {"env": "CANARY"},
        "fleet": {"file": "fleet.csv"},
    }
    top = {"give_up_after": 1.0, "timeout": 2.0, **{key: value for key, value in changes.items() if key not in account}}
    account |= {
        key: value for key, value in changes.items() if key in account or key in {"ca_file", "calls_per_second"}
    }
    for key in ("ca_file", "calls_per_second"):
        top.pop(key, None)
    lines = [f"{key} = {toml(value)}" for key, value in top.items()]
    lines += ["[[account]]", *(f"{key} = {toml(value)}" for key, value in account.items())]
    path = folder / "settings.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + " }"
    return f'"{value}"' if isinstance(value, str) else str(value)
