"""Render runs for people: inventory, drift, coverage, audit summary and checks. Names from devices are escaped."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING

from rich.text import Text

from auditor.analysis.drift import MODULE_CHANGES, PRESENCES, Drift, DriftCounts
from auditor.analysis.sample_drift import ShareCounts, ShareDrift
from auditor.cli.console import print_line, print_note
from auditor.cli.output import ALL_ROWS, Column, open_console, print_columns, shows_marks
from auditor.errors import find_code, refer_to_code
from auditor.query.describe import (
    describe_ages,
    describe_recheck,
    describe_sample_estimates,
    format_limits,
)
from auditor.query.freshness import AnswerAges
from auditor.query.run import VersionCount
from auditor.query.versions import VersionOrder
from auditor.query.warnings import is_tolerated, state_label
from auditor.runs.estimates import SampleSummary
from auditor.runs.manifest import DeviceCounts, DiscoveryInfo, Manifest
from auditor.runs.selection_info import ReleasesInfo
from auditor.text.formatting import format_change, format_count, format_interval, format_share, safe

if TYPE_CHECKING:
    from auditor.audit.preflight import AccountCheck

MAX_ORDERED = 300
"""Versions of a module up to which they are printed in their order: each is compared with each other one."""

_BAR_WIDTH = 10
"""Characters of a bar for 100%."""

MAX_SHARE_ROWS = 1_000
"""Maximum number of rows in a table of shares."""


def print_inventory(
    manifest: Manifest,
    devices: DeviceCounts,
    versions: Iterable[VersionCount],
    *,
    sample: SampleSummary | None = None,
    ages: AnswerAges | None = None,
    now: datetime | None = None,
    label: str | None = None,
) -> None:
    """Print the inventory as a table, and whether the run is complete: in the word ``label``, or by its manifest.

    With ``sample``, print its estimates for the fleet; with ``ages``, the ages of the results at ``now``.
    """
    print_versions(versions, several_accounts=len(manifest.accounts) > 1, sampled=sample is not None)
    console = open_console()
    unsampled = manifest.unsampled if sample is None else sample.devices - sample.sampled - sample.never_activated
    console.print(Text(f"\n{describe_coverage(manifest, devices, unsampled, label=label)}"))
    estimates = () if sample is None else describe_sample_estimates(sample)
    for line in (*estimates, *_describe_freshness(manifest, ages, now)):
        console.print(Text(line))


def print_versions(versions: Iterable[VersionCount], *, several_accounts: bool, sampled: bool = False) -> None:
    """Print versions as a table. Repeated cells are blank.

    A terminal shows newer versions of a module first, as far as their order is known, the newest one with a mark, and
    shares with bars.
    """
    first, marks, is_terminal = 0 if several_accounts else 1, shows_marks(), sys.stdout.isatty()
    columns = [Column(name, []) for name in ("account", "product key", "module", "version")[first:]]
    columns += [Column("devices", [], "right"), Column("share", [], "right", drop=3)]
    columns += [Column("95% interval", [], "right", drop=2)] if sampled else []
    columns += [Column("", [], drop=1)] if marks else []
    previous: tuple[str, ...] = ()
    for place, rows in groupby(versions, lambda row: (row.account, row.product_key or "?", row.module_name)):
        cells = tuple(map(safe, place))
        for row, is_newest in _newest_first(list(rows)) if is_terminal else ((row, False) for row in rows):
            same = 0
            while same < len(previous) and cells[: same + 1] == previous[: same + 1]:
                same += 1
            version = safe(row.module_version) + (" ●" if marks and is_newest else "")
            interval = "" if row.low is None or row.high is None else format_limits(row.low, row.high)
            shown: list[str | Text] = []
            shown += ["" if at < same else cell for at, cell in enumerate(cells)][first:]
            shown += [Text(version, style="bold" if is_newest else ""), f"{row.devices:,}"]
            shown += [format_share(row.share, aligned=True), *([interval] if sampled else [])]
            shown += [Text(_bar(row.share), style="blue")] if marks else []
            for column, cell in zip(columns, shown, strict=True):
                column.cells.append(cell)
            previous = cells
    print_columns(columns)


def _newest_first(rows: list[VersionCount]) -> Iterator[tuple[VersionCount, bool]]:
    """Yield the versions of a module, newer ones first, and whether each is newer than all others."""
    by_version = {row.module_version: row for row in rows}
    if not 1 < len(rows) == len(by_version) <= MAX_ORDERED:
        yield from ((row, False) for row in rows)
        return
    ordered, newest = VersionOrder(by_version).newest_first(list(by_version))
    yield from ((by_version[version], version == newest) for version in ordered)


def _bar(share: float) -> str:
    """Return a share as a bar of blocks; one above 0 has an eighth of a block at least."""
    eighths = max(round(share * _BAR_WIDTH * 8), 1 if share else 0)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _describe_freshness(manifest: Manifest, ages: AnswerAges | None, now: datetime | None = None) -> Iterator[str]:
    """Yield a line about the ages of a run's results, and one about its recheck."""
    if ages is None:
        return
    if (line := describe_ages(ages, now or datetime.now(UTC))) is not None:
        yield line
    if manifest.selection is not None and manifest.selection.recheck is not None:
        yield describe_recheck(manifest.selection.recheck)


