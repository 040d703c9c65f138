"""What people see of runs: the inventory, what changed, how whole a run is. Names from devices are escaped.

Apart from the display of audits, which loads the network: that takes longer than to read an inventory.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from auditor.analysis.drift import FATES, MODULE_CHANGES, Drift, DriftCounts
from auditor.analysis.sample_drift import ShareCounts, ShareDrift
from auditor.audit.preflight import AccountCheck
from auditor.cli.console import say, tell
from auditor.cli.render_plan import _time
from auditor.query.describe import age_line, choice_lines, limits, recheck_line, sample_lines
from auditor.query.freshness import Ages
from auditor.query.run import VersionCount
from auditor.query.warnings import label_of
from auditor.runs.estimates import Sample
from auditor.runs.manifest import DeviceCounts, ListingFacts, Manifest
from auditor.text.formatting import PIPE_WIDTH, counted, part, points, safe, span, within

SHARES_SHOWN = 1_000
"""Rows of shares that a table has."""


def print_inventory(
    manifest: Manifest,
    devices: DeviceCounts,
    versions: Iterable[VersionCount],
    *,
    sample: Sample | None = None,
    ages: Ages | None = None,
    now: datetime | None = None,
) -> None:
    """The inventory as a table; repeated cells are left blank, and a run that is not whole is labelled.

    Args:
        manifest: the run's.
        devices: devices by state.
        versions: the rows.
        sample: what it tells of the fleet, if it is a sample.
        ages: how old its answers are; None: that is not told.
        now: since when; None: now.
    """
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    several = len(manifest.accounts) > 1
    for name in ("account", "product", "module", "version")[0 if several else 1 :]:
        table.add_column(name, overflow="fold")
    table.add_column("devices", justify="right")
    table.add_column("share", justify="right")
    if sample is not None:
        table.add_column("95% interval", justify="right")
    before: tuple[str, ...] = ()
    for row in versions:
        place = (safe(row.account), safe(row.product_key or "?"), safe(row.module_name))
        same = 0
        while same < len(before) and place[: same + 1] == before[: same + 1]:
            same += 1
        between = [] if row.low is None or row.high is None else [limits(row.low, row.high)]
        cells = ["" if at < same else cell for at, cell in enumerate(place)]
        table.add_row(
            *cells[0 if several else 1 :],
            safe(row.module_version),
            f"{row.devices:,}",
            part(row.share, aligned=True),
            *between,
        )
        before = place
    console.print(table)
    unsampled = manifest.unsampled if sample is None else sample.devices - sample.drawn - sample.known
    console.print(Text(f"\n{coverage(manifest, devices, unsampled)}"))
    for line in sample_lines(sample) if sample is not None else ():
        console.print(Text(line))
    for line in age_lines(manifest, ages, now or datetime.now(UTC)) if ages is not None else ():
        console.print(Text(line))


def age_lines(manifest: Manifest, ages: Ages, now: datetime) -> Iterator[str]:
    """How old a run's answers are, and how often it was wrong to carry one."""
    if (line := age_line(ages, now)) is not None:
        yield line
    if manifest.choice is not None and manifest.choice.recheck is not None:
        yield recheck_line(manifest.choice.recheck)


def drift_summary(drift: Drift) -> Iterator[str]:
    """What changed between two runs, for standard error."""
    found = drift.counts
    runs = f"{safe(drift.old.folder.name)} to {safe(drift.new.folder.name)}"
    if drift.shares is not None:
        yield f"{runs}: {shares_summary(drift.shares.counts)}"
    fates = FATES if drift.shares is not None else tuple(fate for fate in FATES if fate != "unsampled")
    yield f"{runs}: devices: {_named(found, ('compared', *fates))}"
    if found.carried:
        oldest = drift.new.manifest.oldest
        age = "" if oldest is None else f"; the oldest that the new run carries is of {safe(oldest)}"
        told = f"{found.carried:,} of the {found.compared:,} compared devices were not read again"
        yield f"{told}, their answers were carried, so they are the same{age}"
    of_products = _named(found, ("added", "removed"))
    yield f"modules of these: {_named(found, ('same', *MODULE_CHANGES))}; modules of products: {of_products}"


def shares_summary(counts: ShareCounts) -> str:
    """What became of shares, in words: of how many more can be said than that samples differ."""
    changed = f"{counts.grew + counts.shrank:,} changed ({counts.grew:,} grew, {counts.shrank:,} shrank)"
    noise = f"{counts.noise:,} differ by no more than the samples may (95%)"
    unknown = f", {counts.unknown:,} cannot be compared" if counts.unknown else ""
    return f"of {counts.shares:,} shares {changed}, {noise}{unknown}"


