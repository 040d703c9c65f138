"""Drift between two runs if at least one is a sample: significant changes of shares.

Two samples have few devices in common, so single devices show little. Both show each version's share, of a product's
devices that report the module and of all devices of the fleet, with a 95% interval. The interval of a complete fleet
has no width. The change has the interval of Newcombe (1998), see ``stats.intervals.difference_interval``. It assumes
independent samples. Samples with one seed contain the same devices, and then changes are known more precisely.

One in twenty unchanged shares appears to have changed. So an interval that excludes zero is not enough. Changes are
significant by the procedure of Benjamini & Hochberg (1995): at most one in twenty of them is expected to be chance. The
p-value of a change is read off its interval, as if that side of it belonged to a normal distribution. The interval of
a significant change excludes zero, but not every such change is significant.

A version that a run does not show has a share between zero and the most that its sample may have missed. A module that
no queried device of a product reports has no shares in the product: they are ``unknown``. Those of the fleet are known.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import erfc, sqrt
from pathlib import Path
from typing import Literal

import orjson

from auditor.models import Level, RunWarning
from auditor.query.snapshot import RunSnapshot
from auditor.runs.estimates import read_stratified_counts
from auditor.runs.views import define_sealed_views
from auditor.stats.intervals import Interval, Z, difference_interval
from auditor.stats.stratified import StratifiedCounts, VersionKey
from auditor.storage.database import READING_MEMORY, READING_THREADS, Database, borrow_database, parquet, sql_read_path
from auditor.storage.tables import ErrorTranslation, ResultTable

SHARE_CHANGES = ("grew", "shrank")
"""Significant changes of shares, as ``ShareCounts`` names them."""

FALSE_DISCOVERY_RATE = 0.05
"""Largest expected fraction of significant changes that are due to chance."""

MIN_DEVICES = 6
"""Versions with fewer devices, in both runs together, are not tested: chance alone may put them in one run only, and
each test makes the others less powerful (Tarone 1990)."""

LEVELS: tuple[Level, ...] = ("product", "fleet")

ShareVerdict = Literal["grew", "shrank", "not_significant", "unknown"]

_COLUMNS = {
    **dict.fromkeys(("level", "account", "product_key", "module_name", "module_version"), "VARCHAR"),
    **dict.fromkeys(("old_share", "old_low", "old_high", "new_share", "new_low", "new_high"), "DOUBLE"),
    **dict.fromkeys(("change", "change_low", "change_high"), "DOUBLE"),
    "verdict": "VARCHAR",
}


@dataclass(frozen=True, slots=True)
class ShareCounts:
    """Numbers of shares by their change.

    Attributes:
        shares: all shares in either run.
        grew, shrank: shares with a significant change.
        not_significant: shares that differ no more than samples of one fleet may.
        unknown: shares of modules that no device of the product reports in one of the runs.
    """

    shares: int
    grew: int
    shrank: int
    not_significant: int
    unknown: int


@dataclass(frozen=True, slots=True)
class ShareDrift:
    """Changes of the versions' shares.

    Attributes:
        table: a row for each version in either run, of a product's module and of a module in the whole fleet; those
            with significant changes first, then by the size of the change. Columns: level (``product`` or ``fleet``),
            account, product_key, module_name, module_version; old_share, old_low, old_high, new_share, new_low,
            new_high, change, change_low, change_high (fractions; NULL if unknown) and verdict.
    """

    counts: ShareCounts
    table: ResultTable


@dataclass(frozen=True, slots=True)
class _Pair:
    """A version, its share in each run (None: unknown), and the number of queried devices in both that run it."""

    level: Level
    version: VersionKey
    old: Interval | None
    new: Interval | None
    devices: int

    @property
    def p_value(self) -> float | None:
        """Probability of a change at least as large between samples of one fleet; None: not tested."""
        if self.old is None or self.new is None or self.devices < MIN_DEVICES:
            return None
        change = difference_interval(self.old, self.new)
        width = change.share - change.low if change.share > 0 else change.high - change.share
        if not width:
            return 0.0 if change.share else 1.0
        return erfc(Z * abs(change.share) / width / sqrt(2))


def read_share_drift(
    database: Database,
    old: RunSnapshot,
    new: RunSnapshot,
    work: Path,
    *,
    reading: ErrorTranslation,
    head: Mapping[str, object],
) -> ShareDrift:
    """Compare the shares of two runs, in the table ``shares``; ``head`` is that of the JSON document.

    The folder ``work`` must exist as long as the rows are read; ``reading`` translates errors of the runs' files.
    """
    with reading(()):
        before, after = _read_counts(old, work), _read_counts(new, work)
    pairs = [pair for level in LEVELS for pair in _pairs(level, before, after)]
    significant = _significant([pair.p_value for pair in pairs])
    verdicts = [_verdict(pair, changed=changed) for pair, changed in zip(pairs, significant, strict=True)]
    path = work / "shares.jsonl"
    rows = map(_row, pairs, verdicts)
    with path.open("wb") as file:
        file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    columns = ", ".join(f"{name}: '{kind}'" for name, kind in _COLUMNS.items())
    options = f"format='newline_delimited', columns={{{columns}}}"
    database.execute(f"CREATE TABLE shares AS FROM read_json({sql_read_path(path)}, {options})")
    names: tuple[ShareVerdict, ...] = ("grew", "shrank", "not_significant", "unknown")
    by_verdict = {name: verdicts.count(name) for name in names}
    query = (
        "FROM shares ORDER BY verdict NOT IN ('grew', 'shrank'), abs(change) DESC NULLS LAST, level DESC, account, "
        "product_key, module_name, module_version"
    )
    table = ResultTable(database, query, reading=reading, name="shares", head={**head, "verdicts": by_verdict})
    return ShareDrift(ShareCounts(len(pairs), **by_verdict), table)


def sample_comparison_warning(compared: int) -> RunWarning:
    """Return the warning that a comparison is based on samples."""
    covered = f"changes of single devices cover only the {compared:,} devices that were queried in both runs"
    detail = f"this compares samples: changes of shares have 95% confidence; {covered}"
    return RunWarning("sample_comparison", "", detail)


def _read_counts(run: RunSnapshot, work: Path) -> StratifiedCounts:
    with borrow_database(work / "spill", READING_MEMORY, READING_THREADS) as database:
        define_sealed_views(database, run.devices.parent)
        return read_stratified_counts(database, parquet(run.fleet))


def _pairs(level: Level, old: StratifiedCounts, new: StratifiedCounts) -> Iterator[_Pair]:
    """Yield each version in either run, in the spelling of the new one, with both shares."""
    old_shares, new_shares = (
        {(share.version.module, share.version.module_version): share for share in counts.shares(level)}
        for counts in (old, new)
    )
    versions = {key: share.version for shares in (old_shares, new_shares) for key, share in shares.items()}
    modules = {module for module, _ in versions}
    old_unseen, new_unseen = (counts.unseen_shares(level, modules) for counts in (old, new))
    for key, version in versions.items():
        old_share, new_share = old_shares.get(key), new_shares.get(key)
        yield _Pair(
            level,
            version,
            old_unseen.get(key[0]) if old_share is None else old_share.interval,
            new_unseen.get(key[0]) if new_share is None else new_share.interval,
            devices=sum(share.on_version for share in (old_share, new_share) if share is not None),
        )


def _significant(p_values: list[float | None]) -> list[bool]:
    """Return which changes are significant by Benjamini & Hochberg (1995): all up to the last below its limit."""
    tested = sorted(p_value for p_value in p_values if p_value is not None)
    limit = -1.0
    for rank, p_value in enumerate(tested, start=1):
        if p_value <= FALSE_DISCOVERY_RATE * rank / len(tested):
            limit = p_value
    return [p_value is not None and p_value <= limit for p_value in p_values]


def _verdict(pair: _Pair, *, changed: bool) -> ShareVerdict:
    if pair.old is None or pair.new is None:
        return "unknown"
    if not changed:
        return "not_significant"
    return "grew" if pair.new.share > pair.old.share else "shrank"


def _row(pair: _Pair, verdict: ShareVerdict) -> dict[str, object]:
    change = None if pair.old is None or pair.new is None else difference_interval(pair.old, pair.new)
    row: dict[str, object] = {"level": pair.level, **pair.version._asdict(), "verdict": verdict}
    for names, interval in (
        (("old_share", "old_low", "old_high"), pair.old),
        (("new_share", "new_low", "new_high"), pair.new),
        (("change", "change_low", "change_high"), change),
    ):
        limits = (None,) * len(names) if interval is None else (interval.share, interval.low, interval.high)
        row |= {name: None if each is None else round(each, 6) for name, each in zip(names, limits, strict=True)}
    return row
