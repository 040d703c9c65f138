"""Thirty nights of a fleet with staged, stalled, rolled-back and beta rollouts, as run folders, and the truth of them.

The truth is in Python: the version of each device in each night, and which devices answered.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import duckdb

from auditor.runs.folder import DEVICES, FAILURES, FIRMWARE, FLEET, MODULES, RESULTS, SEALED, TASKS
from auditor.runs.inventory import count_devices, count_sources
from auditor.runs.manifest import AccountInfo, FleetInfo, Manifest, file_info, write_manifest
from auditor.runs.seal import write_inventories
from auditor.runs.selection_info import ReleasesInfo
from auditor.runs.views import FIRMWARE_COLUMNS, TASK_COLUMNS, define_products, define_sealed_views
from auditor.storage.database import Database, sql_literal

NIGHTS = 30
DEVICES_EACH = 120
BEGIN = datetime(2026, 10, 25, 2, tzinfo=UTC)

KNOWN, UNKNOWN = "known", "unknown"
"""Accounts: the releases of one are read. Both have the same devices."""

OLD, NEW, BETA = "1.0", "2.0", "3.0-beta1"

PRODUCTS = ("staged", "stalled", "rolled", "again", "beta", "offered")

Night = Literal["full", "few", "most", "sample"]
"""How many devices have an answer: all but the dead ones; the first third; nine in ten and some; a random half."""

KINDS: dict[int, Night] = {
    5: "few",
    9: "sample",
    12: "most",
    17: "few",
    18: "sample",
    22: "few",
    26: "most",
    27: "sample",
}
KINDS_OF_OTHERS: Night = "full"


def started(night: int) -> datetime:
    """When a run started: some seconds earlier or later each night."""
    return BEGIN + timedelta(days=night, seconds=(night * 37) % 50)


def share_on_new(product: str, night: int) -> float:
    """The share of a product's devices on ``NEW``, as its rollout goes."""
    match product:
        case "staged":
            return min(1.0, max(0.0, (night - 3) * 0.07))
        case "stalled":
            return min(0.45, max(0.0, (night - 3) * 0.06))
        case "rolled":
            return 0.05 if night >= 16 else min(0.8, max(0.0, (night - 3) * 0.08))
        case "again":
            return min(1.0, max(0.0, (night - 3) * 0.06)) if night < 13 else 0.2 + max(0.0, (night - 20) * 0.05)
    return 0.0


