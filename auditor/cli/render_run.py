"""Render runs for people: inventory, drift, coverage, audit summary and checks. Names from devices are escaped."""

from collections.abc import Iterable, Iterator
from dataclasses import astuple
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.text import Text

from auditor.analysis.drift import MODULE_CHANGES, PRESENCES, Drift, DriftCounts
from auditor.analysis.sample_drift import ShareCounts, ShareDrift
from auditor.cli.console import print_error, print_line
from auditor.cli.output import ALL_ROWS, Column, open_console, print_columns
from auditor.query.describe import (
    describe_ages,
    describe_recheck,
    describe_sample_estimates,
    describe_selection,
    format_limits,
)
from auditor.query.freshness import AnswerAges
from auditor.query.run import VersionCount
from auditor.query.warnings import is_tolerated, state_label
from auditor.runs.estimates import SampleSummary
from auditor.runs.manifest import DeviceCounts, DiscoveryInfo, Manifest
from auditor.text.formatting import format_change, format_count, format_duration, format_interval, format_share, safe

if TYPE_CHECKING:
    from auditor.audit.preflight import AccountCheck

MAX_SHARE_ROWS = 1_000
"""Maximum number of rows in a table of shares."""

_MAX_TEXT = 20_000
"""Characters of a text of ``run.json`` that are printed: another user may have written it."""


def print_inventory(
    manifest: Manifest,
    devices: DeviceCounts,
    versions: Iterable[VersionCount],
    *,
    sample: SampleSummary | None = None,
    ages: AnswerAges | None = None,
    now: datetime | None = None,
) -> None:
    """Print the inventory as a table. Repeated cells are blank, and a label says whether the run is complete.

    With ``sample``, print its estimates for the fleet; with ``ages``, the ages of the results at ``now``.
    """
    first = 0 if len(manifest.accounts) > 1 else 1
    columns = [Column(name, []) for name in ("account", "product", "module", "version")[first:]]
    columns += [Column("devices", [], "right"), Column("share", [], "right", drop=2)]
    columns += [] if sample is None else [Column("95% interval", [], "right", drop=1)]
    previous: tuple[str, ...] = ()
    for row in versions:
        place = (safe(row.account), safe(row.product_key or "?"), safe(row.module_name))
        same = 0
        while same < len(previous) and place[: same + 1] == previous[: same + 1]:
            same += 1
        interval = "" if row.low is None or row.high is None else format_limits(row.low, row.high)
        cells = ["" if at < same else cell for at, cell in enumerate(place)][first:]
        cells += [safe(row.module_version), f"{row.devices:,}", format_share(row.share, aligned=True), interval]
        for column, cell in zip(columns, cells, strict=False):
            column.cells.append(cell)
        previous = place
    print_columns(columns)
    console = open_console()
    unsampled = manifest.unsampled if sample is None else sample.devices - sample.sampled - sample.never_activated
    console.print(Text(f"\n{describe_coverage(manifest, devices, unsampled)}"))
    estimates = () if sample is None else describe_sample_estimates(sample)
    for line in (*estimates, *_describe_freshness(manifest, ages, now)):
        console.print(Text(line))


def _describe_freshness(manifest: Manifest, ages: AnswerAges | None, now: datetime | None = None) -> Iterator[str]:
    """Yield a line about the ages of a run's results, and one about its recheck."""
    if ages is None:
        return
    if (line := describe_ages(ages, now or datetime.now(UTC))) is not None:
        yield line
    if manifest.selection is not None and manifest.selection.recheck is not None:
        yield describe_recheck(manifest.selection.recheck)


def describe_drift(drift: Drift) -> Iterator[str]:
    """Yield lines about what changed between two runs."""
    counts = drift.counts
    runs = f"{safe(drift.old.folder.name)} to {safe(drift.new.folder.name)}"
    if drift.shares is not None:
        yield f"{runs}: {describe_share_counts(drift.shares.counts)}"
    fates = PRESENCES if drift.shares is not None else tuple(fate for fate in PRESENCES if fate != "unsampled")
    yield f"{runs}: devices: {_name_counts(counts, ('compared', *fates))}"
    if counts.carried:
        oldest = drift.new.manifest.oldest_answer_at
        age = "" if oldest is None else f"; the oldest result is of {safe(oldest)}"
        yield f"{counts.carried:,} of {counts.compared:,} compared devices have carried results: the same{age}"
    of_products = _name_counts(counts, ("added", "removed"))
    yield f"their modules: {_name_counts(counts, ('same', *MODULE_CHANGES))}; modules of products: {of_products}"


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
        print_error(f"note: the table shows {MAX_SHARE_ROWS:,} rows; {ALL_ROWS}")


