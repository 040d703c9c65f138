"""`auditor simulate` with several accounts and devices that come and go, in a process of its own."""

import csv
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from auditor.simulator import World


@contextmanager
def simulated(*options: object) -> Iterator[list[str]]:
    """A running platform; gives the lines it has printed once its settings are written."""
    whole = ("simulate", "--port", 0, "--devices", 20, *options)
    command = [sys.executable, "-m", "auditor", *map(str, whole)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or not lines[-1].startswith("settings"):
            line = process.stdout.readline()
            assert line, "it ended"
            lines.append(line.rstrip())
        yield lines
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_accounts_have_keys_secrets_and_fleets_of_their_own(tmp_path: Path) -> None:
    with simulated("--accounts", 3, "--seed", 5, "--write", tmp_path) as lines:
        settings = tomllib.loads((tmp_path / "simulated.toml").read_text())
    told = [line.split()[1] for line in lines if line.startswith("access_key")]
    assert told == [
        "simulated-key", "simulated-secret", "simulated-key-2", "simulated-secret-2", "simulated-key-3",
        "simulated-secret-3",
    ]  # fmt: skip
    assert [account["name"] for account in settings["account"]] == ["simulated", "simulated-2", "simulated-3"]
    for number, account in enumerate(settings["account"]):
        assert account["access_key_id"] == told[2 * number]
        assert (tmp_path / account["access_key_secret"]["file"]).read_text() == told[2 * number + 1]
        with (tmp_path / account["fleet"]["file"]).open(newline="") as file:
            written = [row["iot_id"] for row in csv.DictReader(file)]
        assert written == [device.iot_id for device in World(20, seed=5 + number)]


def test_settings_can_name_the_products_instead_of_a_file(tmp_path: Path) -> None:
    with simulated("--fleet", "products", "--register", 2.5, "--remove", 1, "--write", tmp_path) as lines:
        settings = tomllib.loads((tmp_path / "simulated.toml").read_text())
    assert [line.split()[0] for line in lines] == ["endpoint", "access_key_id", "access_key_secret", "settings"]
    assert [account["fleet"] for account in settings["account"]] == [{"products": "all"}]
    assert {path.name for path in tmp_path.iterdir()} == {"simulated.toml", "simulated-secret"}


@pytest.mark.parametrize("option", [("--accounts", 0), ("--register", -1), ("--remove", "inf"), ("--fleet", "all")])
def test_options_that_make_no_sense_are_refused(option: tuple[object, ...]) -> None:
    command = [sys.executable, "-m", "auditor", "simulate", "--port", "0", *map(str, option)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
