"""What devices run by the index, as a file like the previous results of a selection."""

import hashlib
from pathlib import Path

import orjson

from auditor.storage.database import READING_MEMORY, scratch_database, sql_read_path, text_lines, write_rows

INDEX_FOLDER = ".index"
"""Folder in the run folder with what the index has of devices, until the run has no more devices to query."""

_MODULE = {"module_name": "VARCHAR", "module_version": "VARCHAR"}

_DEVICE = {"device_name": "VARCHAR", "iot_id": "VARCHAR", "modules": [_MODULE]}

_RECORD = {
    **dict.fromkeys(("kind", "product_key"), "VARCHAR"), "reading": "BIGINT", "read_at": "DOUBLE", "devices": [_DEVICE],
}  # fmt: skip

_RESULTS = """
  WITH pages AS (SELECT unnest(json_transform(line, '{record}')) FROM ({lines})),
  last AS (SELECT product_key, max(reading) AS reading FROM pages WHERE kind = 'devices' GROUP BY ALL)
  SELECT $1 AS account, product_key, device.device_name, device.iot_id,
    if(len(device.modules) = 0, 'empty', 'ok') AS status, device.modules, len(device.modules)::BIGINT AS total,
    0::BIGINT AS pages, NULL::VARCHAR AS request_id, make_timestamp((read_at * 1e6)::BIGINT) AS audited_at,
    NULL::VARCHAR AS reason, NULL::VARCHAR AS run, 0::BIGINT AS change_count, NULL::TIMESTAMP AS failed_at,
    false AS violating
  FROM (
    SELECT product_key, read_at, unnest(devices) AS device
    FROM pages SEMI JOIN last USING (product_key, reading) WHERE kind = 'devices'
  ) WHERE device.modules IS NOT NULL"""
"""Each device once, since the journal has each once in a reading. Results of no ``run`` are of the index."""


def index_results_path(folder: Path, account: str) -> Path:
    """Return the path of an account's results in a run folder."""
    return folder / INDEX_FOLDER / f"{hashlib.sha256(account.encode()).hexdigest()[:16]}.parquet"


def write_index_results(journal: Path, out: Path, account: str) -> None:
    """Write what the index has of each device; raise RunNotWritableError if the file cannot be written."""
    out.parent.mkdir(0o700, parents=True, exist_ok=True)
    new = out.with_suffix(".new")
    lines = text_lines(sql_read_path(journal))
    with scratch_database(
        out.with_suffix(".reading"), memory=READING_MEMORY, failure=f"{out}: cannot be written"
    ) as database:
        query = _RESULTS.format(record=orjson.dumps(_RECORD).decode(), lines=lines)
        write_rows(database, query, new, parameters=[account])
    new.replace(out)