def describe_drift(drift: Drift) -> Iterator[str]:
    """Yield lines about what changed between two runs; counts of 0 are left out."""
    counts = drift.counts
    runs = f"{safe(drift.old.folder.name)} to {safe(drift.new.folder.name)}"
    if drift.shares is not None:
        yield f"{runs}: {describe_share_counts(drift.shares.counts)}"
    devices = [f"{counts.compared:,} devices compared", *_name_counts(counts, PRESENCES)]
    yield f"{runs}: {', '.join(devices)}"
    if counts.carried:
        oldest = drift.new.manifest.oldest_answer_at
        age = "" if oldest is None else f"; the oldest result is of {safe(oldest)}"
        yield f"{counts.carried:,} of {counts.compared:,} compared devices have carried results: the same{age}"
    changes = list(_name_counts(counts, MODULE_CHANGES)) or ["none changed"]
    of_products = list(_name_counts(counts, ("added", "removed")))
    added = f"; modules of products: {', '.join(of_products)}" if of_products else ""
    yield f"modules of these devices: {', '.join([*changes, f'{counts.same:,} same'])}{added}"


def describe_changed_modules(drift: Drift) -> str:
    """Return how many modules of products changed, also by account if the newer run has several."""
    accounts = Counter(row[0] for row in drift.changed_modules)
    several = len(drift.new.manifest.accounts) > 1 and accounts
    each = f" ({', '.join(f'{safe(name)}: {count:,}' for name, count in sorted(accounts.items()))})" if several else ""
    return f"{accounts.total():,} of {format_count(drift.modules.count_rows(), 'module')} of products changed{each}"


def describe_share_counts(counts: ShareCounts) -> str:
    """Return how many shares changed significantly, did not, or cannot be compared."""
    changed = f"{counts.grew + counts.shrank:,} changed ({counts.grew:,} grew, {counts.shrank:,} shrank)"
    not_significant = f"{counts.not_significant:,} did not change significantly (95%)"
    unknown = f", {counts.unknown:,} cannot be compared" if counts.unknown else ""
    return f"of {counts.shares:,} shares {changed}, {not_significant}{unknown}"


