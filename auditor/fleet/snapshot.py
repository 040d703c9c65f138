"""Fleet files as ``fleet.parquet``: the configured fleet, validated, without duplicates."""

from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import NamedTuple, get_args

import duckdb
import msgspec

from auditor.client.parsers import OTHER_STATUS
from auditor.config.settings import FleetSource, Settings
from auditor.errors import FleetError
from auditor.fleet.columns import ALL_COLUMNS, COLUMNS
from auditor.fleet.names import (
    NULL_WORDS,
    BadRowError,
    clean_name,
    exact_name,
    is_blank,
    need_no_cleaning,
    parse_fleet_time,
    show,
)
from auditor.fleet.readers import open_fleet_file, read_rows
from auditor.fleet.table import (
    BATCH_ROWS,
    FLEET_COLUMNS,
    concatenated_rows,
    sha256_of,
    write_numbered,
)
from auditor.fleet.text_rows import FleetFile
from auditor.models import DeviceStatus
from auditor.runs.attributes import ATTRIBUTES, attributes_from_json
from auditor.runs.manifest import FleetInfo
from auditor.storage.database import (
    CSV_BLOCK_OPTIONS,
    LARGE_MEMORY,
    find_duplicate_keys,
    parquet,
    result_rows,
    scalar,
    scratch_database,
    slices_for,
    sql_read_path,
    with_growing_memory,
    write_rows,
)
from auditor.storage.files import create_own_file
from auditor.text.formatting import escape_undecodable

MAX_ROWS_SHOWN = 10
"""Bad rows that an error lists; all are counted."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Properties of ``fleet.parquet``: its source, number of devices, number of dropped duplicates, and digest."""

    source: str
    devices: int
    duplicates: int
    sha256: str


def write_snapshot(fleets: Sequence[tuple[str, str]], out: Path, *, limit: int | None = None) -> Snapshot:
    """Read the fleet files of all accounts into one validated Parquet file, with up to ``limit`` devices.

    ``fleets`` has the account and source (a path, or ``-``) of each; without one, there are no devices until they are
    discovered. A folder beside ``out`` holds intermediate files.

    Raises:
        FleetError: a file cannot be read, has bad rows (counted, the first ones listed), or has no device.
        RunNotWritableError: ``out`` cannot be written.
    """
    if not fleets:
        return write_empty_snapshot(out)
    work = out.with_suffix(".reading")
    with scratch_database(work, failure=f"{out}: cannot be written") as database:
        paths, duplicates = [], 0
        for number, (account, source) in enumerate(fleets):
            try:
                file = open_fleet_file(source, work / f"{number}.input", database)
            except FleetError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    raise FleetError(f'{error}; it is the fleet of account "{account}"') from error
                raise
            paths.append(work / f"{number}.unique.parquet")
            with _refuse_long_rows(file.label):
                stage = with_growing_memory(database, partial(_stage, database, file, work / f"{number}.parquet"))
                deduplicate = partial(_deduplicate, database, stage, account, paths[-1])
                duplicates += with_growing_memory(database, deduplicate)
        sources, rows = ", ".join(dict.fromkeys(source for _, source in fleets)), concatenated_rows(paths)
        with _refuse_long_rows(sources):
            write = partial(write_numbered, database, rows, work / "all.parquet", limit)
            devices = with_growing_memory(database, write)
        (work / "all.parquet").replace(out)
        return Snapshot(sources, devices, duplicates, sha256_of(out))


