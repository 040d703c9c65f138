"""Command that writes new settings: init."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

from cyclopts import Group, Parameter

from auditor.cli.console import print_error, print_line, print_notes
from auditor.cli.options import Flag, parse_duration_flag
from auditor.errors import RunNotWritableError, SettingsError, UsageError
from auditor.text.shell import format_command

if TYPE_CHECKING:
    from auditor.config.settings import Settings
    from auditor.scaffold.schedule import Schedule
    from auditor.scaffold.settings_file import NewSettings

ACCOUNT = Group("Account", sort_key=1)
FILES = Group("Files", sort_key=2)

Platform = Literal["tuya", "alibaba"]
Starter = Literal["systemd", "cron"]

DEFAULT_ANSWERS = {"--platform": "tuya", "--fleet": "all"}
"""What an empty line means, by flag."""

SECRET_FORMS = "env:NAME or file:PATH"  # noqa: S105  a form, no secret


@dataclass(kw_only=True)
class AccountFlags:
    """Flags about the account. What they leave out is entered on the terminal."""

    platform: Platform | None = None
    """Platform of the account."""

    account: str = "main"
    """Name of the account in files and messages."""

    endpoint: str | None = None
    """Address of the platform, https://HOST:PORT/; default for alibaba: the one of the region."""

    region: str | None = None
    """Region of an Alibaba account, such as cn-shanghai."""

    instance: str | None = None
    """Instance of an Alibaba account, if it has one, such as iot-060a0xxx."""

    key_id: str | None = None
    """Access key id, or where it is stored: env:NAME or file:PATH."""

    key_secret: str | None = None
    """Where the secret of the access key is stored: env:NAME or file:PATH."""

    fleet: str | None = None
    """Fleet file, or all for every device that the platform lists."""

    calls_per_second: float = 10
    """Quota of the account."""

    def complete(self) -> None:
        """Enter what is missing on the terminal; raise UsageError without one, or for a flag that cannot be used."""
        given_flags: tuple[tuple[str | None, Callable[[str], None]], ...] = (
            (self.region, self._accept_region),
            (self.endpoint, self._accept_endpoint),
            (self.key_id, self._accept_key_id),
            (self.key_secret, self._accept_secret),
        )
        for given, accept in given_flags:
            if given:
                accept(given)
        missing = list(self._missing())
        if missing and not sys.stdin.isatty():
            flags = ", ".join(flag for flag, *_ in missing)
            if self.platform is None:
                needed = {"--key-id": self.key_id, "--key-secret": self.key_secret, "--fleet": self.fleet}
                flags = ", ".join([flags, *(flag for flag, value in needed.items() if not value)])
                flags += ", and --endpoint for tuya or --region for alibaba"
            raise UsageError(
                f"{flags}: {'give it' if ',' not in flags else 'give these flags'}, or run auditor init on a terminal"
            )
        if missing:
            quota = f"a quota of {self.calls_per_second:g} calls a second, and audits use 80% of it"
            print_error(f"assumed: {quota}; edit the settings if the account has another one")
        while missing:
            flag, question, accept = missing[0]
            default = DEFAULT_ANSWERS.get(flag, "")
            answer = _prompt(f"{question}{f' [{default}]' if default else ''}") or default
            try:
                if answer:
                    accept(answer)
            except UsageError as error:
                print_error(str(error))
            missing = list(self._missing())
            if missing and missing[0][0] == flag and not answer:
                print_error("an answer is needed; Ctrl-C ends without writing anything")

    def _missing(self) -> Iterator[tuple[str, str, Callable[[str], None]]]:
        """Yield each flag that is needed, its question, and what takes the answer."""
        if self.platform is None:
            yield "--platform", "Platform, tuya or alibaba", self._accept_platform
            return
        if self.platform == "alibaba" and not self.region:
            yield "--region", "Region, such as cn-shanghai", self._accept_region
        if self.platform == "tuya" and not self.endpoint:
            yield "--endpoint", "Address, https://HOST:PORT/", self._accept_endpoint
        if not self.key_id:
            question = "Access key id, or where it is stored (env:NAME, file:PATH)"
            yield "--key-id", question, self._accept_key_id
        if not self.key_secret:
            yield "--key-secret", f"Where its secret is stored ({SECRET_FORMS})", self._accept_secret
        if not self.fleet:
            question = "Fleet file, or all for every device that the platform lists"
            yield "--fleet", question, lambda text: setattr(self, "fleet", text)

    def _accept_platform(self, text: str) -> None:
        if text not in get_args(Platform):
            raise UsageError("platform: give tuya or alibaba")
        self.platform = cast("Platform", text)

    def _accept_endpoint(self, text: str) -> None:
        from auditor.config.validation import check_endpoint

        check_endpoint(text, "--endpoint")
        self.endpoint = text

    def _accept_region(self, text: str) -> None:
        _check_region(text)
        self.region = text

    def _accept_key_id(self, text: str) -> None:
        _parse_key_id(text)
        self.key_id = text

    def _accept_secret(self, text: str) -> None:
        _parse_secret(text)
        self.key_secret = text

    def settings(self, directory: str, *, rules: bool) -> "NewSettings":
        """Return the settings of the account; raise UsageError for an answer that cannot be used."""
        from auditor.scaffold.settings_file import NewSettings, schema_path

        return NewSettings(
            dialect=self.platform or "tuya",
            account=self.account,
            endpoint=self.endpoint or f"https://iot.{self.region}.aliyuncs.com/",
            region_id=self.region,
            instance_id=self.instance,
            access_key_id=_parse_key_id(str(self.key_id)),
            access_key_secret=_parse_secret(str(self.key_secret)),
            fleet={"products": "all"} if self.fleet == "all" else {"file": str(self.fleet)},
            calls_per_second=self.calls_per_second,
            directory=directory,
            rules=rules,
            report=find_spec("jinja2") is not None,
            schema=schema_path("settings").as_uri(),
        )


