"""What every test shares: one event loop library, and what becomes of a test that a late machine has spoilt."""

import contextlib
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import structlog

from auditor.cli import signals
from auditor.cli.console import LOG_STYLE
from auditor.log import log

LIVE = frozenset({"anyio_backend", "auditor", "start_platform"})
"""Fixtures of tests that run against the clock: an event loop, processes, a server."""

TESTS, EXIT_PROCESS = os.getpid(), signals.exit_process

MEMORY, MIN_ROOM = Path("/dev/shm"), 2 << 30
"""A file system in memory, and what must be free of it."""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session", autouse=True)
def state_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests, and programs that they start, remember about their runs is not stored in the home directory."""
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    yield
    os.environ.pop("XDG_STATE_HOME")
    if before is not None:
        os.environ["XDG_STATE_HOME"] = before


@pytest.fixture(autouse=True)
def fresh_log_settings() -> Iterator[None]:
    """A command that a test runs in this process sets level and format of its logs. The next test must not inherit it."""
    yield
    structlog.reset_defaults()
    log.configure_by(None)
    LOG_STYLE.format, LOG_STYLE.progress = "text", "auto"


def use_memory_for_temporary_files() -> None:
    """An audit waits for the disk 27 times, which would be a third of the time of the tests. TMPDIR says otherwise."""
    if "TMPDIR" in os.environ:
        return
    with contextlib.suppress(OSError):
        is_usable = os.access(MEMORY, os.W_OK | os.X_OK) and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
        if is_usable and shutil.disk_usage(MEMORY).free >= MIN_ROOM:
            os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)


def refuse_to_exit(code: int) -> NoReturn:
    """Fail a test that calls the entry point of a process in the process of the tests, which it would end."""
    if os.getpid() != TESTS:  # a process that a test has forked
        EXIT_PROCESS(code)
    raise AssertionError(f"exit with {code}: call auditor.cli.app.main, or start a process by tests.forked")


def pytest_configure() -> None:
    """Tests and their programs hear hang-ups and interrupts, however they were started: by nohup, or in the background."""
    use_memory_for_temporary_files()
    signals.exit_process = refuse_to_exit
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported stays: searching it for garbage again and again would be a quarter of the time.

    Nor is it searched later: 350,000 objects take a quarter of a second each time, and a process that a test forks
    would copy them.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    """At the end of a process, DuckDB complains about objects that cannot be freed."""
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs against the clock is tried up to three times, and the summary tells which.

    A machine that stands still for a moment makes two requests of one second that were to be in two. A real fault fails
    three times. What is pure is tried once, and so is what counts losses: one in a thousand would be a fault.
    """
    for item in items:
        live = LIVE & set(getattr(item, "fixturenames", ())) or item.get_closest_marker("live")
        if live and "chaos" not in item.path.parts:
            item.add_marker(pytest.mark.flaky(reruns=2))
