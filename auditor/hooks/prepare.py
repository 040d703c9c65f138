"""Which hooks follow a run, and whether they can."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from auditor.audit.resume import settings_of
from auditor.config.secrets import read_secret
from auditor.config.settings import NotifySettings, ReportSettings, Settings
from auditor.config.validation import SOURCES, check_address
from auditor.errors import SettingsError
from auditor.models import Secret
from auditor.runs.manifest import read_manifest

if TYPE_CHECKING:
    from auditor.policy.model import Rules


_NOT_KEPT = (
    "nothing will be posted: the webhook's address stands in the settings themselves, so the run does not keep it"
)


_OTHERS = "give the settings with --settings"


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
    from auditor.policy.loader import load_rules

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
