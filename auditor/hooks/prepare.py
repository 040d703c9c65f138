"""Check before a run that its hooks can run afterwards: rules, paths, packages, addresses, secrets."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from auditor.config.hook_validation import check_webhook_url
from auditor.config.secrets import read_secret
from auditor.config.sections import MetricsSettings
from auditor.config.settings import NotifySettings, PublishSettings, ReportSettings, Settings
from auditor.errors import SettingsError
from auditor.text.extras import describe_extra

if TYPE_CHECKING:
    from auditor.hooks.notifications import NotifyTarget
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
        notify: the places that receive messages.
        policy_error: why the configured policy cannot be evaluated.
        publish: destinations to which the run is published.
        metrics: which metrics the run has, and how often they are written.
        pushgateway: where metrics are pushed.
        pushgateway_error: why nothing can be pushed to the configured Pushgateway.
        notes: configured steps that will fail, a sentence each.
        withheld: names of the configured steps that a trial leaves out; see ``for_trial``.
    """

    policy: "Policy | None" = None
    report: ReportSettings = field(default_factory=ReportSettings)
    notify: "tuple[NotifyTarget, ...]" = ()
    policy_error: str | None = None
    publish: tuple[PublishSettings, ...] = ()
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    pushgateway: "Pushgateway | None" = None
    pushgateway_error: str | None = None
    notes: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()

    def for_trial(self) -> "HookConfig":
        """Return the hooks of a trial: those that write a file outside of the run folder, publish or send are withheld.

        A trial covers a part of the fleet, or is stored elsewhere; it must not replace what others read every day.
        """
        outside = [key for key in _SUFFIXES if isinstance(getattr(self.report, key), str)]
        kept = msgspec.structs.replace(
            self.report,
            html=False if "html" in outside else self.report.html,
            excel=False if "excel" in outside else self.report.excel,
            metrics=None,
        )
        names = {"html": "report", "excel": "Excel file", "metrics": "metrics"}
        publish = ["publishing"] if self.publish else []
        messages = ["messages"] if self.notify else []
        pushed = self.pushgateway is not None or self.pushgateway_error is not None
        metrics = ["metrics"] if pushed and "metrics" not in outside else []
        withheld = (*(names[key] for key in outside), *metrics, *publish, *messages)
        kept_hooks = replace(self, report=kept, publish=(), notify=(), withheld=withheld)
        return replace(kept_hooks, pushgateway=None, pushgateway_error=None)


def prepare_hooks(settings: Settings, *, source: str = "settings") -> HookConfig:
    """Check the hooks of a new run, so that a mistake is reported before the audit and not hours later.

    Args:
        settings: the settings of the run.
        source: where the settings come from, for error messages.

    Raises:
        SettingsError: rules cannot be read, a file cannot be written, a package or a secret is missing, or an address
            cannot be used.
    """
    config = HookConfig(
        load_configured_policy(settings),
        settings.report,
        publish=settings.publish,
        metrics=settings.metrics,
        pushgateway=_open_pushgateway(settings, source),
    )
    for table in settings.publish:
        _check_destination(table, source)
    for problem in _report_problems(settings.report, source):
        raise SettingsError(problem)
    targets = tuple(prepare_targets(settings, source)) if settings.notify else ()
    for target in targets:
        if target.error is not None:
            raise SettingsError(target.error)
    return replace(config, notify=targets)


def prepare_resume_hooks(settings: Settings, *, source: str = "settings") -> HookConfig:
    """Check the hooks of a run that is resumed with the settings that it started with.

    A hook that cannot run is a note, and fails later: files may have moved, which is no reason to skip devices.
    """
    config, notes = HookConfig(report=settings.report, metrics=settings.metrics), []
    try:
        config = replace(config, policy=load_configured_policy(settings))
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
    targets = tuple(prepare_targets(settings, source)) if settings.notify else ()
    notes += [f"a message will not be sent: {each.error}; {_NEXT_STEP}" for each in targets if each.error is not None]
    config = replace(config, notify=targets)
    return replace(config, notes=tuple(notes))


def load_configured_policy(settings: Settings) -> "Policy | None":
    """Return the policy of settings; None: they have none. Raise SettingsError if its rules cannot be used."""
    if settings.policy is None:
        return None
    from auditor.policy.loader import load_policy
    from auditor.policy.scope import check_modules

    try:
        policy = load_policy(settings.policy.file)
    except SettingsError as error:
        raise SettingsError(*(f"policy: {sentence}" for sentence in error.sentences)) from error
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
            yield f"{source}: report: {key}: needs {', '.join(missing)}: {describe_extra('report')}"
        problem = _describe_path_problem(Path(setting), key) if isinstance(setting, str) else None
        if problem is not None:
            yield f"{source}: report: {key}: {problem}"


def describe_wrong_name(path: Path, key: str) -> str | None:
    """Return why a file cannot be the one of a key of ``[report]``, by its name; None if it can."""
    suffixes = _SUFFIXES[key]
    if path.suffix.lower() not in suffixes:  # it must not be a fleet file, a key or the settings
        return f"{path.name} does not end with {' or '.join(suffixes)}; another file is not replaced"
    return None


def _describe_path_problem(path: Path, key: str) -> str | None:
    """Return why a file that a key of ``[report]`` may name cannot be replaced; None if it can."""
    if (problem := describe_wrong_name(path, key)) is not None:
        return problem
    path = Path(os.path.realpath(path))
    folder = path.parent
    if not folder.is_dir():
        return f"{folder} is not a directory; make it, or give another path"
    if path.exists() and not path.is_file():
        return f"{path} is not a file; give the path of a file in an existing directory"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder}: cannot be written; a file in it is replaced after each run"
    return None


def prepare_targets(settings: Settings, source: str) -> "Iterator[NotifyTarget]":
    """Yield the places that receive messages; what cannot be used has an ``error``."""
    from auditor.hooks.notifications import NotifyTarget, check_addresses

    targets: list[NotifyTarget] = []
    for table in settings.notify:
        try:
            targets.append(_read_target(table, f'{source}: notify "{table.name}"'))
        except SettingsError as error:
            targets.append(NotifyTarget(table, error=str(error)))
    problems = check_addresses((each.name, each.address) for each in targets if each.address is not None)
    for target in targets:
        problem = problems.get(target.name)
        yield (
            target
            if problem is None
            else replace(target, error=f'{source}: notify "{target.name}": address: {problem}')
        )


def _read_target(table: NotifySettings, at: str) -> "NotifyTarget":
    """Return a place that receives messages, with its secrets; raise SettingsError if one is missing or not valid."""
    from auditor.hooks.notifications import NotifyTarget
    from auditor.hooks.webhook import decode_signing_secret

    if table.address is not None:
        if find_spec("apprise") is None:
            raise SettingsError(f"{at}: address: needs apprise: {describe_extra('notify')}")
        return NotifyTarget(table, address=read_secret(table.address, account=None, key=f"{at}: address"))
    if table.webhook is None:  # the settings have one of both
        raise SettingsError(f"{at}: has neither address nor webhook")
    webhook = read_secret(table.webhook, account=None, key=f"{at}: webhook")
    check_webhook_url(webhook.reveal(), f"{at}: webhook")
    if table.secret is None:
        return NotifyTarget(table, webhook=webhook)
    secret = read_secret(table.secret, account=None, key=f"{at}: secret")
    return NotifyTarget(table, webhook=webhook, key=decode_signing_secret(secret, f"{at}: secret"))
