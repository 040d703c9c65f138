"""What follows a run: it is judged, counted, shown and told. The run is sealed by then, and none of it can touch that.

In this order: the policy is judged, the metrics, the report and the Excel file are written, the webhook is posted. What
goes wrong is a sentence; the next step is taken all the same, and the audit's exit code stays. Only the policy has a
say in that: a run that ended with 0 ends with 4 if a rule of severity ``error`` is violated, or if it could not be
judged, for nobody knows then whether it may pass.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import structlog

from auditor.audit.kept import settings_of
from auditor.config import Settings
from auditor.errors import AuditorError, PolicyError, SettingsError
from auditor.inventory.folder import INVENTORY_XLSX, REPORT_HTML, read_manifest
from auditor.keys import read_secret
from auditor.model import Secret
from auditor.settings import NotifySettings, ReportSettings
from auditor.settings_rules import SOURCES, check_address

if TYPE_CHECKING:
    from auditor.inventory.rules import Rules
    from auditor.report.judgement import Judgement

T = TypeVar("T")

log = structlog.get_logger()

_NOT_KEPT = (
    "nothing will be posted: the webhook's address stands in the settings themselves, so the run does not keep it"
)

_OTHERS = "give the settings with --settings"

_INTERRUPTED = "Query interrupted"
"""What DuckDB makes of a KeyboardInterrupt that comes while a query is at work."""

_ENDINGS = {"html": (".html", ".htm"), "excel": (".xlsx",), "metrics": (".prom",)}

_NEEDED = {"html": ("jinja2", "altair", "vl_convert"), "excel": ("xlsxwriter",)}
"""Packages that come with ``auditor[report]``."""


@dataclass(frozen=True, slots=True)
class Following:
    """What is to follow a run, looked at before it: rules read, files that can be written, secrets at hand.

    ``unjudged``, ``untold``: why the run cannot be judged, or the webhook cannot be posted, though that is wished.
    ``notes``: what the settings ask for and will not be done, a sentence each.
    """

    rules: "Rules | None" = None
    report: ReportSettings = field(default_factory=ReportSettings)
    webhook: Secret | None = None
    secret: Secret | None = None
    only_trouble: bool = False
    unjudged: str | None = None
    untold: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Followed:
    """What came of it.

    Attributes:
        exit_code: the audit's; or 4 if that was 0, and the policy is violated or could not be judged.
        judgement: what judging the run came to; None if there is no policy.
        problems: what could not be done, a sentence each.
        written: the files that were written.
        posted: whether the webhook was posted.
    """

    exit_code: int
    judgement: "Judgement | None" = None
    problems: tuple[str, ...] = ()
    written: tuple[Path, ...] = ()
    posted: bool = False


def prepare_following(settings: Settings, *, where: str = "settings") -> Following:
    """Looks before a run at what is to follow it, so that hours later nothing is in the way that could be seen now.

    Args:
        settings: those of the run.
        where: named in errors.

    Raises:
        SettingsError: rules that cannot be read, a file that cannot be written, a package or a secret that is missing.
    """
    following = Following(_rules_of(settings), settings.report)
    for problem in _hindrances(settings.report, where):
        raise SettingsError(problem)
    return following if settings.notify is None else _with_webhook(following, settings.notify, f"{where}: notify")


def prepare_again(run: str | Path) -> Following:
    """Looks before a run is resumed at what is to follow it by the settings that it keeps.

    What is in the way of a step is a note, and that step fails later: files may have moved since, and are no reason to
    leave devices unasked.

    Raises:
        RunFolderError: it is no run, or keeps no settings.
    """
    folder = Path(run)
    settings = settings_of(folder, read_manifest(folder))
    where = f"{folder}/run.json: settings"
    following, notes = Following(report=settings.report), []
    try:
        following = replace(following, rules=_rules_of(settings))
    except SettingsError as error:
        following = replace(following, unjudged=str(error))
        notes.append(f"the policy cannot be judged: {error}; {_OTHERS}")
    notes += [f"{problem}; {_OTHERS}" for problem in _hindrances(settings.report, where)]
    if settings.notify is not None and settings.notify.webhook is None:
        notes.append(f"{_NOT_KEPT}; {_OTHERS}")
    elif settings.notify is not None:
        try:
            following = _with_webhook(following, settings.notify, f"{where}: notify")
        except SettingsError as error:
            only_trouble = settings.notify.when == "trouble"
            following = replace(following, untold=str(error), only_trouble=only_trouble)
            notes.append(f"nothing will be posted: {error}; {_OTHERS}")
    return replace(following, notes=tuple(notes))


def _rules_of(settings: Settings) -> "Rules | None":
    if settings.policy is None:
        return None
    from auditor.inventory.rules import load_rules

    return load_rules(settings.policy.file)


def _hindrances(report: ReportSettings, where: str) -> Iterator[str]:
    """What is in the way of the files that are wished, a sentence each."""
    for key in ("html", "excel", "metrics"):
        wanted = getattr(report, key)
        missing = [package for package in _NEEDED.get(key, ()) if find_spec(package) is None]
        if wanted and missing:
            yield f"{where}: report: {key}: needs {', '.join(missing)}: pip install 'auditor[report]'"
        problem = _hindrance(Path(wanted), _ENDINGS[key]) if isinstance(wanted, str) else None
        if problem is not None:
            yield f"{where}: report: {key}: {problem}"


def _hindrance(path: Path, endings: tuple[str, ...]) -> str | None:
    """Why a file cannot be replaced; None if nothing is in the way."""
    if path.suffix.lower() not in endings:  # so that it is no fleet, no key and no settings
        return f"{path.name} does not end with {' or '.join(endings)}; it is replaced after each run"
    path = Path(os.path.realpath(path))
    folder = path.parent
    if not folder.is_dir():
        return f"{folder} is not a directory; make it, or give another path"
    if path.exists() and not path.is_file():
        return f"{path} is not a file; give the path of one, in a directory that is there"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder} cannot be written; a file in it is replaced after each run"
    return None


def _with_webhook(following: Following, notify: NotifySettings, at: str) -> Following:
    if notify.webhook is None:
        raise SettingsError(f'{at}: webhook: is missing; give "https://HOST/PATH", {SOURCES}')
    address = read_secret(notify.webhook, account=None, key=f"{at}: webhook")
    check_address(address.reveal(), f"{at}: webhook")
    secret = None if notify.secret is None else read_secret(notify.secret, account=None, key=f"{at}: secret")
    return replace(following, webhook=address, secret=secret, only_trouble=notify.when == "trouble")


def follow_run(run: str | Path, following: Following, *, exit_code: int = 0) -> Followed:
    """Does what is to follow a run, as this module's docstring tells; call it outside of an event loop.

    Everything is judged by one point in time, so that exit code, metrics and report say the same.

    Args:
        run: the run folder.
        following: from ``prepare_following``.
        exit_code: what the audit came to.

    Returns:
        What came of it; whatever goes wrong is in there, and nothing is raised.

    Raises:
        KeyboardInterrupt: somebody does not wait for it; what is left is not done.
    """
    now = datetime.now(UTC)
    folder = Path(run)
    problems: list[str] = []
    judgement: Judgement | None = None
    if following.rules is not None or following.unjudged is not None:
        judgement = _judged(folder, following, now, problems)
        exit_code = exit_code or (PolicyError.exit_code if judgement.failed else 0)
    written = tuple(_write_all(folder, following, judgement, now, problems))
    followed = Followed(exit_code, judgement, tuple(problems), written)
    posted = _tried("the webhook could not be posted", partial(_tell, folder, following, followed), problems)
    return replace(followed, problems=tuple(problems), posted=bool(posted))


def _judged(folder: Path, following: Following, now: datetime, problems: list[str]) -> "Judgement":
    from auditor.report.judgement import Judgement, judge

    def step() -> Judgement:
        if following.rules is None:
            raise SettingsError(following.unjudged or "")
        return judge(folder, following.rules, now=now)

    judgement = _tried("the policy could not be judged", step, problems)
    return judgement or Judgement(failed=True, problem=problems[-1].partition(": ")[2])


def _write_all(
    folder: Path, following: Following, judgement: "Judgement | None", now: datetime, problems: list[str]
) -> Iterator[Path]:
    """Writes the files that are wished, and gives the paths of those that could be written."""
    report = following.report
    html, excel = (
        folder / name if wanted is True else Path(wanted) if wanted else None
        for wanted, name in ((report.html, REPORT_HTML), (report.excel, INVENTORY_XLSX))
    )
    for what, path, write in (
        ("metrics", None if report.metrics is None else Path(report.metrics), partial(_put_metrics, judgement)),
        ("report", html, partial(_put_html, following.rules, now)),
        ("Excel file", excel, _put_excel),
    ):
        if path is None:
            continue
        before = len(problems)
        _tried(f"the {what} could not be written", partial(write, folder, path), problems)
        if len(problems) == before:
            yield path


def _tried(what: str, step: Callable[[], T], problems: list[str]) -> T | None:
    """What a step gives; None, and a sentence more, if it fails."""
    try:
        return step()
    except AuditorError as error:
        why = str(error)
    except Exception as error:  # noqa: BLE001  whatever it is, an audit of hours is not lost for it
        if str(error) == _INTERRUPTED:
            raise KeyboardInterrupt from None
        why = f"{type(error).__name__}: {error}"
    log.info("a step after the run failed", step=what, reason=why)
    problems.append(f"{what}: {why}")
    return None


def _put_metrics(judgement: "Judgement | None", folder: Path, path: Path) -> None:
    from auditor.report.metrics import put_metrics

    put_metrics(folder, path, judgement)


def _put_html(rules: "Rules | None", now: datetime, folder: Path, path: Path) -> None:
    from auditor.report.html import write_report

    write_report(folder, path, rules=rules, now=now)


def _put_excel(folder: Path, path: Path) -> None:
    from auditor.inventory.queries import Run
    from auditor.report.placing import replacing

    with Run(folder) as opened, replacing(path) as new:
        opened.write_inventory(new, "xlsx")


def _tell(folder: Path, following: Following, followed: Followed) -> bool:
    """Posts what became of a run; whether that was wished."""
    if following.webhook is None and following.untold is None:
        return False
    from auditor.report.message import message_of
    from auditor.webhook import post

    message = message_of(folder, exit_code=followed.exit_code, judgement=followed.judgement, problems=followed.problems)
    if following.only_trouble and not message.trouble:
        return False
    if following.webhook is None:
        raise SettingsError(following.untold or "")
    anyio.run(partial(post, following.webhook, message.body, secret=following.secret))
    return True
