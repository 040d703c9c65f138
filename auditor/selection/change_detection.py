"""Which devices may have changed since their previous result, by their connection states, or by the search index.

The platform reports two times of a device: when it entered its status, and when it was last online. They come in many
forms (``auditor.client.parsers.parse_reported_time``). A device is *connected* if it was online since its previous
result. It is *unknown* if its state does not decide that. Both are queried: carrying an outdated result is an error,
and an unnecessary query only costs quota.

The *form* of a time is ``utc``; ``local``, if it has no time zone and is counted as if it were UTC; ``unreadable``; or
NULL, if the platform reported none. A local time can be any moment of 26 hours, unless the devices that are online now
show its zone.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import duckdb

from auditor.client.parsers import MAX_UTC_OFFSET, MIN_UTC_OFFSET, UTC_OFFSET_STEP
from auditor.models import ChangeDetection
from auditor.runs.estimates import MODULE_VERSIONS
from auditor.runs.selection_info import LearnedOffset
from auditor.selection.ranking import TWO_TO_64

MAX_CLOCK_DIFFERENCE = 900
"""Seconds that the platform's clock and ours may differ; it rejects other requests (Alibaba's documentation)."""

MAX_FUTURE = 60
"""Seconds that a result may be in the future. After that, a clock was wrong, and the real time is unknown."""

MIN_AGREEING, MIN_AGREEMENT = 20, 0.99
"""Devices that have to show one time zone, and their fraction of all that show any, before it is used."""

MIN_SPREAD = 3_600_000
"""Milliseconds between the first and the last of them that came online.

