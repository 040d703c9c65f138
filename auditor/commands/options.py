"""What several commands have in common: their options, and an audit with progress, signals and a verdict."""

import shlex
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from auditor.errors import UsageError
from auditor.terminal import safe, say, tell

if TYPE_CHECKING:
    from auditor.audit.progress import Result, Watch
    from auditor.audit.scheduler import Stop

# A lone hyphen, for standard input or output, is a value.
FleetFile = Annotated[str | None, Parameter(allow_leading_hyphen=True)]
For = Annotated[str | None, Parameter(name="--for")]
Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
LogLevel = Literal["debug", "info", "warning", "error"]


def audit(start: "Callable[[Watch, Stop], Awaitable[Result]]", log_level: str) -> "Result":
    """Runs an audit with progress and signals, and says what it came to."""
    from auditor.display import summary, watching
    from auditor.process import log_to_stderr, until_signal

    log_to_stderr(log_level)
    began = time.monotonic()
    with watching() as watch:
        result = until_signal(lambda stop: start(watch, stop))
    for line in summary(result.manifest, time.monotonic() - began):
        say(line)
    return result


def audit_and_tell(start: "Callable[[Watch, Stop], Awaitable[Result]]", log_level: str) -> int:
    """Runs an audit and tells where its folder is; and how to go on, if there is something left to do."""
    result = audit(start, log_level)
    counts = result.manifest.devices
    if counts.unanswered or result.manifest.state == "aborted":
        folder = safe(shlex.quote(str(result.folder)))
        say(f"{counts.unanswered:,} devices are left to ask; go on with: auditor resume {folder}")
    tell(str(result.folder))
    return result.exit_code


def point_in_time(deadline: str | None, length: str | None) -> float | None:
    """The point in time that --deadline or --for means, the earlier of both."""
    from auditor.schedule import next_time, seconds_of

    now = time.time()
    times = [next_time(deadline, now)] if deadline is not None else []
    times += [now + seconds_of(length)] if length is not None else []
    return min(times, default=None)


def at_least_one(flag: str, number: int | None, of: str = "devices") -> int | None:
    """The number that was given, if it was; raises UsageError below 1."""
    if number is not None and number < 1:
        raise UsageError(f"{flag} {number}: give a number of {of} from 1 up")
    return number
