"""Complete audits that share their account's quota through a real Redis server."""

from pathlib import Path

import anyio
import pytest

import auditor
from auditor.audit.preflight import preflight
from auditor.errors import SettingsError
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.resilience.redis_server import RedisServer, needs_redis

pytestmark = pytest.mark.anyio

PASSWORD = "open-sesame"


def redis_settings(folder: Path, endpoint: str, address: str, **more: object) -> auditor.Settings:
    folder.mkdir(exist_ok=True)
    (folder / "secret").write_text(DEFAULT_ACCOUNT.secret.reveal())
    account = {
        "name": "eu",
        "endpoint": endpoint,
        "access_key_id": DEFAULT_ACCOUNT.access_key_id,
        "access_key_secret": {"file": "secret"},
        "calls_per_second": 50,
        "fleet": {"file": "fleet.csv"},
    }
    return auditor.parse_settings({"account": [account], "quota_sharing": {"redis": address, **more}}, folder=folder)


@pytest.mark.slow
@needs_redis
async def test_two_audits_share_an_account_s_quota(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path, "--requirepass", PASSWORD)
    world = World(70, large=0)
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, 50)
    results: list[auditor.AuditResult] = []
    try:
        async with Simulator(world, accounts=[account]) as platform, anyio.create_task_group() as group:

            async def audit(folder: Path) -> None:
                settings = redis_settings(folder, platform.endpoint, redis.address, password={"file": "redis"})
                world.write_fleet(folder / "fleet.csv")
                (folder / "redis").write_text(PASSWORD + "\n")
                results.append(await auditor.run_audit(settings))

            for name in ("one", "other"):
                group.start_soon(audit, tmp_path / name)
    finally:
        redis.kill()
    assert [result.manifest.state for result in results] == ["complete", "complete"]
    assert platform.counts.received >= 140
    assert platform.counts.throttled <= 3  # jitter of a busy machine; without sharing it would be half of them


async def test_audit_with_an_unreachable_redis_does_not_start(tmp_path: Path) -> None:
    world = World(3, large=0)
    async with Simulator(world) as platform:
        settings = redis_settings(tmp_path, platform.endpoint, "redis://127.0.0.1:1/0")
        world.write_fleet(tmp_path / "fleet.csv")
        with pytest.raises(SettingsError, match=r"cannot use redis://127\.0\.0\.1:1/0"):
            await auditor.run_audit(settings)
        with pytest.raises(SettingsError, match=r"cannot use redis://127\.0\.0\.1:1/0"):
            await preflight(settings)
    assert platform.counts.received == 0
    assert not (tmp_path / "audits").exists()


async def test_missing_redis_password_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_NAME", raising=False)
    settings = redis_settings(
        tmp_path, "http://127.0.0.1:1/", "redis://127.0.0.1:1/0", password={"env": "NO_SUCH_NAME"}
    )
    (tmp_path / "fleet.csv").write_text("iot_id\none\n")
    with pytest.raises(
        SettingsError, match="quota_sharing: password: the environment variable NO_SUCH_NAME is not set"
    ):
        await auditor.run_audit(settings)
