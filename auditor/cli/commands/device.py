"""The command device: one device over all runs."""

from pathlib import Path

from auditor.cli.options import LocalTime, OutputPath
from auditor.cli.output import FormatOption, emit, print_notes, print_rows, resolve_format, table_zone
from auditor.text.time_zones import show_times


def device(
    name: str,
    directory: Path = Path("audits"),
    /,
    *,
    account: str | None = None,
    product: str | None = None,
    local_time: LocalTime = False,
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
        zone = table_zone(found.run.manifest, local_time=local_time)
        print_notes(show_times(each, zone) for each in (*found.devices, *found.notes))
        emit(resolved, out, show=lambda: print_rows(found.table, brief=True, zone=zone), write=found.table.write)
        if found.recorded == 0:
            print_notes([f"{found.run.folder.name} recorded no changes: only its own versions are known"])
    return 0