If all came online together, the time between that and any other moment would seem to be a time zone.
"""

MAX_ZONE_AGE = 30 * 86_400_000
"""Milliseconds from the first to the last of them that came online: the zone may have been another before."""

MAX_ZONE_DIFFERENCE = 120_000
"""Milliseconds that the two times of a device may differ by, apart from the time zone."""

DAYLIGHT_SAVING = 60
"""Minutes that the time zone of another season may differ from that of today."""

_MS_PER_MINUTE = 60_000

_LEARN_OFFSET = f"""
  WITH differences AS (
    SELECT changed_ms, last_online_ms - changed_ms AS difference,
      round((last_online_ms - changed_ms) / {UTC_OFFSET_STEP * _MS_PER_MINUTE}.0)::BIGINT * {UTC_OFFSET_STEP} AS minutes
    FROM {{states}}
    WHERE status = 'ONLINE' AND changed_form = 'utc' AND last_online_form = 'local'
    QUALIFY changed_ms > max(changed_ms) OVER () - {MAX_ZONE_AGE}
  )
  SELECT minutes, count(*) AS devices FROM differences
  WHERE abs(difference - minutes * {_MS_PER_MINUTE}) <= {MAX_ZONE_DIFFERENCE}
    AND minutes BETWEEN {MIN_UTC_OFFSET} AND {MAX_UTC_OFFSET}
  GROUP BY minutes
  HAVING count(*) >= greatest({MIN_AGREEING}, {MIN_AGREEMENT} * (SELECT count(*) FROM differences))
    AND max(changed_ms) - min(changed_ms) >= {MIN_SPREAD}"""

_REASONS_BY_STATE = """
  CREATE TABLE with_reason AS
  WITH states AS NOT MATERIALIZED (
    SELECT product_key AS state_product_key, device_name AS state_device_name, iot_id AS state_iot_id, reported_iot_id,
      true AS was_reported, status AS state, changed_ms, changed_form::time_form AS changed_form,
      last_online_ms, last_online_form::time_form AS last_online_form
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
    SELECT *, epoch_ms(audited_at) - $clock_difference AS result_at,
      changed_ms - CASE changed_form WHEN 'local' THEN $max_offset ELSE 0 END AS changed_from,
      changed_ms - CASE changed_form WHEN 'local' THEN $min_offset ELSE 0 END AS changed_until,
      last_online_ms - CASE last_online_form WHEN 'local' THEN $max_online_offset ELSE 0 END AS online_from,
      last_online_ms - CASE last_online_form WHEN 'local' THEN $min_online_offset ELSE 0 END AS online_until
    FROM with_state
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
      -- It was activated and is not any more, or the name belongs to another device now: it was replaced.
      WHEN state = 'UNACTIVE' AND status = 'ok'
        OR (reported_iot_id IS NOT NULL AND hash(reported_iot_id) <> previous_iot_id_hash) THEN 'connected'
      WHEN changed_form = 'unreadable' OR last_online_form = 'unreadable' THEN 'unknown'
      -- The state has no time, and the device is not one that was never activated and still is not.
      WHEN changed_form IS NULL AND NOT (state = 'UNACTIVE' AND status = 'empty') THEN 'unknown'
      -- It came online since the result was read.
      WHEN online_from > result_at OR (state = 'ONLINE' AND changed_from > result_at) THEN 'connected'
      -- strict: it is online, or its state changed since.
      WHEN $strict AND (state = 'ONLINE' OR changed_from > result_at) THEN 'connected'
      -- It has been in this state since before the result.
      WHEN changed_until <= result_at THEN NULL
      -- It was never online, so it has no time of that.
      WHEN state = 'UNACTIVE' AND last_online_form IS NULL AND (changed_form IS NULL OR NOT $strict) THEN NULL
      -- reconnected: it went offline since, and came online before.
      WHEN NOT $strict AND state <> 'ONLINE' AND online_until <= result_at THEN NULL
      -- A time that would decide is missing, or has no time zone.
      ELSE 'unknown'
    END AS reason_by_state
    FROM since
  )
  SELECT position, {result}, CASE
    -- A random part of the devices to carry is queried, to measure how often that is wrong.
    WHEN reason_by_state IS NULL AND {draw} / {draw_bound} < $recheck THEN 'recheck'
    ELSE reason_by_state
  END AS selection_reason
  FROM decision"""


_REASONS_BY_INDEX = f"""
  CREATE TABLE with_reason AS
  WITH indexed AS NOT MATERIALIZED (
    SELECT product_key, device_name, hash(status, {MODULE_VERSIONS.format("modules")}) AS indexed FROM {{results}}
  ), earlier AS NOT MATERIALIZED (
    SELECT file_row_number AS previous_row, hash(status, {MODULE_VERSIONS.format("modules")}) AS earlier FROM previous
  )
  SELECT position, {{result}}, CASE
    WHEN selection_reason IS NOT NULL THEN selection_reason
    WHEN indexed IS NULL THEN 'unknown'  -- the index does not have it, or none of its versions can be read
    WHEN indexed <> earlier THEN 'differs'
    WHEN {{draw}} / {{draw_bound}} < $recheck THEN 'recheck'
  END AS selection_reason
  FROM reasons_by_result JOIN candidates USING (position)
  LEFT JOIN indexed USING (product_key, device_name) LEFT JOIN earlier USING (previous_row)"""


@dataclass(frozen=True, slots=True)
class IncrementalRule:
    """Which devices an incremental run queries.

    Results from before ``expired`` are too old to be carried; None: none is. ``recheck`` is the fraction, 0 to 1, of
    the devices without a sign of change that is queried nevertheless.
    """

    change_detection: ChangeDetection
    expired: datetime | None
    recheck: float


def learn_offset(database: duckdb.DuckDBPyConnection, states: str) -> LearnedOffset | None:
    """Return the offset of last-online times without a zone from UTC; None if too few devices agree.

    A device that is online came online when it entered this status. That time has a zone, and the other one differs
    from it by the offset. ``states`` is the SQL of a table with the columns of a file of states.
    """
    row = database.execute(_LEARN_OFFSET.format(states=states)).fetchone()
    return None if row is None else LearnedOffset(*row)


def create_reasons(
    database: duckdb.DuckDBPyConnection,
    states: str,
    rule: IncrementalRule,
    *,
    result: str,
    draw: str,
    learned: LearnedOffset | None,
) -> None:
    """Create the table ``with_reason`` from ``reasons_by_result``, whose columns of a previous result are ``result``.

    ``draw`` is the SQL of a random number of a device, 0 up to 2 ** 64.
    """
    query = _REASONS_BY_STATE.format(states=states, result=result, draw=draw, draw_bound=TWO_TO_64)
    online = (MIN_UTC_OFFSET, MAX_UTC_OFFSET)
    if learned is not None:
        online = (learned.minutes - DAYLIGHT_SAVING, learned.minutes + DAYLIGHT_SAVING)
    parameters = {
        "clock_difference": 1000 * MAX_CLOCK_DIFFERENCE,
        "latest": (datetime.now(UTC) + timedelta(seconds=MAX_FUTURE)).replace(tzinfo=None, microsecond=0),
        "strict": rule.change_detection == "strict",
        "recheck": rule.recheck,
        "min_offset": MIN_UTC_OFFSET * _MS_PER_MINUTE,
        "max_offset": MAX_UTC_OFFSET * _MS_PER_MINUTE,
        "min_online_offset": online[0] * _MS_PER_MINUTE,
        "max_online_offset": online[1] * _MS_PER_MINUTE,
    }
    database.execute("CREATE TEMP TYPE time_form AS ENUM ('utc', 'local', 'unreadable')")  # a byte for each device
    database.execute(query, parameters)
    database.execute("DROP TYPE time_form")


def create_reasons_by_index(
    database: duckdb.DuckDBPyConnection, results: str, rule: IncrementalRule, *, result: str, draw: str
) -> None:
    """Do the same by the platform's search index: a device may have changed if its result there is another one.

    ``results`` is the SQL of a table with the results of the index; the devices have a product_key and a device_name.
    """
    query = _REASONS_BY_INDEX.format(results=results, result=result, draw=draw, draw_bound=TWO_TO_64)
    database.execute(query, {"recheck": rule.recheck})
