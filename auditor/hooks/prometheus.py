"""Metrics of a run in the Prometheus text format, for node_exporter's textfile collector.

Each count is the result of a query over the run's files.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import duckdb
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from auditor.analysis.device_groups import GROUPED_MODULES, define_device_groups, group_values, unused_texts
from auditor.analysis.rollout_states import ROLLOUT_STATES
from auditor.analysis.rollout_targets import UPDATE_STATES
from auditor.analysis.rollouts import read_rollouts
from auditor.errors import ExitReasonCode, RunFolderError
from auditor.models import WarningKind
from auditor.policy.evaluate import PolicySummary, summarize_policy
from auditor.policy.model import Policy, Severity
from auditor.policy.results import Verdict
from auditor.query.snapshot import RunSnapshot, open_snapshot
from auditor.runs.estimates import define_estimates
from auditor.runs.folder import RunCatalog, StoredRun, find_run, is_sealed, refuse_run_file
from auditor.runs.inventory import count_failures
from auditor.runs.manifest import DeviceCounts, Manifest, State
from auditor.runs.views import define_sealed_views, inventory_query
from auditor.storage.database import scalar, temporary_database
from auditor.storage.files import READABLE_BY_ALL, atomic_replace
from auditor.storage.tables import translate_read_errors
from auditor.text.formatting import parse_manifest_time, safe

MAX_SERIES = 1_000
"""Series of one metric, those with the most devices: devices may report any version, and each is a series. For
accounts, which have a series for each state, the number of accounts."""

MAX_ROLLOUTS = 100
"""Rollouts with series of their own, those with the most devices: each has ten."""

MAX_GROUPS = 100
"""Groups of devices by attributes, those with the most devices; the others are one group."""

OTHER = "other"
"""Labels of that group; with ``_`` behind it where an attribute has this text."""

MAX_LABEL_NAME_LENGTH = 64
"""Characters of an attribute's name that its label has."""

MAX_LABEL_LENGTH = 200
"""Characters of a label; labels that are cut to the same text are one series."""

HELP = {
    "auditor_fleet_devices": "Devices of the fleet.",
    "auditor_devices": "Devices by account and state: ok, empty, not_found, failed, pending or unsampled.",
    "auditor_source_devices": "Devices by the source of their result: queried in this run, carried from an earlier "
    "run, or unsampled.",
    "auditor_accounts_omitted": "Accounts without series, because there are too many.",
    "auditor_failed_devices": "Failed devices by error code.",
    "auditor_oldest_answer_timestamp_seconds": "Time of the oldest result in the run.",
    "auditor_module_devices": "Devices that report a module.",
    "auditor_module_versions": "Number of versions of a module.",
    "auditor_modules_omitted": "Modules of products without series, because there are too many.",
    "auditor_module_version_devices": "Devices that run a version of a module.",
    "auditor_module_version_share": "In a run of a random sample: the fraction of the devices with a module that run a "
    "version, with its 95% confidence interval (bound): estimate, low and high.",
    "auditor_module_versions_omitted": "Versions of modules without series, because there are too many.",
    "auditor_rollouts": "Rollouts (modules of products) by state: done, moving, stalled, rolled_back, not_started or "
    "unknown.",
    "auditor_rollouts_devices": "Devices with the modules of the rollouts in a state.",
    "auditor_rollouts_devices_behind": "Devices behind the target version of the rollouts in a state.",
    "auditor_rollout_state": "1 for the state of a module's rollout; 0 for the others.",
    "auditor_rollout_share": "Fraction of the devices with a module that run its target version or a newer one.",
    "auditor_rollout_devices_behind": "Devices that run an older version of a module than its target, by the state of "
    "their update: failed, offered, reverted, never_offered, or unknown if no update tasks were read.",
    "auditor_rollouts_omitted": "Rollouts without series of their own, because there are too many.",
    "auditor_group_label": "1 for each attribute by which devices are grouped, and the label that has its text.",
    "auditor_group_devices": "Devices by the attributes of group_by, and state; a label other: of all further groups.",
    "auditor_group_version_devices": "Devices that run a version of a module, by the attributes of group_by.",
    "auditor_group_versions_omitted": "Versions of groups without series, because there are too many.",
    "auditor_groups_combined": "Groups that are combined in the one with the labels other.",
    "auditor_run_state": "1 for the run's state: running, complete, within_tolerance, partial or aborted; 0 for the "
    "others.",
    "auditor_run_exit_code": "Exit code of the command that ran the audit.",
    "auditor_run_exit_reason": "1 for the reason of the exit code, such as success, within_tolerance, too_many_failed "
    "or refused_account; 0 for the others.",
    "auditor_run_warnings": "Warnings about these numbers by kind: incomplete, silent (accounts whose devices do not "
    "exist or report nothing any more), tampered (files were changed), sample (counts are of a random sample), "
    "mismatch (accounts whose answers reached the wrong request, and were replaced), aliases (devices are in the fleet "
    "twice), shared_identity (several devices are listed or answered as one), recheck (too many carried results are "
    "outdated), not_reached (too many carried results are of devices that may have changed), policy (such as "
    "rules that match nothing).",
    "auditor_run_duration_seconds": "Time from the run's start to its end, including pauses before it was resumed.",
    "auditor_run_requests": "Requests of the run by kind: sent, retried, and throttled by the platform.",
    "auditor_run_requests_per_second": "Request rate: the target set by the quotas, and the achieved rate.",
    "auditor_last_run_timestamp_seconds": "End time of the run; its start time if it has not ended.",
    "auditor_last_success_timestamp_seconds": "End time of the newest run of this name in the directory that covers "
    "the fleet and is complete or within tolerance.",
    "auditor_policy_evaluated": "1 if the policy was evaluated; 0 if that was not possible.",
    "auditor_policy_rule": "1 for a rule's verdict: compliant, violated, unparseable or not_seen; 0 for the others.",
    "auditor_policy_rule_subjects": "Devices or modules of products (unit) by rule and verdict.",
    "auditor_policy_violations": "Devices and modules of products that violate a rule, summed over rules by severity.",
}
"""The metrics, with their help texts."""

