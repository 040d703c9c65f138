"""What the platform tells of its devices' states: which are asked, fifty at a time, and the journal of what it told."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import duckdb
import orjson

from auditor.appending import Appender, cut_torn_line
from auditor.database import (
    READING_MEMORY,
    READING_THREADS,
    open_database,
    parquet,
    quoted_to_read,
    reason_of,
    text_lines,
    write_parquet,
)
from auditor.errors import RunNotWritableError
from auditor.fleet.files import COLUMNS
from auditor.fleet.rows import BATCH
from auditor.model import Device, ToldState

AT_ONCE = 50
"""Devices that one question may be about (Tuya's and Alibaba's pages of BatchGetDeviceState)."""

_TOLD = orjson.dumps(
    [dict.fromkeys((*COLUMNS, "told_id", "status"), "VARCHAR") | dict.fromkeys(("changed", "online"), "BIGINT")]
).decode()


class StatesJournal:
    """Appends what was told: a line for each question. Use as a context manager.

    Args:
        path: the file; a line that a process was killed in writing is cut off.

    Raises:
        RunNotWritableError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        try:
            self._path.touch()
            cut_torn_line(self._path)
        except OSError as error:
            raise RunNotWritableError(f"{self._path} cannot be written: {error.strerror}") from error
        self._file = Appender(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, asked: list[Device], told: tuple[ToldState, ...]) -> None:
        """Takes an answer about devices; one that it leaves out is none that the platform knows.

        Raises:
            RunNotWritableError: it cannot be written.
        """
        by_id = asked[0].iot_id is not None
        found = {each.iot_id if by_id else each.device_name: each for each in told}
        rows = []
        for device in asked:
            state = found.get(device.iot_id if by_id else device.device_name)
            rows.append(
                {
                    "product_key": device.product_key,
                    "device_name": device.device_name,
                    "iot_id": device.iot_id,
                    "told_id": None if state is None else state.iot_id,
                    "status": None if state is None else state.status or "",
                    "changed": None if state is None else state.changed,
                    "online": None if state is None else state.online,
                }
            )
        self._file.append(orjson.dumps(rows, option=orjson.OPT_APPEND_NEWLINE))


def write_states(journal: Path, out: Path) -> int:
    """Writes what a journal holds as Parquet, as ``Choosing.take_states`` reads it; how many devices it tells of.

    Raises:
        RunNotWritableError: it cannot be written.
    """
    work = out.with_suffix(".reading")
    lines = text_lines(quoted_to_read(journal), "store_rejects=true, rejects_limit=1")
    told = f"CASE WHEN json_valid(line) THEN json_transform(line, '{_TOLD}') END"
    with _Opened(work, out) as database:
        journal.touch()
        write_parquet(
            database, f"SELECT unnest(told, recursive := true) FROM (SELECT {told} AS told FROM ({lines}))", out
        )
        (found,) = database.execute(f"SELECT count(*) FROM {parquet(out)}").fetchone() or (0,)
        return int(found)


def write_untold(questions: Path, states: Path, out: Path) -> None:
    """Writes the devices of a file of questions that nothing was told of yet.

    Raises:
        RunNotWritableError: it cannot be written.
    """
    source = parquet(questions)
    told = parquet(states)
    left = f"""SELECT * FROM (FROM {source} WHERE iot_id IS NOT NULL) ANTI JOIN {told} USING (iot_id)
      UNION ALL SELECT * FROM (FROM {source} WHERE iot_id IS NULL)
      ANTI JOIN (FROM {told} WHERE iot_id IS NULL) USING (product_key, device_name)"""
    with _Opened(out.with_suffix(".reading"), out) as database:
        write_parquet(database, left, out)


def read_questions(path: Path) -> Iterator[list[Device]]:
    """The devices of a file of questions, as many as one question may be about: by iot_id, or of one product.

    A few devices of each product are in memory at a time.

    Raises:
        RunNotWritableError: the file has gone or is broken.
    """
    database = open_database()
    try:
        rows = database.execute(f"SELECT account, {', '.join(COLUMNS)} FROM {parquet(path)}")
        batches: dict[str | None, list[Device]] = {}
        while some := rows.fetchmany(BATCH):
            for row in some:
                device = Device(*row)
                alike = None if device.iot_id is not None else device.product_key
                batch = batches.setdefault(alike, [])
                batch.append(device)
                if len(batch) == AT_ONCE:
                    yield batches.pop(alike)
        yield from batches.values()
    except duckdb.Error as error:
        raise RunNotWritableError(f"{path} cannot be read: {reason_of(error)}") from error
    finally:
        database.close()


class _Opened:
    """A database with a folder for what does not fit into memory, and errors told as those of a file."""

    def __init__(self, work: Path, out: Path) -> None:
        self._work, self._out = work, out

    def __enter__(self) -> duckdb.DuckDBPyConnection:
        try:
            shutil.rmtree(self._work, ignore_errors=True)
            self._work.mkdir(parents=True)
        except OSError as error:
            raise RunNotWritableError(f"{self._out} cannot be written: {error.strerror}") from error
        self._database = open_database(self._work, READING_MEMORY, READING_THREADS)
        return self._database

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._database.close()
        shutil.rmtree(self._work, ignore_errors=True)
        if isinstance(error, OSError | duckdb.Error):
            raise RunNotWritableError(f"{self._out} cannot be written: {reason_of(error)}") from error