def init(
    path: Path = Path("nightly.toml"),
    /,
    *,
    account: Annotated[AccountFlags | None, Parameter(name="*", group=ACCOUNT)] = None,
    directory: Annotated[str, Parameter(group=FILES)] = "audits",
    rules: Annotated[bool, Parameter(negative="--no-rules", group=FILES)] = True,
    schedule: Annotated[Starter | None, Parameter(group=FILES)] = None,
    time: Annotated[str, Parameter(group=FILES)] = "02:00",
    duration: Annotated[str, Parameter(name="--for", group=FILES)] = "4h",
    force: Annotated[Flag, Parameter(group=FILES)] = False,
    check: Annotated[bool, Parameter(negative="--no-check", group=FILES)] = True,
) -> int:
    """Write settings for one account, with rules and what starts an audit each night, and check them.

    Values without a flag are entered on the terminal. The settings name the place of the secret, and never contain it.
    With --schedule, and without flags of an account, settings that exist are kept.

    Parameters
    ----------
    path:
        Settings to write.
    directory:
        Directory of runs, relative to the settings.
    rules:
        Name rules.toml, which is evaluated after each run; write it if it is missing.
    schedule:
        Write units for systemd beside the settings, or print lines for crontab -e. Both delete runs after 30 days.
    time:
        Time of day at which the audit starts, in the zone of this machine.
    duration:
        Stop the audit after this long; the next one resumes it.
    force:
        Replace settings and units that exist. Rules are never replaced.
    check:
        Run auditor check afterwards; it needs the key and the platform.
    """
    from auditor.config.loader import load_settings

    account = account or AccountFlags()
    only_schedule = schedule is not None and (account, directory) == (AccountFlags(), "audits") and not force
    settings = load_settings(path) if only_schedule and os.path.lexists(path) else None
    if settings is not None:
        directory, rules = str(Path(settings.directory).absolute()), False
    starter = _schedule(path, directory, time, duration, schedule)
    rules_file = path.parent / "rules.toml" if rules else None
    units = [path.parent / f"{starter.name}.{kind}" for kind in ("service", "timer")] if schedule == "systemd" else []
    _refuse_existing(path, units, rules_file, force=force, kept=settings is not None)
    files: dict[Path, str] = {}
    if settings is None:
        account.complete()
        files = {path: account.settings(directory, rules=rules).text()}
        settings = _check_settings(path, files[path])
    else:
        print_line(f"kept {path}")
    files |= dict(zip(units, (starter.service_unit(), starter.timer_unit()), strict=False))
    if schedule is not None:
        _create_directory(starter.runs)
    _write_files(files, force=force)
    if rules_file is not None:
        _write_rules(rules_file)
    if schedule is not None:
        _print_next_steps(starter, units, settings)
    if not check:
        return 0
    from auditor.cli.commands.audit import check as check_settings

    return check_settings(path)


