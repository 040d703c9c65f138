"""Files of a run that each account has its part of, and what is in them."""

import shutil
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

import duckdb

from auditor.database import AS_PARQUET, READING_MEMORY, READING_THREADS, open_database, parquet, quoted, reason_of
from auditor.errors import RunNotWritableError


def write_with_part(part: Path, target: Path, account: str, out: Path) -> None:
    """Writes what a file is to be that has parts of several accounts, with an account's part in it.

    Args:
        part: the account's.
        target: the file as it is, if it is there.
        account: whose part is replaced.
        out: the file to write.

    Raises:
        RunNotWritableError: it cannot be written.
    """
    try:
        if target.exists():
            _write(f"SELECT * FROM {parquet(target)} WHERE account <> $1 UNION ALL FROM {parquet(part)}", account, out)
        else:
            shutil.copyfile(part, out)
    except (OSError, duckdb.Error) as error:
        raise RunNotWritableError(f"{target} cannot be written: {reason_of(error)}") from error


def keep_accounts(path: Path, accounts: Collection[str]) -> None:
    """Leaves out of a file what is not of these accounts; of none, the file goes.

    Raises:
        RunNotWritableError: it cannot be written.
    """
    new = path.with_suffix(".new")
    try:
        if not accounts:
            path.unlink()
            return
        with closing(open_database(None, READING_MEMORY, READING_THREADS)) as database:
            others = f"SELECT 1 FROM {parquet(path)} WHERE NOT list_contains($1::VARCHAR[], account) LIMIT 1"
            if not database.execute(others, [list(accounts)]).fetchall():
                return
        _write(f"SELECT * FROM {parquet(path)} WHERE list_contains($1::VARCHAR[], account)", list(accounts), new)
        new.replace(path)
    except (OSError, duckdb.Error) as error:
        raise RunNotWritableError(f"{path} cannot be written: {reason_of(error)}") from error


def _write(query: str, given: object, out: Path) -> None:
    with closing(open_database(memory=READING_MEMORY)) as database:
        database.execute(f"COPY ({query}) TO {quoted(out)} {AS_PARQUET}", [given])


def count_chosen(plan: Path, carried: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Devices of a plan by reason, and those whose answers are carried by status.

    Raises:
        RunNotWritableError: a file cannot be read.
    """
    database = open_database(None, READING_MEMORY, READING_THREADS)
    try:
        asked = f"SELECT why, count(*) FROM {parquet(plan)} WHERE why <> 'never_activated' GROUP BY why ORDER BY why"
        kept = f"SELECT status, count(*) FROM {parquet(carried)} GROUP BY status ORDER BY status"
        return (
            dict(database.execute(asked).fetchall()),
            dict(database.execute(kept).fetchall()) if carried.exists() else {},
        )
    except duckdb.Error as error:
        raise RunNotWritableError(f"{plan} cannot be read: {reason_of(error)}") from error
    finally:
        database.close()
