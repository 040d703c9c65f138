"""What changed between two runs of which one is a sample, or both: in shares, and no change that may be chance.

Two samples have few devices in common, so what became of single devices tells little. What both tell is each version's
share, of a product's devices that report the module and of all devices of the fleet, with its interval of 95%; of a
whole fleet that has no width. The change has the interval of Newcombe (1998), see ``intervals.difference``. It takes
the samples for independent: those of one seed draw the same devices, and then changes are known better than it says.

Of many shares that did not change, one in twenty looks as if it had. So a share has not changed because its own
interval is off zero: those are told as changed of which, by Benjamini & Hochberg (1995), at most one in twenty is to be
expected to be chance. How likely a change as great is by chance is read off its interval, as if that were a normal
distribution's on its side. Such a change is off zero by its own interval too, but not every one that is is told.

A version that a run does not show has a share from none to the most that its sample may have missed. A module that no
device of a product was seen to report has no shares in it, so there they are ``unknown``; those of the fleet are not.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import erfc, sqrt
from pathlib import Path
from typing import Literal

import duckdb
import orjson

from auditor.models import Level
from auditor.query.snapshot import Frozen
from auditor.runs.views import define_sealed_views
from auditor.stats.intervals import Interval, Z, difference
from auditor.stats.stratified import Tallies, Version, read_tallies
from auditor.storage.database import READING_MEMORY, READING_THREADS, open_database, parquet, quoted_to_read
from auditor.storage.tables import Reading, Table

SHARE_CHANGES = ("grew", "shrank")
"""Changes of shares that are more than chance, as ``ShareCounts`` names them."""


BY_CHANCE = 0.05
"""The part of the changes that are told which is expected to be chance, at most."""


FEW = 6
"""A version that less devices were seen to run, in both runs together, is left out of this: it may be in one run alone
by chance, and each share that is looked at makes it harder to tell what changed of others (Tarone 1990)."""


LEVELS: tuple[Level, ...] = ("product", "fleet")


ShareVerdict = Literal["grew", "shrank", "noise", "unknown"]


_COLUMNS = {
    **dict.fromkeys(("level", "account", "product_key", "module_name", "module_version"), "VARCHAR"),
    **dict.fromkeys(("old_share", "old_low", "old_high", "new_share", "new_low", "new_high"), "DOUBLE"),
    **dict.fromkeys(("change", "change_low", "change_high"), "DOUBLE"),
    "verdict": "VARCHAR",
}


@dataclass(frozen=True, slots=True)
class ShareCounts:
    """Shares by what became of them.

    Attributes:
        shares: all that either run shows.
        grew, shrank: those that changed by more than chance.
        noise: those that differ by no more than samples of one fleet may.
        unknown: those of modules that one of both runs shows on no device of the product.
    """

    shares: int
    grew: int
    shrank: int
    noise: int
    unknown: int


@dataclass(frozen=True, slots=True)
class ShareDrift:
    """What became of the versions' shares.

    Attributes:
        counts: how many changed.
        table: a row for each version of a product's module, and of a module in the whole fleet, that either run shows;
            those that changed first, the greatest change before others. Columns: level (``product`` or ``fleet``),
            account, product_key, module_name, module_version; old_share, old_low, old_high, new_share, new_low,
            new_high, change, change_low, change_high (parts of a whole; NULL where nothing tells) and verdict.
    """

    counts: ShareCounts
    table: Table


@dataclass(frozen=True, slots=True)
class _Pair:
    """A version, its share in either run, None where it is not known, and on how many devices both show it."""

    level: Level
    version: Version
    old: Interval | None
    new: Interval | None
    running: int

    @property
    def chance(self) -> float | None:
        """How likely a change as great is where there is none; None where none could be told."""
        if self.old is None or self.new is None or self.running < FEW:
            return None
        changed = difference(self.old, self.new)
        width = changed.share - changed.low if changed.share > 0 else changed.high - changed.share
        if not width:
            return 0.0 if changed.share else 1.0
        return erfc(Z * abs(changed.share) / width / sqrt(2))


def read_shares(
    database: duckdb.DuckDBPyConnection,
    old: Frozen,
    new: Frozen,
    work: Path,
    *,
    reading: Reading,
    head: Mapping[str, object],
) -> ShareDrift:
    """What became of the shares between two runs.

    Args:
        database: where the table ``shares`` is defined.
        old: the earlier run.
        new: the later run.
        work: a folder for a file that must last as long as the rows are read.
        reading: tells what is wrong with the runs' files.
        head: what stands before the rows in JSON.

    Raises:
        RunFolderError: a run cannot be read.
    """
    with reading(()):
        before, after = _tallies(old, work), _tallies(new, work)
    pairs = [pair for level in LEVELS for pair in _pairs(level, before, after)]
    told = _told([pair.chance for pair in pairs])
    verdicts = [_verdict(pair, changed=changed) for pair, changed in zip(pairs, told, strict=True)]
    path = work / "shares.jsonl"
    with path.open("wb") as file:
        file.writelines(
            orjson.dumps(_row(pair, verdict), option=orjson.OPT_APPEND_NEWLINE)
            for pair, verdict in zip(pairs, verdicts, strict=True)
        )
    columns = ", ".join(f"{name}: '{kind}'" for name, kind in _COLUMNS.items())
    database.execute(
        f"CREATE TABLE shares AS FROM read_json({quoted_to_read(path)}, format='newline_delimited', "
        f"columns={{{columns}}})"
    )
    names: tuple[ShareVerdict, ...] = ("grew", "shrank", "noise", "unknown")
    counts = ShareCounts(len(pairs), *(verdicts.count(name) for name in names))
    query = (
        "FROM shares ORDER BY verdict NOT IN ('grew', 'shrank'), abs(change) DESC NULLS LAST, level DESC, account, "
        "product_key, module_name, module_version"
    )
    by_verdict = {name: verdicts.count(name) for name in names}
    about = {**head, "verdicts": by_verdict}
    return ShareDrift(counts, Table(database, query, reading=reading, name="shares", head=about))


def sample_doubt(compared: int) -> str:
    """That a comparison is of samples, in a sentence."""
    return (
        "this compares samples: what changed is told of shares, with 95% confidence; changes of single devices are "
        f"those of the {compared:,} that were read in both runs"
    )


def _tallies(run: Frozen, work: Path) -> Tallies:
    database = open_database(work / "spill", READING_MEMORY, READING_THREADS)
    try:
        define_sealed_views(database, run.devices.parent)
        return read_tallies(database, parquet(run.fleet))
    finally:
        database.close()


def _pairs(level: Level, old: Tallies, new: Tallies) -> Iterator[_Pair]:
    """Every version that either run shows, in the spelling of the new one, with both shares."""
    before, after = (
        {(share.version.module, share.version.module_version): share for share in tallies.shares(level)}
        for tallies in (old, new)
    )
    versions = {key: share.version for shown in (before, after) for key, share in shown.items()}
    modules = {module for module, _ in versions}
    unseen_before, unseen_after = (tallies.unseen(level, modules) for tallies in (old, new))
    for key, version in versions.items():
        was, is_now = before.get(key), after.get(key)
        yield _Pair(
            level,
            version,
            unseen_before.get(key[0]) if was is None else was.interval,
            unseen_after.get(key[0]) if is_now is None else is_now.interval,
            running=sum(share.running for share in (was, is_now) if share is not None),
        )


def _told(chances: list[float | None]) -> list[bool]:
    """Which changes are told, by Benjamini & Hochberg (1995): all up to the last that is less likely than its rank."""
    known = sorted(chance for chance in chances if chance is not None)
    limit = -1.0
    for rank, chance in enumerate(known, start=1):
        if chance <= BY_CHANCE * rank / len(known):
            limit = chance
    return [chance is not None and chance <= limit for chance in chances]


def _verdict(pair: _Pair, *, changed: bool) -> ShareVerdict:
    if pair.old is None or pair.new is None:
        return "unknown"
    if not changed:
        return "noise"
    return "grew" if pair.new.share > pair.old.share else "shrank"


def _row(pair: _Pair, verdict: ShareVerdict) -> dict[str, object]:
    changed = None if pair.old is None or pair.new is None else difference(pair.old, pair.new)
    found: dict[str, object] = {"level": pair.level, **pair.version._asdict(), "verdict": verdict}
    for names, interval in (
        (("old_share", "old_low", "old_high"), pair.old),
        (("new_share", "new_low", "new_high"), pair.new),
        (("change", "change_low", "change_high"), changed),
    ):
        limits = (None,) * len(names) if interval is None else (interval.share, interval.low, interval.high)
        found |= {name: None if each is None else round(each, 6) for name, each in zip(names, limits, strict=True)}
    return found