_INCOMPLETE: tuple[WarningKind, ...] = (
    "partial", "running", "aborted", "incomplete", "silent", "discovery_gap", "limited", "accounts",
)  # fmt: skip
"""Warnings that numbers do not cover the whole fleet, other than that of a sample."""


def write_metrics(
    run: str | Path, path: str | Path, *, policy: Policy | None = None, group_by: Sequence[str] = ()
) -> None:
    """Write the metrics of a run to a file that all users may read. The file is replaced atomically.

    Args:
        run: a run folder, or a directory of runs, which means its newest run of the whole fleet, also if that failed.
        path: the file; node_exporter's textfile collector reads files that end in ``.prom``.
        policy: the policy to evaluate; None: no policy metrics.
        group_by: attributes by which devices and versions are counted, too. One that no device has is an empty label.

    Raises:
        RunFolderError: the folder is no run, or cannot be read.
        RunNotWritableError: the file, or the system's temporary folder, cannot be written.
    """
    folder = find_run(Path(run), "fleet")
    summary = None if policy is None else summarize_policy(folder, policy)
    write_metrics_file(folder, Path(path), summary, group_by)


def write_metrics_file(folder: Path, path: Path, policy: PolicySummary | None, group_by: Sequence[str] = ()) -> None:
    """Write the metrics of a run whose policy was evaluated before; see ``write_metrics``.

    Raises:
        RunFolderError: the run cannot be read.
        RunNotWritableError: the file, or the system's temporary folder, cannot be written.
    """
    text = render_metrics(folder, policy, group_by)
    refuse_run_file(path)
    with atomic_replace(path, mode=READABLE_BY_ALL) as new:
        new.write_bytes(text)


