"""Metrics of a run in the Prometheus text format, for node_exporter's textfile collector.

Each count is the result of a query over the run's files.
"""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import duckdb

from auditor.analysis.device_groups import GROUPED_MODULES, define_device_groups, group_values, unused_texts
from auditor.analysis.rollout_states import ROLLOUT_STATES
from auditor.analysis.rollout_targets import UPDATE_STATES
from auditor.analysis.rollouts import MAX_ROLLOUTS, read_rollouts
from auditor.config.sections import MetricsSettings
from auditor.errors import ExitReasonCode, RunFolderError
from auditor.hooks.metric_samples import MAX_LABEL_LENGTH, SampleCollector, render_samples
from auditor.models import WarningKind
from auditor.policy.evaluate import PolicySummary, summarize_policy
from auditor.policy.model import Policy, Severity
from auditor.policy.results import Verdict
from auditor.query.snapshot import RunSnapshot, snapshot_database
from auditor.runs.estimates import define_estimates
from auditor.runs.folder import RunCatalog, StoredRun, find_run, is_sealed, refuse_run_file
from auditor.runs.inventory import count_failures
from auditor.runs.manifest import DeviceCounts, Manifest, State
from auditor.runs.views import define_sealed_views, inventory_query
from auditor.storage.database import scalar, sql_literal
from auditor.storage.files import READABLE_BY_ALL, atomic_replace
from auditor.storage.tables import translate_read_errors
from auditor.text.formats import MetricsFormat
from auditor.text.formatting import parse_manifest_time
from auditor.text.globs import MATCH_ALL, glob_regex, matches_any

DEFAULT = MetricsSettings()

OTHER = "other"
"""Labels of the group of all devices whose group has no series of its own; with ``_`` behind it where an attribute has
this text."""

MAX_LABEL_NAME_LENGTH = 64
"""Characters of an attribute's name that its label has."""

_INCOMPLETE: tuple[WarningKind, ...] = (
    "partial", "running", "aborted", "incomplete", "silent", "discovery_gap", "limited", "accounts",
)  # fmt: skip
"""Warnings that numbers do not cover the whole fleet, other than that of a sample."""


def write_metrics(
    run: str | Path,
    path: str | Path,
    *,
    policy: Policy | None = None,
    group_by: Sequence[str] = (),
    options: MetricsSettings = DEFAULT,
) -> None:
    """Write the metrics of a run to a file that all users may read. The file is replaced atomically.

    Args:
        run: a run folder, or a directory of runs, which means its newest run of the whole fleet, also if that failed.
        path: the file; node_exporter's textfile collector reads files that end in ``.prom``.
        policy: the policy to evaluate; None: no policy metrics.
        group_by: attributes by which devices and versions are counted, too. One that no device has is an empty label.
        options: which modules have series, and how many.

    Raises:
        RunFolderError: the folder is no run, or cannot be read.
        RunNotWritableError: the file, or the system's temporary folder, cannot be written.
    """
    folder = find_run(Path(run), "fleet")
    summary = None if policy is None else summarize_policy(folder, policy)
    write_metrics_file(render_metrics(folder, summary, group_by, options=options), Path(path))


def write_metrics_file(text: bytes, path: Path) -> None:
    """Write metrics to a file that all users may read; raise RunNotWritableError if that fails."""
    refuse_run_file(path)
    with atomic_replace(path, mode=READABLE_BY_ALL) as new:
        new.write_bytes(text)


