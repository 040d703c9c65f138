"""Options and arguments that several commands share, with their help, and what they mean: also which run a path is."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from auditor.cli.console import LogFormat, ProgressStyle, print_notes
from auditor.errors import DriftError, UsageError
from auditor.models import ChangeDetection, Level

if TYPE_CHECKING:
    from auditor.config.settings import Settings
    from auditor.query.filters import DeviceFilter
    from auditor.runs.folder import Preference, RunCatalog, StoredRun

DEVICES = Group("Devices", sort_key=1)
SELECTION = Group("Selection (query only some devices of the fleet)", sort_key=2)
LIMITS = Group("Time and quota", sort_key=3)
FILTERS = Group("Filters", sort_key=1)
OUTPUT = Group("Output", sort_key=4)

Config = Annotated[Path, Parameter(help="Settings, a TOML file; see configs/ for examples.")]

ReadPath = Annotated[
    Path,
    Parameter(
        help="Run folder, directory of runs (uses its newest successful run of the whole fleet), or a run of it such "
        "as audits/last~1."
    ),
]

ResumePath = Annotated[
    str,
    Parameter(
        help="Run folder, directory of runs (uses its newest run; a trial only if no other run is unfinished), or "
        "address of a run that was cut."
    ),
]

RunAddress = Annotated[
    str,
    Parameter(
        help="Run folder, directory of runs (uses its newest run), or address of a run that was cut. Works on a run in "
        "progress.",
    ),
]

Accounts = Annotated[
    list[str] | None,
    Parameter(name="--account", negative=(), group=DEVICES, help="Use only this account of the settings; repeatable."),
]


# A lone hyphen, for standard input or output, is a value.
FleetFile = Annotated[
    str | None,
    Parameter(
        allow_leading_hyphen=True,
        group=DEVICES,
        help="Use this fleet file instead of the one in the settings (one account only); - is standard input.",
    ),
]

Limit = Annotated[
    int | None, Parameter(group=DEVICES, help="Use only the first INT devices, of all accounts together.")
]

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]

LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    Parameter(group=OUTPUT, help="Log messages of at least this level to standard error."),
]

LogFormatOption = Annotated[
    LogFormat,
    Parameter(
        name="--log-format",
        group=OUTPUT,
        help="Write everything on standard error, progress too, as text or as JSON lines.",
    ),
]

ProgressOption = Annotated[
    ProgressStyle,
    Parameter(
        group=OUTPUT,
        help="Show progress live on a terminal and as lines elsewhere, always as lines, as JSON lines, or not at "
        "all. With json, all lines on standard error are JSON.",
    ),
]

Hooks = Annotated[
    bool,
    Parameter(
        negative=(),
        show_default=False,
        group=OUTPUT,
        help="Write report and metrics and send messages, although the run is limited or in another directory.",
    ),
]

OutputPath = Annotated[
    Path | None,
    Parameter(
        alias="-o", allow_leading_hyphen=True, group=OUTPUT, help="Write to this file instead of standard output."
    ),
]


@dataclass(frozen=True, kw_only=True)
class LimitFlags:
    """Flags about the time and the quota of an audit."""

    deadline: str | None = None
    """Stop at a time of day such as 06:00, or at a date and time such as 2026-11-23T06:00."""

    duration: Annotated[str | None, Parameter(name="--for")] = None
    """Stop after this long, such as 4h or 1h30m."""

    priority: Annotated[bool, Parameter(negative=(), show_default=False)] = False
    """Take 90% of a quota that other audits share."""


LimitOptions = Annotated[LimitFlags | None, Parameter(name="*", group=LIMITS)]

MAX_NUMBER = 10**12
"""Largest number that a flag such as --limit takes; DuckDB has 64 bits."""


@dataclass(frozen=True, kw_only=True)
class SelectionFlags:
    """Flags that select the devices to query. Each overrides the settings' key of its name."""

    since: str | None = None
    """Query only devices that may have changed since this run ("last" or a folder); carry its other results."""

    change_detection: ChangeDetection | None = None
    """When a device may have changed: strict, it is or was online since; reconnected, it came online since."""

    max_age: str | None = None
    """Maximum age of a carried result, such as 30d."""

    recheck: str | None = None
    """Percentage of the carried results to query anyway, at random, such as 1%."""

    max_calls: int | None = None
    """Make at most INT calls, for the devices with the highest priority; carry the results of the others."""

    sample_size: Annotated[int | None, Parameter(name="--sample")] = None
    """Query a random sample of INT devices, from each product by its size."""

    precision: str | None = None
    """Query a random sample that gives versions' shares to plus or minus this much, such as 1%."""

    precision_of: Level | None = None
    """Population of these shares: the fleet, all devices with the module, or those of one product."""

    seed: int | None = None
    """Random seed; same seed, same devices."""