def _name_counts(counts: DriftCounts, names: Iterable[str]) -> str:
    return ", ".join(f"{getattr(counts, name):,} {name.replace('_', ' ')}" for name in names)


def describe_coverage(manifest: Manifest, counts: DeviceCounts, unsampled: int | None = None) -> str:
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
    label = state_label(manifest.state, counts, unsampled, tolerated=is_tolerated(manifest))
    return f"{label}: {sum(astuple(counts)):,} devices: {', '.join(states)}"


def summarize_audit(manifest: Manifest, seconds: float, ages: AnswerAges | None = None) -> Iterator[str]:
    """Yield the lines of an audit's summary: its session took ``seconds``, and its results have these ages."""
    for discovery in manifest.discovery:
        yield describe_discovery(discovery)
    duplicates = manifest.fleet.duplicates - sum(discovery.duplicates for discovery in manifest.discovery)
    if duplicates > 0:
        yield f"fleet: {format_count(duplicates, 'row')} that named a device twice dropped"
    if (aliases := manifest.fleet.describe_aliases()) is not None:
        yield f"fleet: {aliases}"
    yield from (f"fleet: {safe(sentence)}" for sentence in manifest.describe_shared_names())
    yield describe_coverage(manifest, manifest.devices)
    requests, rate = manifest.requests, manifest.rate
    of_quota = "" if not rate.target else f", {rate.achieved / rate.target:.1%} of the quota"
    querying = requests.sent / rate.achieved if rate.achieved else 0.0
    expected = None if manifest.planned is None else manifest.planned.seconds
    from auditor.cli.render_plan import format_planned_duration

    planned = "" if expected is None else f", planned {format_planned_duration(expected)}"
    yield (
        f"{requests.sent:,} requests in {format_duration(querying)}{planned} ({rate.achieved:,.1f}/s{of_quota}), "
        f"{requests.retried:,} retries, {requests.throttled:,} throttled; "
        f"{format_duration(seconds)} {'in this session' if manifest.resumed_at else 'in total'}"
    )
    yield from describe_selection(manifest.selection) if manifest.selection is not None else ()
    yield from _describe_freshness(manifest, ages)
    yield from (safe(str(mismatched)) for mismatched in manifest.mismatched)
    for failure in manifest.failures[:5]:
        code, example = (safe(text[:_MAX_TEXT]) for text in (failure.code, failure.example))
        yield f"failed: {failure.devices:,} with {code}, such as {example}"
    yield from (safe(str(account)) for account in manifest.silent)
    gaps = (warning.detail for discovery in manifest.discovery for warning in discovery.warnings())
    if manifest.error is not None and manifest.error != "; ".join([*map(str, manifest.silent), *gaps]):
        yield f"stopped: {safe(manifest.error[:_MAX_TEXT])}"


def describe_discovery(discovery: DiscoveryInfo) -> str:
    """Return a line about the discovery of an account's fleet."""
    account = safe(discovery.account)
    if discovery.state == "pending":
        return f"{account}: device list incomplete; resume will continue it"
    devices, products = format_count(discovery.devices, "device"), format_count(discovery.products, "product")
    never = discovery.statuses.get("UNACTIVE", 0)
    excluded = f", {discovery.excluded:,} excluded by the settings" if discovery.excluded else ""
    return (
        f"{account}: {devices} of {products} listed in {format_count(discovery.requests.sent, 'request')}, "
        f"{never:,} of them never activated{excluded}" + "".join(f"; {safe(gap)}" for gap in discovery.describe_gaps())
    )


def print_checks(checks: "Iterable[AccountCheck]") -> None:
    """Print one line for each account that was checked."""
    for check in checks:
        duplicates = f", {format_count(check.duplicates, 'duplicate')} dropped" if check.duplicates else ""
        products = "" if check.products is None else f" of {format_count(check.products, 'product')}"
        clock = f", its clock is {check.clock_offset:+.0f} s off" if check.clock_offset else ""
        outcome = check.problem or f"answers in {check.seconds * 1000:.0f} ms, first device: {check.result}{clock}"
        print_line(
            f"{'ok  ' if check.problem is None else 'FAIL'} {safe(check.account)} ({safe(check.endpoint)}): "
            f"{format_count(check.devices, 'device')}{products}{duplicates}; {safe(outcome)}"
        )
