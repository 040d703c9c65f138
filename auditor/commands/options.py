"""What several commands have in common: their options, and an audit with progress, signals and a verdict."""

import shlex
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from auditor.errors import FleetError, RunFolderError, UsageError
from auditor.model import Level, SinceRule
from auditor.terminal import safe, say, tell

if TYPE_CHECKING:
    from auditor.audit.progress import Result, Watch
    from auditor.audit.scheduler import Stop
    from auditor.config import Settings
    from auditor.following import Followed, Following
    from auditor.inventory.ages import Ages
    from auditor.report.judgement import Judgement

# A lone hyphen, for standard input or output, is a value.
FleetFile = Annotated[str | None, Parameter(allow_leading_hyphen=True)]
Accounts = Annotated[list[str] | None, Parameter(name="--account", negative=())]
For = Annotated[str | None, Parameter(name="--for")]
Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
RULES_SAID = 20
"""Rules that are named after a run; ``auditor policy`` names all."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which devices are asked, if not the whole fleet; each flag goes before the settings' key of its name."""

    since: str | None = None
    """Ask only whom a run cannot tell of any more, "last" or a run folder; carry its answers about the others."""

    since_rule: SinceRule | None = None
    """Who is asked since: strict, who is online or has been; reconnected, who came online."""

    max_age: str | None = None
    """How old a carried answer may be, such as 30d."""

    recheck: str | None = None
    """The part of the carried that is asked all the same, at random, such as 1%."""

    calls: int | None = None
    """Send so many calls at most, where they are worth most; carry what is known of the others, if there is a run."""

    sample: int | None = None
    """Ask so many devices, drawn at random from each product by its size."""

    precision: str | None = None
    """Ask as many devices, drawn so, as it takes to know versions' shares to plus or minus so much, such as 1%."""

    precision_of: Level | None = None
    """Of which shares: of the fleet's devices, of those with the module, or of a product's with it."""

    seed: int | None = None
    """Of what is drawn at random: the same seed draws the same devices."""


PartFlags = Annotated[Part | None, Parameter(name="*", group="Not the whole fleet")]


def with_part(settings: "Settings", part: Part | None, *, where: str) -> "Settings":
    """The settings with what flags say of which devices are asked.

    Raises:
        UsageError: a flag goes with another one that is not there.
        SettingsError: they do not fit together.
    """
    import msgspec

    from auditor.settings_rules import check_which_devices

    given = {} if part is None else {key: value for key, value in asdict(part).items() if value is not None}
    settings = msgspec.structs.replace(settings, **given)
    check_which_devices(settings, "the flags" if given else where)
    carries = settings.since not in {None, "none"}
    for key, needs, there in (
        ("since_rule", "--since", carries),
        ("max_age", "--since", carries),
        ("recheck", "--since", carries),
        ("precision_of", "--precision", settings.precision is not None),
    ):
        if key in given and not there:
            raise UsageError(f"--{key.replace('_', '-')} goes with {needs}, which was not given")
    return settings


LogLevel = Literal["debug", "info", "warning", "error"]


def audit(start: "Callable[[Watch, Stop], Awaitable[Result]]", log_level: str) -> "Result":
    """Runs an audit with progress and signals, and says what it came to."""
    result, seconds = _audited(start, log_level)
    _say_summary(result, seconds)
    return result


def _audited(start: "Callable[[Watch, Stop], Awaitable[Result]]", log_level: str) -> "tuple[Result, float]":
    from auditor.process import log_to_stderr, until_signal
    from auditor.watching import watching

    log_to_stderr(log_level)
    began = time.monotonic()
    with watching() as watch:
        result = until_signal(lambda stop: start(watch, stop))
    return result, time.monotonic() - began


def _say_summary(result: "Result", seconds: float) -> None:
    from auditor.display import summary

    for line in summary(result.manifest, seconds, _ages(result)):
        say(line)


