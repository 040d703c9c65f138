"""Connection states of devices: they show which devices may have reported something new.

States are requested for 50 devices at a time. A journal keeps the responses, so a resumed run does not repeat them.
Functions raise RunNotWritableError if a file cannot be read or written.
"""

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import duckdb
import orjson

from auditor.client.operations import BATCH_GET_DEVICE_STATE, device_state_params
from auditor.client.parsers import OTHER_STATUS, parse_connection_states
from auditor.concurrency import StopToken, run_in_thread
from auditor.engine.account_session import AccountSession
from auditor.engine.worker_pool import discard, run_workers
from auditor.errors import NotFoundError, PlatformError, RunNotWritableError
from auditor.fleet.columns import COLUMNS
from auditor.fleet.table import BATCH_ROWS
from auditor.log import log
from auditor.models import ConnectionState, Device, DeviceStatus, ReportedTime
from auditor.runs.recovery import REMAINING
from auditor.runs.selection_info import LearnedOffset
from auditor.storage.append_only import AppendOnlyFile, cut_torn_line
from auditor.storage.database import (
    READING_MEMORY,
    READING_THREADS,
    parquet,
    scalar,
    scratch_database,
    sql_literal,
    sql_literals,
    sql_read_path,
    text_lines,
    write_parquet,
)

MAX_STATE_AGE = 3_600
"""Seconds that a journal of states is used; after that a resumed run requests all states again."""

MAX_ERRORS = 3
"""Failed requests before the first success after which no more are sent: all of them would fail."""


async def fetch_connection_states(
    session: AccountSession, queries: Path, journal: Path, out: Path, *, devices: int, stop: StopToken
) -> int:
    """Request the states of devices, and write those that were reported to ``out``, a Parquet file.

    Return the number of responses that ``journal`` had before. It has those of earlier audit sessions, which are not
    requested again, and gets the new ones. ``queries`` has the ``devices`` to request, as
    ``DeviceSelector.write_state_queries`` writes them.

    Raises:
        AccountStoppedError: the account is denied access, or was never reached.
        RunNotWritableError: a file cannot be written.
    """
    remaining = out.with_suffix(REMAINING)
    responses_before = await run_in_thread(_count_responses, journal)
    if done := await run_in_thread(write_states, journal, out):
        await run_in_thread(write_unreported, queries, out, remaining)
        queries = remaining
    errors: list[PlatformError] = []
    succeeded = False

    with _open_journal(journal) as file:

        async def fetch(batch: list[Device]) -> None:
            nonlocal succeeded, done
            if len(errors) >= MAX_ERRORS and not succeeded:
                return
            response = await session.call_optional(BATCH_GET_DEVICE_STATE, device_state_params(batch))
            if isinstance(response.result, NotFoundError):
                # Their product was deleted, and so were they. Other codes may be about one device of the batch.
                is_deleted = response.result.code.lower() == _NO_SUCH_PRODUCT and batch[0].iot_id is None
                file.append(_encode_states(batch, () if is_deleted else None))
            elif isinstance(response.result, PlatformError):
                errors.append(response.result)
            else:
                file.append(_encode_states(batch, parse_connection_states(response.result, now=time.time())))
                succeeded = True
            done += len(batch)
            session.report_states((done, devices))

        session.report_states((done, devices))
        try:
            await run_workers(read_state_queries(queries), fetch, discard, concurrency=session.workers, stop=stop)
        finally:
            session.report_states(None)
    if errors:
        log.warning(
            "connection_states_unknown",
            account=session.name,
            requests=len(errors),
            reason=str(errors[0]),
        )
    await run_in_thread(write_states, journal, out)
    remaining.unlink(missing_ok=True)
    return responses_before


def _count_responses(journal: Path) -> int:
    """Return the number of responses in a journal; a journal that is too old is removed."""
    with contextlib.suppress(OSError):
        if abs(time.time() - journal.stat().st_mtime) > MAX_STATE_AGE:  # the clock may have been set
            journal.unlink()
        else:
            with journal.open("rb") as file:
                return sum(1 for _ in file)
    return 0


_TIMES = ("changed", "last_online")

STATE_COLUMNS = (
    dict.fromkeys((*COLUMNS, "reported_iot_id", "status"), "VARCHAR")
    | {f"{name}_ms": "BIGINT" for name in _TIMES}
    | {f"{name}_form": "VARCHAR" for name in _TIMES}
)
"""Columns of a file of states and their types. ``auditor.selection.change_detection`` explains the forms of a time."""

_NO_SUCH_PRODUCT = "iot.prod.notexistedproduct"


@contextlib.contextmanager
def _open_journal(path: Path) -> Iterator[AppendOnlyFile]:
    """Open a journal of states, without a partial last line, which a killed process may leave."""
    try:
        path.touch()
        cut_torn_line(path)
    except OSError as error:
        raise RunNotWritableError(f"{path}: cannot be written: {error.strerror}") from error
    with contextlib.closing(AppendOnlyFile(path)) as file:
        yield file