def render_metrics(
    folder: Path,
    policy: PolicySummary | None = None,
    group_by: Sequence[str] = (),
    *,
    options: MetricsSettings = DEFAULT,
    format_: MetricsFormat = "prometheus",
) -> bytes:
    """Return the metrics of a run whose policy was evaluated before; see ``write_metrics``.

    Raises:
        RunFolderError: the run cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    with snapshot_database("metrics", folder) as (run, database, _):
        samples = SampleCollector(run.manifest.name)
        with translate_read_errors(run.folder):
            define_sealed_views(database, run.devices.parent)
            define_estimates(database, run.files or run.folder)
            _add_devices(samples, database, options.max_series)
            _add_modules(samples, database, options)
            if group_by:
                _add_groups(samples, database, group_by, options)
    if is_sealed(run.folder, run.manifest) and run.manifest.fleet.limit is None:
        _add_rollouts(samples, run.folder, options)
    _add_run(samples, run, policy)
    if policy is not None:
        _add_policy(samples, policy)
    return render_samples(samples, format_)


def _add_devices(samples: SampleCollector, database: duckdb.DuckDBPyConnection, max_series: int) -> None:
    samples.add("auditor_fleet_devices", scalar(database, "SELECT count(*) FROM devices"))
    unsampled = "source IS NOT DISTINCT FROM 'unsampled'"
    conditions = {each.name: f"status = '{each.name}' AND NOT ({unsampled})" for each in fields(DeviceCounts)}
    if unsampled_devices := scalar(database, f"SELECT count(*) FROM devices WHERE {unsampled}"):
        conditions["unsampled"] = unsampled
    counts_by_state = ", ".join(f"count(*) FILTER ({condition})" for condition in conditions.values())
    accounts = f"SELECT account, count(*) AS devices, {counts_by_state} FROM devices GROUP BY account"
    for account, _, *counts in _largest(database, accounts, "account", max_series):
        for state, devices in zip(conditions, counts, strict=True):
            samples.add("auditor_devices", devices, account=account, state=state)
    samples.add("auditor_accounts_omitted", _omitted(database, accounts, max_series))
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


def _add_modules(samples: SampleCollector, database: duckdb.DuckDBPyConnection, options: MetricsSettings) -> None:
    included, limit = _module_condition(options), options.max_series
    database.execute(f"CREATE TABLE version_counts AS FROM inventory WHERE {included}")
    excluded = f"SELECT DISTINCT account, product_key, module_name FROM inventory WHERE NOT ({included})"
    samples.add("auditor_modules_excluded", scalar(database, f"SELECT count(*) FROM ({excluded})"))
    module = ("account", "product_key", "module_name")
    columns = ", ".join(module)
    totals = f"SELECT {columns}, sum(devices)::BIGINT AS devices, count(*) AS versions FROM version_counts GROUP BY ALL"
    for *names, devices, versions in _largest(database, totals, columns, limit):
        labels = dict(zip(module, names, strict=True))
        samples.add("auditor_module_devices", devices, **labels)
        samples.add("auditor_module_versions", versions, **labels)
    for row in _largest(database, "FROM version_counts", f"{columns}, module_version", limit):
        labels = dict(zip((*module, "module_version"), row, strict=False))
        devices, *bounds = row[len(labels) :]
        samples.add("auditor_module_version_devices", devices, **labels)
        for bound, value in zip(("estimate", "low", "high"), bounds, strict=True) if len(bounds) > 1 else ():
            samples.add("auditor_module_version_share", value, **labels, bound=bound)
    for name, rows in (("auditor_modules_omitted", totals), ("auditor_module_versions_omitted", "FROM version_counts")):
        samples.add(name, _omitted(database, rows, limit))


def _module_condition(options: MetricsSettings) -> str:
    """Return the SQL condition on modules with series of their own. The case of names does not matter."""
    if not options.modules:
        return "true"
    pattern = sql_literal(glob_regex(each.lower() for each in options.modules))
    return f"regexp_full_match(lower(module_name), {pattern})"


def _add_rollouts(samples: SampleCollector, folder: Path, options: MetricsSettings) -> None:
    """Add the rollouts of a run. Where the runs before it cannot be read, there are none."""
    try:
        found = read_rollouts(folder, limit=MAX_ROLLOUTS if options.modules else options.max_parts)
    except RunFolderError:
        return
    for state, count in found.by_state.items():
        samples.add("auditor_rollouts", count.rollouts, state=state)
        samples.add("auditor_rollouts_devices", count.devices, state=state)
        samples.add("auditor_rollouts_devices_behind", count.behind, state=state)
    patterns = [pattern.lower() for pattern in options.modules] or [MATCH_ALL]
    included = [each for each in found.rollouts if matches_any(each.module_name.lower(), patterns)]
    unread = found.count - len(found.rollouts)
    samples.add("auditor_rollouts_omitted", unread + max(0, len(included) - options.max_parts))
    for each in included[: options.max_parts]:
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


def _add_groups(
    samples: SampleCollector, database: duckdb.DuckDBPyConnection, names: Sequence[str], options: MetricsSettings
) -> None:
    combined = define_device_groups(database, names, options.max_parts)
    labels = _group_labels(names)
    for label, name in zip(labels, names, strict=True):
        samples.add("auditor_group_label", 1, label=label, attribute=name)
    values = [*group_values(database, names, MAX_LABEL_LENGTH, options.max_parts), unused_texts(database, names, OTHER)]
    groups = [dict(zip(labels, texts, strict=True)) for texts in values]
    state = "CASE WHEN source IS NOT DISTINCT FROM 'unsampled' THEN source ELSE status END AS state"
    counts = f"SELECT number, {state}, count(*) FROM grouped_devices GROUP BY ALL ORDER BY ALL"
    for number, found, devices in database.execute(counts).fetchall():
        samples.add("auditor_group_devices", devices, **groups[number], state=found)
    samples.add("auditor_groups_combined", combined)
    module = ("account", "product_key", "module_name", "module_version")
    database.execute(f"CREATE TABLE group_versions AS {inventory_query(f'({GROUPED_MODULES})', ['number'])}")
    columns = ", ".join(module)
    versions = f"SELECT number, {columns}, devices FROM group_versions WHERE {_module_condition(options)}"
    for number, *row in _largest(database, versions, f"number, {columns}", options.max_series):
        texts = dict(zip(module, row, strict=False))
        samples.add("auditor_group_version_devices", row[-1], **groups[number], **texts)
    samples.add("auditor_group_versions_omitted", _omitted(database, versions, options.max_series))


_RESERVED_LABELS = (
    "run", "state", "account", "product_key", "module_name", "module_version", "self", "name", "value", "job",
    "instance",
)  # fmt: skip
"""Labels that cannot be those of an attribute: ours, Prometheus' own, and parameters of ``SampleCollector.add``."""


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


def _largest(database: duckdb.DuckDBPyConnection, rows: str, order: str, limit: int) -> list[tuple[Any, ...]]:
    query = f"FROM ({rows}) ORDER BY devices DESC, {order} LIMIT {limit}"
    return database.execute(query).fetchall()


def _omitted(database: duckdb.DuckDBPyConnection, rows: str, limit: int) -> int:
    return max(0, scalar(database, f"SELECT count(*) FROM ({rows})") - limit)


def _add_run(samples: SampleCollector, run: RunSnapshot, policy: PolicySummary | None) -> None:
    manifest = run.manifest
    if manifest.state != "running":  # otherwise its own process knows best
        samples.add("auditor_running", 0)
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


def _add_ending(samples: SampleCollector, manifest: Manifest) -> None:
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


def _add_policy(samples: SampleCollector, policy: PolicySummary) -> None:
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
