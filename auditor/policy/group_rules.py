"""What rules about groups find in a run's rows: verdicts on the modules of products (see ``verdicts``)."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import duckdb

from auditor.policy.model import MaxVersions, Newest, Rule
from auditor.policy.sampled import define_intervals
from auditor.policy.scope import ANSWERED, COMPLIANT, EXCEPTED, NOT_SEEN, UNANSWERED, UNPARSEABLE, UNSAMPLED, VIOLATED
from auditor.query.version_order import define_standings
from auditor.query.versions import common_form, compare_versions
from auditor.storage.database import define_read

_UNSEEN = f"""SELECT product, unseen + coalesce(nameless, 0) AS unseen FROM (
    SELECT product, count(*) FILTER ({UNANSWERED}) AS unseen FROM asked
    ANTI JOIN (FROM spared WHERE rule = $1) USING (line) GROUP BY product
  ) JOIN products USING (product) LEFT JOIN (
    SELECT account, count(*) AS nameless FROM asked JOIN products USING (product)
    WHERE undrawn AND product_key IS NULL GROUP BY account
  ) USING (account)"""
"""How many devices of a product might make another verdict on its modules, had they been seen. A device that is named
by its iot_id alone, and was not drawn, may be of any product."""


def judge_groups(database: duckdb.DuckDBPyConnection, rules: Sequence[Rule], work: Path, *, sampled: bool) -> None:
    """Defines ``groups``, and adds to ``picked`` and ``tally``.

    Args:
        database: with what ``judging`` defines, and of a sample what ``sampled_policy`` does.
        rules: the rules.
        work: a folder for files that are written meanwhile.
        sampled: whether there are devices that were not drawn.
    """
    database.execute(
        "CREATE TABLE groups (rule INTEGER, product INTEGER, module INTEGER, rank TINYINT, listed BOOLEAN, "
        "reason VARCHAR)"
    )
    _define_alive(database, rules)
    _define_forms(database, work)
    _define_best(database, rules, work)
    define_intervals(database, work, sampled=sampled)
    for number, rule in enumerate(rules):
        match rule.condition:
            case MaxVersions(versions):
                _judge_variety(database, number, versions)
            case Newest():
                _judge_newest(database, number, rule.condition)
            case _:
                continue
        _tally_groups(database, number)


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

    define_read(database, "forms", "{'version': 'INTEGER', 'form': 'VARCHAR'}", work / "forms", lines())


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
    define_read(database, "best", columns, work / "best", lines())
    pairs = (
        "SELECT DISTINCT version AS one, best AS other, v.module_version AS version, b.module_version AS against "
        "FROM alive JOIN best USING (rule, product, module) JOIN versions v USING (version) "
        "JOIN versions b ON b.version = best"
    )
    define_standings(database, pairs, work / "standings")


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
    few = "{:,} of {:,} devices run the newest, {}{}; asked for: "
    none = "of {:,} versions none is newer than, or the same as, every other one"
    standing = "alive JOIN best USING (rule, product, module) JOIN standings ON one = version AND other = best"
    # Of a sample by the interval of the share; else by what the devices that were not seen can make of it at most.
    sampled = f"WHEN low IS NOT NULL THEN CASE WHEN high < $5 THEN {VIOLATED} WHEN low < $5 THEN {NOT_SEEN} "
    database.execute(
        f"INSERT INTO groups SELECT $1, product, module, rank, rank <> {VIOLATED}, "
        f"CASE WHEN rank = {UNPARSEABLE} THEN format('{none}', versions) "
        f"ELSE format('{few}', newest, devices, module_version, "
        "coalesce(': ' || told_low || ' to ' || told_high || ' of all by the sample', '')) || $4 END "
        f"FROM (SELECT *, CASE WHEN NOT whole THEN {UNPARSEABLE} {sampled} ELSE {COMPLIANT} END "
        f"WHEN newest::HUGEINT * $3::BIGINT < devices::HUGEINT * $2::BIGINT THEN {VIOLATED} "
        f"WHEN newest::HUGEINT * $3::BIGINT < (devices + unseen)::HUGEINT * $2::BIGINT THEN {NOT_SEEN} "
        f"ELSE {COMPLIANT} END AS rank "
        "FROM (SELECT product, module, best, bool_and(standing IN ('older', 'same')) AS whole, count(*) AS versions, "
        "sum(devices)::BIGINT AS devices, (sum(devices) FILTER (standing = 'same'))::BIGINT AS newest "
        f"FROM {standing} WHERE rule = $1 GROUP BY product, module, best) JOIN ({_UNSEEN}) USING (product) "
        "LEFT JOIN (FROM intervals WHERE rule = $1) USING (product, module)) JOIN versions ON version = best",
        [number, wanted.share.numerator, wanted.share.denominator, wanted.text, float(wanted.share)],
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
        f"INSERT INTO tally SELECT $1, CASE WHEN undrawn THEN {UNSAMPLED} ELSE {NOT_SEEN} END, count(*) FROM ("
        f"SELECT product, bool_and(undrawn) FILTER ({UNANSWERED}) AS undrawn FROM asked "
        "SEMI JOIN (FROM scope WHERE rule = $1) USING (product) ANTI JOIN (FROM spared WHERE rule = $1) USING (line) "
        f"GROUP BY product HAVING bool_or({UNANSWERED}) AND NOT bool_or({ANSWERED})) GROUP BY ALL",
        [number],
    )