@contextmanager
def _refuse_long_rows(label: str) -> Iterator[None]:
    """Raise FleetError where rows do not fit into any limit of the memory: some thousand are held at a time."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        advice = "shorten the values of its further columns, or leave some of these columns out"
        raise FleetError(
            f"{label}: some thousand of its rows do not fit into {LARGE_MEMORY} of memory; {advice}"
        ) from error


class _Stage(NamedTuple):
    """The valid rows of a fleet file, each with its ``record`` (the line on which it starts), and the SQL of them."""

    file: FleetFile
    rows: str
    devices: int


class _BadRows:
    """Bad rows of a fleet file: all are counted, and the first are listed. They are reported in any order."""

    def __init__(self, file: FleetFile) -> None:
        self.count, self._file, self._first = 0, file, list[tuple[int, str, str]]()

    def add(self, number: int, error: BadRowError) -> None:
        self.count += 1
        insort(self._first, (number, str(error), error.advice))
        del self._first[MAX_ROWS_SHOWN:]

    def refuse(self) -> None:
        """Raise FleetError if there is a bad row."""
        if self.count:
            total = "" if self.count == 1 else f"{self.count} bad rows: "
            shown = "; ".join(f"{self._file.row_word} {number} {problem}" for number, problem, _ in self._first)
            more = f"; and {self.count - len(self._first)} more" if self.count > len(self._first) else ""
            advice = " ".join(dict.fromkeys(advice for _, _, advice in self._first))
            raise FleetError(f"{self._file.label}: {total}{shown}{more}; no request was sent. {advice}")


def _stage(database: duckdb.DuckDBPyConnection, file: FleetFile, path: Path) -> _Stage:
    """Read a fleet file and write its valid rows to a Parquet file."""
    bad_rows, text = _BadRows(file), path.with_suffix(".tsv")
    with TextIOWrapper(create_own_file(text), encoding="utf-8", newline="\n") as staged:
        staged.writelines(_valid_rows(file, database, bad_rows))
        empty = staged.tell() == 0
    bad_rows.refuse()
    if empty:
        raise FleetError(f"{file.label}: has no device; a fleet has at least one")
    columns = {"record": "BIGINT", **{name: FLEET_COLUMNS[name] for name in ALL_COLUMNS}, ATTRIBUTES: "VARCHAR"}
    write_rows(
        database,
        f"SELECT * REPLACE ({attributes_from_json(ATTRIBUTES)} AS {ATTRIBUTES}) FROM "
        f"read_csv({sql_read_path(text)}, delim='\\t', quote='', escape='', header=false, "
        f"auto_detect=false, nullstr='', columns={columns}, {CSV_BLOCK_OPTIONS})",
        path,
    )
    text.unlink()
    return _Stage(file, parquet(path), scalar(database, f"SELECT count(*) FROM {parquet(path)}"))


def _valid_rows(file: FleetFile, database: duckdb.DuckDBPyConnection, bad_rows: _BadRows) -> Iterator[str]:
    """Yield the rows of a file that name a device, as tab-separated lines; names have no control characters."""
    rows = read_rows(file, database, bad_rows.add)
    while batch := list(islice(rows, BATCH_ROWS)):
        texts, numbers = zip(*batch, strict=True)
        keys, names, ids, *discovered, attributes = zip(*texts, strict=True)
        if _are_clean(keys, names, ids) and not any(map(any, discovered)):  # it takes a quarter of the time
            for number, key, name, iot_id, encoded in zip(numbers, keys, names, ids, attributes, strict=True):
                yield f"{number}\t{key}\t{name}\t{iot_id}\t\t\t\t{encoded}\n"
            continue
        for row in batch:
            try:
                yield _valid_row(*row, exact=file.exact)
            except BadRowError as error:
                bad_rows.add(row[1], error)


def _are_clean(keys: Sequence[str], names: Sequence[str], ids: Sequence[str]) -> bool:
    """Return whether all rows name a device by the same columns, whose names need no cleaning. Most rows do.

    Many devices have one product key, so each key is checked by itself: keys are as short as a date may be.
    """
    has_names, has_ids = any(names), any(ids)
    if any(keys) != has_names or not (has_names or has_ids):
        return False
    if (has_names and not need_no_cleaning(names)) or (has_ids and not need_no_cleaning(ids)):
        return False
    try:
        return not has_names or all(clean_name(key) == key for key in set(keys))
    except BadRowError:
        return False


def _valid_row(texts: Sequence[str], number: int, *, exact: bool) -> str:
    """Return a row as a line; raise BadRowError if it does not name a device."""
    read_name = exact_name if exact else clean_name
    product_key, device_name, iot_id = (_read(read_name, *each) for each in zip(COLUMNS, texts, strict=False))
    if iot_id is None and (product_key is None or device_name is None):
        raise _nameless(product_key, device_name, texts)
    *discovered, attributes = texts[len(COLUMNS) :]
    values = _discovery_values(*discovered)
    return f"{number}\t{product_key or ''}\t{device_name or ''}\t{iot_id or ''}\t{values}\t{attributes}\n"


def _read(read_name: Callable[[str], str | None], column: str, text: str) -> str | None:
    try:
        return read_name(text)
    except BadRowError as error:
        raise BadRowError(f"has the {column} {show(text)}, which {error}", error.advice) from None


def _nameless(product_key: str | None, device_name: str | None, texts: Sequence[str]) -> BadRowError:
    """Return what is wrong with a row that does not identify a device."""
    if product_key is not None:
        problem = "has a product_key but no device_name"
    elif device_name is not None:
        problem = "has a device_name but no product_key"
    else:
        problem = "has no device"
    words = [show(text) for text in texts[: len(COLUMNS)] if not is_blank(text) and clean_name(text) is None]
    noted = f" ({', '.join(dict.fromkeys(words))} means that there is no value)" if words else ""
    return BadRowError(problem + noted, "Give the product_key and the device_name, or the iot_id.")


def _discovery_values(status: str, created: str, modified: str) -> str:
    """Return what a discovery stored about a device, as columns; what cannot be read is left out."""
    if not (status or created or modified):
        return "\t\t"
    status = status.strip().upper()
    if status.lower() in NULL_WORDS:
        status = ""
    elif status and status not in get_args(DeviceStatus):
        status = OTHER_STATUS
    times = (parse_fleet_time(text) for text in (created, modified))
    return "\t".join((status, *("" if time is None else time.isoformat(" ") for time in times)))


def _deduplicate(database: duckdb.DuckDBPyConnection, stage: _Stage, account: str, out: Path) -> int:
    """Write the devices of a stage without duplicates; return the number of duplicates."""
    _find_duplicates(database, stage, slices_for(stage.devices))
    once = f"FROM {stage.rows} WHERE record NOT IN (SELECT record FROM duplicates)"
    selected = f"SELECT $1 AS account, {', '.join(ALL_COLUMNS)}, {ATTRIBUTES} {once}"
    write_rows(database, selected, out, parameters=[account])
    return scalar(database, "SELECT count(*) FROM duplicates")


_BOTH = "product_key IS NOT NULL AND device_name IS NOT NULL"


def _find_duplicates(database: duckdb.DuckDBPyConnection, stage: _Stage, slices: int) -> None:
    """Create the table ``duplicates``: records of a device, by either of its names, after its first record.

    Only rows whose hash occurs twice are compared by name: that needs a few bytes a device, not its names. A row with
    both names links the rows that have only one of them.
    """
    conditions = []
    for table, key, condition in (
        ("duplicate_iot_ids", "hash(iot_id)", "iot_id IS NOT NULL"),
        ("duplicate_names", "hash(product_key, device_name)", _BOTH),
    ):
        find_duplicate_keys(database, table, f"{key} FROM {stage.rows} WHERE {condition}", slices)
        conditions.append(f"({condition} AND {key} IN (SELECT key FROM {table}))")
    database.execute(
        f"CREATE OR REPLACE TABLE suspects AS SELECT record, product_key, device_name, iot_id FROM {stage.rows} "
        f"WHERE {' OR '.join(conditions)}"
    )
    _refuse_contradictions(database, stage.file)
    database.execute(
        f"""CREATE OR REPLACE TABLE duplicates AS SELECT record FROM (
          SELECT record, coalesce(suspects.iot_id, linked.iot_id) AS id, product_key, device_name FROM suspects
          LEFT JOIN (
            SELECT DISTINCT product_key, device_name, iot_id FROM suspects WHERE {_BOTH} AND iot_id IS NOT NULL
          ) AS linked USING (product_key, device_name)
        ) QUALIFY row_number() OVER (
          PARTITION BY id, CASE WHEN id IS NULL THEN product_key END, CASE WHEN id IS NULL THEN device_name END
          ORDER BY record) > 1"""
    )


_CONTRADICTIONS = f"""
  SELECT record, min(problem) AS problem FROM (
    SELECT record, 'gives iot_id ' || iot_id || ' a different name than an earlier row' AS problem,
      (product_key, device_name) <> first_value((product_key, device_name)) OVER (PARTITION BY iot_id ORDER BY record)
      AS bad FROM suspects WHERE {_BOTH} AND iot_id IS NOT NULL
    UNION ALL
    SELECT record, 'gives ' || product_key || '/' || device_name || ' a different iot_id than an earlier row',
      iot_id <> first_value(iot_id) OVER (PARTITION BY product_key, device_name ORDER BY record)
      FROM suspects WHERE {_BOTH} AND iot_id IS NOT NULL
  ) WHERE bad GROUP BY record"""


def _refuse_contradictions(database: duckdb.DuckDBPyConnection, file: FleetFile) -> None:
    """Raise FleetError if rows give one device two names."""
    bad_rows = _BadRows(file)
    for record, problem in result_rows(database.execute(_CONTRADICTIONS)):
        bad_rows.add(record, BadRowError(str(problem), "Keep the names that are right."))
    bad_rows.refuse()


def write_empty_snapshot(out: Path) -> Snapshot:
    """Write a fleet without devices, for accounts whose devices are discovered later."""
    with scratch_database(failure=f"{out}: cannot be written") as database:
        return Snapshot("", write_numbered(database, concatenated_rows(()), out), 0, sha256_of(out))


def describe_fleet(
    settings: Settings, snapshot: Snapshot, *, limit: int | None = None, excluded_accounts: tuple[str, ...] = ()
) -> FleetInfo:
    """Return what a manifest says about a fleet before the platform's device lists are read."""
    listed = any(account.uses_discovery for account in settings.account)
    source = ", ".join(filter(None, (snapshot.source, "platform" if listed else "")))
    devices, duplicates, sha256 = snapshot.devices, snapshot.duplicates, snapshot.sha256
    return FleetInfo(escape_undecodable(source), devices, duplicates, sha256, limit, excluded_accounts)


def apply_fleet_option(settings: Settings, fleet: str | None) -> Settings:
    """Return the settings with the file of ``--fleet``, if it was given; check that all accounts have a fleet.

    Raises:
        FleetError: an account has no fleet, or one file was given for several accounts.
    """
    accounts = settings.account
    if fleet is not None:
        if len(accounts) > 1:
            raise FleetError(f"{fleet}: there are {len(accounts)} accounts; give each its fleet in the settings")
        accounts = (msgspec.structs.replace(accounts[0], fleet=FleetSource(file=fleet)),)
    for account in accounts:
        if account.fleet is None:
            raise FleetError(
                f'account "{account.name}": has no fleet; set fleet = {{ file = "…" }} or {{ products = "all" }}, '
                "or give --fleet"
            )
    return msgspec.structs.replace(settings, account=accounts)


def fleet_files(settings: Settings) -> list[tuple[str, str]]:
    """Return account and fleet file of each account that has one; the fleets of the others are discovered."""
    fleets = [(account.name, account.fleet) for account in settings.account if account.fleet is not None]
    return [(name, fleet.file) for name, fleet in fleets if fleet.file is not None]
