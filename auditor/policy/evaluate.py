"""Whether a run is as a policy asks: a verdict on each rule, and every device and module that breaks one.

A rule about versions (minimum, exact, deny) judges devices that report a matching module: one whose modules differ is
as bad as the worst. ``required`` and ``max_age`` judge devices that answered and are known to the platform. A device
that failed or is pending is ``not_seen``; one that the platform does not know is not judged at all. Rules about groups
(max_versions, newest) judge the modules of products: one that complies by the devices that were seen, but might not
by those that were not, is ``not_seen``, as is a product none of whose devices was seen; and one where no version is
newer than, or the same as, every other one is ``unparseable``.

- ``exact`` compares texts: ``1.2`` is none of ``1.2.0``. ``deny`` compares both ways: ``v1.2`` is denied by ``1.2``.
  Either takes a doubt as a reason to look.
- An exception takes out what it matches, of groups too, whatever it would have come to. A device that it takes out in
  part is ``excepted`` if nothing is wrong with the rest.
- Of a sample (see ``sampled_policy``) a device that was not drawn is counted as ``unsampled``, apart from those that
  are ``not_seen``; but the verdict is ``not_seen`` where none that was drawn violates a rule: that proves nothing.
  ``newest`` is judged by the interval of the share.
- A rule is ``violated`` if anything is, else ``unparseable``, else ``not_seen``, else ``compliant``. One that is about
  nothing in the run, misspelt probably, is ``not_seen``.

What judging a run by rules came to, kept when its rows are closed again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from auditor.policy.device_rules import define_verdicts
from auditor.policy.model import Deny, Exact, MaxAge, Minimum, Required, Rule, Rules, listed
from auditor.policy.results import RuleResult, results_of
from auditor.policy.sampled import define_sample, is_sampled, sample_doubt
from auditor.policy.scope import UNPARSEABLE, VIOLATED, define_rows, define_scopes
from auditor.query.snapshot import Frozen, freeze
from auditor.runs.folder import find_run
from auditor.runs.views import number
from auditor.storage.database import READING_MEMORY, READING_THREADS, open_database
from auditor.storage.tables import Table, reading

EXAMPLES = 1_000
"""Rows of a rule's examples."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A run as a policy sees it.

    Attributes:
        run: the run.
        rules: the policy.
        results: what each rule came to, in the order of the rules.
        table: the same as rows: verdict, severity, rule, unit, violated, unparseable, not_seen, excepted, compliant,
            asked (what is asked), message (what was found), unsampled, share, low, high.
        violations: a row for each device, module and rule that is violated or unparseable; of a rule about groups each
            device that is behind the newest version, and else a row for the group, without a device. Columns: rule,
            severity, verdict, account, product_key, device_name, iot_id, module_name, module_version, reason.
        rows: how many rows that is.
        examples: the same of each rule, in the order of the rules, ``EXAMPLES`` rows at most.
        doubts: why numbers are not of the whole fleet or not to be relied on, which exceptions have ended, and which
            rules are about nothing in the run, a sentence each.
    """

    run: Frozen
    rules: Rules
    results: tuple[RuleResult, ...]
    table: Table
    violations: Table
    rows: int
    examples: tuple[Table, ...]
    doubts: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Whether a rule of severity ``error`` is violated."""
        return any(result.verdict == "violated" and result.rule.severity == "error" for result in self.results)