def _prompt(question: str) -> str:
    sys.stderr.write(f"{question}: ")
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise UsageError("the input ended before all questions were answered; nothing was written")
    return line.strip()


def _check_region(text: str) -> None:
    import re

    if not re.fullmatch(r"[a-z0-9-]{1,63}", text):
        raise UsageError(f"--region: {text!r} is not a region; give one such as cn-shanghai")


def _parse_key_id(text: str) -> str | dict[str, str]:
    """Return an access key id, or the table of the place that it is stored in."""
    kind, colon, place = text.partition(":")
    if not colon or kind not in {"env", "file"}:
        return text
    if not place:
        raise UsageError("--key-id: the place is empty; give the id, env:NAME or file:PATH")
    return {kind: place}


def _parse_secret(text: str) -> dict[str, str]:
    """Return the table of a place such as ``env:NAME``. What is no place is not quoted: it may be the secret."""
    kind, _, place = text.partition(":")
    if kind not in {"env", "file"} or not place:
        raise UsageError(f"--key-secret: give the place of the secret, {SECRET_FORMS}, and not the secret itself")
    return {kind: place}


def _schedule(path: Path, directory: str, time: str, duration: str, schedule: Starter | None) -> "Schedule":
    """Return what starts the audit; raise UsageError if that cannot work with these paths and times."""
    import getpass
    import re

    from auditor.config.resolution import resolve_path
    from auditor.scaffold.schedule import Schedule

    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", time):
        raise UsageError(f"--time: {time!r} is no time of day; give one such as 02:00")
    parse_duration_flag("--for", duration)
    settings = path.absolute()
    beside = Path(sys.executable).parent / "auditor"  # of an environment; argv[0] may be a module of it
    program = beside if beside.is_file() else Path(shutil.which(sys.argv[0]) or sys.argv[0]).absolute()
    runs = Path(os.path.abspath(resolve_path(settings.parent, directory)))  # noqa: PTH100  links stay
    starter = Schedule(program, settings, runs, getpass.getuser(), time, duration, name=f"auditor-{path.stem}")
    if schedule is not None:
        _check_schedule(starter, directory)
    return starter


def _check_schedule(starter: "Schedule", directory: str) -> None:
    """Raise UsageError if a unit or a crontab cannot have the paths, or the audit could change its own files."""
    import re

    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,200}", starter.name):
        name = starter.settings.name
        raise UsageError(f"{name}: what starts the audit is named after it; use letters, digits, '.', '-' and '_'")
    for path in (starter.program, starter.settings, starter.runs):
        if not str(path).isprintable():
            raise UsageError(f"{str(path)!r}: a unit or a crontab cannot contain this path; use printable characters")
    runs = starter.runs.resolve()
    for path in (starter.program, starter.settings):
        if path.is_relative_to(starter.runs) or path.resolve().is_relative_to(runs):
            raise UsageError(
                f"the directory of runs {directory} contains {path}, which no audit may change; give another"
            )


