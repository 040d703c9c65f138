"""Asking what devices are doing, fifty at a time: it tells which of them can have reported anything new.

What the platform tells of its devices' states: which are asked, fifty at a time, and the journal of what it told.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Self

import anyio
import duckdb
import orjson
import structlog

from auditor.client.operations import BATCH_GET_DEVICE_STATE, states_of_devices
from auditor.client.parsers import states_of
from auditor.engine.account_session import AskedAccount
from auditor.engine.worker_pool import Stop, fan_out
from auditor.errors import NotFoundError, PlatformError, RunNotWritableError
from auditor.fleet.readers import COLUMNS
from auditor.fleet.table import BATCH
from auditor.models import Device, ToldState
from auditor.storage.database import (
    READING_MEMORY,
    READING_THREADS,
    open_database,
    parquet,
    quoted_to_read,
    reason_of,
    text_lines,
    write_parquet,
)
from auditor.storage.files import Appender, cut_torn_line

log = structlog.get_logger()


STALE = 3_600
"""Seconds after which a state that was told is asked again, when an audit is resumed."""


REFUSALS = 3
"""Questions that may be refused before any was answered: then no more are asked, for all will be refused."""


async def ask_states(
    asked: AskedAccount, questions: Path, journal: Path, out: Path, *, devices: int, stop: Stop
) -> int:
    """Asks for the states of devices, and writes what was told; of what was not, whoever plans thinks the worst.

    Returns:
        how many questions earlier stretches had an answer to.

    Args:
        asked: the account.
        questions: the devices, as ``Choosing.write_questions`` writes them.
        journal: a file that is appended to; what it holds already is not asked again.
        out: the states, Parquet.
        devices: how many there are in ``questions``.
        stop: a wish to end early.

    Raises:
        AccountStoppedError: the account is refused, or was never reached.
        RunNotWritableError: a file cannot be written.
    """
    left = out.with_suffix(".left.parquet")
    before = await anyio.to_thread.run_sync(_questions_before, journal)
    if known := await anyio.to_thread.run_sync(write_states, journal, out):
        await anyio.to_thread.run_sync(write_untold, questions, out, left)
        questions = left
    refused: list[PlatformError] = []
    answered = 0

    with StatesJournal(journal) as told:

        async def ask(some: list[Device]) -> None:
            nonlocal answered, known
            if len(refused) >= REFUSALS and not answered:
                return
            sent = await asked.call_aside(BATCH_GET_DEVICE_STATE, states_of_devices(some))
            if isinstance(sent.result, NotFoundError):  # their product is gone, and they with it
                told.write(some, ())
            elif isinstance(sent.result, PlatformError):
                refused.append(sent.result)
            else:
                told.write(some, states_of(sent.result))
                answered += 1
            known += len(some)
            asked.states = known, devices

        asked.states = known, devices
        try:
            await fan_out(read_questions(questions), ask, _written, at_once=asked.workers, stop=stop)
        finally:
            asked.states = None
    if refused:
        log.warning(
            "states of devices are not known, so these are asked", account=asked.name, questions=len(refused),
            reason=str(refused[0]),
        )  # fmt: skip
    await anyio.to_thread.run_sync(partial(write_states, journal, out))
    left.unlink(missing_ok=True)
    return before


async def _written(_: None) -> None:
    """What was told is written as it comes."""


def _questions_before(journal: Path) -> int:
    """How many questions a journal has an answer to; one that is too old is removed."""
    with contextlib.suppress(OSError):
        if time.time() - journal.stat().st_mtime > STALE:
            journal.unlink()
        else:
            with journal.open("rb") as file:
                return sum(1 for _ in file)
    return 0


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
