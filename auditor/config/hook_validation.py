"""Rules of the settings of hooks that types cannot express: policy, report, metrics, messages, destinations."""

import re
from collections.abc import Collection, Iterator
from string import Formatter

from auditor.config.sections import METRIC_SERIES, MetricsSettings
from auditor.config.settings import NotifySettings, SecretSource, Settings
from auditor.config.toml_tables import faults_of, raises_faults
from auditor.config.validation import SOURCE_FORMS, check_duration, check_secret_source, is_http_url
from auditor.errors import SettingsError
from auditor.text.durations import parse_duration

MESSAGE_FIELDS = ("verdict", "reason", "changes", "policy", "action", "link", "notes", "name", "run")
"""Fields of the template of a message."""

LINK_FIELDS = ("name", "run")
"""Fields of the address of a report."""

MAX_GROUP_NAMES = 4
"""Attributes by which the report and the metrics count devices: their combinations are many."""

MAX_METRICS_SECONDS = 300.0
"""Seconds between two writes of metrics during a run: two fit into the ten minutes of the alert AuditorRunDied."""

_SECRET_OPTION = re.compile(r"password|secret|token|(?<!public)_key$", re.IGNORECASE)
"""Names of options that are secrets."""


@raises_faults
def validate_hooks(settings: Settings, where: str) -> Iterator[str]:
    """Raise SettingsError for the rules that [policy], [report], [[notify]] or ping break.

    Whether their files can be used is checked before a run.
    """
    if settings.policy is not None and not settings.policy.file:
        yield f'{where}: policy: file: is empty; give a file of rules such as "rules.toml"'
    for key in ("html", "excel", "metrics"):
        if getattr(settings.report, key) == "":
            yield f"{where}: report: {key}: is empty; give a path, or leave it out"
    names = settings.report.group_by
    if len(names) > MAX_GROUP_NAMES or len(set(names)) < len(names) or "" in names:
        yield f"{where}: report: group_by: give at most {MAX_GROUP_NAMES} different names of attributes"
    yield from _name_faults([table.name for table in settings.notify], f"{where}: notify", "tables")
    for number, table in enumerate(settings.notify, 1):
        label = number if table.name.startswith("placeholder-") else f'"{table.name}"'  # see ``convert_table``
        yield from _notify_faults(table, f"{where}: notify {label}")
    if settings.ping is not None:
        yield from faults_of(check_secret_source, settings.ping, f"{where}: ping")


@raises_faults
def validate_metrics(metrics: MetricsSettings, where: str) -> Iterator[str]:
    """Raise SettingsError for the rules that [metrics] breaks. Messages never quote the address."""
    if metrics.interval != "off":
        yield from faults_of(_check_interval, metrics.interval, f"{where}: interval")
    if "" in metrics.modules:
        yield f"{where}: modules: a pattern is empty; give names of modules, such as mcu or ble*"
    if metrics.max_series not in METRIC_SERIES:
        allowed = f"from {METRIC_SERIES[0]} to {METRIC_SERIES[-1]:,}"
        yield f"{where}: max_series: give a whole number {allowed}"
    if (gateway := metrics.pushgateway) is None:
        return
    at = f"{where}: pushgateway"
    if not is_http_url(gateway.address) or re.search(r"[@?#]", gateway.address):
        advice = "give one such as https://HOST:9091; user and password have keys of their own"
        yield f"{at}: address: is not the address of a server; {advice}"
    if not gateway.job:
        yield f'{at}: job: is empty; give a name such as "auditor"'
    if (gateway.username is None) != (gateway.password is None):
        yield f"{at}: give both of username and password, or none"
    if gateway.username is not None and not re.fullmatch(r"[!-9;-~]+", gateway.username):
        yield f"{at}: username: give letters, digits and punctuation, but no colon"
    if gateway.password is not None:
        yield from faults_of(check_secret_source, gateway.password, f"{at}: password")


def _check_interval(text: str, at: str) -> None:
    check_duration(text, at)
    if parse_duration(text) > MAX_METRICS_SECONDS:
        raise SettingsError(f'{at}: give at most "5m": the alert AuditorRunDied waits ten minutes for a sign')


def _name_faults(names: list[str], at: str, noun: str) -> Iterator[str]:
    """Yield why names of tables cannot be part of a message, or that two tables have one."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            yield f"{at}: name: use up to 64 letters, digits, '.', '-' and '_'"
        if names.count(name) > 1:
            yield f'{at} "{name}": two {noun} have this name; names must be unique'


def _notify_faults(table: NotifySettings, at: str) -> Iterator[str]:
    if (table.address is None) == (table.webhook is None):
        yield f"{at}: give one of address, for a chat or a mailbox, and webhook, for a program"
    if table.address is not None and table.secret is not None:
        yield f"{at}: secret: only a webhook is signed with it; leave it out"
    for key in ("address", "webhook", "secret"):
        if (source := getattr(table, key)) is not None:
            yield from faults_of(check_secret_source, source, f"{at}: {key}")
    if table.message is not None:
        if not table.message.strip():
            yield f'{at}: message: is empty; give a text such as "{{verdict}}", or leave it out'
        yield from faults_of(check_template, table.message, MESSAGE_FIELDS, f"{at}: message")
    if table.link is not None:
        yield from faults_of(check_template, table.link, LINK_FIELDS, f"{at}: link")
        if not is_http_url(table.link) or "@" in table.link:
            yield f"{at}: link: is not an address such as https://HOST/PATH"


@raises_faults
def check_template(text: str, fields: Collection[str], at: str) -> Iterator[str]:
    """Raise SettingsError if a text has other fields in braces than these."""
    try:
        parts = list(Formatter().parse(text))
    except ValueError:
        yield f"{at}: a brace is not closed; write {{{{ for a brace"
        return
    for _, field, format_spec, conversion in parts:
        if field is not None and (field not in fields or format_spec or conversion):
            names = ", ".join(f"{{{each}}}" for each in fields)
            yield f"{at}: {{{field}}} is not a field; the fields are {names}"


@raises_faults
def validate_publish(settings: Settings, where: str) -> Iterator[str]:
    """Raise SettingsError for the rules that [[publish]] breaks. A destination checks its options before a run."""
    yield from _name_faults([table.name for table in settings.publish], f"{where}: publish", "destinations")
    for table in settings.publish:
        at = f'{where}: publish "{table.name}"'
        yield from faults_of(check_duration, table.timeout, f"{at}: timeout")
        for key, value in table.options.items():
            if isinstance(value, SecretSource):
                yield from faults_of(check_secret_source, value, f"{at}: {key}")
            elif isinstance(value, str) and _SECRET_OPTION.search(key):
                yield f"{at}: {key}: keep it out of the settings: give {SOURCE_FORMS}"
            elif isinstance(value, str) and re.search(r"://[^/]*@|[?&]", value):
                yield f"{at}: {key}: leave password and parameters out of the address"


def check_webhook_url(url: str, at: str) -> None:
    """Raise SettingsError if this is not an HTTP address. It is never quoted, for it may contain a token."""
    if not is_http_url(url):
        raise SettingsError(f"{at}: is not an address such as https://HOST/PATH")
