"""What follows a run: it is judged, counted, shown and told. The run is sealed by then, and none of it can touch that.

In this order: the policy is judged, the metrics, the report and the Excel file are written, the webhook is posted. What
goes wrong is a sentence; the next step is taken all the same, and the audit's exit code stays. Only the policy has a
say in that: a run that ended with 0 ends with 4 if a rule of severity ``error`` is violated, or if it could not be
judged, for nobody knows then whether it may pass.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import msgspec
import structlog

from auditor.audit.kept import settings_of
from auditor.config import Settings, read_secret
from auditor.errors import AuditorError, PolicyError, SettingsError
from auditor.inventory.folder import INVENTORY_XLSX, REPORT_HTML, read_manifest
from auditor.model import Secret
from auditor.settings import NotifySettings, ReportSettings
from auditor.settings_rules import check_address

if TYPE_CHECKING:
    from auditor.inventory.rules import Rules
    from auditor.report.judgement import Judgement

T = TypeVar("T")

log = structlog.get_logger()

_NOT_KEPT = (
    "nothing will be posted: the webhook's address stands in the settings themselves, so the run does not keep it; "
    "give the settings with --settings"
)

_NEEDED = {"html": ("jinja2", "altair", "vl_convert"), "excel": ("xlsxwriter",)}
"""Packages that come with ``auditor[report]``."""


@dataclass(frozen=True, slots=True)
class Following:
    """What is to follow a run, looked at before it: rules read, files that can be written, secrets at hand.

    ``notes``: what the settings ask for and will not be done, a sentence each.
    """

    rules: "Rules | None" = None
    report: ReportSettings = field(default_factory=ReportSettings)
    webhook: Secret | None = None
    secret: Secret | None = None
    only_trouble: bool = False
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
    rules = None
    if settings.policy is not None:
        from auditor.inventory.rules import load_rules

        rules = load_rules(settings.policy.file)
    for key in ("html", "excel", "metrics"):
        wanted = getattr(settings.report, key)
        missing = [package for package in _NEEDED.get(key, ()) if find_spec(package) is None]
        if wanted and missing:
            raise SettingsError(f"{where}: report: {key}: needs {', '.join(missing)}: pip install 'auditor[report]'")
        if isinstance(wanted, str):
            _check_file(Path(wanted), f"{where}: report: {key}")
    following = Following(rules, settings.report)
    return following if settings.notify is None else _with_webhook(following, settings.notify, f"{where}: notify")


def prepare_again(run: str | Path) -> Following:
    """Looks before a run is resumed at what is to follow it by the settings that it keeps.

    Raises:
        RunFolderError: it is no run, or keeps no settings.
        SettingsError: as ``prepare_following``.
    """
    folder = Path(run)
    settings = settings_of(folder, read_manifest(folder))
    notes: tuple[str, ...] = ()
    if settings.notify is not None and settings.notify.webhook is None:
        settings = msgspec.structs.replace(settings, notify=None)
        notes = (_NOT_KEPT,)
    try:
        return replace(prepare_following(settings, where=f"{folder}/run.json: settings"), notes=notes)
    except SettingsError as error:
        raise SettingsError(f"{error}; or give other settings with --settings") from error


def _check_file(path: Path, at: str) -> None:
    path = Path(os.path.realpath(path))
    folder = path.parent
    if not folder.is_dir():
        raise SettingsError(f"{at}: {folder} is not a directory; make it, or give another path")
    if path.exists() and not path.is_file():
        raise SettingsError(f"{at}: {path} is not a file; give the path of one, in a directory that is there")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(f"{at}: {folder} cannot be written; a file in it is replaced after each run")


def _with_webhook(following: Following, notify: NotifySettings, at: str) -> Following:
    if notify.webhook is None:
        raise SettingsError(
            f'{at}: webhook: is missing; give "https://HOST/PATH", {{ env = "NAME" }} or {{ file = "/path" }}'
        )
    address = read_secret(notify.webhook, account=None, key=f"{at}: webhook")
    check_address(address.reveal(), f"{at}: webhook")
    secret = None if notify.secret is None else read_secret(notify.secret, account=None, key=f"{at}: secret")
    return replace(following, webhook=address, secret=secret, only_trouble=notify.when == "trouble")


def follow_run(run: str | Path, following: Following, *, exit_code: int = 0) -> Followed:
    """Does what is to follow a run, as this module's docstring tells; call it outside of an event loop.

    Args:
        run: the run folder.
        following: from ``prepare_following``.
        exit_code: what the audit came to.

    Returns:
        What came of it; whatever goes wrong is in there, and nothing is raised.
    """
    folder = Path(run)
    problems: list[str] = []
    judgement: Judgement | None = None
    if following.rules is not None:
        judgement, exit_code = _judged(folder, following.rules, exit_code, problems)
    written = tuple(_write_all(folder, following, judgement, problems))
    followed = Followed(exit_code, judgement, tuple(problems), written)
    posted = _tried("the webhook could not be posted", partial(_tell, folder, following, followed), problems)
    return replace(followed, problems=tuple(problems), posted=bool(posted))


def _judged(folder: Path, rules: "Rules", exit_code: int, problems: list[str]) -> "tuple[Judgement, int]":
    from auditor.report.judgement import Judgement, judge

    judgement = _tried("the policy could not be judged", lambda: judge(folder, rules), problems)
    if judgement is None:
        judgement = Judgement(failed=True, problem=problems[-1].partition(": ")[2])
    return judgement, exit_code or (PolicyError.exit_code if judgement.failed else 0)


def _write_all(
    folder: Path, following: Following, judgement: "Judgement | None", problems: list[str]
) -> Iterator[Path]:
    """Writes the files that are wished, and gives the paths of those that could be written."""
    report = following.report
    html, excel = (
        folder / name if wanted is True else Path(wanted) if wanted else None
        for wanted, name in ((report.html, REPORT_HTML), (report.excel, INVENTORY_XLSX))
    )
    for what, path, write in (
        ("metrics", None if report.metrics is None else Path(report.metrics), partial(_put_metrics, judgement)),
        ("report", html, partial(_put_html, following.rules)),
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
        why = f"{type(error).__name__}: {error}"
    log.info("a step after the run failed", step=what, reason=why)
    problems.append(f"{what}: {why}")
    return None


def _put_metrics(judgement: "Judgement | None", folder: Path, path: Path) -> None:
    from auditor.report.metrics import put_metrics

    put_metrics(folder, path, judgement)


def _put_html(rules: "Rules | None", folder: Path, path: Path) -> None:
    from auditor.report.html import write_report

    write_report(folder, path, rules=rules)


def _put_excel(folder: Path, path: Path) -> None:
    from auditor.inventory.queries import Run
    from auditor.report.placing import replacing

    with Run(folder) as opened, replacing(path) as new:
        opened.write_inventory(new, "xlsx")


def _tell(folder: Path, following: Following, followed: Followed) -> bool:
    """Posts what became of a run; whether that was wished."""
    if following.webhook is None:
        return False
    from auditor.report.message import message_of
    from auditor.webhook import post

    message = message_of(folder, exit_code=followed.exit_code, judgement=followed.judgement, problems=followed.problems)
    if following.only_trouble and not message.trouble:
        return False
    anyio.run(partial(post, following.webhook, message.body, secret=following.secret))
    return True
