"""The command device: one device over all runs."""

from pathlib import Path

from auditor.cli.options import OutputPath
from auditor.cli.output import FormatOption, emit, print_notes, print_rows, resolve_format


def device(
    name: str,
    directory: Path = Path("audits"),
    /,
    *,
    account: str | None = None,
    product: str | None = None,
    format: FormatOption = None,  # noqa: A002  the flag's name
    out: OutputPath = None,
) -> int:
    """Show what one device runs, since when, and what it ran before.

    Read the newest run, and the changes that each run recorded. Standard error names rollbacks, modules that flap
    between versions, and runs without an answer.

    Parameters
    ----------
    name:
        The device's device_name or iot_id.
    directory:
        Directory of runs.
    account:
        Name of the account, if several have a device of this name.
    product:
        Product key, if several products have a device of this name.
    """
    from auditor.analysis.device_timeline import read_timeline

    resolved = resolve_format(format, out)
    with read_timeline(directory, name, account=account, product_key=product) as found:
        print_notes((*found.devices, *found.notes))
        emit(resolved, out, show=lambda: print_rows(found.table, brief=True), write=found.table.write)
        if found.recorded == 0:
            print_notes([f"{found.run.folder.name} recorded no changes: only its own versions are known"])
    return 0
