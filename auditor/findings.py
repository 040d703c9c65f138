"""What people see of runs: the inventory, what changed, how whole a run is. Names from devices are escaped.

Apart from the display of audits, which loads the network: that takes longer than to read an inventory.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import astuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from auditor.inventory.drift import FATES, MODULE_CHANGES, Drift, DriftCounts
from auditor.inventory.folder import DeviceCounts, Manifest
from auditor.inventory.queries import VersionCount
from auditor.terminal import PIPE_WIDTH, part, safe


def print_inventory(manifest: Manifest, devices: DeviceCounts, versions: Iterable[VersionCount]) -> None:
    """The inventory as a table; repeated cells are left blank, and a run that is not whole is labelled."""
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    several = len(manifest.accounts) > 1
    for name in ("account", "product", "module", "version")[0 if several else 1 :]:
        table.add_column(name, overflow="fold")
    table.add_column("devices", justify="right")
    table.add_column("share", justify="right")
    before: tuple[str, ...] = ()
    for row in versions:
        place = (safe(row.account), safe(row.product_key or "?"), safe(row.module_name))
        same = 0
        while same < len(before) and place[: same + 1] == before[: same + 1]:
            same += 1
        cells = ["" if at < same else cell for at, cell in enumerate(place)]
        table.add_row(
            *cells[0 if several else 1 :], safe(row.module_version), f"{row.devices:,}", part(row.share, aligned=True)
        )
        before = place
    console.print(table)
    console.print(Text(f"\n{coverage(manifest, devices)}"))


def drift_summary(drift: Drift) -> Iterator[str]:
    """What changed between two runs, for standard error."""
    found = drift.counts
    runs = f"{safe(drift.old.folder.name)} to {safe(drift.new.folder.name)}"
    yield f"{runs}: devices: {_named(found, ('compared', *FATES))}"
    of_products = _named(found, ("added", "removed"))
    yield f"modules of these: {_named(found, ('same', *MODULE_CHANGES))}; modules of products: {of_products}"


def _named(counts: DriftCounts, names: Iterable[str]) -> str:
    return ", ".join(f"{getattr(counts, name):,} {name.replace('_', ' ')}" for name in names)


def coverage(manifest: Manifest, counts: DeviceCounts) -> str:
    """How whole a run is, in one line."""
    parts = [
        f"{counts.ok:,} ok",
        f"{counts.empty:,} empty",
        f"{counts.not_found:,} not found",
        f"{counts.failed:,} failed",
        f"{counts.pending:,} pending",
    ]
    return f"{manifest.state}: {sum(astuple(counts)):,} devices: {', '.join(parts)}"