def _ages(result: "Result") -> "Ages | None":
    """How old a run's answers are, where that is worth a word: some are carried."""
    from auditor.inventory.queries import Run

    try:
        if result.manifest.carried:
            with Run(result.folder) as run:
                return run.ages
    except RunFolderError:  # which says nothing of what the audit came to
        pass
    return None


def audit_and_tell(
    start: "Callable[[Watch, Stop], Awaitable[Result]]", log_level: str, following: "Following | None" = None
) -> int:
    """Runs an audit, does what is to follow it, and tells where its folder is.

    If there is something left to ask, it says how to go on.
    """
    from auditor.process import unwinding_on_signals

    with unwinding_on_signals():
        result, seconds = _audited(start, log_level)
        return _follow_and_tell(result, seconds, following)


def _follow_and_tell(result: "Result", seconds: float, following: "Following | None") -> int:
    from auditor.following import follow_run

    manifest, code = result.manifest, result.exit_code
    try:
        _say_summary(result, seconds)
        if following is not None:
            followed = follow_run(result.folder, following, exit_code=code)
            code = followed.exit_code
            _say_followed(followed)
    finally:  # the run is sealed, even if somebody does not wait for the rest
        unlisted = any(listing.state != "complete" for listing in manifest.listings)
        left = manifest.to_ask or unlisted or manifest.state == "aborted"
        if left and result.exit_code != FleetError.exit_code:  # a fleet of nobody is nothing to go on with
            to_ask = f"{manifest.to_ask:,} devices are left to ask" if manifest.to_ask or not unlisted else ""
            what = " and ".join(filter(None, (to_ask, "fleets are left to list" if unlisted else "")))
            go_on = f"go on with: auditor resume {safe(shlex.quote(str(result.folder)))}"
            calls_spent = manifest.choice is not None and manifest.choice.calls is not None and manifest.choice.spent
            say(f"{what}; {'the next run asks them first' if calls_spent and not unlisted else go_on}")
        tell(str(result.folder))
    return code


def _say_followed(followed: "Followed") -> None:
    """A line for each rule that is not met, for the policy as a whole, and for what could not be done."""
    if followed.judgement is not None and followed.judgement.problem is None:
        for line in _verdicts(followed.judgement):
            say(safe(line))
    for path in followed.written:
        say(f"written: {safe(path)}")
    for problem in followed.problems:
        say(f"note: {safe(problem)}")
    if followed.problems:
        say("note: nothing of that touches the run itself")


def _verdicts(judgement: "Judgement") -> Iterator[str]:
    """The policy's verdict in lines: rules that are not met, those that are violated first, then a sum of all."""
    others = [each for each in judgement.results if each.verdict not in {"violated", "compliant"}]
    unmet = [*judgement.violated, *others]
    for each in unmet[:RULES_SAID]:
        yield f"policy: {each.verdict} ({each.rule.severity}): {each.rule.name}: {each.message}"
    if len(unmet) > RULES_SAID:
        yield f"policy: and {len(unmet) - RULES_SAID:,} rules more"
    violated, rules = len(judgement.violated), len(judgement.results)
    yield f"policy: {rules:,} rules, {violated:,} violated, {len(others):,} not known, {rules - len(unmet):,} compliant"
    for doubt in judgement.doubts:
        yield f"note: {doubt}"


def point_in_time(deadline: str | None, length: str | None) -> float | None:
    """The point in time that --deadline or --for means, the earlier of both."""
    from auditor.schedule import next_time, seconds_of

    now = time.time()
    times = [next_time(deadline, now)] if deadline is not None else []
    times += [now + seconds_of(length)] if length is not None else []
    return min(times, default=None)


def picked(settings: "Settings", accounts: "Accounts") -> "Settings":
    """The settings with the accounts that were picked by --account, or with all of them if none was.

    Raises:
        UsageError: one is not among them.
    """
    return settings if not accounts else settings.only(accounts)


def at_least_one(flag: str, number: int | None, of: str = "devices") -> int | None:
    """The number that was given, if it was; raises UsageError below 1."""
    if number is not None and number < 1:
        raise UsageError(f"{flag} {number}: give a number of {of} from 1 up")
    return number
