"""Command that tests the messages after a run."""

from typing import Annotated

from cyclopts import Parameter

from auditor.cli.console import print_line
from auditor.cli.options import Config, Flag
from auditor.errors import UsageError
from auditor.text.formatting import safe


def notify(
    config: Config, /, *, test: Flag = False, to: Annotated[list[str] | None, Parameter(negative=())] = None
) -> int:
    """Send a test message to each place of [[notify]] and ping, and report what became of it.

    Make no call to the platform. A dead man's switch receives a line of its log, which changes nothing. Exit with 3 if
    a message was not delivered.

    Parameters
    ----------
    test:
        Send the messages; needed.
    to:
        Only to the place with this name; repeatable.
    """
    from auditor.cli.runtime import log_to_stderr
    from auditor.config.loader import load_settings
    from auditor.hooks.notifications import send_test
    from auditor.hooks.ping import DeadMansSwitch
    from auditor.hooks.prepare import prepare_targets

    log_to_stderr("warning")
    settings = load_settings(config)
    if not test:
        raise UsageError("notify needs --test; messages about a run are sent by auditor run and auditor resume")
    names = [table.name for table in settings.notify]
    for name in to or ():
        if name not in names:
            raise UsageError(f"--to {name}: is not in {config}, which has {', '.join(names) or 'no [[notify]]'}")
    targets = [target for target in prepare_targets(settings, str(config)) if target.name in (to or names)]
    problems = send_test(targets, settings.name)
    outcomes = [(f"notify {name}", "delivered", problem) for name, problem in problems.items()]
    if settings.ping is not None and not to:
        problem = DeadMansSwitch.open(settings.ping, str(config)).log("test by auditor notify")
        outcomes.append(("ping", "reached", problem))
    if not outcomes:
        raise UsageError(f"{config}: has neither [[notify]] nor ping")
    for label, success, problem in outcomes:
        print_line(f"ok   {label}: {success}" if problem is None else f"FAIL {label}: {safe(problem)}")
    return 3 if any(problem is not None for _, _, problem in outcomes) else 0
