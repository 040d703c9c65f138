"""Commands that read devices: inventory and devices of a run, and device of all runs."""

import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from auditor.cli.console import print_note, print_notes
from auditor.cli.options import (
    FILTERS,
    FilterFlags,
    FilterOptions,
    GroupBy,
    LocalTime,
    OutputPath,
    ReadPath,
    build_filter,
    note_newer,
    read_from,
    split_names,
)
from auditor.cli.output import FormatOption, emit, print_rows, print_warnings, resolve_format, table_zone
from auditor.errors import UsageError
from auditor.models import DeviceState, Source, UpdateState
from auditor.text.formatting import safe
from auditor.text.shell import format_command
from auditor.text.time_zones import show_times


def inventory(
    run: ReadPath,
    /,
    *,
    filters: FilterOptions = None,
    group_by: GroupBy = None,
    format: FormatOption = None,  # noqa: A002  the flag's name
    out: OutputPath = None,
) -> int:
    """Count devices per product, module and version, with shares.

    With filters, count the devices that match all of them. With --group-by, count them for each site, or whatever is
    named: shares are of the devices of the product in the group.
    """
    import sys

    from auditor.cli.render_run import print_inventory, print_versions
    from auditor.query.devices import select_inventory
    from auditor.query.run import Run, VersionCount
    from auditor.runs.locking import was_killed

    resolved = resolve_format(format, out)
    if filters is not None or group_by is not None:
        with select_inventory(read_from(run), build_filter(filters), group_by=split_names(group_by)) as selected:
            print_warnings(selected.run.warnings)
            arranged = filters is not None and (filters.limit is not None or filters.sort is not None)

            def show() -> None:
                if group_by is not None or arranged or not sys.stdout.isatty():
                    print_rows(selected.table, None if filters is None else filters.limit, brief=True)
                else:
                    counts = (VersionCount(*row) for row in selected.table)
                    print_versions(counts, several_accounts=len(selected.run.manifest.accounts) > 1)

            emit(resolved, out, show=show, write=selected.table.write)
            _note_uncompared(selected.uncompared, filters)
        return 0
    with Run(read_from(run)) as opened:
        print_warnings(opened.warnings)
        label = "killed" if was_killed(opened.folder, opened.manifest) else None
        emit(
            resolved,
            out,
            show=lambda: print_inventory(
                opened.manifest, opened.devices, opened.inventory(), sample=opened.sample, ages=opened.ages, label=label
            ),
            write=opened.write_inventory,
        )
    return 0


def devices(
    run: ReadPath,
    /,
    *,
    filters: FilterOptions = None,
    status: Annotated[DeviceState | None, Parameter(group=FILTERS)] = None,
    source: Annotated[Source | None, Parameter(group=FILTERS)] = None,
    name: Annotated[str | None, Parameter(group=FILTERS)] = None,
    update: Annotated[UpdateState | Literal["behind"] | None, Parameter(group=FILTERS)] = None,
    missing: Annotated[bool, Parameter(negative=(), show_default=False, group=FILTERS)] = False,
    group_by: GroupBy = None,
    local_time: LocalTime = False,
    format: FormatOption = None,  # noqa: A002  the flag's name
    out: OutputPath = None,
) -> int:
    """List devices that match all filters, with their versions, or count them with --group-by.

    Write a row for each device and module, or one row for a device without modules. Versions that cannot be compared
    are neither below nor above another; standard error says how many devices run one. A table shows the attributes
    that --where names; other formats have all of them.

    Parameters
    ----------
    status:
        Outcome of the query.
    source:
        Where the result comes from: this run, an earlier run, or nowhere, as the device was not sampled.
    name:
        The device's device_name or iot_id.
    update:
        State of the module's update to the released version. Behind are all but current: the update failed, is offered
        to the device, was reverted, or was never offered. Lists the release and the task, too.
    missing:
        List the modules that the product defines and the device never reported, instead of the reported ones.
    """
    from auditor.query.devices import select_devices

    resolved = resolve_format(format, out)
    criteria = build_filter(filters, status=status, source=source, name=name, update=update, missing=missing)
    with select_devices(read_from(run), criteria, group_by=split_names(group_by)) as selected:
        print_warnings(selected.run.warnings)
        zone = table_zone(selected.run.manifest, local_time=local_time)
        emit(
            resolved,
            out,
            show=lambda: print_rows(selected.short_table, criteria.limit, brief=True, zone=zone),
            write=selected.table.write,
        )
        _note_uncompared(selected.uncompared, filters)
        if criteria.limit is not None and selected.rows > criteria.limit:
            print_note(f"{criteria.limit:,} of {selected.rows:,} rows")
    return 0


def _note_uncompared(count: int, filters: FilterFlags | None) -> None:
    if count and filters is not None:
        bounds = " and ".join(each for each in (filters.below, filters.above) if each is not None)
        print_note(f"{count:,} devices run a version that cannot be compared with {safe(bounds)}")


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
    from auditor.runs.folder import RunCatalog

    resolved = resolve_format(format, out)
    if not directory.exists() and os.path.isdir(name):  # noqa: PTH112  false for what is no path
        command = format_command("auditor device", directory, name)
        raise UsageError(f"{directory}: no such directory; the device comes first: {command}")
    with read_timeline(directory, name, account=account, product_key=product) as found:
        zone = table_zone(found.run.manifest, local_time=local_time)
        note_newer(RunCatalog(directory), found.run)
        print_notes(show_times(each, zone) for each in (*found.devices, *found.notes))
        emit(resolved, out, show=lambda: print_rows(found.table, brief=True, zone=zone), write=found.table.write)
        if found.recorded == 0:
            print_notes([f"{found.run.folder.name} recorded no changes: only its own versions are known"])
    return 0
