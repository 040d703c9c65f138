"""Run folders of samples, as an audit leaves them that drew some devices of a fleet; and of runs that carry answers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import duckdb
import orjson

from auditor.models import Device, Outcome
from auditor.runs.folder import CARRIED, PLAN
from auditor.storage.database import quoted, quoted_to_read
from auditor.text.formatting import utc
from tests.runs.run_folders import START, Built, finish, running

_IDENTITY = dict.fromkeys(("account", "product_key", "device_name", "iot_id"), "VARCHAR")


def _write(path: Path, rows: Sequence[dict[str, object]], columns: Mapping[str, object]) -> None:
    lines = path.with_suffix(".jsonl.tmp")
    lines.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    types = ", ".join(f"{name}: '{kind}'" for name, kind in columns.items())
    with duckdb.connect() as database:
        database.execute(
            f"COPY (FROM read_json({quoted_to_read(lines)}, format='newline_delimited', columns={{{types}}})) "
            f"TO {quoted(path)} (FORMAT parquet)"
        )
    lines.unlink()


def sample(folder: Path, fleet: Sequence[Device], drawn: Sequence[Device], outcomes: Sequence[Outcome]) -> Built:
    """A run that drew ``drawn`` of a fleet."""
    built = running(folder, fleet, outcomes)
    _write(folder / PLAN, [asdict(each) | {"why": "sample"} for each in drawn], _IDENTITY | {"why": "VARCHAR"})
    finish(folder)
    return built


def carrying(
    folder: Path,
    fleet: Sequence[Device],
    outcomes: Sequence[Outcome],
    carried: Collection[tuple[Device, str, str]],
    *,
    read: float = START + 3.123,
) -> Built:
    """A run that carries of each of ``carried`` a module and its version, which were read at ``read``."""
    built = running(folder, fleet, outcomes)
    rows: list[dict[str, object]] = [
        asdict(device)
        | {"status": "ok", "modules": [{"module_name": module, "module_version": version}]}
        | {"total": 1, "pages": 1, "audited_at": utc(read).rstrip("Z"), "run": "before", "changes": 0}
        for device, module, version in carried
    ]
    kinds: dict[str, object] = {
        "status": "VARCHAR", "modules": "STRUCT(module_name VARCHAR, module_version VARCHAR)[]", "total": "BIGINT",
        "pages": "BIGINT", "request_id": "VARCHAR", "audited_at": "TIMESTAMP", "reason": "VARCHAR", "run": "VARCHAR",
        "changes": "BIGINT",
    }  # fmt: skip
    _write(folder / CARRIED, rows, _IDENTITY | kinds)
    finish(folder)
    return built