def print_shares(shares: ShareDrift) -> None:
    """Print shares before and after as a table, changed ones first, with confidence intervals in brackets."""
    rows = [
        dict(zip(shares.table.columns, row, strict=True))
        for row, _ in zip(shares.table, range(MAX_SHARE_ROWS), strict=False)
    ]
    several = len({row["account"] for row in rows if row["level"] == "product"}) > 1
    columns = [Column("account", [safe(row["account"] or "") for row in rows])] if several else []
    products = ("complete fleet" if row["level"] == "fleet" else safe(row["product_key"] or "?") for row in rows)
    columns += [
        Column("product", list(products)),
        Column("module", [safe(row["module_name"]) for row in rows]),
        Column("version", [safe(row["module_version"]) for row in rows]),
    ]
    for name, side in (("before", "old"), ("after", "new")):
        intervals = (format_interval(row[f"{side}_share"], row[f"{side}_low"], row[f"{side}_high"]) for row in rows)
        columns.append(Column(name, list(intervals), "right", drop=1 if side == "old" else 2))
    changes = (format_change(row["change"], row["change_low"], row["change_high"]) for row in rows)
    columns += [Column("change", list(changes), "right"), Column("verdict", [row["verdict"] for row in rows])]
    print_columns(columns)
    if shares.counts.shares > MAX_SHARE_ROWS:
        print_note(f"the table shows {MAX_SHARE_ROWS:,} rows; {ALL_ROWS}")


def _name_counts(counts: DriftCounts, names: Iterable[str]) -> Iterator[str]:
    """Yield the counts that are not 0, with their names."""
    yield from (f"{count:,} {name.replace('_', ' ')}" for name in names if (count := getattr(counts, name)))


def describe_coverage(
    manifest: Manifest, counts: DeviceCounts, unsampled: int | None = None, *, label: str | None = None
) -> str:
    """Return a line with a run's label and its devices by state; ``unsampled`` defaults to the manifest's."""
    unsampled = manifest.unsampled if unsampled is None else unsampled
    states = [
        f"{counts.ok:,} ok",
        f"{counts.empty:,} empty",
        f"{counts.not_found:,} not found",
        f"{counts.failed:,} failed",
        f"{counts.pending - unsampled:,} pending",
        *([f"{unsampled:,} not sampled"] if unsampled else []),
    ]
    label = label or state_label(manifest.state, counts, unsampled, tolerated=is_tolerated(manifest))
    return f"{label}: {sum(astuple(counts)):,} devices: {', '.join(states)}"


def describe_discovery(discovery: DiscoveryInfo, *, in_progress: bool = False) -> str:
    """Return a line about the discovery of an account's fleet, in a run that may be ``in_progress``."""
    account = safe(discovery.account)
    if discovery.state == "pending":
        rest = "its devices are being listed" if in_progress else "device list incomplete; resume will continue it"
        return f"{account}: {rest}"
    devices, products = format_count(discovery.devices, "device"), format_count(discovery.products, "product")
    never = discovery.statuses.get("UNACTIVE", 0)
    excluded = f", {discovery.excluded:,} excluded by the settings" if discovery.excluded else ""
    return (
        f"{account}: {devices} of {products} listed in {format_count(discovery.requests.sent, 'request')}, "
        f"{never:,} of them never activated{excluded}" + "".join(f"; {safe(gap)}" for gap in discovery.describe_gaps())
    )


def describe_releases(releases: ReleasesInfo) -> str:
    """Return a line about the released firmware of an account."""
    found = (
        f"{safe(releases.account)}: {releases.firmware:,} firmware, {format_count(releases.jobs, 'update job')} and "
        f"{format_count(releases.tasks, 'task')} read in {format_count(releases.requests, 'request')}"
    )
    return found + "".join(f"; {safe(warning.detail.partition(': ')[2])}" for warning in releases.warnings())


def print_checks(checks: "Iterable[AccountCheck]") -> None:
    """Print one line for each account that was checked."""
    for check in checks:
        duplicates = f", {format_count(check.duplicates, 'duplicate')} dropped" if check.duplicates else ""
        products = "" if check.products is None else f" of {format_count(check.products, 'product')}"
        clock = f", its clock is {check.clock_offset:+.0f} s off" if check.clock_offset else ""
        problem = None if check.problem is None else refer_to_code(check.problem, find_code(check.problem))
        outcome = problem or f"answers in {check.seconds * 1000:.0f} ms, first device: {check.result}{clock}"
        print_line(
            f"{'ok  ' if check.problem is None else 'FAIL'} {safe(check.account)} ({safe(check.endpoint)}): "
            f"{format_count(check.devices, 'device')}{products}{duplicates}; {safe(outcome)}"
        )
