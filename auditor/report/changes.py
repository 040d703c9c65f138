"""Changes since the previous run, for the report: by module, and by share if one of the runs is a sample."""

from collections.abc import Mapping
from heapq import nlargest
from itertools import islice
from pathlib import Path
from typing import Any

from auditor.analysis.drift import MODULE_CHANGES, diff_runs
from auditor.analysis.sample_drift import SHARE_CHANGES, ShareDrift
from auditor.query.snapshot import RunSnapshot
from auditor.report.coverage import run_labels
from auditor.report.model import ChangeSection, ShareChanges
from auditor.runs.locking import current_state

MAX_MODULES, MAX_SHARES = 10, 12
"""Rows of the page's tables."""


def read_changes(run: RunSnapshot, previous: Path) -> ChangeSection:
    """Read the changes since an earlier run, and the modules with the most changes.

    Raises:
        RunFolderError: the earlier run cannot be read.
    """
    with diff_runs(previous, run.folder) as drift:
        largest: list[Mapping[str, Any]] = []
        changed = 0
        for values in drift.modules:
            row = dict(zip(drift.modules.columns, values, strict=True))
            if count_changes(row):
                changed += 1
                largest = nlargest(MAX_MODULES, (*largest, row), key=lambda row: (count_changes(row), row["not_seen"]))
        old = drift.old
        state = current_state(old.folder, old.manifest)
        labels = run_labels(state, old.counts, tampered=old.tampered, unsampled=old.sources.unsampled)
        return ChangeSection(
            run=old.folder.name,
            started_at=old.manifest.started_at,
            label=", ".join(labels) or None,
            counts=drift.counts,
            modules=tuple(largest),
            omitted=changed - len(largest),
            warnings=tuple(warning for warning in drift.warnings if warning not in run.warnings),
            shares=None if drift.shares is None else _read_share_changes(drift.shares),
        )


def count_changes(row: Mapping[str, Any]) -> int:
    """Return the number of devices with a change of a module, from a row of ``Drift.modules``."""
    return sum(row[name] for name in MODULE_CHANGES)


def _read_share_changes(drift: ShareDrift) -> ShareChanges:
    """Read the shares that changed most."""
    rows = (dict(zip(drift.table.columns, row, strict=True)) for row in islice(drift.table, MAX_SHARES))
    return ShareChanges(drift.counts, tuple(row for row in rows if row["verdict"] in SHARE_CHANGES))
