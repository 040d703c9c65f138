"""Selection of devices by queries over the fleet, the previous results, and random numbers.

| strategy | queries | the other devices |
|---|---|---|
| incremental | devices that may have changed since a run, and a random part of the others | keep their result |
| rolling | as many as the budget allows, by priority | keep their result |
| sample | a random number of devices of each product | have no result |

Previous results are a file with a row for each device that a previous run has a result or a failure of; see
``auditor.selection.baseline``. Random numbers are a digest of the seed and the device's name: the same seed selects the
same devices, on any machine and with any version of DuckDB.

Tables and views, in the order in which they are created:

| name | a row |
|---|---|
| ``candidates``, ``never_activated`` | a device of the account, by its ``position`` in the file of devices |
| ``previous`` | a previous result |
| ``matches`` | a candidate and its previous result |
| ``reasons_by_result`` | a candidate, and why to query it as far as its previous result decides (incremental only) |
| ``with_reason`` | a candidate, and why to query it; None: do not |
| ``ranked`` | a selected device, and its rank |
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import duckdb

from auditor.errors import RunNotWritableError
from auditor.fleet.readers import COLUMNS
from auditor.models import ChangeDetection
from auditor.selection.plan_files import SelectionFiles, add_aliases, write_carried, write_plan
from auditor.selection.ranking import TWO_TO_64, SampleSpec, SelectionBudget, rank_by_priority, rank_sample
from auditor.storage.database import (
    READING_MEMORY,
    READING_THREADS,
    error_reason,
    parquet,
    scalar,
    scratch_database,
    sql_literal,
    write_parquet,
)

MAX_CLOCK_DIFFERENCE = 900
"""Seconds that the platform's clock and ours may differ; it rejects other requests (Alibaba's documentation)."""

MAX_FUTURE = 60
"""Seconds that a result may be in the future. After that, a clock was wrong, and the real time is unknown."""

_NO_RESULT = """(SELECT NULL::BIGINT AS file_row_number, NULL::VARCHAR AS account, NULL::VARCHAR AS product_key,
  NULL::VARCHAR AS device_name, NULL::VARCHAR AS iot_id, NULL::VARCHAR AS status,
  NULL::STRUCT(module_name VARCHAR, module_version VARCHAR)[] AS modules,
  NULL::BIGINT AS total, NULL::BIGINT AS pages, NULL::VARCHAR AS request_id, NULL::TIMESTAMP AS audited_at,
  NULL::VARCHAR AS reason, NULL::VARCHAR AS run, NULL::BIGINT AS change_count, NULL::TIMESTAMP AS failed_at,
  NULL::BOOLEAN AS violating WHERE false)"""
"""Previous results of a run without a baseline: no row."""

_NO_STATE = """(SELECT NULL::VARCHAR AS product_key, NULL::VARCHAR AS device_name, NULL::VARCHAR AS iot_id,
  NULL::VARCHAR AS status, NULL::BIGINT AS changed, NULL::BIGINT AS online, NULL::VARCHAR AS reported_iot_id
  WHERE false)"""

_RESULT = "previous_row, status, audited_at, failed_at, change_count, violating, renamed, previous_iot_id_hash"

_BY_PRIORITY = "WHEN violating THEN 'violating' WHEN change_count > 0 THEN 'changed' ELSE 'oldest'"

_REASONS = """
  CREATE TABLE {table} AS
  SELECT position, {result}, CASE
    WHEN previous_row IS NULL THEN 'new'
    WHEN status = 'failed' THEN 'failed'
    {other_reasons}
  END AS selection_reason
  FROM (SELECT position FROM candidates) LEFT JOIN matches USING (position)"""

_REASONS_BY_STATE = """
  CREATE TABLE with_reason AS
  WITH states AS NOT MATERIALIZED (
    SELECT product_key AS state_product_key, device_name AS state_device_name, iot_id AS state_iot_id,
      true AS was_reported, status AS state, changed AS state_changed_at, online AS online_at, reported_iot_id
    FROM {states}
  ), with_state AS NOT MATERIALIZED (  -- a state has the names that it was requested by
    SELECT r.*, c.product_key, c.device_name, c.iot_id, s.*
    FROM (FROM candidates WHERE iot_id IS NOT NULL) c JOIN reasons_by_result r USING (position)
    LEFT JOIN states s ON c.iot_id = s.state_iot_id
    UNION ALL
    SELECT r.*, c.product_key, c.device_name, c.iot_id, s.*
    FROM (FROM candidates WHERE iot_id IS NULL) c JOIN reasons_by_result r USING (position)
    LEFT JOIN states s ON s.state_iot_id IS NULL
      AND c.product_key = s.state_product_key AND c.device_name = s.state_device_name
  ), since AS NOT MATERIALIZED (  -- when the result was read, by a platform clock that is behind (ms since 1970)
    SELECT *, epoch_ms(audited_at) - $clock_difference AS result_at FROM with_state
  ), decision AS NOT MATERIALIZED (
    SELECT *, CASE
      -- The previous result decides, whatever the state is.
      WHEN selection_reason IS NOT NULL THEN selection_reason
      -- No state was reported, or the time of the result is unknown.
      WHEN was_reported IS NULL OR audited_at > $latest THEN 'unknown'
      -- The platform does not know the device: nothing changed if it did not exist before, either.
      WHEN state IS NULL THEN CASE WHEN status <> 'not_found' THEN 'connected' END
      -- The device exists now, and did not before.
      WHEN status = 'not_found' THEN 'connected'
      -- The documentation does not name this state.
      WHEN state NOT IN ('ONLINE', 'OFFLINE', 'UNACTIVE', 'DISABLE') THEN 'unknown'
      -- The state has no time, and the device is not one that was never activated and still is not.
      WHEN state_changed_at IS NULL AND NOT (state = 'UNACTIVE' AND status = 'empty') THEN 'unknown'
      -- It was activated and is not any more, or the name belongs to another device now: it was replaced.
      WHEN state = 'UNACTIVE' AND status = 'ok'
        OR (reported_iot_id IS NOT NULL AND hash(reported_iot_id) <> previous_iot_id_hash) THEN 'connected'
      -- It came online since the result was read.
      WHEN online_at > result_at OR (state = 'ONLINE' AND state_changed_at > result_at) THEN 'connected'
      -- strict: it is online, or its state changed since.
      WHEN $strict AND (state = 'ONLINE' OR state_changed_at > result_at) THEN 'connected'
    END AS reason_by_state
    FROM since
  )
  SELECT position, {result}, CASE
    -- A random part of the devices to carry is queried, to measure how often that is wrong.
    WHEN reason_by_state IS NULL AND {draw} / {draw_bound} < $recheck THEN 'recheck'
    ELSE reason_by_state
  END AS selection_reason
  FROM decision"""

Budget = Callable[[], SelectionBudget | None]
"""Returns what a run can query, when devices are ranked: the remaining time counts from then. None: every device."""

_KEY = "length(coalesce(product_key, '')) || '/' || coalesce(product_key, '') || '/' || coalesce(device_name, iot_id)"


@dataclass(frozen=True, slots=True)
class IncrementalRule:
    """Which devices an incremental run queries.

    Results from before ``expired`` are too old to be carried; None: none is. ``recheck`` is the fraction, 0 to 1, of
    the devices to carry that is queried nevertheless.
    """

    change_detection: ChangeDetection
    expired: datetime | None
    recheck: float


class DeviceSelector:
    """Selects among the devices of one account in a file like ``fleet.parquet``. Use as a context manager.

    Callers use one of three pipelines: ``select_sample``; ``select_rolling``; or ``write_state_queries``, then
    ``select_changed`` or ``select_without_states``. All raise RunNotWritableError if a file cannot be read or written.

    ``work`` is a folder for files; it is created, and not removed. ``include_never_activated``: devices are candidates
    that the platform reports as never activated. ``seed`` is that of random numbers.
    """

    def __init__(self, work: Path, account: str, devices: Path, *, include_never_activated: bool, seed: int) -> None:
        self._work, self._account, self._seed = work, account, seed
        is_candidate = "true" if include_never_activated else "device_status IS DISTINCT FROM 'UNACTIVE'"
        rows = f"""
          SELECT file_row_number AS position, account, {", ".join(COLUMNS)}, device_status
          FROM {parquet(devices, options="file_row_number=true")} WHERE account = {sql_literal(account)}"""
        with self._translated_errors(), ExitStack() as stack:
            scratch = scratch_database(work / "selecting", memory=READING_MEMORY, threads=READING_THREADS)
            self._database = stack.enter_context(scratch)
            self._database.execute(f"CREATE VIEW candidates AS {rows} AND ({is_candidate})")
            self._database.execute(f"CREATE VIEW never_activated AS {rows} AND NOT ({is_candidate})")
            self._resources = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def select_sample(self, files: SelectionFiles, sample: SampleSpec) -> int:
        """Write a random sample, in an order in which every prefix is a sample; return how many are not sampled.

        Devices that were never activated are in the plan, too: they need no query.
        """
        with self._translated_errors():
            self._database.execute(f"CREATE VIEW previous AS FROM {_NO_RESULT}")
            draw, draw_product = self._draw("sample"), self._draw("product", "product")
            rank_sample(self._database, sample, draw=draw, draw_product=draw_product)
            write_plan(self._database, files, include_never_activated=True)
            return scalar(self._database, "SELECT (SELECT count(*) FROM candidates) - (SELECT count(*) FROM ranked)")

    def select_rolling(self, baseline: Path | None, budget: Budget, files: SelectionFiles) -> int:
        """Write as many devices as the budget allows, by priority; return how many are over budget.

        ``baseline`` are the previous results; None: there are none.
        """
        with self._translated_errors():
            self._match(baseline)
            self._set_reasons("with_reason", _BY_PRIORITY)
            return self._write(budget, files)

    def write_state_queries(self, baseline: Path | None, rule: IncrementalRule, out: Path) -> int:
        """Write the devices whose connection state decides whether they are queried; return their number."""
        expired = "false" if rule.expired is None else f"audited_at < TIMESTAMP '{rule.expired:%Y-%m-%d %H:%M:%S}'"
        undecided = "FROM reasons_by_result WHERE selection_reason IS NULL"
        with self._translated_errors():
            self._match(baseline)
            self._set_reasons("reasons_by_result", f"WHEN {expired} THEN 'expired'")
            columns = f"account, {', '.join(COLUMNS)}"
            query = f"SELECT {columns} FROM candidates SEMI JOIN ({undecided}) USING (position)"
            write_parquet(self._database, query, out)
            return scalar(self._database, f"SELECT count(*) {undecided}")

    def select_changed(
        self, states: Path | None, rule: IncrementalRule, budget: Budget, files: SelectionFiles
    ) -> tuple[int, int]:
        """Write the devices that may have changed, by their states; return the numbers over budget and of unknown
        states.

        A device without a reported state is selected, and so is one with a state that the documentation does not name.

        ``states`` is Parquet with product_key, device_name, iot_id (as in the fleet), status (NULL: unknown to the
        platform), changed and online, in milliseconds since 1970, and reported_iot_id; None: no state is used.
        """
        query = _REASONS_BY_STATE.format(
            states=_NO_STATE if states is None else parquet(states),
            result=_RESULT,
            draw=self._draw("recheck"),
            draw_bound=TWO_TO_64,
        )
        parameters = {
            "clock_difference": 1000 * MAX_CLOCK_DIFFERENCE,
            "latest": (datetime.now(UTC) + timedelta(seconds=MAX_FUTURE)).replace(tzinfo=None, microsecond=0),
            "strict": rule.change_detection == "strict",
            "recheck": rule.recheck,
        }
        with self._translated_errors():
            self._database.execute(query, parameters)
            self._database.execute("DROP TABLE reasons_by_result")
            unknown = scalar(self._database, "SELECT count(*) FROM with_reason WHERE selection_reason = 'unknown'")
            return self._write(budget, files), unknown

    def select_without_states(self, budget: Budget, files: SelectionFiles) -> int:
        """Write as many devices as the budget allows, by priority without states; return how many are over budget."""
        with self._translated_errors():
            self._database.execute(f"""
              CREATE TABLE with_reason AS
              SELECT * REPLACE (coalesce(selection_reason, CASE {_BY_PRIORITY} END) AS selection_reason)
              FROM reasons_by_result""")
            self._database.execute("DROP TABLE reasons_by_result")
            return self._write(budget, files)

    def _match(self, baseline: Path | None) -> None:
        """Create ``matches``: candidates match previous results by iot_id if both have one, else by names."""
        source = _NO_RESULT
        if baseline is not None:
            rows = parquet(baseline, options="file_row_number=true")
            source = f"(FROM {rows} WHERE account = {sql_literal(self._account)})"
        renamed = " OR ".join(
            f"coalesce(c.{name} IS DISTINCT FROM p.{name} AND c.{name} IS NOT NULL, false)" for name in COLUMNS
        )
        match = f"""
          SELECT position, p.file_row_number AS previous_row, p.status, p.audited_at, p.failed_at, p.change_count,
            p.violating, CASE WHEN p.iot_id IS NOT NULL THEN hash(p.iot_id) END AS previous_iot_id_hash,
            {renamed} AS renamed"""
        by_names = "c.product_key = p.product_key AND c.device_name = p.device_name"
        self._database.execute(f"CREATE VIEW previous AS FROM {source}")
        self._database.execute(f"""
          CREATE TABLE matches AS {match}
          FROM (FROM candidates WHERE iot_id IS NOT NULL) c JOIN previous p ON c.iot_id = p.iot_id""")
        self._database.execute(f"""
          INSERT INTO matches {match}
          FROM (
            SELECT a.* FROM (FROM candidates WHERE iot_id IS NOT NULL AND device_name IS NOT NULL) a
            ANTI JOIN matches USING (position)
          ) c JOIN (FROM previous WHERE iot_id IS NULL) p ON {by_names}""")
        self._database.execute(f"""
          INSERT INTO matches {match}
          FROM (FROM candidates WHERE iot_id IS NULL) c JOIN previous p ON {by_names}""")
        # A fleet that lists devices in both ways may have two results of one; the latest counts.
        if scalar(self._database, "SELECT count(*) - count(DISTINCT position) FROM matches"):
            self._database.execute("""
              CREATE OR REPLACE TABLE matches AS FROM matches
              QUALIFY row_number() OVER (
                PARTITION BY position ORDER BY coalesce(audited_at, failed_at) DESC, previous_row
              ) = 1""")

    def _set_reasons(self, table: str, other_reasons: str) -> None:
        """Create a table of the candidates with their previous results and the reasons that follow from them."""
        self._database.execute(_REASONS.format(table=table, result=_RESULT, other_reasons=other_reasons))
        self._database.execute("DROP TABLE matches")

    def _write(self, budget: Budget, files: SelectionFiles) -> int:
        """Rank the devices of ``with_reason`` and write the files; return how many are over budget."""
        rank_by_priority(self._database, budget())
        add_aliases(self._database)
        write_plan(self._database, files)
        write_carried(self._database, files.carried)
        over_budget = "FROM with_reason ANTI JOIN ranked USING (position) WHERE selection_reason IS NOT NULL"
        return scalar(self._database, f"SELECT count(*) {over_budget}")

    def _draw(self, purpose: str, key: str = _KEY) -> str:
        """Return the SQL of a random integer, 0 up to 2 ** 64, of a row; by default of a device."""
        return f"md5_number_lower({sql_literal(f'{self._seed}/{purpose}/{self._account}/')} || {key})"

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, duckdb.Error) as error:
            raise RunNotWritableError(f"{self._work}: devices cannot be selected: {error_reason(error)}") from error
