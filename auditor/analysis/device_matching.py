"""Which device of a later run is which of an earlier one, and what became of it; in tables of numbers, out of core.

A device is the same in two runs if its account is, and

- its ``iot_id``, where both runs know it: a name that was given again to another device does not make them one;
- else its ``product_key`` and ``device_name``.

A run knows what its fleet named, and what answers told besides: a device that was asked by its iot_id and reported
modules is known by its names too, and the other way round. One that is known by its names alone in one run and one that
is known by its iot_id alone in the other may be the same: where an account has such on both sides that match nothing,
they are ``not_seen`` rather than joined or left. So is one whose answer the new run carries from before the old one
read it.

A device that stands twice in one run, named both ways, counts once.

A device that a sample passed over was not to be seen: that is ``unsampled``, whatever the other run knows of it.
"""

from pathlib import Path

import duckdb

from auditor.query.snapshot import Frozen
from auditor.runs.views import number
from auditor.storage.database import parquet

SIDES = ("old", "new")


_UNSEEN = "('failed', 'pending')"


_PRESENT = "('ok', 'empty')"


_NAMED = "product_key IS NOT NULL AND device_name IS NOT NULL"


_LATER = "array_position(['ok', 'empty', 'not_found', 'failed', 'pending', 'unsampled'], status), line"
"""Which of two rows for one device counts: the one that tells more."""


_CARRIED = """SELECT device FROM matched JOIN old_rows o ON old_line = o.line JOIN new_rows n ON new_line = n.line
  WHERE fate = 'compared' AND n.source = 'carried'
    AND try_cast(n.audited_at AS TIMESTAMP) {} try_cast(o.audited_at AS TIMESTAMP)"""
"""Devices that are present in both runs, and whose answer in the new one is carried: from before the old one read them
(``<``), or the same (``=``)."""


_KEY = """length(account) || ':' || account || CASE WHEN iot_id IS NULL
  THEN 'n' || coalesce(length(product_key) || ':' || product_key, '') || '/' || coalesce(device_name, '')
  ELSE 'i' || iot_id END"""
"""One text for a device within a run; lengths keep apart what separators would not."""