@dataclass
class Fleet:
    """The truth. Versions and answers are by night, account and product, in the order of the devices."""

    seed: int
    versions: dict[tuple[int, str, str], list[str]] = field(default_factory=dict)
    answered: dict[tuple[int, str, str], list[bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = random.Random(self.seed)
        for account in (KNOWN, UNKNOWN):
            for product in PRODUCTS:
                order = list(range(DEVICES_EACH))
                generator.shuffle(order)
                rank = {device: place for place, device in enumerate(order)}
                for night in range(NIGHTS):
                    reached = round(share_on_new(product, night) * DEVICES_EACH)
                    found = [NEW if rank[device] < reached else OLD for device in range(DEVICES_EACH)]
                    if product == "beta" and night >= 2:
                        found[1] = BETA
                    self.versions[night, account, product] = found
                    self.answered[night, account, product] = self._answers(generator, night, rank)

    def _answers(self, generator: random.Random, night: int, rank: dict[int, int]) -> list[bool]:
        """One device is dead; of the few that answer in a short night, most are in the first waves."""
        kind = KINDS.get(night, KINDS_OF_OTHERS)
        sample = set(generator.sample(range(DEVICES_EACH), DEVICES_EACH // 2))
        found = []
        for device in range(DEVICES_EACH):
            answers = {"full": True, "few": rank[device] < DEVICES_EACH // 3, "sample": device in sample}.get(
                kind, True
            )
            if kind == "most":
                answers = rank[device] >= DEVICES_EACH // 12
            found.append(answers and device != 0)
        return found


def released(product: str, night: int) -> str:
    """The version that was released last: in night 3, for the product ``offered`` in night 6."""
    if product == "beta":
        return OLD
    return NEW if night >= (6 if product == "offered" else 3) else OLD


def write_night(directory: Path, fleet: Fleet, night: int) -> Path:
    """Write the sealed run of a night."""
    folder = directory / f"{started(night):%Y%m%dT%H%M%SZ}-nightly"
    folder.mkdir()
    kind = KINDS.get(night, KINDS_OF_OTHERS)
    with duckdb.connect() as database:
        database.execute(
            "CREATE TABLE truth (ordinal BIGINT, account VARCHAR, product_key VARCHAR, device_name VARCHAR, "
            "version VARCHAR, status VARCHAR, source VARCHAR)"
        )
        rows = [list(row) for row in _rows(fleet, night, kind)]
        columns = [list(column) for column in zip(*rows, strict=True)]
        database.execute(
            "INSERT INTO truth SELECT unnest($1), unnest($2), unnest($3), unnest($4), unnest($5), unnest($6), unnest($7)",
            columns,
        )
        _write_tables(database, folder)
        if night >= 1:
            _write_releases(database, folder, fleet, night)
        for name in (RESULTS, FAILURES):
            (folder / name).touch()
        define_sealed_views(database, folder)
        define_products(database, folder)
        write_inventories(database, folder, folder)
        counts, sources = count_devices(database), count_sources(database)
    files = tuple(file_info(folder / name) for name in (FLEET, RESULTS, FAILURES, *SEALED))
    infos = (ReleasesInfo(KNOWN, firmware=1), ReleasesInfo(UNKNOWN, problems=("not permitted",))) if night >= 1 else ()
    accounts = tuple(AccountInfo(name, "https://example.com/", "tuya", 10) for name in (KNOWN, UNKNOWN))
    write_manifest(
        folder,
        Manifest(
            "0", "nightly", "partial", f"{started(night):%Y-%m-%dT%H:%M:%S}.000Z", accounts,
            FleetInfo("fleet.csv", counts.fleet, 0, files[0].sha256), devices=counts, files=files,
            finished_at=f"{started(night) + timedelta(hours=1):%Y-%m-%dT%H:%M:%S}.000Z", unsampled=sources.unsampled,
            releases=infos,
        ),
    )  # fmt: skip
    return folder


def _rows(fleet: Fleet, night: int, kind: Night) -> Iterator[tuple[object, ...]]:
    ordinal = 0
    for account in (KNOWN, UNKNOWN):
        for product in PRODUCTS:
            versions, answered = fleet.versions[night, account, product], fleet.answered[night, account, product]
            for device, (version, answers) in enumerate(zip(versions, answered, strict=True)):
                is_sampled = kind != "sample" or answers or device == 0
                status = "ok" if answers else "failed" if is_sampled and kind != "few" else "pending"
                source = "queried" if is_sampled else "unsampled"
                yield ordinal, account, product, f"device{device:04}", version, status, source
                ordinal += 1


def _write_tables(database: Database, folder: Path) -> None:
    identity = "account, product_key, device_name, NULL::VARCHAR AS iot_id"
    queries = {
        FLEET: f"SELECT ordinal, {identity} FROM truth",
        DEVICES: f"""SELECT ordinal, {identity}, status, (status = 'ok')::BIGINT AS modules, 1::BIGINT AS pages,
          1::BIGINT AS attempts, NULL::VARCHAR AS request_id, CASE WHEN status = 'ok' THEN
          TIMESTAMP '2026-11-01' END AS audited_at, CASE WHEN status = 'failed' THEN 'auditor.Timeout' END AS code,
          NULL::VARCHAR AS message, NULL::BIGINT AS http_status, NULL::TIMESTAMP AS failed_at, NULL::VARCHAR AS reason,
          source, NULL::VARCHAR AS device_status, NULL::TIMESTAMP AS created_at, NULL::TIMESTAMP AS last_online_at,
          NULL::MAP(VARCHAR, VARCHAR) AS attributes FROM truth""",
        MODULES: f"""SELECT {identity}, 'default' AS module_name, version AS module_version FROM truth
          WHERE status = 'ok'""",
    }
    for name, query in queries.items():
        database.execute(f"COPY ({query}) TO {sql_literal(folder / name)} (FORMAT parquet)")


def _write_releases(database: Database, folder: Path, fleet: Fleet, night: int) -> None:
    """Write the firmware of one account: each version, its job, and tasks of the devices that the job of NEW has."""
    firmware: list[tuple[str, str, str, datetime, str]] = []
    tasks: list[tuple[str, str, str]] = []
    for product in PRODUCTS:
        for version in (OLD, NEW, BETA):
            if version == OLD or (version == BETA and product == "beta") or released(product, night) == version:
                day = {OLD: -100, NEW: 6 if product == "offered" else 3, BETA: 2}[version]
                target = "SPECIFIC" if version == BETA else "GRAY"
                firmware.append((product, version, f"{product}-{version}", BEGIN + timedelta(days=day), target))
        tasks += _tasks(fleet, night, product)
    database.execute(f"CREATE TABLE firmware ({', '.join(f'{n} {k}' for n, k in FIRMWARE_COLUMNS.items())})")
    database.execute(f"CREATE TABLE tasks ({', '.join(f'{n} {k}' for n, k in TASK_COLUMNS.items())})")
    for product, version, number, created, target in firmware:
        job = (
            f"[{{'job_id': 'job-{number}', 'job_status': 'IN_PROGRESS', 'job_type': 'UPGRADE_FIRMWARE', "
            f"'selection_type': 'STATIC', 'target_selection': '{target}', 'created_at': NULL, 'scheduled_at': NULL, "
            "'ended_at': NULL}]"
        )
        database.execute(
            "INSERT INTO firmware BY NAME SELECT $1 AS account, $2 AS product_key, 'default' AS module_name, "
            "$3 AS version, $4 AS firmware_id, 'verified' AS verification, $5::TIMESTAMP AS created_at, "
            f"{job} AS jobs",
            [KNOWN, product, version, number, created.replace(tzinfo=None)],
        )
    if tasks:
        columns = [list(column) for column in zip(*tasks, strict=True)]
        database.execute(
            f"INSERT INTO tasks BY NAME SELECT '{KNOWN}' AS account, unnest($1) AS product_key, "
            f"unnest($2) AS device_name, 'default' AS module_name, '{NEW}' AS version, unnest($3) AS task_status, "
            "'job-' || product_key AS job_id, TIMESTAMP '2026-10-28' AS created_at",
            columns,
        )
        # Further tasks of the devices, which say nothing of the update to NEW: one before, and one of another version.
        for version, status, day in ((NEW, "FAILED", 27), (OLD, "QUEUED", 29)):
            database.execute(
                f"INSERT INTO tasks BY NAME SELECT account, product_key, device_name, module_name, '{version}' AS version, "
                f"'{status}' AS task_status, 'other-{day}' AS job_id, TIMESTAMP '2026-10-{day}' AS created_at "
                "FROM tasks WHERE job_id LIKE 'job-%' AND hash(device_name) % 2 = 0"
            )
    for name, table in ((FIRMWARE, "firmware"), (TASKS, "tasks")):
        database.execute(f"COPY {table} TO {sql_literal(folder / name)} (FORMAT parquet)")
    database.execute("DROP TABLE firmware; DROP TABLE tasks")


def task_status(fleet: Fleet, night: int, product: str, device: int) -> str | None:
    """The status of a device's task of NEW; None: no job has it, as every fifth one."""
    if released(product, night) != NEW or device % 5 == 4:
        return None
    if fleet.versions[night, KNOWN, product][device] == NEW:
        return "SUCCEEDED"
    return ("FAILED", "QUEUED", "NOTIFIED", "SUCCEEDED", "CANCELED", "CONFIRM", "IN_PROGRESS")[device % 7]


def _tasks(fleet: Fleet, night: int, product: str) -> Iterator[tuple[str, str, str]]:
    for device in range(DEVICES_EACH):
        if (status := task_status(fleet, night, product, device)) is not None:
            yield product, f"device{device:04}", status
