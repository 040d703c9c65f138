"""What each rule finds in a run's rows (see ``judging``): verdicts on devices and on products' modules, as tables.

| table | a row |
|---|---|
| ``picked`` | a rule and a combo with its rank; of ``newest`` those that are behind where too few are not |
| ``found`` | a rule and a device (``line``) that breaks it as a whole, and when it answered, if that is why |
| ``groups`` | a rule and a product's module with its rank, the reason, and whether it is listed itself |
| ``tally`` | a rule, a rank, and how many devices or groups have it |
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path

import duckdb

from auditor.database import BLOCKS, quoted_to_read
from auditor.inventory.rule import Deny, Exact, MaxAge, MaxVersions, Minimum, Newest, Required, Rule
from auditor.inventory.standings import define_standings
from auditor.inventory.versions import common_form, compare_versions
from auditor.patterns import is_plain, regex_of

COMPLIANT, EXCEPTED, UNPARSEABLE, VIOLATED, NOT_SEEN, SEEN = range(6)
"""Ranks of a verdict: of a device's modules the highest of the first four is the device's. ``SEEN`` is none, but how
many devices a rule is about that answered."""

_ANSWERED = "status IN ('ok', 'empty')"
_UNANSWERED = "status IN ('failed', 'pending')"

_UNSEEN = f"""SELECT product, count(*) FILTER ({_UNANSWERED}) AS unseen FROM asked
  ANTI JOIN (FROM spared WHERE rule = $1) USING (line) GROUP BY product"""
"""How many devices of a product might make another verdict on its modules, had they been seen."""


def define_verdicts(database: duckdb.DuckDBPyConnection, rules: Sequence[Rule], now: datetime, work: Path) -> None:
    """Defines the tables above; ``work`` is a folder for files that are written meanwhile."""
    database.execute("CREATE TABLE picked (rule INTEGER, combo INTEGER, rank TINYINT)")
    database.execute("CREATE TABLE found (rule INTEGER, line BIGINT, rank TINYINT, moment TIMESTAMP)")
    database.execute(
        "CREATE TABLE groups (rule INTEGER, product INTEGER, module INTEGER, rank TINYINT, listed BOOLEAN, "
        "reason VARCHAR)"
    )
    database.execute("CREATE TABLE tally (rule INTEGER, rank TINYINT, number BIGINT)")
    _define_bounds(database, rules, work)
    for number, rule in enumerate(rules):
        match rule.condition:
            case Minimum() | Exact() | Deny():
                _judge_versions(database, number, rule)
            case Required():
                _judge_reports(database, number)
            case MaxAge(seconds):
                _judge_answers(database, number, now - timedelta(seconds=seconds))
            case _:
                continue
        _tally_unseen(database, number)
    _define_alive(database, rules)
    _define_forms(database, work)
    _define_best(database, rules, work)
    for number, rule in enumerate(rules):
        match rule.condition:
            case MaxVersions(versions):
                _judge_variety(database, number, versions)
            case Newest():
                _judge_newest(database, number, rule.condition)
            case _:
                continue
        _tally_groups(database, number)
    database.execute(
        f"INSERT INTO tally SELECT rule, {SEEN}, count(*) FROM scope JOIN asked USING (product) WHERE {_ANSWERED} "
        "GROUP BY rule"
    )


def _define_bounds(database: duckdb.DuckDBPyConnection, rules: Sequence[Rule], work: Path) -> None:
    """Compares each version with those that the rules about it name: the tables ``bounds`` and ``standings``."""
    database.execute("CREATE TABLE bounds (bound INTEGER, rule INTEGER, text VARCHAR)")
    named: list[tuple[int, str]] = []
    for number, rule in enumerate(rules):
        match rule.condition:
            case Minimum(version):
                named.append((number, version))
            case Deny(patterns):
                named.extend((number, pattern) for pattern in patterns if is_plain(pattern))
            case _:
                pass
    if named:
        database.executemany("INSERT INTO bounds VALUES (?, ?, ?)", [(at, *each) for at, each in enumerate(named)])
    pairs = (
        "SELECT DISTINCT v.version AS one, bound AS other, v.module_version AS version, text AS against "
        "FROM chosen JOIN bounds USING (rule) JOIN combos USING (combo) JOIN versions v USING (module_version)"
    )
    define_standings(database, pairs, work / "standings")


def _judge_versions(database: duckdb.DuckDBPyConnection, number: int, rule: Rule) -> None:
    stands = "SELECT one FROM standings JOIN bounds ON other = bound WHERE rule = $1 AND standing"
    match rule.condition:
        case Deny(patterns):
            rank = f"regexp_full_match(module_version, $2) OR version IN ({stands} = 'same')"
            given: object = regex_of(patterns)
        case Exact(versions):
            rank, given = "NOT list_contains($2::VARCHAR[], module_version)", list(versions)
        case _:
            rank, given = f"version IN ({stands} = $2)", "older"
    unordered = f"WHEN version IN ({stands} = 'unordered') THEN {UNPARSEABLE}" if _has_order(rule) else ""
    database.execute(
        f"INSERT INTO picked SELECT rule, combo, CASE WHEN p.combo IS NOT NULL THEN {EXCEPTED} "
        f"WHEN {rank} THEN {VIOLATED} {unordered} ELSE {COMPLIANT} END "
        "FROM chosen JOIN combos USING (combo) JOIN versions USING (module_version) "
        "LEFT JOIN pardoned p USING (rule, combo) WHERE rule = $1",
        [number, given],
    )
    database.execute(
        f"INSERT INTO tally SELECT $1, rank, count(*) FROM ("
        f"SELECT r.line, max(CASE WHEN x.line IS NULL THEN rank ELSE {EXCEPTED} END) AS rank "
        "FROM reported r JOIN (FROM picked WHERE rule = $1) p USING (combo) "
        "LEFT JOIN (FROM excused WHERE rule = $1) x ON x.line = r.line AND x.row = r.row "
        "GROUP BY r.line) GROUP BY rank",
        [number],
    )


def _has_order(rule: Rule) -> bool:
    return isinstance(rule.condition, Minimum)


def _judge_reports(database: duckdb.DuckDBPyConnection, number: int) -> None:
    database.execute(
        f"INSERT INTO found SELECT $1, line, {VIOLATED}, NULL FROM asked "
        "SEMI JOIN (FROM scope WHERE rule = $1) USING (product) ANTI JOIN (FROM spared WHERE rule = $1) USING (line) "
        "ANTI JOIN (FROM reported SEMI JOIN (FROM chosen WHERE rule = $1) USING (combo)) USING (line) "
        f"WHERE {_ANSWERED}",
        [number],
    )
    _tally_answered(database, number)


def _judge_answers(database: duckdb.DuckDBPyConnection, number: int, oldest: datetime) -> None:
    moment = "try_cast(audited_at AS TIMESTAMP)"
    database.execute(
        f"INSERT INTO found SELECT $1, line, CASE WHEN moment IS NULL THEN {UNPARSEABLE} ELSE {VIOLATED} END, moment "
        f"FROM (SELECT line, {moment} AS moment FROM asked "
        "SEMI JOIN (FROM scope WHERE rule = $1) USING (product) ANTI JOIN (FROM spared WHERE rule = $1) USING (line) "
        f"JOIN (SELECT line, audited_at FROM device_rows) USING (line) WHERE {_ANSWERED}) "
        "WHERE moment IS NULL OR moment < $2::TIMESTAMP",
        [number, oldest.astimezone(UTC).replace(tzinfo=None)],
    )
    _tally_answered(database, number)


def _tally_answered(database: duckdb.DuckDBPyConnection, number: int) -> None:
    database.execute(
        "INSERT INTO tally SELECT $1, rank, count(*) FROM ("
        f"SELECT coalesce(f.rank, CASE WHEN s.line IS NULL THEN {COMPLIANT} ELSE {EXCEPTED} END) AS rank FROM asked a "
        "SEMI JOIN (FROM scope WHERE rule = $1) USING (product) "
        "LEFT JOIN (FROM found WHERE rule = $1) f USING (line) LEFT JOIN (FROM spared WHERE rule = $1) s USING (line) "
        f"WHERE {_ANSWERED}) GROUP BY rank",
        [number],
    )


def _tally_unseen(database: duckdb.DuckDBPyConnection, number: int) -> None:
    database.execute(
        "INSERT INTO tally SELECT $1, rank, count(*) FROM ("
        f"SELECT CASE WHEN s.line IS NULL THEN {NOT_SEEN} ELSE {EXCEPTED} END AS rank FROM asked "
        "SEMI JOIN (FROM scope WHERE rule = $1) USING (product) LEFT JOIN (FROM spared WHERE rule = $1) s USING (line) "
        f"WHERE {_UNANSWERED}) GROUP BY rank",
        [number],
    )


def _define_alive(database: duckdb.DuckDBPyConnection, rules: Sequence[Rule]) -> None:
    """Defines ``alive``: for a rule about groups, the versions that are left to it, and on how many devices."""
    database.execute(
        "CREATE TABLE alive AS SELECT rule, product, module, version, sum(devices - coalesce(gone, 0))::BIGINT "
        "AS devices FROM chosen ANTI JOIN pardoned USING (rule, combo) JOIN combos USING (combo) "
        "JOIN versions USING (module_version) LEFT JOIN "
        "(SELECT rule, combo, count(DISTINCT row) AS gone FROM excused GROUP BY rule, combo) USING (rule, combo) "
        "WHERE list_contains($1::INTEGER[], rule) GROUP BY rule, product, module, version "
        "HAVING sum(devices - coalesce(gone, 0)) > 0",
        [[number for number, rule in enumerate(rules) if rule.unit == "modules"]],
    )


def _define_forms(database: duckdb.DuckDBPyConnection, work: Path) -> None:
    """Defines ``forms``: for each version that is alive a text that it shares with those that are the same."""
    result = database.cursor().execute("SELECT version, module_version FROM versions SEMI JOIN alive USING (version)")

    def lines() -> Iterator[str]:
        while batch := result.fetchmany(1_000):
            for version, text in batch:
                yield f"{version} {blake2b(common_form(text).encode(), digest_size=16).hexdigest()}\n"

    _define_read(database, "forms", "{'version': 'INTEGER', 'form': 'VARCHAR'}", work / "forms", lines())


def _define_best(database: duckdb.DuckDBPyConnection, rules: Sequence[Rule], work: Path) -> None:
    """Defines ``best``: of each group the one version that can be the newest; and how all others stand to it."""
    result = database.cursor().execute(
        "SELECT rule, product, module, version, module_version FROM alive JOIN versions USING (version) "
        "WHERE list_contains($1::INTEGER[], rule) ORDER BY rule, product, module, version",
        [[number for number, rule in enumerate(rules) if isinstance(rule.condition, Newest)]],
    )

    def lines() -> Iterator[str]:
        group: tuple[int, int, int] | None = None
        best, newest = 0, ""
        while batch := result.fetchmany(1_000):
            for rule, product, module, version, text in batch:
                if group != (rule, product, module):
                    if group is not None:
                        yield f"{' '.join(map(str, group))} {best}\n"
                    group, best, newest = (rule, product, module), version, text
                # The newest of all, if there is one, is newer than whatever is held when it comes.
                elif compare_versions(text, newest) == "newer":
                    best, newest = version, text
        if group is not None:
            yield f"{' '.join(map(str, group))} {best}\n"

    columns = "{'rule': 'INTEGER', 'product': 'INTEGER', 'module': 'INTEGER', 'best': 'INTEGER'}"
    _define_read(database, "best", columns, work / "best", lines())
    pairs = (
        "SELECT DISTINCT version AS one, best AS other, v.module_version AS version, b.module_version AS against "
        "FROM alive JOIN best USING (rule, product, module) JOIN versions v USING (version) "
        "JOIN versions b ON b.version = best"
    )
    define_standings(database, pairs, work / "standings")


def _define_read(
    database: duckdb.DuckDBPyConnection, table: str, columns: str, path: Path, lines: Iterator[str]
) -> None:
    with path.open("w", encoding="ascii") as file:
        file.writelines(lines)
    database.execute(
        f"CREATE TABLE {table} AS FROM read_csv({quoted_to_read(path)}, delim=' ', header=false, auto_detect=false, "
        f"columns={columns}, {BLOCKS})"
    )


def _judge_variety(database: duckdb.DuckDBPyConnection, number: int, most: int) -> None:
    reason = f"format('{{:,}} versions are alive, at most {most:,} are allowed', alive)"
    rank = f"CASE WHEN alive > $2 THEN {VIOLATED} WHEN unseen > 0 AND alive + unseen > $2 THEN {NOT_SEEN} "
    database.execute(
        f"INSERT INTO groups SELECT $1, product, module, {rank} ELSE {COMPLIANT} END, true, {reason} "
        "FROM (SELECT product, module, count(DISTINCT form) AS alive FROM alive "
        f"JOIN forms USING (version) WHERE rule = $1 GROUP BY product, module) JOIN ({_UNSEEN}) USING (product)",
        [number, most],
    )


def _judge_newest(database: duckdb.DuckDBPyConnection, number: int, wanted: Newest) -> None:
    few = "{:,} of {:,} devices run the newest, {}; asked for: "
    none = "of {:,} versions none is newer than, or the same as, every other one"
    standing = "alive JOIN best USING (rule, product, module) JOIN standings ON one = version AND other = best"
    database.execute(
        f"INSERT INTO groups SELECT $1, product, module, rank, rank <> {VIOLATED}, "
        f"CASE WHEN rank = {UNPARSEABLE} THEN format('{none}', versions) "
        f"ELSE format('{few}', newest, devices, module_version) || $4 END "
        f"FROM (SELECT *, CASE WHEN NOT whole THEN {UNPARSEABLE} WHEN newest::HUGEINT * $3::BIGINT "
        f"< devices::HUGEINT * $2::BIGINT THEN {VIOLATED} WHEN newest::HUGEINT * $3::BIGINT "
        f"< (devices + unseen)::HUGEINT * $2::BIGINT THEN {NOT_SEEN} ELSE {COMPLIANT} END AS rank "
        "FROM (SELECT product, module, best, bool_and(standing IN ('older', 'same')) AS whole, count(*) AS versions, "
        "sum(devices)::BIGINT AS devices, (sum(devices) FILTER (standing = 'same'))::BIGINT AS newest "
        f"FROM {standing} WHERE rule = $1 GROUP BY product, module, best) JOIN ({_UNSEEN}) USING (product)) "
        "JOIN versions ON version = best",
        [number, wanted.share.numerator, wanted.share.denominator, wanted.text],
    )
    database.execute(
        f"INSERT INTO picked SELECT $1, combo, {VIOLATED} FROM (SELECT product, module, version FROM {standing} "
        f"JOIN groups USING (rule, product, module) WHERE rule = $1 AND rank = {VIOLATED} AND standing = 'older') "
        "JOIN versions USING (version) JOIN combos USING (product, module, module_version) "
        "ANTI JOIN (FROM pardoned WHERE rule = $1) USING (combo)",
        [number],
    )


def _tally_groups(database: duckdb.DuckDBPyConnection, number: int) -> None:
    database.execute(
        "INSERT INTO tally SELECT rule, rank, count(*) FROM groups WHERE rule = $1 GROUP BY rule, rank", [number]
    )
    database.execute(
        f"INSERT INTO tally SELECT $1, {EXCEPTED}, count(*) FROM (SELECT DISTINCT product, module FROM chosen "
        "JOIN combos USING (combo) WHERE rule = $1) ANTI JOIN (FROM groups WHERE rule = $1) USING (product, module)",
        [number],
    )
    database.execute(
        f"INSERT INTO tally SELECT $1, {NOT_SEEN}, count(*) FROM (SELECT product FROM asked "
        "SEMI JOIN (FROM scope WHERE rule = $1) USING (product) ANTI JOIN (FROM spared WHERE rule = $1) USING (line) "
        f"GROUP BY product HAVING bool_or({_UNANSWERED}) AND NOT bool_or({_ANSWERED}))",
        [number],
    )
