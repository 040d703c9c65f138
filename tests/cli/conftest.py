"""The commands as a user runs them: in a process of their own, against a platform on a real socket."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

SECRET = "simulated-secret"


@dataclass(frozen=True)
class Platform:
    """A simulated platform in a process of its own, with settings that fit it."""

    endpoint: str
    settings: Path
    process: subprocess.Popen[str]


Auditor = Callable[..., subprocess.CompletedProcess[str]]
StartPlatform = Callable[..., Platform]


@pytest.fixture
def auditor(tmp_path: Path) -> Auditor:
    def run(
        *arguments: object, stdin: str | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(arguments),
            cwd=tmp_path,
            input=stdin,
            env=os.environ | (env or {}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def command(arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", "auditor", *map(str, arguments)]


@pytest.fixture
def start_platform(tmp_path: Path) -> Iterator[StartPlatform]:
    running: list[subprocess.Popen[str]] = []

    def start(*options: object) -> Platform:
        folder = tmp_path / f"platform-{len(running)}"
        process = subprocess.Popen(
            command(("simulate", "--port", 0, "--latency", 0, 5, "--write", folder, *options)),
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        printed = dict(process.stdout.readline().split(maxsplit=1) for _ in range(4))
        return Platform(printed["endpoint"].strip(), Path(printed["settings"].strip()), process)

    yield start
    for process in running:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


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