def define_matched(database: duckdb.DuckDBPyConnection, old: Frozen, new: Frozen) -> None:
    """Defines the devices of two runs, matched.

    ``matched`` has a row for each device of either run: device (a number), old_line and new_line (its row in either
    run's ``devices.parquet``, NULL if it has none), product (a number in ``products``) and fate: ``compared`` (present
    in both), ``joined``, ``left``, ``not_seen``, ``unsampled``, or ``absent`` (in neither). ``passed_over`` has the
    products of which a sample did not draw all devices, and whether that is the old run's or the new one's (before,
    after). Of ``products`` each has account and
    product_key. ``old_devices`` and ``new_devices`` are the rows that ``line`` numbers, each device once.
    """
    for side, run in zip(SIDES, (old, new), strict=True):
        _define_devices(database, side, run.devices)
    carried = (
        "o.line AS old_line, n.line AS new_line, o.status AS old_status, n.status AS new_status, o.account, "
        "coalesce(n.product_key, o.product_key) AS product_key"
    )
    database.execute(
        f"CREATE TABLE pairs AS SELECT {carried} FROM old_devices o JOIN new_devices n "
        "ON o.account = n.account AND o.iot_id = n.iot_id"
    )
    rest = {side: f"(FROM {side}_devices ANTI JOIN pairs ON line = {side}_line)" for side in SIDES}
    database.execute(
        f"INSERT INTO pairs SELECT {carried} FROM {rest['old']} o JOIN {rest['new']} n "
        "ON o.account = n.account AND o.product_key = n.product_key AND o.device_name = n.device_name "
        "WHERE o.iot_id IS NULL OR n.iot_id IS NULL"
    )
    for side, other in (SIDES, SIDES[::-1]):
        # One name that belongs to several devices of a run: the first of them is taken for the one in the other run.
        if number(database, f"SELECT count(*) - count(DISTINCT {side}_line) FROM pairs"):
            first = f"SELECT {side}_line, min({other}_line) FROM pairs GROUP BY {side}_line"
            database.execute(f"DELETE FROM pairs WHERE ({side}_line, {other}_line) NOT IN ({first})")
    _define_alone(database)
    database.execute(
        "CREATE TABLE products AS SELECT row_number() OVER (ORDER BY account, product_key) AS product, * "
        "FROM (SELECT DISTINCT account, product_key FROM (SELECT account, product_key FROM pairs "
        "UNION ALL SELECT account, product_key FROM alone))"
    )
    alone = "CASE WHEN side = '{0}' THEN {1} END AS {0}_{1}"
    alone_columns = ", ".join(alone.format(side, what) for what in ("line", "status") for side in SIDES)
    fate = f"""CASE WHEN 'unsampled' IN (old_status, new_status) THEN 'unsampled'
      WHEN old_status IN {_UNSEEN} OR new_status IN {_UNSEEN} OR unsure THEN 'not_seen'
      WHEN old_status IN {_PRESENT} AND new_status IN {_PRESENT} THEN 'compared'
      WHEN old_status IN {_PRESENT} THEN 'left'
      WHEN new_status IN {_PRESENT} THEN 'joined'
      ELSE 'absent' END"""
    database.execute(
        "CREATE TABLE matched AS SELECT row_number() OVER () AS device, old_line, new_line, product, "
        f"({fate})::ENUM ('compared', 'joined', 'left', 'not_seen', 'unsampled', 'absent') AS fate "
        "FROM (SELECT old_line, new_line, old_status, new_status, account, product_key, false AS unsure FROM pairs "
        f"UNION ALL SELECT {alone_columns}, account, product_key, unsure FROM alone) m "
        "JOIN products p ON m.account = p.account AND m.product_key IS NOT DISTINCT FROM p.product_key"
    )
    if number(database, "SELECT count(*) FROM new_rows WHERE source = 'carried'"):
        # What the new run carries from before the old one read the device tells nothing of what came since.
        database.execute(f"UPDATE matched SET fate = 'not_seen' WHERE device IN ({_CARRIED.format('<')})")
    # A device that is named by its iot_id alone, and was not asked, may be of any product of its account.
    undrawn = " UNION ALL ".join(
        f"SELECT '{side}' AS side, account, product_key FROM {side}_devices WHERE status = 'unsampled' GROUP BY ALL"
        for side in SIDES
    )
    database.execute(
        "CREATE TABLE passed_over AS SELECT product, bool_or(side = 'old') AS before, bool_or(side = 'new') AS after "
        f"FROM ({undrawn}) u JOIN products p ON u.account = p.account "
        "AND (u.product_key IS NULL OR u.product_key = p.product_key) GROUP BY product"
    )


def is_sampled(database: duckdb.DuckDBPyConnection) -> bool:
    """Whether either run is a sample."""
    return number(database, "SELECT count(*) FROM matched WHERE fate = 'unsampled'") > 0


def count_carried(database: duckdb.DuckDBPyConnection) -> int:
    """Devices that are compared and whose answer in the new run is carried: it is the one in the old run."""
    return number(database, f"SELECT count(*) FROM ({_CARRIED.format('=')})")


