"""The command that shows runs over time."""

from pathlib import Path

from auditor.commands.output import Format, Out, chosen, deliver, note
from auditor.terminal import say

TABLE_RUNS = 30
"""The newest so many runs, where people look at them and no other number was asked for."""


def history(
    directory: Path = Path("audits"),
    /,
    *,
    name: str | None = None,
    product: str | None = None,
    module: str | None = None,
    limit: int | None = None,
    format: Format | None = None,  # noqa: A002  the flag's name
    out: Out = None,
) -> int:
    """How versions spread from run to run: the runs of a directory, and the share of each version in them.

    A run that is not whole is marked with ~, one whose numbers are not to be relied on with !, and one that has no
    versions, as it is running or was killed, with ?.

    Parameters
    ----------
    directory:
        A directory of runs.
    name:
        Of the runs of this name; without it, of the newest run's.
    product:
        Of this product_key alone.
    module:
        Of this module alone, in upper or lower case.
    limit:
        The newest so many runs; without it 30 in a table, and all of them in other formats.
    format:
        How to write it: a table, unless the name of a file tells another.
    out:
        The file to write, instead of standard output.
    """
    from auditor.inventory.history import read_history
    from auditor.timeline import print_history

    form = chosen(format, out)
    newest = limit if limit is not None or form != "table" else TABLE_RUNS
    with read_history(directory, name=name, product_key=product, module_name=module, limit=newest) as found:
        note(found.doubts)
        deliver(form, out, show=lambda: print_history(found), write=found.table.write)
        if newest != limit and len(found.runs) == newest:
            say(f"note: the newest {newest} runs at most; --limit shows more")
    return 0
