"""Which devices of a fleet are asked: queries over the fleet, what earlier runs know of it, and what is drawn.

| strategy | asks | the others |
|---|---|---|
| since an earlier run | whoever can have changed since, and a part of the rest at random | keep what is known of them |
| rolling | as many as the budget bears, in the order of worth | keep what is known of them |
| sample | so many of each product at random | are not known |

What is known is a file of one row for each device that an earlier run has an answer of, or a failure; see
``auditor.inventory.known``. What is drawn at random is a digest of the seed and the device's name: the same seed draws
the same devices, whatever machine or DuckDB draws.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import duckdb

from auditor.errors import RunNotWritableError
from auditor.fleet.readers import COLUMNS
from auditor.fleet.table import fleet_rows
from auditor.models import SinceRule
from auditor.selection.plan_files import join_twins, write_carried, write_plan
from auditor.selection.ranking import TWO_TO_64, Budget, Sample, rank_by_worth, rank_sample
from auditor.storage.database import READING_MEMORY, READING_THREADS, open_database, parquet, reason_of, write_parquet

CLOCKS_APART = 900
"""Seconds that the platform's clock and ours may be apart: it refuses a request beyond that (Alibaba's pages)."""


_NOTHING = """NULL::BIGINT AS file_row_number, NULL::VARCHAR AS account, NULL::VARCHAR AS product_key,
  NULL::VARCHAR AS device_name, NULL::VARCHAR AS iot_id, NULL::VARCHAR AS status,
  NULL::STRUCT(module_name VARCHAR, module_version VARCHAR)[] AS modules,
  NULL::BIGINT AS total, NULL::BIGINT AS pages, NULL::VARCHAR AS request_id, NULL::TIMESTAMP AS audited_at,
  NULL::VARCHAR AS reason, NULL::VARCHAR AS run, NULL::BIGINT AS changes, NULL::TIMESTAMP AS failed_at,
  NULL::BOOLEAN AS violating"""
"""The columns of what is known, of nothing."""


_NO_STATE = """NULL::VARCHAR AS product_key, NULL::VARCHAR AS device_name, NULL::VARCHAR AS iot_id,
  NULL::VARCHAR AS status, NULL::BIGINT AS changed, NULL::BIGINT AS online, NULL::VARCHAR AS told_id"""


_BY_WORTH = "WHEN violating THEN 'violating' WHEN changes > 0 THEN 'changed' ELSE 'oldest'"


_NAMED = "length(coalesce(product_key, '')) || '/' || coalesce(product_key, '') || '/' || coalesce(device_name, iot_id)"


@dataclass(frozen=True, slots=True)
class Since:
    """Since an earlier run: who is asked.

    Attributes:
        rule: when something can have changed; see ``auditor.model.SinceRule``.
        expired: answers from before this are too old to be carried; None: none is.
        recheck: the part, 0 to 1, of the carried that is asked all the same.
    """

    rule: SinceRule
    expired: datetime | None
    recheck: float


class Choosing:
    """Chooses among the devices of one account. Use as a context manager.

    Args:
        work: a folder for what is written meanwhile; it is made, and stays.
        account: whose devices.
        devices: a file like ``fleet.parquet``.
        ask_all: False leaves those out that were never activated, as the platform lists them.
        seed: of what is drawn at random.

    Raises:
        RunNotWritableError: the folder cannot be written, or a file cannot be read.
    """

    def __init__(self, work: Path, account: str, devices: Path, *, ask_all: bool, seed: int) -> None:
        self._work, self._account, self._seed = work, account, seed
        self._spill = work / "choosing"
        with self._telling():
            shutil.rmtree(self._spill, ignore_errors=True)  # of a process that was killed
            self._spill.mkdir(parents=True)
        self._database = open_database(self._spill, READING_MEMORY, READING_THREADS)
        wanted = "true" if ask_all else "device_status IS DISTINCT FROM 'UNACTIVE'"
        with self._telling():
            self._database.execute(
                f"CREATE VIEW devices AS SELECT file_row_number AS place, account, {', '.join(COLUMNS)}, device_status "
                f"FROM {fleet_rows(devices, numbered=True)} WHERE account = {_text(account)}"
            )
            self._database.execute(f"CREATE VIEW wanted AS FROM devices WHERE {wanted}")
            self._database.execute(f"CREATE VIEW spared AS FROM devices WHERE NOT ({wanted})")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        shutil.rmtree(self._spill, ignore_errors=True)

    def match(self, known: Path | None) -> None:
        """Finds what is known of each device: by its iot_id where both have one, else by its names.

        Args:
            known: what an earlier run knows; None: there is none.

        Raises:
            RunNotWritableError: a file cannot be read or written.
        """
        source = f"(SELECT {_NOTHING} WHERE false)"
        if known is not None:
            source = f"(FROM {parquet(known, options='file_row_number=true')} WHERE account = {_text(self._account)})"
        columns = "k.file_row_number AS row, k.status, k.audited_at, k.failed_at, k.changes, k.violating, "
        columns += "CASE WHEN k.iot_id IS NOT NULL THEN hash(k.iot_id) END AS known_id, "
        columns += " OR ".join(
            f"coalesce(d.{name} IS DISTINCT FROM k.{name} AND d.{name} IS NOT NULL, false)" for name in COLUMNS
        )
        columns += " AS renamed"
        by_names = "d.product_key = k.product_key AND d.device_name = k.device_name"
        with self._telling():
            self._database.execute(f"CREATE VIEW known AS FROM {source}")
            self._database.execute(
                f"CREATE TABLE matched AS SELECT place, {columns} FROM (FROM wanted WHERE iot_id IS NOT NULL) d "
                "JOIN known k ON d.iot_id = k.iot_id"
            )
            rest = (
                "(FROM wanted WHERE iot_id IS NOT NULL AND device_name IS NOT NULL) d ANTI JOIN matched USING (place)"
            )
            self._database.execute(
                f"INSERT INTO matched SELECT place, {columns} FROM (SELECT d.* FROM {rest}) d "
                f"JOIN (FROM known WHERE iot_id IS NULL) k ON {by_names}"
            )
            self._database.execute(
                f"INSERT INTO matched SELECT place, {columns} FROM (FROM wanted WHERE iot_id IS NULL) d "
                f"JOIN known k ON {by_names}"
            )
            # A fleet that names devices in both ways may know one twice; then what was told last counts.
            twice = "SELECT count(*) - count(DISTINCT place) FROM matched"
            if self._number(twice):
                self._database.execute(
                    "CREATE OR REPLACE TABLE matched AS FROM matched QUALIFY row_number() OVER (PARTITION BY place "
                    "ORDER BY coalesce(audited_at, failed_at) DESC, row) = 1"
                )

    def write_questions(self, path: Path, since: Since) -> int:
        """Writes the devices whose state tells whether they can have changed; how many there are.

        Raises:
            RunNotWritableError: it cannot be written.
        """
        expired = "false" if since.expired is None else f"audited_at < TIMESTAMP '{since.expired:%Y-%m-%d %H:%M:%S}'"
        with self._telling():
            self._ask(f"WHEN {expired} THEN 'expired'")
            write_parquet(
                self._database,
                f"SELECT account, {', '.join(COLUMNS)} FROM wanted "
                "SEMI JOIN (FROM asking WHERE why IS NULL) USING (place)",
                path,
            )
            return self._number("SELECT count(*) FROM asking WHERE why IS NULL")

    def _ask(self, cases: str) -> None:
        """Makes ``asking``: every device that is wanted, what is known of it, and why it is to be asked, if it is."""
        self._database.execute(
            "CREATE TABLE asking AS "
            "SELECT place, row, status, audited_at, failed_at, changes, violating, renamed, known_id, "
            f"CASE WHEN row IS NULL THEN 'new' WHEN status = 'failed' THEN 'failed' {cases} END AS why "
            "FROM (SELECT place FROM wanted) LEFT JOIN matched USING (place)"
        )
        self._database.execute("DROP TABLE matched")

    def take_rest(self) -> None:
        """Every device may be asked, for nothing is known of states: the budget decides.

        Raises:
            RunNotWritableError: a file cannot be read or written.
        """
        with self._telling():
            self._database.execute(f"UPDATE asking SET why = CASE {_BY_WORTH} END WHERE why IS NULL")

    def take_states(self, states: Path | None, since: Since) -> int:
        """Decides by what the platform told of its devices' states who can have changed; how many it told nothing of.

        Args:
            states: Parquet: product_key, device_name, iot_id (as the fleet names the device), status (NULL: the
                platform does not know it), changed and online, in milliseconds since 1970, and told_id, the iot_id
                that was told; None: nothing was told.
            since: the rule. A device whose state was not told is asked, and so is one whose state is none that the
                documents name.

        Raises:
            RunNotWritableError: a file cannot be read or written.
        """
        known, told = "epoch_ms(audited_at) - " + str(1000 * CLOCKS_APART), "s.status"
        came = f"s.online > {known} OR ({told} = 'ONLINE' AND s.changed > {known})"
        connected = came if since.rule == "reconnected" else f"{told} = 'ONLINE' OR {came} OR s.changed > {known}"
        # Of an answer from the future nothing tells when it was read: a clock was wrong.
        future = f"audited_at > TIMESTAMP '{datetime.now(UTC) + timedelta(seconds=60):%Y-%m-%d %H:%M:%S}'"
        case = f"""CASE WHEN why IS NOT NULL THEN why WHEN s.found IS NULL OR {future} THEN 'unknown'
          WHEN s.status IS NULL THEN CASE WHEN a.status <> 'not_found' THEN 'connected' END
          WHEN a.status = 'not_found' THEN 'connected'
          WHEN s.status NOT IN ('ONLINE', 'OFFLINE', 'UNACTIVE', 'DISABLE') THEN 'unknown'
          WHEN s.changed IS NULL AND NOT (s.status = 'UNACTIVE' AND a.status = 'empty') THEN 'unknown'
          WHEN s.status = 'UNACTIVE' AND a.status = 'ok' OR (s.told_id IS NOT NULL AND hash(s.told_id) <> known_id)
            THEN 'connected'
          WHEN {connected} THEN 'connected' END"""
        drawn = f"{self._draw('recheck')} / {TWO_TO_64} < {since.recheck!r}"
        told = "SELECT * RENAME (product_key AS key, device_name AS name, iot_id AS id), true AS found FROM states"
        parts = " UNION ALL ".join(
            f"SELECT a.*, {case} AS found_out, product_key, device_name, iot_id "
            f"FROM (FROM wanted WHERE iot_id IS {word}NULL) d JOIN asking a USING (place) "
            f"LEFT JOIN ({told}) s ON {on}"
            for word, on in (
                ("NOT ", "d.iot_id = s.id"),
                ("", "s.id IS NULL AND d.product_key = s.key AND d.device_name = s.name"),
            )
        )
        with self._telling():
            told_states = f"(SELECT {_NO_STATE} WHERE false)" if states is None else parquet(states)
            self._database.execute(f"CREATE VIEW states AS FROM {told_states}")
            self._database.execute(
                "CREATE TABLE found_out AS "
                "SELECT place, row, status, audited_at, failed_at, changes, violating, renamed, known_id, "
                f"CASE WHEN found_out IS NULL AND {drawn} THEN 'recheck' ELSE found_out END AS why FROM ({parts})"
            )
            self._database.execute("DROP TABLE asking")
            self._database.execute("ALTER TABLE found_out RENAME TO asking")
            return self._number("SELECT count(*) FROM asking WHERE why = 'unknown'")

    def take_all(self) -> None:
        """Every device may be asked: the budget decides.

        Raises:
            RunNotWritableError: a file cannot be read or written.
        """
        with self._telling():
            self._ask(_BY_WORTH)

    def write_sample(self, ask: Path, plan: Path, sample: Sample) -> int:
        """Writes who is asked, in an order of which every beginning is a sample; how many were not drawn.

        The files are those of ``write``.

        Devices that were never activated are in the plan too: they need no question.

        Raises:
            RunNotWritableError: they cannot be written.
        """
        self.match(None)
        with self._telling():
            rank_sample(self._database, sample, draw=self._draw("sample"), draw_product=self._draw_product())
            write_plan(self._database, ask, plan, also="SELECT *, NULL, 'never_activated', NULL FROM spared")
            return self._number("SELECT (SELECT count(*) FROM wanted) - (SELECT count(*) FROM ranked)")

    def write(self, ask: Path, plan: Path, carried: Path, budget: Budget | None) -> int:
        """Writes who is asked, with what is known of them, and what is known of the others.

        Returns:
            how many devices there was a reason to ask, and no budget for.

        Args:
            ask: who is asked, in order; columns: account, product_key, device_name, iot_id, device_status.
            plan: the same in no order; columns: those, why, rank, then the known answer's ``ANSWER`` columns, and
                known_product_key, known_device_name and known_iot_id.
            carried: the others; columns: account, product_key, device_name, iot_id, and ``ANSWER``.
            budget: what it bears; None: everyone who is to be asked.

        Raises:
            RunNotWritableError: they cannot be written.
        """
        with self._telling():
            rank_by_worth(self._database, budget)
            join_twins(self._database)
            write_plan(self._database, ask, plan)
            write_carried(self._database, carried)
            return self._number("SELECT count(*) FROM asking ANTI JOIN ranked USING (place) WHERE why IS NOT NULL")

    def _number(self, query: str) -> int:
        (found,) = self._database.execute(query).fetchone() or (0,)
        return int(found)

    def _draw(self, what: str) -> str:
        """The SQL of a whole number, 0 up to 2 ** 64, that the seed draws for a device of the view ``wanted``."""
        return f"md5_number_lower({_text(f'{self._seed}/{what}/{self._account}/')} || {_NAMED})"

    def _draw_product(self) -> str:
        """As ``_draw``, for a row's column ``product``."""
        return f"md5_number_lower({_text(f'{self._seed}/product/{self._account}/')} || product)"

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (OSError, duckdb.Error) as error:
            raise RunNotWritableError(f"{self._work}: devices cannot be chosen: {reason_of(error)}") from error


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