@contextmanager
def judge_run(run: str | Path, rules: Rules, *, now: datetime | None = None) -> Iterator[Judged]:
    """What a run comes to by a policy; of a run that is still running, as it is now.

    Memory is bounded; what does not fit goes to the system's temporary folder.

    Args:
        run: a run folder, or a folder of runs, whose newest is meant.
        rules: the policy.
        now: the time by which ages and exceptions are judged, with its offset; None: the clock's.

    Raises:
        RunFolderError: it is no run, or cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    moment = datetime.now(UTC) if now is None else now.astimezone(UTC)
    folder = find_run(Path(run))
    with TemporaryDirectory(prefix="auditor-policy-") as temporary:
        work = Path(temporary)
        frozen = freeze(folder, work)
        database = open_database(work / "spill", READING_MEMORY, READING_THREADS)
        source = partial(reading, folder)
        try:
            with source():
                define_rows(database, frozen)
                define_scopes(database, rules.rules, moment)
                sampled = is_sampled(database)
                if sampled:
                    define_sample(database, frozen.fleet)
                define_verdicts(database, rules.rules, moment, work, sampled=sampled)
                results, unmatched = results_of(database, rules.rules, sampled=sampled)
                drawn = sample_doubt(database) if sampled else ()
                _define_told(database, results)
                _define_broken(database)
                listed_rows = number(database, "SELECT count(*) FROM broken") + number(database, _LISTED)
            doubts = (*frozen.doubts, *drawn, *_expired(rules.rules, moment), *unmatched)
            head = frozen.coverage | {"doubts": list(doubts)}

            def table(query: str, name: str = "violations") -> Table:
                return Table(database, query, reading=source, name=name, head=head)

            yield Judged(
                run=frozen,
                rules=rules,
                results=results,
                table=table(_RESULTS, "results"),
                violations=table(f"{_VIOLATIONS} {_ORDER}"),
                rows=listed_rows,
                examples=tuple(
                    table(f"{_VIOLATIONS} WHERE v.number = {at} {_ORDER} LIMIT {EXAMPLES}")
                    for at in range(len(results))
                ),
                doubts=doubts,
            )
        finally:
            database.close()


def _expired(rules: tuple[Rule, ...], now: datetime) -> tuple[str, ...]:
    return tuple(
        f'rule "{rule.name}": the exception of {each.text} ended with {each.until} and excepts nothing ({each.reason})'
        for rule in rules
        for each in rule.exceptions
        if each.expired(now)
    )


def _define_broken(database: duckdb.DuckDBPyConnection) -> None:
    """Defines the view ``broken``: a rule and a device that breaks it, with the combo or the time that does."""
    database.execute(
        # A device that stands twice in a run has the modules of both: each counts once.
        "CREATE VIEW broken AS SELECT DISTINCT p.rule, p.rank, line, combo, NULL::TIMESTAMP AS moment "
        f"FROM reported r JOIN (FROM picked WHERE {_WRONG}) p USING (combo) "
        "ANTI JOIN excused e ON e.rule = p.rule AND e.line = r.line AND e.row = r.row "
        "UNION ALL SELECT rule, rank, line, NULL, moment FROM found"
    )


def _define_told(database: duckdb.DuckDBPyConnection, results: tuple[RuleResult, ...]) -> None:
    """Defines ``results``, and ``reasons``: what is to say of what a rule finds, by its rank."""
    database.execute(
        "CREATE TABLE results (number INTEGER, verdict VARCHAR, severity VARCHAR, rule VARCHAR, unit VARCHAR, "
        "violated BIGINT, unparseable BIGINT, not_seen BIGINT, excepted BIGINT, compliant BIGINT, asked VARCHAR, "
        "message VARCHAR, unsampled BIGINT, share DOUBLE, low DOUBLE, high DOUBLE)"
    )
    database.execute("CREATE TABLE reasons (number INTEGER, rank TINYINT, verdict VARCHAR, reason VARCHAR)")
    for at, result in enumerate(results):
        rule = result.rule
        database.execute(
            f"INSERT INTO results VALUES ({', '.join('?' * 16)})",
            [at, result.verdict, rule.severity, rule.name, result.unit, result.violated, result.unparseable,
             result.not_seen, result.excepted, result.compliant, rule.text, result.message,
             result.unsampled, result.share, result.low, result.high],
        )  # fmt: skip
        broken, odd = _reasons(rule)
        database.executemany(
            "INSERT INTO reasons VALUES (?, ?, ?, ?)",
            [(at, VIOLATED, "violated", broken), (at, UNPARSEABLE, "unparseable", odd)],
        )


def _reasons(rule: Rule) -> tuple[str, str]:
    """Of what violates a rule, and of what cannot be judged by it."""
    match rule.condition:
        case Minimum(version):
            return f"is older than {version}", f"cannot be ordered against {version}"
        case Exact(versions):
            return f"is not {listed(versions)}, spelled so", ""
        case Deny(patterns):
            return f"is denied by {listed(patterns)}", ""
        case Required():
            return f"reports no module {listed(rule.modules)}", ""
        case MaxAge(_, age):
            return f"was answered more than {age} ago, at ", "the time of its answer is not known"
        case _:  # groups have reasons of their own
            return "", ""


_RESULTS = "SELECT * EXCLUDE (number) FROM results ORDER BY number"


_WRONG = f"rank IN ({UNPARSEABLE}, {VIOLATED})"


_LISTED = f"SELECT count(*) FROM groups WHERE listed AND {_WRONG}"


_VIOLATIONS = f"""SELECT r.rule, r.severity, w.verdict, v.account, v.product_key, v.device_name, v.iot_id,
    v.module_name, v.module_version, coalesce(v.reason, w.reason || coalesce(v.moment, '')) AS reason
  FROM (
    SELECT b.rule AS number, b.rank, d.account, d.product_key, d.device_name, d.iot_id, c.module_name,
      c.module_version, strftime(b.moment, '%Y-%m-%dT%H:%M:%SZ') AS moment, g.reason
    FROM broken b JOIN device_rows d USING (line) LEFT JOIN combos c USING (combo)
    LEFT JOIN groups g ON g.rule = b.rule AND g.product = c.product AND g.module = c.module
    UNION ALL
    SELECT g.rule, g.rank, account, product_key, NULL, NULL, title, NULL, NULL, g.reason
    FROM groups g JOIN products USING (product)
    JOIN (SELECT product, module, max(module_name) AS title FROM combos GROUP BY ALL) USING (product, module)
    WHERE g.listed AND g.{_WRONG}
  ) v JOIN results r USING (number) JOIN reasons w ON w.number = v.number AND w.rank = v.rank"""
"""What breaks a rule, with the names of devices, which are read from the run's files only now."""


_ORDER = """ORDER BY r.number, w.verdict DESC, v.account, v.product_key, v.device_name, v.iot_id, v.module_name,
  v.module_version"""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What judging a run came to.

    Attributes:
        results: what each rule came to; none if the run could not be judged.
        failed: a rule of severity ``error`` is violated.
        doubts: why the run's numbers, or its rules, are to be doubted, a sentence each.
        problem: why the run could not be judged; None if it was.
    """

    results: "tuple[RuleResult, ...]" = ()
    failed: bool = False
    doubts: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def violated(self) -> "tuple[RuleResult, ...]":
        """The rules that are violated, the most severe ones first."""
        found = (each for each in self.results if each.verdict == "violated")
        return tuple(sorted(found, key=lambda each: ("error", "warning", "note").index(each.rule.severity)))


def judge(run: str | Path, rules: "Rules", *, now: datetime | None = None) -> Judgement:
    """What a run comes to by these rules, by the time ``now``, which is the clock's if it is None.

    Raises:
        RunFolderError: it is no run, or cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    with judge_run(run, rules, now=now) as judged:
        return Judgement(judged.results, judged.failed, judged.doubts)