def render_metrics(folder: Path, policy: PolicySummary | None = None, group_by: Sequence[str] = ()) -> bytes:
    """Return the metrics of a run in the Prometheus exposition format.

    Raises:
        RunFolderError: the run cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    with temporary_database("metrics") as (database, work):
        run = open_snapshot(folder, work / "rows")
        samples = _SampleCollector(run.manifest.name)
        with translate_read_errors(run.folder):
            define_sealed_views(database, run.devices.parent)
            define_estimates(database, run.files or run.folder)
            database.execute("CREATE TABLE version_counts AS FROM inventory")
            _add_devices(samples, database)
            _add_modules(samples, database)
            if group_by:
                _add_groups(samples, database, group_by)
    if is_sealed(run.folder, run.manifest) and run.manifest.fleet.limit is None:
        _add_rollouts(samples, run.folder)
    _add_run(samples, run, policy)
    if policy is not None:
        _add_policy(samples, policy)
    registry = CollectorRegistry()
    registry.register(samples)
    return generate_latest(registry)


class _SampleCollector(Collector):
    """Samples by metric and labels. The library's own gauges may write files if an environment variable is set."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}

    def add(self, name: str, value: float, **labels: object) -> None:
        """Add a value to the sum for these labels: two long names from devices may be cut to one label."""
        key = tuple((label, _label_text(text)) for label, text in {"run": self._run, **labels}.items())
        values = self._samples.setdefault(name, {})
        values[key] = values.get(key, 0) + value

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metrics; see ``prometheus_client.registry.Collector``."""
        for name, values in self._samples.items():
            family = GaugeMetricFamily(name, HELP[name], labels=[label for label, _ in next(iter(values))])
            for key, value in values.items():
                family.add_metric([text for _, text in key], value)
            yield family


def _label_text(text: object) -> str:
    """Return text that any parser can read: NUL ends some parsers, and half a character is not UTF-8."""
    printable = "" if text is None else safe(str(text)[:MAX_LABEL_LENGTH])
    return printable[:MAX_LABEL_LENGTH]


def _add_devices(samples: _SampleCollector, database: duckdb.DuckDBPyConnection) -> None:
    samples.add("auditor_fleet_devices", scalar(database, "SELECT count(*) FROM devices"))
    unsampled = "source IS NOT DISTINCT FROM 'unsampled'"
    conditions = {each.name: f"status = '{each.name}' AND NOT ({unsampled})" for each in fields(DeviceCounts)}
    if unsampled_devices := scalar(database, f"SELECT count(*) FROM devices WHERE {unsampled}"):
        conditions["unsampled"] = unsampled
    counts_by_state = ", ".join(f"count(*) FILTER ({condition})" for condition in conditions.values())
    accounts = f"SELECT account, count(*) AS devices, {counts_by_state} FROM devices GROUP BY account"
    for account, _, *counts in _largest(database, accounts, "account"):
        for state, devices in zip(conditions, counts, strict=True):
            samples.add("auditor_devices", devices, account=account, state=state)
    samples.add("auditor_accounts_omitted", _omitted(database, accounts))
    for failure in count_failures(database):
        samples.add("auditor_failed_devices", failure.devices, code=failure.code)
    in_bulk = {
        source: scalar(database, f"SELECT count(*) FROM devices WHERE source = '{source}'")
        for source in ("index", "details")
    }
    further = {"unsampled": unsampled_devices} | in_bulk
    for source in ("queried", "carried", *(name for name, devices in further.items() if devices)):
        devices = scalar(database, f"SELECT count(*) FILTER (source = '{source}') FROM devices")
        samples.add("auditor_source_devices", devices, source=source)
    ((oldest,),) = database.execute("SELECT epoch(min(try_cast(audited_at AS TIMESTAMP))) FROM devices").fetchall()
    if oldest is not None:
        samples.add("auditor_oldest_answer_timestamp_seconds", oldest)


def _add_modules(samples: _SampleCollector, database: duckdb.DuckDBPyConnection) -> None:
    module = ("account", "product_key", "module_name")
    columns = ", ".join(module)
    totals = f"SELECT {columns}, sum(devices)::BIGINT AS devices, count(*) AS versions FROM version_counts GROUP BY ALL"
    for *names, devices, versions in _largest(database, totals, columns):
        labels = dict(zip(module, names, strict=True))
        samples.add("auditor_module_devices", devices, **labels)
        samples.add("auditor_module_versions", versions, **labels)
    for row in _largest(database, "FROM version_counts", f"{columns}, module_version"):
        labels = dict(zip((*module, "module_version"), row, strict=False))
        devices, *bounds = row[len(labels) :]
        samples.add("auditor_module_version_devices", devices, **labels)
        for bound, value in zip(("estimate", "low", "high"), bounds, strict=True) if len(bounds) > 1 else ():
            samples.add("auditor_module_version_share", value, **labels, bound=bound)
    for name, rows in (("auditor_modules_omitted", totals), ("auditor_module_versions_omitted", "FROM version_counts")):
        samples.add(name, _omitted(database, rows))


def _add_rollouts(samples: _SampleCollector, folder: Path) -> None:
    """Add the rollouts of a run. Where the runs before it cannot be read, there are none."""
    try:
        found = read_rollouts(folder, limit=MAX_ROLLOUTS)
    except RunFolderError:
        return
    for state, count in found.by_state.items():
        samples.add("auditor_rollouts", count.rollouts, state=state)
        samples.add("auditor_rollouts_devices", count.devices, state=state)
        samples.add("auditor_rollouts_devices_behind", count.behind, state=state)
    samples.add("auditor_rollouts_omitted", found.count - len(found.rollouts))
    for each in found.rollouts:
        labels = {"account": each.account, "product_key": each.product_key, "module_name": each.module_name}
        for state in ROLLOUT_STATES:
            samples.add("auditor_rollout_state", state == each.state, **labels, state=state)
        if each.share is not None:
            samples.add("auditor_rollout_share", each.share, **labels)
        updates = {name: getattr(each, name) for name in UPDATE_STATES}
        if updates["failed"] is None:
            updates = {"unknown": each.behind}
        for name, devices in updates.items():
            samples.add("auditor_rollout_devices_behind", devices, **labels, update=name)


def _add_groups(samples: _SampleCollector, database: duckdb.DuckDBPyConnection, names: Sequence[str]) -> None:
    combined = define_device_groups(database, names, MAX_GROUPS)
    labels = _group_labels(names)
    for label, name in zip(labels, names, strict=True):
        samples.add("auditor_group_label", 1, label=label, attribute=name)
    values = [*group_values(database, names, MAX_LABEL_LENGTH, MAX_GROUPS), unused_texts(database, names, OTHER)]
    groups = [dict(zip(labels, texts, strict=True)) for texts in values]
    state = "CASE WHEN source IS NOT DISTINCT FROM 'unsampled' THEN source ELSE status END AS state"
    counts = f"SELECT number, {state}, count(*) FROM grouped_devices GROUP BY ALL ORDER BY ALL"
    for number, found, devices in database.execute(counts).fetchall():
        samples.add("auditor_group_devices", devices, **groups[number], state=found)
    samples.add("auditor_groups_combined", combined)
    module = ("account", "product_key", "module_name", "module_version")
    database.execute(f"CREATE TABLE group_versions AS {inventory_query(f'({GROUPED_MODULES})', ['number'])}")
    versions = f"SELECT number, {', '.join(module)}, devices FROM group_versions"
    for number, *row in _largest(database, versions, f"number, {', '.join(module)}"):
        texts = dict(zip(module, row, strict=False))
        samples.add("auditor_group_version_devices", row[-1], **groups[number], **texts)
    samples.add("auditor_group_versions_omitted", _omitted(database, versions))


_RESERVED_LABELS = (
    "run", "state", "account", "product_key", "module_name", "module_version", "self", "name", "value", "job",
    "instance",
)  # fmt: skip
"""Labels that cannot be those of an attribute: ours, Prometheus' own, and parameters of ``_SampleCollector.add``."""


