"""The command count: how many devices run a version, by the platform's own count."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from auditor.cli.console import print_notes
from auditor.cli.options import Accounts, Config, LogFormatOption, LogLevel, OutputPath, restrict_accounts
from auditor.cli.output import FormatOption, emit, print_rows, resolve_format
from auditor.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from auditor.bulk.counting import IndexCount

_ONLY_IN_TOTAL = "only the row without a version counts them"


def count(
    config: Config,
    /,
    *,
    module: str,
    version: str | None = None,
    below: str | None = None,
    product: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    account: Accounts = None,
    format: FormatOption = None,  # noqa: A002  the flag's name
    out: OutputPath = None,
    log_level: LogLevel = "warning",
    log_format: LogFormatOption = "text",
) -> int:
    """Count the devices that run a version of a module, without querying one of them.

    The platform counts with its search index, in one call for each account, or each product that is named. The index
    may be behind the devices. Alibaba's enterprise instances have it in some regions; others refuse.

    With --below, count the versions that the newest complete run has, since the index does not order versions: in one
    call for each, or for all that begin alike and are older whatever follows, such as 1.2.*. A version that is not
    older in each product that has it is counted by product. The row without a version counts all devices with the
    module. Versions that cannot be compared are in that row only; standard error says how many devices run one.

    Parameters
    ----------
    module:
        Name of the module.
    version:
        Count the devices that run this version; default: all devices with the module.
    below:
        Count the devices that run a version below this one.
    product:
        Count the devices of this product; repeat it for several.
    """
    from auditor.bulk.counting import CAVEAT, count_devices_by_version, exact_queries, queries_below
    from auditor.cli.runtime import log_to_stderr
    from auditor.concurrency import run_event_loop
    from auditor.config.loader import load_settings

    if version is not None and below is not None:
        raise UsageError("--version and --below both select versions; leave out one of them")
    log_to_stderr(log_level, log_format)
    settings = restrict_accounts(load_settings(config), account)
    resolved = resolve_format(format, out)
    notes = [CAVEAT]
    if below is None:
        queries = exact_queries(settings, module, version, product)
    else:
        found = queries_below(settings, module, below, product)
        queries, run = found.queries, found.run.name
        if found.uncompared:
            number = f"{found.uncompared:,} devices of {run}"
            notes.append(f"{number} run a version that cannot be compared with {below}; {_ONLY_IN_TOTAL}")
        notes.append(f"versions that {run} does not have: {_ONLY_IN_TOTAL}")
    counts = run_event_loop(lambda: count_devices_by_version(settings, queries), use_uvloop=True)
    _emit(counts, resolved, out)
    print_notes(notes)
    return 0


def _emit(counts: "Sequence[IndexCount]", format_: "FormatOption", out: Path | None) -> None:
    from auditor.bulk.counting import CAVEAT
    from auditor.storage.database import open_database
    from auditor.storage.tables import ResultTable, translate_read_errors

    rows = [(each.query.account, each.query.product_key, each.query.module_name, each.query.label, each.devices)
            for each in counts]  # fmt: skip
    names = ("account", "product_key", "module_name", "module_version")
    with open_database() as database:
        columns = ", ".join(f"{name} VARCHAR" for name in names)
        database.execute(f"CREATE TABLE counts ({columns}, devices BIGINT)")
        database.executemany("INSERT INTO counts VALUES (?, ?, ?, ?, ?)", rows)
        head, reading = {"caveat": CAVEAT}, partial(translate_read_errors, "counts")
        table = ResultTable(database, "FROM counts", reading=reading, name="counts", head=head)
        emit(format_, out, show=lambda: print_rows(table), write=table.write)
