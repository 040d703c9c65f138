"""The limit of open files: raised to what the concurrency needs, or one sentence before anything is sent."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from auditor.config.loader import parse_settings
from auditor.config.settings import Settings
from auditor.engine.open_files import FILES_PER_ACCOUNT, reserve_open_files
from auditor.errors import SettingsError
from auditor.simulator import DEFAULT_ACCOUNT, Simulator, World

pytestmark = pytest.mark.anyio


def settings_for(concurrency: int, accounts: int = 1, **keys: Any) -> Settings:
    table = [
        {
            "name": f"a{number}",
            "endpoint": "https://127.0.0.1:1/",
            "access_key_id": f"k{number}",
            "access_key_secret": {"env": "SECRET"},
            "fleet": {"file": "fleet.csv"},
            **keys,
        }
        for number in range(accounts)
    ]
    return parse_settings({"concurrency": concurrency, "account": table})


class System:
    """A process whose limits are numbers; ``maximum`` is a limit of the kernel below the hard limit."""

    def __init__(self, soft: int, hard: int, maximum: int = 1_048_576) -> None:
        self.soft, self.hard, self.maximum = soft, hard, maximum

    def getrlimit(self, kind: int) -> tuple[int, int]:
        assert kind == resource.RLIMIT_NOFILE
        return self.soft, self.hard

    def setrlimit(self, kind: int, limits: tuple[int, int]) -> None:
        assert kind == resource.RLIMIT_NOFILE
        if limits[0] > self.maximum or limits[1] != self.hard:
            raise ValueError("not allowed")
        self.soft = limits[0]


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    found = System(1_024, 1_048_576)
    monkeypatch.setattr(resource, "getrlimit", found.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", found.setrlimit)
    return found


@pytest.mark.parametrize(("soft", "concurrency"), [(1_024, 1_100), (256, 200), (1_024, 10_000), (256, 10_000)])
def test_the_soft_limit_is_raised_to_what_the_concurrency_needs(system: System, soft: int, concurrency: int) -> None:
    system.soft = soft
    reserve_open_files(settings_for(concurrency))
    assert 2 * concurrency < system.soft < 2 * concurrency + 1_000
    assert system.hard == 1_048_576


@pytest.mark.parametrize("soft", [20_000, resource.RLIM_INFINITY])
def test_a_limit_that_is_enough_is_not_changed(system: System, soft: int) -> None:
    system.soft = system.hard = soft
    reserve_open_files(settings_for(1_100))
    assert system.soft == soft


def test_a_system_without_a_hard_limit_may_have_another_one(system: System) -> None:
    system.hard, system.maximum = resource.RLIM_INFINITY, 2_000
    reserve_open_files(settings_for(1_100))  # twice as many connections are more than the system allows
    assert 1_200 < system.soft <= 2_000
    with pytest.raises(SettingsError, match="may open"):
        reserve_open_files(settings_for(2_000))


@pytest.mark.parametrize("keys", [{}, {"proxy": "http://127.0.0.1:3128"}])
@pytest.mark.parametrize("accounts", [1, 3, 40])
def test_a_hard_limit_that_is_too_low_is_refused_with_the_concurrency_that_fits(
    system: System, accounts: int, keys: dict[str, Any]
) -> None:
    system.hard = 1_024
    with pytest.raises(SettingsError) as refused:
        reserve_open_files(settings_for(1_100, accounts, **keys))
    sentence = str(refused.value)
    words = sentence.split()
    fits = int(words[words.index("concurrency", 2) + 2].replace(",", ""))
    assert 1_024 - 250 - FILES_PER_ACCOUNT * accounts < fits < 1_024
    assert "LimitNOFILE=" in sentence
    reserve_open_files(settings_for(fits, accounts, **keys))
    with pytest.raises(SettingsError):
        reserve_open_files(settings_for(fits + 2 * accounts, accounts, **keys))


def test_accounts_that_need_a_connection_each_are_refused_without_a_concurrency_that_fits(system: System) -> None:
    system.hard = 300
    with pytest.raises(SettingsError, match=r"open 300; raise the hard limit"):
        reserve_open_files(settings_for(64, 200))


def run_auditor(arguments: list[str], soft: int, hard: int) -> subprocess.CompletedProcess[str]:
    limits = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))"
    program = (
        f"import sys; {limits}; from auditor.cli import main; sys.argv = ['auditor', *{arguments!r}]; sys.exit(main())"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
async def test_all_requests_are_in_flight_although_the_limits_are_as_low_as_possible(tmp_path: Path) -> None:
    world = World(200, large=0)
    world.write_fleet(tmp_path / "fleet.csv")
    (tmp_path / "secret").write_text(DEFAULT_ACCOUNT.secret.reveal())
    async with Simulator(world, latency=(0.4, 0.5)) as platform:
        settings = tmp_path / "settings.toml"
        settings.write_text(
            f'concurrency = 150\n[[account]]\nname = "a"\nendpoint = "{platform.endpoint}"\n'
            f'access_key_id = "{DEFAULT_ACCOUNT.access_key_id}"\naccess_key_secret = {{ file = "secret" }}\n'
            'calls_per_second = "unlimited"\nfleet = { file = "fleet.csv" }\n'
        )
        run = ["run", str(settings), "--out", str(tmp_path / "audits")]
        refused = await anyio.to_thread.run_sync(run_auditor, run, 100, 200)
        assert refused.returncode == 2, refused.stderr
        assert refused.stderr.count("\n") == 1
        assert "concurrency = 150 needs" in refused.stderr
        assert platform.counts.received == 0
        needed = int(refused.stderr.partition("ulimit -Hn ")[2].partition(",")[0])
        done = await anyio.to_thread.run_sync(run_auditor, run, 100, needed)
        assert done.returncode == 0, done.stderr
        assert "200 devices: " in done.stderr
        assert ", 0 failed\n" in done.stderr
        assert "retries" not in done.stderr
