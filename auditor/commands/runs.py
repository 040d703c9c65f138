"""Commands that read runs."""

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

from cyclopts import Parameter

from auditor.errors import UsageError
from auditor.terminal import safe, say, tell


def inventory(
    run: Path,
    /,
    *,
    format: Literal["table", "csv", "json", "jsonl", "parquet"] = "table",  # noqa: A002  the flag's name
    out: Annotated[Path | None, Parameter(alias="-o", allow_leading_hyphen=True)] = None,
) -> int:
    """Who runs what: every version of every module, how many devices run it, and their share.

    Parameters
    ----------
    run:
        A run folder, or a directory of runs, whose newest is meant. One that is still running is read as it stands.
    format:
        How to write it.
    out:
        The file to write, instead of standard output.
    """
    from auditor.inventory.queries import Run

    with Run(run) as opened:
        if format == "table" and str(out or "-") == "-":
            from auditor.display import print_inventory

            print_inventory(opened.manifest, opened.devices, opened.inventory())
            return 0
        if format == "table":
            raise UsageError("a table goes to standard output; choose --format csv, json, jsonl or parquet for a file")
        if opened.manifest.state != "complete":
            say(f"note: {opened.folder} is {opened.manifest.state}, so the inventory is not of the whole fleet")
        if out is not None and str(out) != "-":
            opened.write_inventory(out, format)
            return 0
        with TemporaryDirectory(prefix="auditor-") as temporary:
            whole = Path(temporary, "inventory")
            opened.write_inventory(whole, format)
            with whole.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
    return 0


def verify(run: Path, /) -> int:
    """Recompute a run from its files and compare: states, counts, digests, Parquet, inventory.

    Prints what does not hold, a line each, and then exits with 1.

    Parameters
    ----------
    run:
        A run folder, or a directory of runs, whose newest is meant.
    """
    from auditor.inventory.folder import find_run, read_manifest
    from auditor.inventory.verify import verify as prove

    folder = find_run(run)
    problems = prove(folder)
    for problem in problems:
        tell(safe(problem))
    if not problems:
        say(f"{folder}: every number follows from the files; the run is {read_manifest(folder).state}")
    return 1 if problems else 0