def _group_labels(names: Sequence[str]) -> list[str]:
    """Return a valid and unique label for each attribute: its name, with ``_`` for what no label may have.

    ``auditor_group_label`` has the name itself. Labels are letters, digits and ``_``, and begin with no digit and not
    with two ``_`` (Prometheus, data model).
    """
    labels: list[str] = []
    for name in names:
        label = re.sub(r"[^a-zA-Z0-9_]", "_", name[:MAX_LABEL_NAME_LENGTH])
        if not re.match(r"[a-zA-Z]|_[^_]", label) or label in _RESERVED_LABELS:
            label = f"attribute_{label}"
        while label in labels:
            label += "_"
        labels.append(label)
    return labels


def _largest(database: duckdb.DuckDBPyConnection, rows: str, order: str) -> list[tuple[Any, ...]]:
    query = f"FROM ({rows}) ORDER BY devices DESC, {order} LIMIT {MAX_SERIES}"
    return database.execute(query).fetchall()


def _omitted(database: duckdb.DuckDBPyConnection, rows: str) -> int:
    return max(0, scalar(database, f"SELECT count(*) FROM ({rows})") - MAX_SERIES)


def _add_run(samples: _SampleCollector, run: RunSnapshot, policy: PolicySummary | None) -> None:
    manifest = run.manifest
    _add_ending(samples, manifest)
    kinds = Counter(warning.kind for warning in run.warnings)
    incomplete = any(kinds[kind] for kind in _INCOMPLETE)
    warnings = {"incomplete": int(incomplete), "silent": len(manifest.silent), "tampered": int(run.tampered)}
    warnings["sample"] = int(run.sources.unsampled > 0)
    warnings |= {kind: kinds[kind] for kind in ("mismatch", "aliases", "shared_identity", "recheck", "not_reached")}
    warnings["releases"] = sum(bool(each.problems) for each in manifest.releases)
    warnings["policy"] = len(set(policy.warnings) - set(run.warnings)) if policy is not None else 0
    for kind, number in warnings.items():
        samples.add("auditor_run_warnings", number, kind=kind)
    started, finished = _timestamp(manifest.started_at), _timestamp(manifest.finished_at)
    if started is not None and finished is not None:
        samples.add("auditor_run_duration_seconds", round(finished - started, 3))
    for kind, requests in asdict(manifest.requests).items():
        samples.add("auditor_run_requests", requests, kind=kind)
    for kind, rate in (("target", manifest.rate.target), ("achieved", manifest.rate.achieved)):
        if rate is not None:
            samples.add("auditor_run_requests_per_second", rate, kind=kind)
    last_run = started if finished is None else finished
    for name, time in (("run", last_run), ("success", _last_success(run.folder, manifest))):
        if time is not None:
            samples.add(f"auditor_last_{name}_timestamp_seconds", time)


