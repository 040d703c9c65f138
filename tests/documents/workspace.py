"""The folder in which the examples of the documents run: settings, rules, fleet files, runs of some days, a platform."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import forked
from tests.documents.build_workspace import CONNECTING, DAYS, DEVICES

ROOT = Path(__file__).parents[2]


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve the fleet of the next day until the block ends, and yield the endpoint."""
    words = ["simulate", "--port", 0, "--latency", 0, 0, "--per-second", 0, "--devices", DEVICES, "--day", DAYS]
    with forked.serving(*words, "--connecting", CONNECTING, "--index-lag", 0, cwd=folder) as (_, output):
        yield next(line.split(maxsplit=1)[1].strip() for line in output if line.startswith("endpoint"))


def build_once(shared: Path) -> Path:
    """Return a workspace that one of several processes builds."""
    return _build_once(shared / "documents", lambda folder: ("tests.documents.build_workspace", folder))


def demonstrate_once(shared: Path) -> Path:
    """Return a folder with the directory of runs of the demonstration, which one of several processes makes."""
    return _build_once(
        shared / "demonstration", lambda folder: ("auditor", "demo", "--progress", "none", "--out", folder / "audits")
    )


def _build_once(folder: Path, command: Callable[[Path], tuple[str | Path, ...]]) -> Path:
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            building = folder.with_suffix(".new")
            shutil.rmtree(building, ignore_errors=True)
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            subprocess.run([sys.executable, "-m", *command(building)], cwd=ROOT, env=environment, check=True)
            building.rename(folder)
    return folder


def copy(workspace: Path, folder: Path, endpoint: str) -> None:
    """Copy a workspace, with settings for an endpoint."""
    shutil.copytree(workspace, folder, dirs_exist_ok=True)
    path = folder / "nightly.toml"
    path.write_text(path.read_text().replace("ENDPOINT", endpoint))