def print_shares(shares: ShareDrift) -> None:
    """Shares before and after as a table, those that changed first; what a sample leaves open stands in brackets."""
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    rows = [
        dict(zip(shares.table.columns, row, strict=True))
        for row, _ in zip(shares.table, range(SHARES_SHOWN), strict=False)
    ]
    several = len({row["account"] for row in rows if row["level"] == "product"}) > 1
    for name in ("account", "product", "module", "version")[0 if several else 1 :]:
        table.add_column(name, overflow="fold")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for row in rows:
        fleet = row["level"] == "fleet"
        place = (safe(row["account"] or ""), "whole fleet" if fleet else safe(row["product_key"] or "?"))
        table.add_row(
            *place[0 if several else 1 :],
            safe(row["module_name"]),
            safe(row["module_version"]),
            *(within(row[f"{side}_share"], row[f"{side}_low"], row[f"{side}_high"]) for side in ("old", "new")),
            points(row["change"], row["change_low"], row["change_high"]),
            row["verdict"],
        )
    console.print(table)
    if shares.counts.shares > SHARES_SHOWN:
        say(f"note: a table has {SHARES_SHOWN:,} rows; --format csv, json, jsonl, parquet or xlsx has all of them")


def _named(counts: DriftCounts, names: Iterable[str]) -> str:
    return ", ".join(f"{getattr(counts, name):,} {name.replace('_', ' ')}" for name in names)


def coverage(manifest: Manifest, counts: DeviceCounts, unsampled: int | None = None) -> str:
    """How whole a run is, in one line; ``unsampled``: devices that were not drawn, None: as its manifest says."""
    unsampled = manifest.unsampled if unsampled is None else unsampled
    parts = [
        f"{counts.ok:,} ok",
        f"{counts.empty:,} empty",
        f"{counts.not_found:,} not found",
        f"{counts.failed:,} failed",
        f"{counts.pending - unsampled:,} pending",
        *([f"{unsampled:,} not drawn"] if unsampled else []),
    ]
    return f"{label_of(manifest.state, counts, unsampled)}: {sum(astuple(counts)):,} devices: {', '.join(parts)}"


def summary(manifest: Manifest, seconds: float, ages: Ages | None = None) -> Iterator[str]:
    """What an audit came to, for standard error.

    Args:
        manifest: of its run.
        seconds: that it took this time.
        ages: how old its answers are; None: that is not told.
    """
    for listing in manifest.listings:
        yield listed(listing)
    yield coverage(manifest, manifest.devices)
    requests, rate = manifest.requests, manifest.rate
    of_quota = "" if rate.target is None else f", {rate.achieved / rate.target:.1%} of the quota"
    asking = requests.sent / rate.achieved if rate.achieved else 0.0
    expected = None if manifest.planned is None else manifest.planned.seconds
    planned = "" if expected is None else f", planned {_time(expected)}"
    yield (
        f"{requests.sent:,} requests in {span(asking)}{planned} ({rate.achieved:,.1f}/s{of_quota}), "
        f"{requests.retried:,} repeated, {requests.throttled:,} over the quota; "
        f"{span(seconds)} {'this time' if manifest.resumed_at else 'in all'}"
    )
    yield from choice_lines(manifest.choice) if manifest.choice is not None else ()
    yield from age_lines(manifest, ages, datetime.now(UTC)) if ages is not None else ()
    for failure in manifest.failures[:5]:
        yield f"failed: {failure.devices:,} with {safe(failure.code)}, such as {safe(failure.example)}"
    told = "; ".join(doubt for listing in manifest.listings for doubt in listing.doubts())
    if manifest.error is not None and manifest.error != told:
        yield f"stopped: {safe(manifest.error)}"


def listed(listing: ListingFacts) -> str:
    """What listing an account's fleet came to, in one line."""
    if listing.state == "pending":
        return f"{safe(listing.account)}: its fleet is not listed to the end; what was listed is kept for a resume"
    name = f'account "{listing.account}": '
    requests, products = counted(listing.requests.sent, "request"), counted(listing.products, "product")
    never = listing.statuses.get("UNACTIVE", 0)
    left_out = f", {listing.excluded:,} left out by the settings" if listing.excluded else ""
    return (
        f"{safe(listing.account)}: {counted(listing.devices, 'device')} of {products} listed in {requests}, "
        f"{never:,} of them never activated{left_out}"
        + "".join(f"; {safe(doubt.removeprefix(name))}" for doubt in listing.doubts())
    )


def print_checks(checks: Iterable[AccountCheck]) -> None:
    """One line for each account that was checked."""
    for check in checks:
        repeats = f", {check.duplicates:,} repeats dropped" if check.duplicates else ""
        listed = "" if check.products is None else f" of {counted(check.products, 'product')}"
        clock = f", its clock is {check.clock_offset:+.0f} s off" if check.clock_offset else ""
        said = check.problem or f"answers in {check.seconds * 1000:.0f} ms, the first device is {check.said}{clock}"
        tell(
            f"{'ok  ' if check.problem is None else 'FAIL'} {safe(check.account)} ({safe(check.endpoint)}): "
            f"{counted(check.devices, 'device')}{listed}{repeats}; {safe(said)}"
        )
