"""A machine whose clock is wrong: the times of a run are those of the platform, as far as several answers agree."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from time import time

import pytest

import auditor
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.integration.test_audit import account_table, settings_for

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("offset", [40 * 60, -40 * 86_400])
async def test_a_run_on_a_machine_with_a_wrong_clock_has_the_times_of_the_platform(tmp_path: Path, offset: int) -> None:
    world = World(30, missing=0, silent=0, inactive=0, large=0)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, clock_offset=offset) as platform:
        result = await auditor.run_audit(settings_for(tmp_path, account_table(platform.endpoint, tmp_path)))
        refused = platform.counts.rejected_by_code["InvalidTimeStamp.Expired"]
    assert (result.exit_code, refused) == (0, 3)
    manifest = result.manifest
    assert manifest.clock_offset == pytest.approx(offset, abs=2)
    tolerance = 120.0
    lines = [json.loads(line) for line in (result.folder / "devices.jsonl").read_bytes().splitlines()]
    times = [manifest.started_at, str(manifest.finished_at), *(line["audited_at"] for line in lines)]
    assert len(lines) == 30
    for text in times:
        assert datetime.fromisoformat(text).timestamp() == pytest.approx(time() + offset, abs=tolerance)
    started = datetime.fromisoformat(manifest.started_at)
    assert result.folder.name.startswith(f"{started - timedelta(microseconds=started.microsecond):%Y%m%dT%H%M%SZ}")
    assert result.folder.is_dir()
    assert auditor.verify_run(result.folder) == []
