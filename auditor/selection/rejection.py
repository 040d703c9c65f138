"""Rejection of the results of the platform's search index, where the recheck shows that too many are wrong."""

from dataclasses import dataclass, replace
from pathlib import Path

from auditor.runs.estimates import read_recheck
from auditor.runs.folder import CARRIED, SELECTED
from auditor.runs.recovery import write_remaining_devices
from auditor.runs.selection_info import SelectionInfo
from auditor.runs.views import define_base_views
from auditor.storage.database import (
    READING_MEMORY,
    READING_THREADS,
    parquet,
    scratch_database,
    sql_literal,
    write_parquet,
)
from auditor.storage.files import put_in_place


@dataclass(frozen=True, slots=True)
class RejectedResults:
    """Results of the index that are not used.

    Attributes:
        devices: file of the devices of the account that have no answer now.
        removed: removed results, by status.
        low: lower limit of the fraction of wrong ones.
    """

    devices: Path
    removed: dict[str, int]
    low: float


def reject_index_results(
    folder: Path, selection: SelectionInfo, account: str, limit: float, remaining: Path
) -> RejectedResults | None:
    """Remove an account's results of the index, if more than a fraction ``limit`` of them is wrong.

    The 95% confidence interval of the recheck decides: its lower limit must be above. Return None if they are kept.

    Raises:
        RunNotWritableError: a file cannot be written.
        RunFolderError: the run cannot be read.
    """
    own = replace(selection, accounts=tuple(each for each in selection.accounts if each.account == account))
    target, new = folder / CARRIED, folder / f"{CARRIED}.new"
    with scratch_database(
        remaining.with_suffix(".reading"),
        memory=READING_MEMORY,
        threads=READING_THREADS,
        failure=f"{folder}: the recheck cannot be evaluated",
    ) as database:
        define_base_views(database, folder)
        database.execute(
            f"CREATE OR REPLACE TEMP VIEW selected_devices AS FROM {parquet(folder / SELECTED)} "
            f"WHERE account = {sql_literal(account)}"
        )
        recheck = read_recheck(database, own)
        if recheck is None or recheck.low is None or recheck.low <= limit:
            return None
        rows, is_own = parquet(target), f"account = {sql_literal(account)}"
        counts = f"SELECT status, count(*) FROM {rows} WHERE {is_own} GROUP BY status"
        removed = {str(status): int(count) for status, count in database.execute(counts).fetchall()}
        write_parquet(database, f"FROM {rows} WHERE NOT ({is_own})", new)
    put_in_place(new, target)
    write_remaining_devices(folder, remaining, account=account)
    return RejectedResults(remaining, removed, recheck.low)
