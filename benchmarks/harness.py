"""Shared parts of the benchmarks: a simulated platform in one process, and an audit in another."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Run:
    """An audit as a process: wall and CPU seconds, peak memory in MB, and its manifest."""

    wall: float
    cpu: float
    peak: float
    manifest: dict[str, Any]


@contextmanager
def platform(folder: Path, *options: object) -> Iterator[Path]:
    """Start `auditor simulate`; yield matching settings."""
    command = [sys.executable, "-m", "auditor", "simulate", "--port", "0", "--write", str(folder), *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None:
            raise RuntimeError("no output to read the endpoint from")
        printed = dict(process.stdout.readline().split(maxsplit=1) for _ in range(4))
        yield Path(printed["settings"].strip())
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def audit(settings: Path, out: Path, *options: object) -> Run:
    """Run `auditor run` and wait for it."""
    command = [sys.executable, "-m", "auditor", "run", str(settings), "--out", str(out), *map(str, options)]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if process.stdout is None:
        raise RuntimeError("no output to read the folder from")
    folder = process.stdout.read().strip()
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    process.stdout.close()
    manifest = json.loads(Path(folder, "run.json").read_text())
    return Run(time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, manifest)
