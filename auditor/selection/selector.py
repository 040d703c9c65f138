"""Selection of devices by queries over the fleet, the previous results, and random numbers.

| strategy | queries | the other devices |
|---|---|---|
| incremental | devices that may have changed since a run, and a random part of the others | have their result carried |
| rolling | as many as the budget allows, by priority | have their result carried |
| index | a random part of the devices in the index | have the result of the index |
| sample | a random number of devices of each product | have no result |

Previous results are a file with a row for each device that has a result or a failure in a previous run; see
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
from pathlib import Path
from typing import Self

import duckdb

from auditor.errors import RunNotWritableError
from auditor.fleet.columns import COLUMNS
from auditor.runs.selection_info import LearnedOffset
from auditor.selection.change_detection import (
    IncrementalRule,
    create_reasons,
    create_reasons_by_index,
    learn_offset,
)
from auditor.selection.connectivity import STATE_COLUMNS
from auditor.selection.ranking import (
    TWO_TO_64,
    RecheckOrder,
    SampleSpec,
    SelectionBudget,
    rank_by_priority,
    rank_sample,
)
from auditor.selection.selection_files import SelectionFiles, add_aliases, write_carried, write_selected_devices
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

_NO_RESULT = """(SELECT NULL::BIGINT AS file_row_number, NULL::VARCHAR AS account, NULL::VARCHAR AS product_key,
  NULL::VARCHAR AS device_name, NULL::VARCHAR AS iot_id, NULL::VARCHAR AS status,
  NULL::STRUCT(module_name VARCHAR, module_version VARCHAR)[] AS modules,
  NULL::BIGINT AS total, NULL::BIGINT AS pages, NULL::VARCHAR AS request_id, NULL::TIMESTAMP AS audited_at,
  NULL::VARCHAR AS reason, NULL::VARCHAR AS run, NULL::BIGINT AS change_count, NULL::TIMESTAMP AS failed_at,
  NULL::BOOLEAN AS violating WHERE false)"""
"""Previous results of a run without a baseline: no row."""

_NO_STATE = f"(SELECT {', '.join(f'NULL::{kind} AS {name}' for name, kind in STATE_COLUMNS.items())} WHERE false)"

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

_COUNT_UNCHANGED = """
  SELECT count(*) FROM with_reason w LEFT JOIN ranked r USING (position)
  WHERE coalesce(w.selection_reason, 'recheck') = 'recheck'
    AND coalesce(r.selection_reason, 'recheck') = 'recheck'  -- an alias of a selected device is queried with it"""

Budget = Callable[[], SelectionBudget | None]
"""Returns what a run can query, when devices are ranked: the remaining time counts from then. None: every device."""

_KEY = "length(coalesce(product_key, '')) || '/' || coalesce(product_key, '') || '/' || coalesce(device_name, iot_id)"


@dataclass(frozen=True, slots=True)
class ChangeSelectionCounts:
    """What was selected by connection states: numbers of devices, as in ``AccountSelection``."""

    over_budget: int
    unknown: int = 0
    unchanged: int = 0
    learned_offset: LearnedOffset | None = None


class DeviceSelector:
    """Selects among the devices of one account in a file like ``fleet.parquet``. Use as a context manager.

    Callers use one of five pipelines: ``select_sample``; ``select_rolling``; ``select_recheck``; ``select_differing``;
    or ``write_state_queries``, then ``select_changed`` or ``select_without_states``. All raise RunNotWritableError if a
    file cannot be read or written.

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

        Devices that were never activated are selected, too: they need no query.
        """
        with self._translated_errors():
            self._database.execute(f"CREATE VIEW previous AS FROM {_NO_RESULT}")
            draw, draw_product = self._draw("sample"), self._draw("product", "product")
            rank_sample(self._database, sample, draw=draw, draw_product=draw_product)
            write_selected_devices(self._database, files, include_never_activated=True)
            return scalar(self._database, "SELECT (SELECT count(*) FROM candidates) - (SELECT count(*) FROM ranked)")

    def select_rolling(self, baseline: Path | None, budget: Budget, files: SelectionFiles) -> int:
        """Write as many devices as the budget allows, by priority; return how many are over budget.

        ``baseline`` are the previous results; None: there are none.
        """
        with self._translated_errors():
            self._match(baseline)
            self._set_reasons("with_reason", _BY_PRIORITY)
            return self._write(budget, files)

    def select_recheck(self, results: Path | None, fraction: float, files: SelectionFiles) -> ChangeSelectionCounts:
        """Write a random part of the devices that the index has, and all devices that it does not have.

        ``results`` are like previous results; None: the index has no device.
        """
        draw = self._draw("recheck")
        with self._translated_errors():
            self._match(results)
            self._set_reasons("reasons_by_result", "")
            self._database.execute(f"""
              CREATE TABLE with_reason AS
              SELECT r.* REPLACE (CASE
                WHEN selection_reason IS NULL AND {draw} / {TWO_TO_64} < {fraction!r} THEN 'recheck'
                ELSE selection_reason
              END AS selection_reason)
              FROM reasons_by_result r JOIN candidates USING (position)""")
            self._database.execute("DROP TABLE reasons_by_result")
            over_budget = self._write(lambda: None, files, RecheckOrder(draw, fraction))
            return ChangeSelectionCounts(over_budget, unchanged=scalar(self._database, _COUNT_UNCHANGED))

    def write_state_queries(self, baseline: Path | None, rule: IncrementalRule, out: Path) -> int:
        """Write the devices whose connection state decides whether they are queried; return their number."""
        undecided = "FROM reasons_by_result WHERE selection_reason IS NULL"
        with self._translated_errors():
            self._match(baseline)
            self._set_reasons("reasons_by_result", _expired_case(rule))
            columns = f"account, {', '.join(COLUMNS)}"
            query = f"SELECT {columns} FROM candidates SEMI JOIN ({undecided}) USING (position)"
            write_parquet(self._database, query, out)
            return scalar(self._database, f"SELECT count(*) {undecided}")

    def select_changed(
        self, states: Path | None, rule: IncrementalRule, budget: Budget, files: SelectionFiles
    ) -> ChangeSelectionCounts:
        """Write the devices that may have changed, by their states, as ``auditor.selection.change_detection`` decides.

        ``states`` is Parquet with ``STATE_COLUMNS``: the names as in the fleet, and the status, NULL if the platform
        does not have the device. None: no state is used, and all are unknown.
        """
        source = _NO_STATE if states is None else parquet(states)
        draw = self._draw("recheck")
        with self._translated_errors():
            learned = learn_offset(self._database, source)
            create_reasons(self._database, source, rule, result=_RESULT, draw=draw, learned=learned)
            self._database.execute("DROP TABLE reasons_by_result")
            unknown = scalar(self._database, "SELECT count(*) FROM with_reason WHERE selection_reason = 'unknown'")
            over_budget = self._write(budget, files, RecheckOrder(draw, rule.recheck))
            return ChangeSelectionCounts(over_budget, unknown, scalar(self._database, _COUNT_UNCHANGED), learned)

    def select_differing(
        self, baseline: Path | None, results: Path, rule: IncrementalRule, budget: Budget, files: SelectionFiles
    ) -> ChangeSelectionCounts:
        """Write the devices whose result in the search index, ``results``, differs from their previous one."""
        draw = self._draw("recheck")
        with self._translated_errors():
            self._match(baseline)
            self._set_reasons("reasons_by_result", _expired_case(rule))
            create_reasons_by_index(self._database, parquet(results), rule, result=_RESULT, draw=draw)
            self._database.execute("DROP TABLE reasons_by_result")
            unknown = scalar(self._database, "SELECT count(*) FROM with_reason WHERE selection_reason = 'unknown'")
            over_budget = self._write(budget, files, RecheckOrder(draw, rule.recheck))
            return ChangeSelectionCounts(over_budget, unknown, scalar(self._database, _COUNT_UNCHANGED))

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

    def _write(self, budget: Budget, files: SelectionFiles, recheck: RecheckOrder | None = None) -> int:
        """Rank the devices of ``with_reason`` and write the files; return how many are over budget.

        Devices that were selected only for the recheck do not count.
        """
        rank_by_priority(self._database, budget(), recheck)
        add_aliases(self._database)
        write_selected_devices(self._database, files)
        write_carried(self._database, files.carried)
        over_budget = "FROM with_reason ANTI JOIN ranked USING (position) WHERE selection_reason <> 'recheck'"
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


def _expired_case(rule: IncrementalRule) -> str:
    """Return the SQL case of a result that is too old to be carried."""
    return (
        "" if rule.expired is None else f"WHEN audited_at < TIMESTAMP '{rule.expired:%Y-%m-%d %H:%M:%S}' THEN 'expired'"
    )