SelectionOptions = Annotated[SelectionFlags | None, Parameter(name="*", group=SELECTION)]


@dataclass(frozen=True, kw_only=True)
class DeviceFlags:
    """Flags that select devices of runs. A device matches if it meets every condition that is given."""

    account: Annotated[list[str] | None, Parameter(negative=())] = None
    """Name of the device's account; repeatable."""

    product: str | None = None
    """Key or name of the device's product."""

    module: str | None = None
    """Name of a module that the device reports; case does not matter."""

    where: Annotated[list[str] | None, Parameter(negative=())] = None
    """Condition on an attribute such as site=a1, site!=a1, or site= (has none); repeatable."""


@dataclass(frozen=True, kw_only=True)
class ChangeFlags(DeviceFlags):
    """Flags that select changes of devices, and rows of a result."""

    online: Annotated[bool | None, Parameter(negative="--no-online", show_default=False)] = None
    """Only devices that were online, or were not, when the platform last reported their state."""

    seen_within: str | None = None
    """Only devices that were online within this time before the run, such as 24h."""

    not_seen_for: str | None = None
    """Only devices that were last online longer before the run than this, such as 90d."""

    sort: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    """Order rows by this column; -COLUMN reverses the order."""

    limit: int | None = None
    """Write at most INT rows; default 1,000 in a table."""


@dataclass(frozen=True, kw_only=True)
class FilterFlags(ChangeFlags):
    """Flags that select devices of one run, and rows of a result."""

    version: Annotated[str | None, Parameter(name="--version")] = None
    """Exact version that the device runs."""

    below: str | None = None
    """Only devices with an older version of --module."""

    above: str | None = None
    """Only devices with a newer version of --module."""


DeviceOptions = Annotated[DeviceFlags | None, Parameter(name="*", group=FILTERS)]

ChangeOptions = Annotated[ChangeFlags | None, Parameter(name="*", group=FILTERS)]

FilterOptions = Annotated[FilterFlags | None, Parameter(name="*", group=FILTERS)]

GroupBy = Annotated[
    str | None, Parameter(group=FILTERS, help="Count by these columns or attributes, such as site,module_version.")
]

LocalTime = Annotated[
    bool,
    Parameter(
        negative=(),
        show_default=False,
        group=OUTPUT,
        help="Show times of tables and notes in this machine's time zone.",
    ),
]


def build_filter(flags: DeviceFlags | None, **further: Any) -> "DeviceFilter":  # noqa: ANN401  fields of the filter
    """Return the filter of the flags, with ``further`` conditions of a command.

    Raises:
        UsageError: a condition has no meaning.
    """
    from auditor.query.filters import DeviceFilter

    flags = flags or DeviceFlags()
    given = asdict(flags) | {"account": tuple(flags.account or ()), "where": tuple(flags.where or ())}
    if isinstance(flags, ChangeFlags):
        require_positive("--limit", flags.limit)
        for name, text in (("seen_within", flags.seen_within), ("not_seen_for", flags.not_seen_for)):
            given[name] = None if text is None else parse_duration_flag(f"--{name.replace('_', '-')}", text)
    return DeviceFilter(**(given | further))


def split_names(text: str | None) -> tuple[str, ...]:
    """Return the names in a flag's comma-separated text; a name in double quotes may have commas."""
    import csv

    return () if text is None else tuple(name.strip() for name in next(csv.reader([text], skipinitialspace=True), []))


def apply_selection_flags(settings: "Settings", flags: SelectionFlags | None, *, where: str) -> "Settings":
    """Return the settings, which errors call ``where``, with the flags applied.

    Raises:
        UsageError: a flag needs another one.
        SettingsError: the result is inconsistent.
    """
    import msgspec

    from auditor.config.validation import validate_selection

    given = {} if flags is None else {key: value for key, value in asdict(flags).items() if value is not None}
    settings = msgspec.structs.replace(settings, **given)
    validate_selection(settings, "the flags" if given else where)
    incremental = settings.since not in {None, "none"}
    for key, needs, present in (
        ("change_detection", "--since", incremental),
        ("max_age", "--since", incremental),
        ("recheck", "--since", incremental),
        ("precision_of", "--precision", settings.precision is not None),
    ):
        if key in given and not present:
            raise UsageError(f"--{key.replace('_', '-')} needs {needs}")
    return settings


def parse_time_limits(flags: LimitFlags) -> tuple[float | None, float | None]:
    """Return the time that --deadline means, in seconds since 1970, and the seconds that --for means."""
    from auditor.text.durations import parse_deadline

    max_seconds = None if flags.duration is None else parse_duration_flag("--for", flags.duration)
    try:
        return None if flags.deadline is None else parse_deadline(flags.deadline, time.time()), max_seconds
    except ValueError as error:
        raise UsageError(f"--deadline {error}") from None


