"""What several commands have in common: their options, and an audit with progress, signals and a verdict."""

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from auditor.errors import UsageError
from auditor.models import Level, SinceRule

if TYPE_CHECKING:
    from auditor.config.settings import Settings


# A lone hyphen, for standard input or output, is a value.
FleetFile = Annotated[str | None, Parameter(allow_leading_hyphen=True)]


Accounts = Annotated[list[str] | None, Parameter(name="--account", negative=())]


For = Annotated[str | None, Parameter(name="--for")]


Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


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

    from auditor.config.validation import check_which_devices

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


def point_in_time(deadline: str | None, length: str | None) -> float | None:
    """The point in time that --deadline or --for means, the earlier of both."""
    from auditor.text.durations import next_time, seconds_of

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
