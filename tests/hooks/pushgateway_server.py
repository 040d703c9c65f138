"""A Pushgateway for tests, which requires a password."""

import shutil
import socket
import subprocess
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

USER, PASSWORD = "auditor", "P4ss-of-the-gateway"

_HASH = "$2b$04$abcdefghijklmnopqrstuucEH/TXgFq7VciFZ80/c1k1Ti5SvZTie"
"""Of the password, by bcrypt."""

needs_pushgateway = pytest.mark.skipif(
    shutil.which("prometheus-pushgateway") is None,
    reason="NOT TESTED: pushing metrics, because Pushgateway is missing (Debian: prometheus-pushgateway)",
)


@dataclass(frozen=True)
class Gateway:
    """A Pushgateway that runs."""

    address: str

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Return the pushed samples as a Prometheus would scrape them, without the group's label ``instance``."""
        token = b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        request = urllib.request.Request(f"{self.address}/metrics", headers={"Authorization": f"Basic {token}"})
        with urllib.request.urlopen(request) as answer:
            text = answer.read().decode()
        return {
            (sample.name, tuple((k, v) for k, v in sorted(sample.labels.items()) if k != "instance")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith("auditor_")
        }


@contextmanager
def serving_pushgateway(folder: Path) -> Iterator[Gateway]:
    config = folder / "pushgateway.yml"
    config.write_text(f"basic_auth_users:\n  {USER}: {_HASH}\n")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    options = (f"--web.listen-address={address}", f"--web.config.file={config}", "--persistence.file=")
    command = ["prometheus-pushgateway", *options]  # Debian's keeps metrics in a file by default
    with (folder / "pushgateway.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                Gateway(f"http://{address}").samples()
                break
            except OSError:
                assert time.monotonic() < end, (folder / "pushgateway.log").read_text()
                time.sleep(0.05)
        yield Gateway(f"http://{address}")
    finally:
        server.terminate()
        server.wait()
