"""Sealed runs of any width, written by one query each, and hostile names."""

from pathlib import Path

from auditor.runs.attributes import ATTRIBUTES, ATTRIBUTES_TYPE
from auditor.runs.folder import DEVICES, FLEET, MODULES
from auditor.runs.manifest import AccountInfo, DeviceCounts, FleetInfo, Manifest, file_info, write_manifest
from auditor.storage.database import sql_literal
from tests.database import connect

EVIL = '<img src=x onerror="document.title=1">'


def build_wide_run(folder: Path, products: int, modules: int, versions: int, *, prefix: str = "", day: int = 0) -> Path:
    """Build a run with a device for each version of each product; all names and versions start with ``prefix``.

    A device of each product failed.
    """
    folder.mkdir(parents=True)
    identity = (
        f"'eu' AS account, $1 || 'k' || (i // {versions}) AS product_key, 'device' || i AS device_name, "
        "NULL::VARCHAR AS iot_id"
    )
    numbers = f"FROM range({products * versions}) t(i)"
    state = f"CASE WHEN i % {versions} = 0 AND {versions} > 1 THEN 'failed' ELSE 'ok' END"
    outcome = (
        f"1 AS attempts, CASE WHEN {state} = 'failed' THEN $1 || 'Timeout' END AS code, $1 || 'no answer' AS message, "
        f"TIMESTAMP '2026-11-22 02:00:00' AS audited_at, 'queried' AS source, NULL::VARCHAR AS reason, NULL::{ATTRIBUTES_TYPE} AS {ATTRIBUTES}"
    )
    with connect() as database:
        reported = f"SELECT {identity}, $1 || 'm' || m AS module_name, $1 || '1.' || (i % {versions}) AS module_version"
        for query, name in (
            (f"SELECT i AS ordinal, {identity} {numbers}", FLEET),
            (
                f"SELECT i AS ordinal, {identity}, {state} AS status, {modules} AS modules, {outcome} {numbers}",
                DEVICES,
            ),
            (f"{reported} {numbers}, range({modules}) q(m) WHERE {state} = 'ok'", MODULES),
        ):
            database.execute(f"COPY ({query}) TO {sql_literal(folder / name)} (FORMAT parquet)", [prefix])
    files = tuple(file_info(folder / name) for name in (FLEET, DEVICES, MODULES))
    accounts = (AccountInfo("eu", "https://example.com/", "tuya", 10),)
    fleet = FleetInfo("fleet.csv", products * versions, 0, files[0].sha256)
    started_at = f"2026-11-{20 + day}T02:00:00.000Z"
    failed = products if versions > 1 else 0
    counts = DeviceCounts(ok=products * versions - failed, failed=failed)
    manifest = Manifest(
        "0", prefix[:200] + "nightly", "partial", started_at, accounts, fleet, devices=counts, files=files
    )
    write_manifest(folder, manifest)
    return folder
