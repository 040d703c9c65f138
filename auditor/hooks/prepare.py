"""Check before a run that its hooks can run afterwards: rules, paths, packages, secrets."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from auditor.config.metrics_settings import MetricsSettings
from auditor.config.secrets import read_secret
from auditor.config.settings import NotifySettings, PublishSettings, ReportSettings, Settings
from auditor.config.validation import SOURCE_FORMS, check_webhook_url
from auditor.errors import SettingsError
from auditor.models import Secret

if TYPE_CHECKING:
    from auditor.hooks.pushgateway import Pushgateway
    from auditor.policy.model import Policy


_NEXT_STEP = "give the settings with --settings"

_SUFFIXES = {"html": (".html", ".htm"), "excel": (".xlsx",), "metrics": (".prom",)}

_REQUIRED_PACKAGES = {"html": ("jinja2",), "excel": ("xlsxwriter",)}
"""Packages of the extra ``report``, by setting."""


@dataclass(frozen=True, slots=True)
class HookConfig:
    """Hooks of a run, checked before it starts.

    Attributes:
        policy: the policy to evaluate.
        report: the files to write.
        webhook: the address of the webhook.
        secret: signs what is posted.
        only_problems: post only runs that have problems.
        policy_error: why the configured policy cannot be evaluated.
        webhook_error: why nothing can be posted to the configured webhook.
        publish: destinations to which the run is published.
        metrics: which metrics the run has, and how often they are written.
        pushgateway: where metrics are pushed.
        pushgateway_error: why nothing can be pushed to the configured Pushgateway.
        notes: configured steps that will fail, a sentence each.
        withheld: names of the configured steps that a trial leaves out; see ``for_trial``.
    """

    policy: "Policy | None" = None
    report: ReportSettings = field(default_factory=ReportSettings)
    webhook: Secret | None = None
    secret: Secret | None = None
    only_problems: bool = False
    policy_error: str | None = None
    webhook_error: str | None = None
    publish: tuple[PublishSettings, ...] = ()
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    pushgateway: "Pushgateway | None" = None
    pushgateway_error: str | None = None
    notes: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()

    def for_trial(self) -> "HookConfig":
        """Return the hooks of a trial: those that write a file outside of the run folder, publish or post are withheld.

        A trial covers a part of the fleet, or is stored elsewhere; it must not replace what others read every day.
        """
        outside = [key for key in _SUFFIXES if isinstance(getattr(self.report, key), str)]
        webhook = ["webhook"] if self.webhook is not None or self.webhook_error is not None else []
        kept = msgspec.structs.replace(
            self.report,
            html=False if "html" in outside else self.report.html,
            excel=False if "excel" in outside else self.report.excel,
            metrics=None,
        )
        names = {"html": "report", "excel": "Excel file", "metrics": "metrics", "webhook": "webhook"}
        publish = ["publishing"] if self.publish else []
        pushed = self.pushgateway is not None or self.pushgateway_error is not None
        metrics = ["metrics"] if pushed and "metrics" not in outside else []
        withheld = (*(names[key] for key in outside), *metrics, *publish, *webhook)
        kept_hooks = replace(self, report=kept, publish=(), webhook=None, webhook_error=None, withheld=withheld)
        return replace(kept_hooks, pushgateway=None, pushgateway_error=None)


def prepare_hooks(settings: Settings, *, source: str = "settings") -> HookConfig:
    """Check the hooks of a new run, so that a mistake is reported before the audit and not hours later.

    Args:
        settings: the settings of the run.
        source: where the settings come from, for error messages.

    Raises:
        SettingsError: rules cannot be read, a file cannot be written, or a package or a secret is missing.
    """
    config = HookConfig(
        _load_policy(settings),
        settings.report,
        publish=settings.publish,
        metrics=settings.metrics,
        pushgateway=_open_pushgateway(settings, source),
    )
    for table in settings.publish:
        _check_destination(table, source)
    for problem in _report_problems(settings.report, source):
        raise SettingsError(problem)
    return config if settings.notify is None else _with_webhook(config, settings.notify, f"{source}: notify")


def prepare_resume_hooks(settings: Settings, *, source: str = "settings") -> HookConfig:
    """Check the hooks of a run that is resumed with the settings that it started with.

    A hook that cannot run is a note, and fails later: files may have moved, which is no reason to skip devices.
    """
    config, notes = HookConfig(report=settings.report, metrics=settings.metrics), []
    try:
        config = replace(config, policy=_load_policy(settings))
    except SettingsError as error:
        config = replace(config, policy_error=str(error))
        notes.append(f"the policy cannot be evaluated: {error}; {_NEXT_STEP}")
    notes += [f"{problem}; {_NEXT_STEP}" for problem in _report_problems(settings.report, source)]
    try:
        config = replace(config, pushgateway=_open_pushgateway(settings, source))
    except SettingsError as error:
        config = replace(config, pushgateway_error=str(error))
        notes.append(f"metrics will not be pushed: {error}; {_NEXT_STEP}")
    for table in settings.publish:
        try:
            _check_destination(table, source)
        except SettingsError as error:
            notes.append(f"nothing will be published: {error}; {_NEXT_STEP}")
        else:
            config = replace(config, publish=(*config.publish, table))
    if settings.notify is not None and settings.notify.webhook is None:
        reason = "the webhook address was written out in the settings, so the run does not store it"
        notes.append(f"nothing will be posted: {reason}; {_NEXT_STEP}")
    elif settings.notify is not None:
        try:
            config = _with_webhook(config, settings.notify, f"{source}: notify")
        except SettingsError as error:
            only_problems = settings.notify.when == "problems"
            config = replace(config, webhook_error=str(error), only_problems=only_problems)
            notes.append(f"nothing will be posted: {error}; {_NEXT_STEP}")
    return replace(config, notes=tuple(notes))


def _load_policy(settings: Settings) -> "Policy | None":
    if settings.policy is None:
        return None
    from auditor.policy.loader import load_policy
    from auditor.policy.scope import check_modules

    policy = load_policy(settings.policy.file)
    check_modules(policy, settings.modules)
    return policy


def _open_pushgateway(settings: Settings, source: str) -> "Pushgateway | None":
    if settings.metrics.pushgateway is None:
        return None
    from auditor.hooks.pushgateway import open_pushgateway

    return open_pushgateway(settings.metrics.pushgateway, settings.name, f"{source}: metrics: pushgateway")


def _check_destination(table: PublishSettings, source: str) -> None:
    """Raise SettingsError if a destination is not configured as it should be."""
    from auditor.publish.destinations import open_destination

    open_destination(table, source)


def _report_problems(report: ReportSettings, source: str) -> Iterator[str]:
    """Yield why configured files cannot be written, a sentence each."""
    for key in ("html", "excel", "metrics"):
        setting = getattr(report, key)
        missing = [package for package in _REQUIRED_PACKAGES.get(key, ()) if find_spec(package) is None]
        if setting and missing:
            yield f"{source}: report: {key}: needs {', '.join(missing)}: pip install 'auditor[report]'"
        problem = _path_problem(Path(setting), _SUFFIXES[key]) if isinstance(setting, str) else None
        if problem is not None:
            yield f"{source}: report: {key}: {problem}"


def _path_problem(path: Path, suffixes: tuple[str, ...]) -> str | None:
    """Return why a file cannot be replaced; None if it can."""
    if path.suffix.lower() not in suffixes:  # it must not be a fleet file, a key or the settings
        return f"{path.name} does not end with {' or '.join(suffixes)}; it is replaced after each run"
    path = Path(os.path.realpath(path))
    folder = path.parent
    if not folder.is_dir():
        return f"{folder} is not a directory; make it, or give another path"
    if path.exists() and not path.is_file():
        return f"{path} is not a file; give the path of a file in an existing directory"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder}: cannot be written; a file in it is replaced after each run"
    return None


def _with_webhook(config: HookConfig, notify: NotifySettings, source: str) -> HookConfig:
    if notify.webhook is None:
        raise SettingsError(f'{source}: webhook: is missing; give "https://HOST/PATH", {SOURCE_FORMS}')
    address = read_secret(notify.webhook, account=None, key=f"{source}: webhook")
    check_webhook_url(address.reveal(), f"{source}: webhook")
    secret = None if notify.secret is None else read_secret(notify.secret, account=None, key=f"{source}: secret")
    return replace(config, webhook=address, secret=secret, only_problems=notify.when == "problems")
