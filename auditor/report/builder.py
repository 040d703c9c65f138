"""All that the report shows, read from a run, the runs before it and the rules.

What the rules say, for the report.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from auditor.errors import AuditorError, RunFolderError, RunNotWritableError
from auditor.policy.evaluate import judge_run
from auditor.policy.model import Rules
from auditor.query.snapshot import Frozen, freeze
from auditor.report.coverage import read_coverage, read_trouble
from auditor.report.history import earlier_runs, labels_of, read_changes, read_past
from auditor.report.model import Coverage, History, Page, Policy, Shares, Trouble, Verdict
from auditor.report.versions import read_shares
from auditor.runs.estimates import define_estimates
from auditor.runs.folder import find_run
from auditor.runs.views import define_sealed_views
from auditor.storage.database import AMPLE_MEMORY, READING_MEMORY, READING_THREADS, open_database, reason_of
from auditor.storage.tables import Table

_Found = tuple[Coverage, Trouble, Shares, History | None, Path | None]


def read_page(
    run: str | Path,
    *,
    rules: "Rules | None" = None,
    directory: str | Path | None = None,
    now: datetime | None = None,
) -> Page:
    """What the report of a run shows; of one that is still running, as it is now.

    Memory is bounded; what does not fit goes to the system's temporary folder.

    Args:
        run: a run folder, or a folder of runs, whose newest is meant.
        rules: what is asked of the fleet; None: nothing.
        directory: where the runs before it lie; None: where it lies itself.
        now: when the page is written; None: now.

    Raises:
        RunFolderError: it is no run, or cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    folder = find_run(Path(run)).absolute()
    around = folder.parent if directory is None else Path(directory).absolute()
    written = (now or datetime.now(UTC)).astimezone(UTC)
    unread: list[str] = []
    problem: list[str] = []
    changes = policy = None
    frozen, (coverage, trouble, shares, history, before) = _read_frozen(folder, around, unread)
    with _or_told(unread):
        changes = None if before is None else read_changes(frozen, before)
    if rules is not None:
        policy = Policy((), 0, 0, (), ())
        with _or_told(problem, "the policy could not be judged: "):
            policy = read_policy(folder, rules, written)
    unsampled = frozen.sources.unsampled
    labels = labels_of(frozen.manifest.state, frozen.counts, tampered=frozen.tampered, unsampled=unsampled)

    def near(doubts: Iterable[str]) -> tuple[str, ...]:
        """The same without the folders that the runs lie in: a page travels, and these mean nothing elsewhere."""
        return tuple(doubt.replace(f"{folder.parent}/", "").replace(f"{around}/", "") for doubt in doubts)

    return Page(
        folder=folder.name, manifest=frozen.manifest, labels=labels, doubts=near(frozen.doubts), coverage=coverage,
        shares=shares, history=history and replace(history, doubts=near(history.doubts)),
        changes=changes and replace(changes, doubts=near(changes.doubts)),
        policy=policy and replace(policy, doubts=near(policy.doubts), problem=next(iter(near(problem)), None)),
        trouble=trouble, unread=near(unread), written_at=written,
    )  # fmt: skip


def _read_frozen(folder: Path, around: Path, unread: list[str]) -> tuple[Frozen, _Found]:
    """The run as it is now, and what ``_read`` finds."""
    try:
        with TemporaryDirectory(prefix="auditor-report-") as temporary:
            work = Path(temporary)
            frozen = freeze(folder, work / "run")
            try:
                return frozen, _read(frozen, around, work, READING_MEMORY, unread)
            except duckdb.OutOfMemoryException:  # of names of many MB, that is
                unread.clear()
                return frozen, _read(frozen, around, work, AMPLE_MEMORY, unread)
    except OSError as error:
        where = error.filename or "the system's temporary folder"
        raise RunNotWritableError(f"{where}: cannot be written: {reason_of(error)}") from error
    except (duckdb.Error, UnicodeDecodeError) as error:
        raise RunFolderError(f"{folder}: cannot be read: {reason_of(error)}") from error


def _read(run: Frozen, around: Path, work: Path, memory: str, unread: list[str]) -> _Found:
    """What the run's files say, the runs before it, and the last one of these."""
    history = before = None
    database = open_database(work / "spill", memory, READING_THREADS)
    try:
        define_sealed_views(database, run.devices.parent)
        tallies = define_estimates(database, run.folder)
        coverage = read_coverage(database, run, tallies)
        trouble = read_trouble(database, run.manifest)
        shares = read_shares(database, work)
        with _or_told(unread):
            earlier, later, broken = earlier_runs(run, around)
            unread.extend(broken)
            if earlier:
                before = earlier[0][1]
                history = read_past(database, run, shares.modules, around, later=later, work=work)
    finally:
        database.close()
    return coverage, trouble, shares, history, before


@contextmanager
def _or_told(told: list[str], what: str = "") -> Iterator[None]:
    """A past that cannot be read, or rules that cannot be judged, are told of; the page of this run is not lost."""
    try:
        yield
    except AuditorError as error:
        told.append(f"{what}{error}")
    except OSError as error:  # such as of a run that is pruned meanwhile
        told.append(f"{what}{error.filename or 'a file'}: cannot be read: {reason_of(error)}")


RULES, EXAMPLES, EACH, READ = 60, 24, 3, 200
"""Rules and violations that the page has, violations of one rule, and rows that are read to find these."""


_ORDER = ("violated", "unparseable", "not_seen", "compliant")


_SEVERITIES = ("error", "warning", "note")


def read_policy(run: Path, rules: Rules, now: datetime) -> Policy:
    """Verdicts of all rules, the violated ones first, and some violations of each.

    Raises:
        RunFolderError: the run cannot be read.
    """
    with judge_run(run, rules, now=now) as judged:
        verdicts = [
            Verdict(
                result.rule.name, result.rule.text, result.rule.severity, result.verdict, result.unit, result.message,
                result.compliant, result.violated, result.unparseable, result.not_seen, result.excepted,
                result.unsampled,
            )
            for result in judged.results
        ]  # fmt: skip
        verdicts.sort(key=lambda each: (_ORDER.index(each.verdict), _SEVERITIES.index(each.severity)))
        examples = [
            (result.rule.name, *_example(row))
            for result, table in zip(judged.results, judged.examples, strict=True)
            if result.verdict == "violated"
            for row in islice(_violations(table), EACH)
        ]
        violated = sum(each.verdict == "violated" for each in verdicts)
        doubts = tuple(doubt for doubt in judged.doubts if doubt not in judged.run.doubts)
        more = max(0, len(verdicts) - RULES)
        return Policy(tuple(verdicts[:RULES]), more, violated, tuple(examples[:EXAMPLES]), doubts)


def _violations(table: Table) -> Iterator[dict[str, object]]:
    """Those of a rule's first rows that violate it; a device may be called like a verdict."""
    for values in islice(table, READ):
        row = dict(zip(table.columns, values, strict=True))
        if row["verdict"] == "violated":
            yield row


def _example(row: dict[str, object]) -> tuple[str, str]:
    """Where a rule is violated, and why."""
    names = [row[name] for name in ("product_key", "device_name") if row[name] is not None]
    ran = [row[name] for name in ("module_name", "module_version") if row[name] is not None]
    return " ".join(("/".join(map(str, names)) or str(row["iot_id"]), *map(str, ran))), str(row["reason"])
