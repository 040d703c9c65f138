"""Audits of a simulated fleet on consecutive days, for benchmarks of selections."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb

from auditor.audit.runner import run_audit
from auditor.config.loader import parse_settings
from auditor.engine.progress import AuditResult
from auditor.simulator.lifecycle import Lifecycle
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World

Modules = frozenset[tuple[str, str]]


async def audit_day(
    devices: int, fleet: int, day: int, life: Lifecycle, directory: Path, *, rules: str | None = None, **table: object
) -> AuditResult:
    """Audit a simulated day without a quota, with a platform in this process; ``fleet`` is the seed of the devices."""
    world = World(devices, seed=fleet, day=day, lifecycle=life, today=time.time())
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "secret").write_text(account.secret.reveal())
        world.write_fleet(folder / "fleet.csv", columns=("product_key", "device_name"))
        if rules is not None:
            (folder / "rules.toml").write_text(rules)
            table["policy"] = {"file": "rules.toml"}
        async with Simulator(world, accounts=[account], latency=(0, 0)) as platform:
            own = {
                "name": "simulated",
                "endpoint": platform.endpoint,
                "access_key_id": account.access_key_id,
                "access_key_secret": {"file": "secret"},
                "calls_per_second": "unlimited",
                "fleet": {"file": "fleet.csv"},
            }
            settings = parse_settings({"name": "daily", "account": [own], **table}, folder=folder)
            return await run_audit(settings, directory=directory)


def calls_of(result: AuditResult) -> int:
    """Return all calls of a run, with those for connection states."""
    selection = result.manifest.selection
    states = 0 if selection is None else sum(account.requests.sent for account in selection.accounts)
    return result.manifest.requests.sent + states


def truth(world: World) -> Iterator[tuple[str, str, Modules]]:
    """Yield what a full audit would find: product_key, device_name and modules of each device."""
    for device in world:
        modules = {(module.module_name, module.module_version) for module in device.modules}
        yield device.product_key, device.device_name, frozenset(modules if device.exists else ())


def snapshot(folder: Path) -> Iterator[tuple[str, str, Modules]]:
    """Yield the results of a sealed run: product_key, device_name and modules of each device, in the fleet's order."""
    with contextlib.closing(duckdb.connect()) as database:
        rows = database.execute(
            "SELECT d.product_key, d.device_name, coalesce(m.names, []), coalesce(m.versions, []) "
            f"FROM '{folder / 'devices.parquet'}' d LEFT JOIN (SELECT product_key, device_name, "
            f"list(module_name) AS names, list(module_version) AS versions FROM '{folder / 'modules.parquet'}' "
            "GROUP BY ALL) m USING (product_key, device_name) ORDER BY ordinal"
        )
        while batch := rows.fetchmany(10_000):
            for product_key, device_name, names, versions in batch:
                yield product_key, device_name, frozenset(zip(names, versions, strict=True))
