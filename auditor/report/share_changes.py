"""What changed between samples, for the report: shares, and no change that may be chance."""

from dataclasses import dataclass
from itertools import islice

from auditor.inventory.sampled_drift import SHARE_CHANGES, ShareCounts, ShareDrift
from auditor.terminal import points, within

CHANGED = 12
"""Rows of shares that the page has."""


@dataclass(frozen=True, slots=True)
class ShareChange:
    """A version's share that changed, in words; ``level`` is ``product``, or ``fleet`` for all devices of the run."""

    level: str
    account: str | None
    product_key: str | None
    module_name: str
    module_version: str
    before: str
    after: str
    change: str
    verdict: str


@dataclass(frozen=True, slots=True)
class ShareChanges:
    """How many shares came to what, and those that changed most."""

    counts: ShareCounts
    rows: tuple[ShareChange, ...]

    @property
    def changed(self) -> int:
        """Shares that changed by more than chance."""
        return self.counts.grew + self.counts.shrank

    @property
    def more(self) -> int:
        """Those of them that are not among ``rows``."""
        return self.changed - len(self.rows)


def read_share_changes(drift: ShareDrift | None) -> ShareChanges | None:
    """The shares that changed most; None where no run is a sample."""
    if drift is None:
        return None
    first = (dict(zip(drift.table.columns, row, strict=True)) for row in islice(drift.table, CHANGED))
    rows = tuple(
        ShareChange(
            **{name: row[name] for name in ("level", "account", "product_key", "module_name", "module_version")},
            before=within(row["old_share"], row["old_low"], row["old_high"]),
            after=within(row["new_share"], row["new_low"], row["new_high"]),
            change=points(row["change"], row["change_low"], row["change_high"]),
            verdict=row["verdict"],
        )
        for row in first
        if row["verdict"] in SHARE_CHANGES
    )
    return ShareChanges(drift.counts, rows)
