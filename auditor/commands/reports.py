"""The command that writes the report."""

from pathlib import Path

from auditor.commands.output import Out, note
from auditor.terminal import safe, say, tell


def report(
    run: Path,
    /,
    *,
    out: Out = None,
    rules: Path | None = None,
    history: Path | None = None,
) -> int:
    """One page for people: coverage, versions, adoption, what changed, policy, what was slow; opens anywhere.

    The file asks nothing of any network, is smaller than 2 MB for any fleet, and prints. Prints its path.

    Parameters
    ----------
    run:
        A run folder, or a directory of runs, whose newest is meant. One that is still running is read as it stands.
    out:
        The file to write, "fleet.html" if none is given; - for standard output.
    rules:
        Judge the run by this policy.
    history:
        The directory in which older runs of the same name lie, if not the one of the run.
    """
    import sys

    from auditor.report.html import render, require_extra, write_page
    from auditor.report.page import read_page

    require_extra()
    policy = None
    if rules is not None:
        from auditor.inventory.rules import load_rules

        policy = load_rules(rules)
    page = read_page(run, rules=policy, directory=history)
    note(page.notes)
    if str(out) == "-":
        sys.stdout.buffer.write(render(page).encode())
        return 0
    written = write_page(page, Path("fleet.html") if out is None else out)
    say(f"the report is {written.stat().st_size / 1_000:,.0f} kB; open it in a browser")
    tell(safe(written))
    return 0