def define_reported(database: duckdb.DuckDBPyConnection, old: Frozen, new: Frozen) -> None:
    """Defines ``reported``: device, module and version, all numbers, of the run ``old`` or ``new`` (``side``).

    ``names`` has the modules by every spelling, one number regardless of case; ``versions`` the versions, numbered as
    their texts sort; ``spelled`` what either run has of account, product_key, module_name and module_version.
    """
    files = {side: parquet(run.modules) for side, run in zip(SIDES, (old, new), strict=True)}
    spelled = "SELECT DISTINCT account, product_key, module_name, module_version FROM"
    every = " UNION ALL ".join(f"{spelled} {file}" for file in files.values())
    database.execute(f"CREATE TABLE spelled AS {spelled} ({every})")
    database.execute(
        "CREATE TABLE versions AS SELECT (row_number() OVER (ORDER BY module_version))::INTEGER AS version, "
        "module_version FROM (SELECT DISTINCT module_version FROM spelled)"
    )
    database.execute(
        "CREATE TABLE names AS SELECT (dense_rank() OVER (ORDER BY lower(module_name)))::INTEGER AS module, "
        "module_name FROM (SELECT DISTINCT module_name FROM spelled)"
    )
    database.execute("CREATE TABLE reported (device BIGINT, module INTEGER, version INTEGER, later BOOLEAN)")
    for side, file in files.items():
        database.execute(
            f"INSERT INTO reported SELECT device, module, version, {side == 'new'} "
            f"FROM (SELECT {_KEY} AS key, module_name, module_version FROM {file}) "
            f"JOIN (SELECT {_KEY} AS key, line FROM {side}_devices WHERE status = 'ok') USING (key) "
            f"JOIN matched ON line = {side}_line JOIN names USING (module_name) JOIN versions USING (module_version)"
        )


def _define_devices(database: duckdb.DuckDBPyConnection, side: str, path: Path) -> None:
    # A run that was sealed before sources were told has none.
    rows = (
        f"SELECT file_row_number AS line, * FROM {parquet(path, options='file_row_number=true')} "
        "UNION ALL BY NAME SELECT NULL::VARCHAR AS source WHERE false"
    )
    database.execute(
        f"CREATE VIEW {side}_rows AS SELECT line, account, product_key, device_name, iot_id, "
        f"CASE WHEN source = 'unsampled' THEN source ELSE status END AS status, source, audited_at FROM ({rows})"
    )
    # Hashes that all differ prove that no device stands twice, at the price of numbers alone.
    ids = f"FROM {side}_rows WHERE iot_id IS NOT NULL"
    names = f"FROM {side}_rows WHERE {_NAMED}"
    once = all(
        number(database, f"SELECT count(*) - count(DISTINCT hash({what})) {of}") == 0
        for what, of in (("account, iot_id", ids), ("account, product_key, device_name", names))
    )
    unique = f"{side}_rows"
    if not once:
        by_id = f"PARTITION BY account, iot_id, CASE WHEN iot_id IS NULL THEN line END ORDER BY {_LATER}"
        by_name = (
            f"PARTITION BY account, product_key, device_name, CASE WHEN NOT ({_NAMED}) THEN line END "
            f"ORDER BY iot_id IS NULL, {_LATER}"
        )
        database.execute(
            f"CREATE TABLE {side}_kept AS SELECT line FROM (FROM {side}_rows "
            f"QUALIFY row_number() OVER ({by_id}) = 1) "
            f"QUALIFY iot_id IS NOT NULL OR row_number() OVER ({by_name}) = 1"
        )
        unique = f"{side}_rows SEMI JOIN {side}_kept USING (line)"
    database.execute(f"CREATE VIEW {side}_devices AS SELECT * FROM {unique}")


def _define_alone(database: duckdb.DuckDBPyConnection) -> None:
    """Defines ``alone``: the devices of one run alone, and whether that is unsure for they are named in another way."""
    parts = " UNION ALL ".join(
        f"SELECT '{side}' AS side, line, status, account, product_key, "
        f"CASE WHEN iot_id IS NULL THEN 'names' WHEN NOT ({_NAMED}) THEN 'id' ELSE 'both' END AS known "
        f"FROM {side}_devices ANTI JOIN pairs ON line = {side}_line"
        for side in SIDES
    )
    database.execute(f"CREATE TABLE lone AS {parts}")
    database.execute(
        "CREATE TABLE alone AS SELECT side, line, status, account, product_key, EXISTS ("
        "FROM (SELECT DISTINCT side, account, known FROM lone) other WHERE other.account = lone.account "
        "AND other.side <> lone.side AND (lone.known, other.known) IN (('names', 'id'), ('id', 'names'))"
        ") AS unsure FROM lone"
    )
