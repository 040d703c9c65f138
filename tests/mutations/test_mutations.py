"""A few mutations of every kind, always the same; ``make mutations`` runs thousands."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import auditor.cli
from auditor.cli.app import app
from tests.mutations import sandbox
from tests.mutations.commands import OTHER_INPUT, READING, SHARED_STORAGE, WITHOUT_INPUT, WRITING
from tests.mutations.kinds import KINDS
from tests.mutations.sandbox import Case, Sandbox
from tests.resilience.redis_server import PROGRAM

ROOT = Path(__file__).parents[2]

NUMBERS = {
    "run_folders": "0,2,5,7,19,21,25", "fleets": "0-2", "settings": "0-4", "rules": "0,12", "answers": "1,3", "quota_files": "1-1", "redis_values": "1-1",
}  # fmt: skip
"""Numbers of mutations: some of each kind, all but one of runs of the kind that is made fastest."""


def test_every_command_is_run_on_mutated_input_or_reads_none() -> None:
    commands = {name for name in app if not name.startswith("-")}
    assert commands == READING.keys() | WRITING.keys() | OTHER_INPUT | SHARED_STORAGE | WITHOUT_INPUT


def test_every_kind_has_a_short_form() -> None:
    assert NUMBERS.keys() == KINDS.keys()


@pytest.mark.live
@pytest.mark.slow
def test_a_command_on_mutated_input_ends_with_a_documented_exit_code_and_changes_nothing_else() -> None:
    kinds = [f"{kind}:{numbers}" for kind, numbers in NUMBERS.items() if kind != "redis_values" or PROGRAM is not None]
    # A process of its own has no other thread and can fork.
    command = [sys.executable, "-m", "tests.mutations.long", *kinds]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {line.partition(":")[0] for line in ended.stdout.splitlines() if line.endswith("; 0 findings")} == {
        each.partition(":")[0] for each in kinds
    }


def fail() -> int:
    raise ValueError("unexpected")


def connect() -> int:
    with socket.socket() as client:
        client.connect(("127.0.0.1", 1))
    return 0


def print_secret() -> int:
    sys.stderr.write("hidden-secret \x1b[31m\n")
    return 0


def write_to(name: str) -> int:
    Path(name).write_bytes(b"changed")
    return 0


def wait() -> int:
    time.sleep(60)
    return 0


def rename_precious() -> int:
    os.rename("../outside/precious", "../outside/other")  # noqa: PTH104  a relative path
    return 0


MISDEEDS: dict[str, tuple[Callable[[], int], str]] = {
    "an undocumented exit code": (lambda: 7, "exit code 7"),
    "a traceback": (fail, "a traceback"),
    "a connection": (connect, "forbidden: connects to ('127.0.0.1', 1)"),
    "a program": (lambda: subprocess.run(["true"], check=True).returncode, "forbidden: runs 'true'"),
    "a secret": (print_secret, "prints a secret"),
    "a terminal sequence": (print_secret, "standard error with ['\\x1b']"),
    "a file elsewhere": (partial(write_to, str(ROOT / "not-written")), "forbidden: writes"),
    "a file beside": (partial(write_to, "../outside/new"), "creates outside/new"),
    "a renamed file": (rename_precious, "removes outside/precious"),
    "a temporary file": (partial(write_to, "../tmp/left"), "creates tmp/left"),
    "no end": (wait, "does not end"),
    "much memory": (lambda: len(b"x" * (300 << 20)) * 0, "MB"),
}


@pytest.mark.parametrize("name", MISDEEDS)
def test_the_sandbox_finds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_IDLE", 1.0)
    monkeypatch.setattr(sandbox, "MAX_MEMORY", 300 << 20)
    act, finding = MISDEEDS[name]

    def misbehave() -> frozenset[int]:
        monkeypatch.setattr(auditor.cli, "main", lambda _: act())
        return frozenset()

    box = Sandbox(tmp_path)
    box.reset()
    ended = box.run(Case(name, (), start=misbehave))
    assert any(each.startswith(finding) or finding in each for each in ended.findings), ended


def test_the_sandbox_finds_nothing_where_nothing_is_wrong(tmp_path: Path) -> None:
    box = Sandbox(tmp_path)
    box.reset()
    ended = box.run(Case("a missing folder", ("inventory", "missing")))
    assert (ended.exit_code, ended.findings) == (2, ())
    assert "missing: no such run" in ended.error_output