def _encode_states(devices: list[Device], states: tuple[ConnectionState, ...] | None) -> bytes:
    """Return the line of one response; a device that is left out is unknown. ``states`` is None if there is no list.

    A device without a state does not exist on the platform, if every state belongs to another device of the request.
    Otherwise its state may be one of those that cannot be assigned, and it is left out. So is a device with two
    different states.
    """
    by_id = devices[0].iot_id is not None
    requested = {device.iot_id if by_id else device.device_name: device for device in devices}
    found: dict[str | None, ConnectionState] = {}
    unclear: set[str | None] = set()
    is_complete = states is not None
    for state in states or ():
        name = state.iot_id if by_id else state.device_name
        device = requested.get(name)
        if device is None or (device.product_key and state.product_key not in (None, device.product_key)):
            is_complete = False
        elif found.setdefault(name, state) != state:
            unclear.add(name)
    rows = [
        _encode_row(device, found.get(name))
        for name, device in requested.items()
        if name not in unclear and (is_complete or name in found)
    ]
    return orjson.dumps(rows, option=orjson.OPT_APPEND_NEWLINE)


def _encode_row(device: Device, state: ConnectionState | None) -> dict[str, object]:
    row: dict[str, object] = {name: getattr(device, name) for name in COLUMNS}
    if state is not None:
        row |= {"reported_iot_id": state.iot_id, "status": state.status or ""}
        for name in _TIMES:
            reported: ReportedTime | None = getattr(state, name)
            if reported is not None:
                readable = "utc" if reported.has_zone else "local"
                row[f"{name}_ms"] = reported.milliseconds
                row[f"{name}_form"] = "unreadable" if reported.milliseconds is None else readable
    return row


def write_states(journal: Path, out: Path) -> int:
    """Write the states of a journal as Parquet, and return the number of devices."""
    lines = text_lines(sql_read_path(journal), "store_rejects=true, rejects_limit=1")
    states = f"CASE WHEN json_valid(line) THEN json_transform(line, '{orjson.dumps([STATE_COLUMNS]).decode()}') END"
    with _writing(out) as database:
        journal.touch()
        query = f"SELECT unnest(states, recursive := true) FROM (SELECT {states} AS states FROM ({lines}))"
        write_parquet(database, query, out)
        return scalar(database, f"SELECT count(*) FROM {parquet(out)}")


def write_unreported(queries: Path, states: Path, out: Path) -> None:
    """Write the devices of ``queries`` that have no state yet."""
    rows, reported = parquet(queries), parquet(states)
    query = f"""
      SELECT * FROM (FROM {rows} WHERE iot_id IS NOT NULL) ANTI JOIN {reported} USING (iot_id)
      UNION ALL
      SELECT * FROM (FROM {rows} WHERE iot_id IS NULL)
      ANTI JOIN (FROM {reported} WHERE iot_id IS NULL) USING (product_key, device_name)"""
    with _writing(out) as database:
        write_parquet(database, query, out)


def write_connections(states: Path, out: Path, account: str, learned: LearnedOffset | None) -> None:
    """Write the states of an account's devices for its run: ``device_status``, and ``last_online_at`` in UTC.

    A device that is online was last online when its state was read. One that is offline was online when it entered that
    status, at the latest. Times without a zone are left out, unless the devices that are online show it (``learned``).
    """
    offset = "NULL" if learned is None else f"{learned.minutes * 60_000}"
    changed, last_online = (
        f"CASE {name}_form WHEN 'utc' THEN {name}_ms WHEN 'local' THEN {name}_ms - {offset} END" for name in _TIMES
    )
    documented = sql_literals(get_args(DeviceStatus))
    now = f"TIMESTAMP '{datetime.now(UTC):%Y-%m-%d %H:%M:%S}'"
    query = f"""
      SELECT DISTINCT ON ({", ".join(COLUMNS)}) {sql_literal(account)} AS account, {", ".join(COLUMNS)},
        CASE WHEN status IN ({documented}) THEN status WHEN status <> '' THEN '{OTHER_STATUS}' END AS device_status,
        CASE WHEN status = 'ONLINE' THEN {now}
          ELSE epoch_ms(greatest({last_online}, CASE WHEN status = 'OFFLINE' THEN {changed} END))
        END AS last_online_at
      FROM {parquet(states)} WHERE status IS NOT NULL"""
    with _writing(out) as database:
        write_parquet(database, query, out)


def _writing(out: Path) -> contextlib.AbstractContextManager[duckdb.DuckDBPyConnection]:
    return scratch_database(
        out.with_suffix(".reading"), memory=READING_MEMORY, threads=READING_THREADS, failure=f"{out}: cannot be written"
    )


def read_state_queries(path: Path) -> Iterator[list[Device]]:
    """Yield the devices of a file in batches for one request each: all by iot_id, or all of one product.

    One incomplete batch of each product is in memory.
    """
    with scratch_database(failure=f"{path}: cannot be read") as database:
        rows = database.execute(f"SELECT account, {', '.join(COLUMNS)} FROM {parquet(path)}")
        batches: dict[str | None, list[Device]] = {}
        while fetched := rows.fetchmany(BATCH_ROWS):
            for row in fetched:
                device = Device(*row)
                product = None if device.iot_id is not None else device.product_key
                batch = batches.setdefault(product, [])
                batch.append(device)
                if len(batch) == BATCH_GET_DEVICE_STATE.page_size:
                    yield batches.pop(product)
        yield from batches.values()
