"""Build the workspace of the documents' examples: python -m tests.documents.build_workspace FOLDER.

It is a process of its own, whose clock shows the days of the runs. It imports auditor when its clock is in place.
"""

import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

DEVICES, DAYS, CONNECTING = 240, 6, 0.5
DAY = 86_400.0
SECRETS = {"EU_KEY_ID": "simulated-key", "EU_KEY_SECRET": "simulated-secret"}
SETTINGS = """\
name = "nightly"
directory = "audits"
max_failed = "1%"
concurrency = 16
quota_sharing = "none"
fsync_interval = 60

[[account]]
name = "eu"
endpoint = "ENDPOINT"
access_key_id = { env = "EU_KEY_ID" }
access_key_secret = { env = "EU_KEY_SECRET" }
calls_per_second = 2000
fleet = { file = "fleets/eu.csv" }
fetch_product_modules = true

[account.quotas]
BatchGetDeviceState = 500
QueryDevice = 500
QueryProductList = 500
ListOTAModuleByProduct = 500
ListOTAFirmware = 500
ListOTAJobByFirmware = 500
ListOTATaskByJob = 500
"""
RULES = """\
[[rule]]
name = "default up to date"
module = "default"
newest = "95%"

[[rule]]
name = "few versions in use"
severity = "warning"
max_versions = 9

[[rule]]
name = "results are recent"
max_age = "36h"
"""


class ShiftedClock:
    """A clock that is behind the machine's by some seconds."""

    def __init__(self) -> None:
        self.now, self.seconds = time.time, 0.0

    def __call__(self) -> float:
        return self.now() - self.seconds


def build(folder: Path, clock: ShiftedClock) -> None:
    """Write the files, and audit the fleet at two o'clock of consecutive days, up to today."""
    import anyio

    (folder / "fleets").mkdir(parents=True)
    (folder / "shared").mkdir()
    (folder / "rules.toml").write_text(RULES)
    (folder / "nightly.toml").write_text(SETTINGS)
    now = clock.now()
    night = now - now % DAY + min(2 * 3600, now % DAY / 2)
    for day in range(DAYS):
        clock.seconds = clock.now() - night + (DAYS - 1 - day) * DAY
        anyio.run(partial(audit, folder, day), backend_options={"use_uvloop": True})


async def audit(folder: Path, day: int) -> None:
    """Audit the fleet of a day."""
    from auditor.audit.runner import run_audit
    from auditor.config.loader import parse_settings
    from auditor.config.toml_tables import read_toml
    from auditor.simulator.lifecycle import ORDINARY_LIFECYCLE
    from auditor.simulator.quotas import SimulatedAccount
    from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
    from auditor.simulator.world import World

    world = World(DEVICES, day=day, lifecycle=replace(ORDINARY_LIFECYCLE, connecting=CONNECTING), today=time.time())
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, None)
    async with Simulator(world, accounts=[account], latency=(0.0, 0.0)) as platform:
        if day == 0:
            world.write_fleet(folder / "fleets" / "eu.csv")
            add_attributes(folder / "fleets" / "eu.csv")
        table = read_toml(folder / "nightly.toml")
        table |= {"released": day == DAYS - 1}
        table["account"][0]["endpoint"] = platform.endpoint
        os.environ |= SECRETS
        await run_audit(parse_settings(table, folder=folder))


def add_attributes(fleet: Path) -> None:
    """Add columns to a fleet file, as an operator does."""
    import duckdb

    with duckdb.connect() as database:
        database.execute(f"""
            COPY (
                SELECT *, 'Lamp ' || dense_rank() OVER (ORDER BY product_key) AS product_name,
                    chr(97 + CAST(ordinal % 3 AS INTEGER)) || '1' AS site,
                    CASE WHEN ordinal % 10 = 0 THEN 'canary' ELSE 'main' END AS ring
                FROM (SELECT *, row_number() OVER () AS ordinal FROM read_csv('{fleet}', all_varchar = true))
                ORDER BY ordinal
            ) TO '{fleet}.new' (HEADER)""")
    fleet.with_name(f"{fleet.name}.new").replace(fleet)


if __name__ == "__main__":
    shifted = ShiftedClock()
    time.time = shifted
    build(Path(sys.argv[1]), shifted)
