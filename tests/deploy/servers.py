"""A Prometheus and an exporter for tests, and what both need."""

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "auditor.rules.yml"

needs_prometheus = pytest.mark.skipif(
    not all(map(shutil.which, ("promtool", "prometheus", "prometheus-node-exporter"))),
    reason="NOT TESTED: alerts and dashboard, because Prometheus is missing (Debian: prometheus, prometheus-node-exporter)",
)


def backfill(lines: Iterable[str], folder: Path, data: Path) -> None:
    """Write samples to the database of a Prometheus; a metric has one TYPE line, and its series are together."""
    seen = set()
    with (folder / "metrics").open("w") as file:
        for line in lines:
            if not line.startswith("#") or line not in seen:
                file.write(f"{line}\n")
            if line.startswith("#"):
                seen.add(line)
        file.write("# EOF\n")
    options = ("--max-block-duration=744h", "--quiet")
    run("promtool", "tsdb", "create-blocks-from", "openmetrics", *options, folder / "metrics", data)


def run(*command: object) -> str:
    ended = subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2_000:]
    return ended.stdout


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def prometheus(folder: Path, *, data: Path | None = None, scrape: int | None = None) -> Iterator[str]:
    """Start a Prometheus with the rules, and yield its address."""
    jobs = [] if scrape is None else [
        {"job_name": "node", "scrape_interval": "1s", "static_configs": [{"targets": [f"127.0.0.1:{scrape}"]}]}
    ]  # fmt: skip
    config = folder / "prometheus.json"
    config.write_text(json.dumps({"rule_files": [str(RULES)], "scrape_configs": jobs}))
    port = free_port()
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={data or folder / 'tsdb'}",
               "--storage.tsdb.retention.time=10y", f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    with (folder / "prometheus.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: is_ready(address))
        yield address
    finally:
        server.terminate()
        server.wait()


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/-/ready") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def get(address: str, path: str, **parameters: object) -> Any:
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"{address}/api/v1/{path}?{query}") as answer:
        return json.load(answer)["data"]


def wait_for(condition: Any, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.1)
    return found
