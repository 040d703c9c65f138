"""Run folders of sampled runs, and of runs with carried results, as an audit leaves them."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import orjson
from msgspec import structs

from auditor.models import Device, Outcome
from auditor.runs.folder import CARRIED, SELECTED
from auditor.storage.database import sql_literal, sql_read_path
from auditor.text.formatting import format_utc
from tests.database import connect
from tests.runs.run_folders import START, Built, build_once, finish, running

_IDENTITY = dict.fromkeys(("account", "product_key", "device_name", "iot_id"), "VARCHAR")


def _write(path: Path, rows: Sequence[dict[str, object]], columns: Mapping[str, object]) -> None:
    lines = path.with_suffix(".jsonl.tmp")
    lines.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    types = ", ".join(f"{name}: '{kind}'" for name, kind in columns.items())
    with connect() as database:
        database.execute(
            f"COPY (FROM read_json({sql_read_path(lines)}, format='newline_delimited', columns={{{types}}})) "
            f"TO {sql_literal(path)} (FORMAT parquet)"
        )
    lines.unlink()


def sampled_run(folder: Path, fleet: Sequence[Device], sample: Sequence[Device], outcomes: Sequence[Outcome]) -> Built:
    """A sampled run of a fleet."""

    def make() -> None:
        running(folder, fleet, outcomes)
        _write(
            folder / SELECTED,
            [structs.asdict(each) | {"selection_reason": "sample"} for each in sample],
            _IDENTITY | {"selection_reason": "VARCHAR"},
        )
        finish(folder)

    build_once(folder, ("sampled by plan", fleet, sample, outcomes), make)
    return Built(folder, fleet, outcomes)


def carried_run(
    folder: Path,
    fleet: Sequence[Device],
    outcomes: Sequence[Outcome],
    carried: Collection[tuple[Device, str, str]],
    *,
    read: float = START + 3.123,
) -> Built:
    """A run that carries a module version of each of ``carried``, as read at ``read``."""
    rows: list[dict[str, object]] = [
        structs.asdict(device)
        | {"status": "ok", "modules": [{"module_name": module, "module_version": version}]}
        | {"total": 1, "pages": 1, "audited_at": format_utc(read).rstrip("Z"), "run": "before", "change_count": 0}
        for device, module, version in carried
    ]
    kinds: dict[str, object] = {
        "status": "VARCHAR", "modules": "STRUCT(module_name VARCHAR, module_version VARCHAR)[]", "total": "BIGINT",
        "pages": "BIGINT", "request_id": "VARCHAR", "audited_at": "TIMESTAMP", "reason": "VARCHAR", "run": "VARCHAR",
        "change_count": "BIGINT",
    }  # fmt: skip

    def make() -> None:
        running(folder, fleet, outcomes)
        _write(folder / CARRIED, rows, _IDENTITY | kinds)
        finish(folder)

    build_once(folder, ("carried versions", fleet, outcomes, rows), make)
    return Built(folder, fleet, outcomes)
