"""How a run's own numbers about its numbers are worded: what a sample is, how old answers are, whom it chose to ask."""

from collections.abc import Iterator
from datetime import datetime
from math import ceil, floor

from auditor.query.freshness import Ages
from auditor.runs.estimates import Sample
from auditor.runs.manifest import AccountChoice, Choice, Recheck
from auditor.text.formatting import counted, part, safe

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400


_SHOWN = 5


def limits(low: float, high: float, digits: int = 1) -> str:
    """An interval of parts of a whole as per cent, its limits rounded away from each other."""
    scale = 10.0**digits
    # What a product of two numbers that are not exact adds in its last digits moves no limit.
    lowest, highest = floor(low * 100 * scale + 1e-6) / scale, ceil(high * 100 * scale - 1e-6) / scale
    return f"{lowest:.{digits}f} to {highest:.{digits}f}%"


def sample_line(sample: Sample) -> str:
    """That a run is a sample, and of whom."""
    known = f", {sample.known:,} more are known never to have been activated" if sample.known else ""
    return (
        f"a sample: {sample.drawn:,} of {sample.devices:,} devices were drawn and {sample.answered:,} answered{known}; "
        "shares are estimates with 95% intervals"
    )


def sample_lines(sample: Sample) -> Iterator[str]:
    """What a sample tells of its fleet."""
    yield sample_line(sample)
    for each in sample.fleet[:_SHOWN]:
        version = safe(each.module_version) or '""'
        shares = (
            f"{part(interval.share)} ({limits(interval.low, interval.high)})" for interval in (each.fleet, each.module)
        )
        of_fleet, of_module = shares
        yield f"{safe(each.module_name)} {version}: {of_fleet} of the fleet, {of_module} of what reports the module"
    if (line := unseen_line(sample)) is not None:
        yield line


def unseen_line(sample: Sample) -> str | None:
    """How much a version may have that no answer shows; None where nothing was answered."""
    if sample.unseen is None:
        return None
    return f"a version that is not shown is held by at most {ceil(sample.unseen * 10_000) / 100:g}% of the fleet"


def age_line(ages: Ages, now: datetime) -> str | None:
    """How old a run's answers are; None without any."""
    if ages.first is None or ages.median is None or ages.last is None:
        return None
    first, last = (f"{point:%Y-%m-%d %H:%M}" for point in (ages.first, ages.last))
    carried = f"carried: {ages.carried:,} of {ages.fleet:,} devices; " if ages.carried else ""
    until = f"of {first} UTC" if first == last else f"from {first} to {last} UTC"
    return f"{carried}answers are {until}, half of them younger than {length((now - ages.median).total_seconds())}"


def recheck_line(recheck: Recheck) -> str:
    """How often it was wrong to carry an answer."""
    if recheck.rate is None or recheck.low is None or recheck.high is None:
        return f"checked: of {recheck.asked:,} carried that were asked all the same none answered"
    rate = f"{100 * recheck.rate:.2f}% ({limits(recheck.low, recheck.high, 2)})"
    return (
        f"checked: of {recheck.answered:,} carried that were asked all the same {recheck.wrong:,} had changed: {rate} "
        "of what is carried is wrong"
    )


def choice_lines(choice: Choice) -> Iterator[str]:
    """Whom a run chose to ask, and why."""
    if choice.since is not None:
        yield f"answers are carried from {safe(choice.since)}"
    elif choice.strategy == "since":
        yield "no earlier run of this name has ended whose answers could be carried, so everybody is asked"
    for account in choice.accounts:
        yield f"{safe(account.account)}: {_chosen(account, precise=choice.precision is not None)}"
    if choice.precision is not None and choice.reached is not None:
        yield (
            f"precision: shares ({choice.precision_of}) are known to {_per_cent(choice.reached)} either way; "
            f"{_per_cent(choice.precision)} was wanted"
        )
    if choice.spent and choice.calls is not None:
        yield f"the budget of {counted(choice.calls, 'call')} was spent before all that were chosen were asked"
    if choice.strategy == "since" and (beyond := sum(account.beyond for account in choice.accounts)):
        yield f"{counted(beyond, 'device')} that can have changed were beyond the budget; their answers are carried"
    if choice.unreached:
        known = "" if choice.strategy != "since" else ", though they can have changed"
        yield f"{counted(choice.unreached, 'device')} to be asked were not reached; their answers are carried{known}"


def _chosen(account: AccountChoice, *, precise: bool = False) -> str:
    if set(account.asked) == {"sample"}:
        return f"drawn at random: {'up to ' if precise else ''}{counted(account.asked['sample'], 'device')}"
    reasons = ", ".join(f"{devices:,} {reason.replace('_', ' ')}" for reason, devices in account.asked.items())
    states = f"; states of {counted(account.states, 'device')} in {counted(account.requests.sent, 'request')}"
    untold = f", {account.untold:,} of them not told" if account.untold else ""
    carried = f"; {account.carried:,} to be carried" if account.carried else ""
    return f"chosen to be asked: {reasons or 'nobody'}{carried}{f'{states}{untold}' if account.states else ''}"


def _per_cent(share: float) -> str:
    return f"{ceil(share * 1e6 - 1e-6) / 1e4:g}%"


def length(seconds: float) -> str:
    """A length of time, rounded up, in the unit that says it best."""
    for unit, size in (("days", _DAY), ("h", _HOUR)):
        if seconds > 2 * size:
            return f"{ceil(seconds / size):,} {unit}"
    return f"{max(1, ceil(seconds / _MINUTE)):,} min"