def _refuse_existing(path: Path, units: Sequence[Path], rules: Path | None, *, force: bool, kept: bool) -> None:
    """Raise UsageError if a file would be replaced, SettingsError if the rules that exist have faults."""
    from auditor.policy.loader import load_policy

    if rules is not None and os.path.realpath(path).casefold() == os.path.realpath(rules).casefold():
        raise UsageError(f"{path}: is the name of the rules; give the settings another one, or --no-rules")
    if path.is_dir():
        raise UsageError(f"{path}: is a directory; give a file in it, such as {path / 'nightly.toml'}")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: is no directory; create it first")
    written = units if kept else (path, *units)
    existing = [str(each) for each in written if os.path.lexists(each)]
    if existing and not force:
        advice = "delete it for a new one" if kept else "give another path, or --force to replace it"
        raise UsageError(f"{', '.join(existing)}: exists already; {advice}")
    if rules is not None and os.path.lexists(rules):
        load_policy(rules)


def _check_settings(path: Path, text: str) -> "Settings":
    """Return new settings; raise SettingsError if they have faults."""
    import tomllib

    from auditor.config.loader import parse_settings

    try:
        return parse_settings(tomllib.loads(text), where=str(path), folder=path.parent)
    except SettingsError as error:
        raise SettingsError(*error.sentences, "nothing was written: correct the flags or answers") from None


def _create_directory(runs: Path) -> None:
    """Create the directory of runs, which a service cannot do in a file system that it may only read."""
    try:
        runs.mkdir(0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RunNotWritableError(
            f"{runs}: cannot be created: {error.strerror}; create it for the user of the audit, or give --directory"
        ) from error


def _write_rules(path: Path) -> None:
    """Write new rules, and keep those that exist: they may have been edited."""
    from auditor.scaffold.settings_file import RULES, schema_path

    if os.path.lexists(path):
        print_line(f"kept {path}")
    else:
        _write_files({path: RULES.format(schema=schema_path("rules").as_uri())}, force=False)


def _write_files(files: Mapping[Path, str], *, force: bool) -> None:
    """Write new files; with ``force``, replace those that exist."""
    from auditor.storage.files import create_file, replace_file

    for path, text in files.items():
        try:
            if force:
                replace_file(path, text.encode())
            else:
                create_file(path, text.encode(), 0o644)
        except FileExistsError:
            raise UsageError(f"{path}: exists already; give another path, or --force to replace it") from None
        except OSError as error:
            raise RunNotWritableError(f"{path}: cannot be written: {error.strerror}") from error
        print_line(f"wrote {path}")


def _print_next_steps(starter: "Schedule", units: Sequence[Path], settings: "Settings") -> None:
    """Print how the audit is started each night, by systemd if there are units, or by cron, and what that needs."""
    from auditor.config.settings import SecretSource

    if units:
        copy = format_command("cp", *units, "/etc/systemd/system/")
        start = f"systemctl daemon-reload && systemctl enable --now {starter.name}.timer"
        print_line(f"install the units, as root: {copy} && {start}")
    else:
        print_line("\n".join(("add these lines with crontab -e:", *starter.crontab_lines())))
    sources = (source for each in settings.account for source in (each.access_key_id, each.access_key_secret))
    variables = [source.env for source in sources if isinstance(source, SecretSource) and source.env]
    if variables:
        by, there = ("systemd", units[0]) if units else ("cron", "the crontab")
        print_notes([f"{by} does not set {' and '.join(variables)}: set them in {there}, or store the key in a file"])
    if units and starter.user == "root":
        advice = f"set User= in {units[0]} to a user who can read {starter.settings} and write {starter.runs}"
        print_notes([f"the service runs as root: {advice}"])
