"""Runs of shards in this process, and what they are compared with."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import auditor
from auditor.cluster.cut import cut_run
from auditor.cluster.plan import ShardPlan
from auditor.cluster.shard import ShardWorker
from auditor.runs.manifest import MANIFEST
from auditor.simulator.server import DEFAULT_ACCOUNT
from auditor.storage.database import borrow_database, parquet
from auditor.storage.object_store import ObjectStore
from tests.cluster.memory_storage import MemoryStorage

SEALED_EQUALLY = ("inventory.csv", "inventory.json")
MAY_DIFFER = ("request_id", "attempts", "audited_at", "failed_at", "last_online_at", "ordinal")


def account_table(endpoint: str, folder: Path, name: str = "eu", **changes: object) -> dict[str, Any]:
    secret = folder / "secret"
    secret.write_text(DEFAULT_ACCOUNT.secret.reveal())
    return {
        "name": name,
        "endpoint": endpoint,
        "access_key_id": DEFAULT_ACCOUNT.access_key_id,
        "access_key_secret": {"file": str(secret)},
        "calls_per_second": "unlimited",
        "quotas": {"ListOTAModuleByProduct": 1_000.0, "QueryDevice": 1_000.0, "QueryProductList": 1_000.0},
        "fleet": {"file": str(folder / "fleet.csv")},
        **changes,
    }


def cluster_settings(folder: Path, *accounts: dict[str, Any], **changes: object) -> auditor.Settings:
    cluster = {"storage": str(folder / "shared"), "checkpoint": 0.1}
    return auditor.parse_settings(
        {"directory": str(folder / "audits"), "cluster": cluster, "account": list(accounts), **changes}
    )


def cut(settings: auditor.Settings, storage: ObjectStore | None = None) -> tuple[ObjectStore, ShardPlan]:
    storage = storage or MemoryStorage()
    return storage, cut_run(settings, lambda _: storage)[1]


async def run_all(storage: ObjectStore, plan: ShardPlan, settings: auditor.Settings) -> list[int]:
    return [await ShardWorker(storage, plan, shard, settings, stop=auditor.StopToken()).run() for shard in plan.shards]


def rows_of(folder: Path, name: str) -> list[tuple[object, ...]]:
    with borrow_database() as database:
        described = database.execute(f"DESCRIBE FROM {parquet(folder / name)}").fetchall()
        kept = ", ".join(row[0] for row in described if row[0] not in MAY_DIFFER)
        return database.execute(f"SELECT {kept} FROM {parquet(folder / name)} ORDER BY ALL").fetchall()


def assert_same_run(folder: Path, other: Path, names: Iterable[str] = SEALED_EQUALLY) -> None:
    """Check that two sealed runs have the same inventory, devices and modules, and that the first one verifies."""
    assert auditor.verify_run(folder) == []
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("devices.parquet", "modules.parquet"):
        assert rows_of(folder, name) == rows_of(other, name)
    assert (folder / MANIFEST).is_file()
