"""The command that tells beforehand what an audit will take."""

from pathlib import Path
from typing import Literal

from auditor.commands.options import Accounts, FleetFile, at_least_one, picked
from auditor.terminal import tell


def plan(
    config: Path,
    /,
    *,
    account: Accounts = None,
    fleet: FleetFile = None,
    limit: int | None = None,
    window: str | None = None,
    calls: int | None = None,
    sample: int | None = None,
    precision: str | None = None,
    format: Literal["table", "json"] = "table",  # noqa: A002  the flag's name
) -> int:
    """Tell what an audit will take: calls, time at the quotas, and whether it fits into a window.

    Below that, strategies that ask less are compared: what they take, and how old or how wrong what they tell may be.
    Nothing is asked and no key is needed. With --window the exit code is 0 if asking all is known to fit, else 1.

    Parameters
    ----------
    config:
        The settings, a TOML file. The newest run of their name tells how many calls a device takes.
    account:
        Only this account of the settings; may be given several times.
    fleet:
        A fleet file instead of the one in the settings, for one account; - is standard input.
    limit:
        Plan for the first so many devices only, of all accounts together.
    window:
        The length of time that there is, such as 8h or 1h30m; what does not fit is told with what would.
    calls:
        A budget of calls a night to compare with.
    sample:
        A sample of so many devices to compare with. Without it one of 10,000.
    precision:
        A sample to compare with that knows versions' shares to plus or minus so much. Without it 1%.
    format:
        How to write it.
    """
    from auditor.audit.planning import plan_audit
    from auditor.config import load_settings
    from auditor.process import log_to_stderr
    from auditor.schedule import seconds_of

    log_to_stderr("warning")
    settings, first = picked(load_settings(config), account), at_least_one("--limit", limit)
    planned = plan_audit(
        settings,
        fleet=fleet,
        limit=first,
        window=None if window is None else seconds_of(window),
        calls=calls,
        sample=sample,
        precision=precision,
    )
    if format == "json":
        import orjson

        tell(orjson.dumps(planned, option=orjson.OPT_INDENT_2).decode())
    else:
        from auditor.display import print_plan

        print_plan(planned)
    return 0 if window is None or planned.fits else 1
