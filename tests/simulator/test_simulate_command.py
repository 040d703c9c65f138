"""`auditor simulate` with several accounts and churn, in a process of its own."""

import csv
import math
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import orjson
import pytest

from auditor.cli.commands.simulate import FormFlags, LifecycleFlags, simulate
from auditor.errors import UsageError
from auditor.simulator.lifecycle import ORDINARY_LIFECYCLE, Lifecycle
from auditor.simulator.world import World
from tests import forked
from tests.simulator.api_requests import signed_query


@contextmanager
def simulated(*options: object) -> Iterator[list[str]]:
    """Run a platform; yield the lines that it has printed after its settings are written."""
    whole = ("simulate", "--port", 0, "--devices", 20, *options)
    with forked.serving(*whole, cwd=Path.cwd()) as (process, output):
        lines: list[str] = []
        while not lines or not lines[-1].startswith("settings"):
            line = output.readline()
            assert line, "it ended"
            lines.append(line.rstrip())
        yield lines
    assert process.returncode == 0


@pytest.mark.slow
def test_accounts_have_different_keys_secrets_and_fleets(tmp_path: Path) -> None:
    with simulated("--accounts", 3, "--seed", 5, "--write", tmp_path) as lines:
        settings = tomllib.loads((tmp_path / "simulated.toml").read_text())
    printed = [line.split()[1] for line in lines if line.startswith("access_key")]
    assert printed == [
        "simulated-key", "simulated-secret", "simulated-key-2", "simulated-secret-2", "simulated-key-3",
        "simulated-secret-3",
    ]  # fmt: skip
    assert [account["name"] for account in settings["account"]] == ["simulated", "simulated-2", "simulated-3"]
    for number, account in enumerate(settings["account"]):
        assert account["access_key_id"] == printed[2 * number]
        assert (tmp_path / account["access_key_secret"]["file"]).read_text() == printed[2 * number + 1]
        with (tmp_path / account["fleet"]["file"]).open(newline="") as file:
            written = [row["iot_id"] for row in csv.DictReader(file)]
        assert written == [device.iot_id for device in World(20, seed=5 + number)]


def test_settings_can_name_the_products_instead_of_a_file(tmp_path: Path) -> None:
    with simulated("--fleet", "products", "--register", 2.5, "--remove", 1, "--write", tmp_path) as lines:
        settings = tomllib.loads((tmp_path / "simulated.toml").read_text())
    assert [line.split()[0] for line in lines] == ["endpoint", "access_key_id", "access_key_secret", "settings"]
    assert [account["fleet"] for account in settings["account"]] == [{"products": "all"}]
    assert {path.name for path in tmp_path.iterdir()} == {"simulated.toml", "simulated-secret"}


def test_a_fleet_has_the_configured_lifecycle_forms_and_current_times(tmp_path: Path) -> None:
    parts = ("--connecting", 1, "--always-online", 0.5, "--restarting", 0.5, "--offline-reports", 0.25)
    forms = ("--last-online", "offset", "--zone", -3.5, "--scalars", "text", "--arrays", "bare")
    before = time.time()
    with simulated("--day", 3, "--products", 1, *parts, *forms, "--write", tmp_path) as lines:
        world = World(20, products=1, day=3, lifecycle=Lifecycle(1, 0.5, 0.5, 0.25))
        ids = {f"IotId.{number}": device.iot_id for number, device in enumerate(world, 1)}
        query = signed_query(ids, constants={"Action": "BatchGetDeviceState"})
        with urllib.request.urlopen(f"{lines[0].split()[1]}?{query}") as answer:
            entries = orjson.loads(answer.read())["deviceStatusList"]
    devices = [device for device in world if device.exists]
    assert [entry["status"] for entry in entries] == [device.status for device in devices]
    assert {device.connected_day for device in devices} == {0, 3}
    for device, entry in zip(devices, entries, strict=True):
        assert entry["lastOnlineTime"].endswith("-03:30")
        online = datetime.fromisoformat(entry["lastOnlineTime"]).timestamp()
        assert entry["timestamp"].isdecimal()
        if device.connected_day == 3:
            assert int(before) <= online < time.time() + 1
        else:
            assert online < time.time() - 4 * 86_400


@pytest.mark.parametrize(
    "option",
    [
        ("--accounts", 0),
        ("--register", -1),
        ("--remove", "inf"),
        ("--fleet", "all"),
        ("--connecting", 1.5),
        ("--always-online", 0.8, "--offline-reports", 0.8),
    ],
)
def test_invalid_options_are_rejected(tmp_path: Path, option: tuple[object, ...]) -> None:
    done = forked.run("simulate", "--port", 0, *option, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("hours", [-14.5, 15, math.inf, math.nan])
def test_a_zone_is_at_most_14_hours_from_utc(hours: float) -> None:
    with pytest.raises(UsageError, match=r"--zone .*: give hours ahead of UTC, from -14 to 14"):
        simulate(forms=FormFlags(zone=hours))


def test_the_command_has_the_default_lifecycle() -> None:
    assert Lifecycle(**asdict(LifecycleFlags())) == ORDINARY_LIFECYCLE