def _add_ending(samples: _SampleCollector, manifest: Manifest) -> None:
    """Add the state of the run, its exit code, and why."""
    for state in get_args(State):
        samples.add("auditor_run_state", state == manifest.state, state=state)
    if manifest.exit_code is not None:
        samples.add("auditor_run_exit_code", manifest.exit_code)
    found = None if manifest.exit_reason is None else manifest.exit_reason.code
    for word in get_args(ExitReasonCode):
        samples.add("auditor_run_exit_reason", word == found, reason=word)


def _last_success(folder: Path, manifest: Manifest) -> float | None:
    """Return the end time of the newest run that is a success; ``prune`` never deletes it."""
    runs = [StoredRun(manifest, folder)]
    with suppress(RunFolderError):
        runs += RunCatalog(folder.resolve().parent).named(manifest.name)
    finished = (_timestamp(run.manifest.finished_at) for run in runs if run.manifest.is_success)
    return max((time for time in finished if time is not None), default=None)


def _timestamp(text: str | None) -> float | None:
    """Return a time of a manifest in seconds since 1970; None if it cannot be parsed, as after an edit by hand."""
    time = parse_manifest_time(text)
    return None if time is None else time.timestamp()


def _add_policy(samples: _SampleCollector, policy: PolicySummary) -> None:
    samples.add("auditor_policy_evaluated", policy.problem is None)
    if policy.problem is not None:
        return
    for severity in get_args(Severity):
        samples.add("auditor_policy_violations", 0, severity=severity)
    for result in policy.results:
        rule = {"rule": result.rule.name, "severity": result.rule.severity}
        for verdict in get_args(Verdict):
            samples.add("auditor_policy_rule", verdict == result.verdict, **rule, verdict=verdict)
        for verdict in (*get_args(Verdict), "exempt", *(("unsampled",) if result.unsampled else ())):
            subjects = getattr(result, verdict)
            samples.add("auditor_policy_rule_subjects", subjects, **rule, unit=result.unit, verdict=verdict)
        samples.add("auditor_policy_violations", result.violated, severity=result.rule.severity)