def parse_duration_flag(flag: str, text: str) -> float:
    """Return the seconds of a flag's duration. Raise UsageError if the text is not one."""
    from auditor.text.durations import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{flag} {error}") from None


def restrict_accounts(settings: "Settings", accounts: "Accounts") -> "Settings":
    """Return the settings with the accounts that --account names, or all. Raise UsageError if one does not exist."""
    return settings if not accounts else settings.restrict_to_accounts(accounts)


def require_positive(flag: str, number: int | None, of: str = "devices") -> int | None:
    """Return a flag's number. Raise UsageError if it is below 1, or above what any fleet has."""
    if number is not None and not 1 <= number <= MAX_NUMBER:
        bounds = "from 1 up" if number < 1 else f"up to {MAX_NUMBER:,}"
        raise UsageError(f"{flag} {number}: give a number of {of} {bounds}")
    return number


def parse_names(flag: str, text: str | None, allowed: Sequence[str]) -> list[str]:
    """Return the names in a flag's comma-separated text. Raise UsageError if one is not allowed."""
    names = [] if text is None else [each.strip() for each in text.split(",")]
    for name in names:
        if name not in allowed:
            raise UsageError(f"{flag} {name!r}: use {', '.join(allowed)}")
    return names


def fail_on_differences(counts: Mapping[str, int]) -> None:
    """Raise DriftError if there is a difference that --fail-on names; ``counts`` are their numbers."""
    if matched := [f"{count:,} {difference}" for difference, count in counts.items() if count]:
        raise DriftError(f"--fail-on matched: {', '.join(matched)}")


def read_from(path: Path) -> Path:
    """Return the folder of the run that a path means for reading; say which, if a newer one is not successful.

    Raises:
        RunFolderError: it means none; see ``find_stored_run``.
    """
    from auditor.runs.folder import RunCatalog, StoredRun
    from auditor.runs.manifest import read_manifest

    folder = _find_folder(path, "successful", describe_older_run)
    if path.name == "last" and not path.exists():
        note_newer(RunCatalog(folder.parent), StoredRun(read_manifest(folder), folder))
    return folder


def describe_older_run(run: "StoredRun", newest: "StoredRun") -> str:
    """Return which run is read in a directory, and why it is not the newest one."""
    role = "the newest successful run" if run.is_success else "the newest run of the fleet with answers"
    return f"reading {run.folder}, {role}; {newest.folder.name} is newer, and {_describe_state(newest)}"


def note_newer(catalog: "RunCatalog", run: "StoredRun", doing: str = "reading") -> None:
    """Print a note if a newer run of the name of a run that is read has not ended."""
    newest = catalog.latest(run.manifest.name)
    if newest is not None and not newest.ended and newest.manifest.started_at > run.manifest.started_at:
        newer = f"{newest.folder.name} is newer, and {_describe_state(newest)}"
        print_notes([f"{doing} {run.folder.name}; {newer}"])


def note_unsuccessful(catalog: "RunCatalog", run: "StoredRun") -> None:
    """Print a note if a run that is compared is not successful, and an older one is."""
    successful = catalog.latest(run.manifest.name, successful=True)
    if not run.is_success and successful is not None and successful.manifest.started_at < run.manifest.started_at:
        found = f"{run.folder.name} {_describe_state(run)}"
        print_notes([f"{found}; the newest successful run is {successful.folder.name}"])


def _describe_state(run: "StoredRun") -> str:
    """Return the state of a run as the rest of a sentence."""
    from auditor.runs.locking import is_locked

    if not run.ended:
        return "is in progress" if is_locked(run.folder) else "was killed before its end"
    return f"is {run.manifest.state.replace('_', ' ')}" if run.manifest.covers_fleet else "is of a part of the fleet"


def resume_from(path: Path) -> Path:
    """Return the folder of the run that a path means for a resume; say which, if a newer one is a trial.

    Raises:
        RunFolderError: it means none; see ``find_stored_run``.
    """

    def describe(run: "StoredRun", newest: "StoredRun") -> str:
        return f"resuming {run.folder}; {newest.folder.name} is newer, and is a trial of a part of the fleet"

    return _find_folder(path, "unfinished", describe)


def _find_folder(path: Path, preference: "Preference", describe: "Callable[[StoredRun, StoredRun], str]") -> Path:
    """Return the folder of the run that a path means; print a sentence if it is not the newest one."""
    from auditor.runs.folder import find_run, find_stored_run
    from auditor.runs.manifest import MANIFEST

    if (path / MANIFEST).exists():
        return find_run(path)
    run, newest = find_stored_run(path, preference)
    if run.folder != newest.folder:
        print_notes([describe(run, newest)])
    return run.folder
