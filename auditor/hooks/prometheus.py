"""A run as Prometheus text for node_exporter's textfile collector; every count is a query over the run's files."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

import duckdb
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from auditor.errors import RunFolderError
from auditor.policy.evaluate import Judgement, judge
from auditor.query.snapshot import Frozen, freeze
from auditor.query.warnings import label_of
from auditor.runs.estimates import define_estimates
from auditor.runs.folder import find_run, refuse_own_file, runs_in
from auditor.runs.manifest import DeviceCounts, Manifest, State
from auditor.runs.seal import count_failures
from auditor.runs.views import define_sealed_views, number
from auditor.storage.database import READING_MEMORY, READING_THREADS, open_database
from auditor.storage.files import READABLE, replacing
from auditor.storage.tables import reading
from auditor.text.formatting import safe

if TYPE_CHECKING:
    from auditor.policy.model import Rules


SERIES = 1_000
"""Series of one name at most, those of the most devices: a device may call its version anything, and each is one. Of
accounts, which have a series for each state, so many."""


LABEL_LENGTH = 200
"""Characters of a label at most; what is cut to the same text is one series."""


_HELP = {
    "auditor_fleet_devices": "Devices of the fleet.",
    "auditor_devices": "Devices by account and by what became of them: ok, empty, not_found, failed, pending or "
    "unsampled, which were not drawn.",
    "auditor_source_devices": "Devices by where what is known of them comes from: asked by the run, carried from an "
    "earlier one, or unsampled, which were not drawn.",
    "auditor_accounts_left_out": "Accounts that have no series, for there are too many.",
    "auditor_failed_devices": "Devices that could not be answered, by code.",
    "auditor_oldest_answer_timestamp_seconds": "When the oldest of the run's answers came.",
    "auditor_module_devices": "Devices that report a module.",
    "auditor_module_versions": "Versions of a module that devices run.",
    "auditor_modules_left_out": "Modules of products that have no series, for there are too many.",
    "auditor_module_version_devices": "Devices that run a version of a module.",
    "auditor_module_version_share": "Of a run that asked a random sample: the part of the devices reporting a module "
    "that runs a version, with its 95% confidence interval (bound): estimate, low and high.",
    "auditor_module_versions_left_out": "Versions of modules that have no series, for there are too many.",
    "auditor_run_state": "1 for the run's state: running, complete, partial or aborted; 0 for the others.",
    "auditor_run_doubts": "Reasons to doubt these numbers: the run is incomplete, its files were tampered with, "
    "rules that match nothing, or that it is a random sample, whose counts are not the fleet's.",
    "auditor_run_duration_seconds": "From the run's start to its end, pauses between its stretches included.",
    "auditor_run_requests": "Requests of the run: sent, those of them retried, and those throttled for the quota.",
    "auditor_run_requests_per_second": "What the quotas allow (target), and what was achieved.",
    "auditor_last_run_timestamp_seconds": "When the run ended; when it began, if it has not ended.",
    "auditor_last_success_timestamp_seconds": "When the newest complete run of this name in the directory ended.",
    "auditor_policy_judged": "1 if the run was judged by the rules; 0 if that was not possible.",
    "auditor_policy_rule": "1 for a rule's verdict: compliant, violated, unparseable or not_seen; 0 for the others.",
    "auditor_policy_rule_subjects": "Devices, or products' modules (unit), by what a rule says of them.",
    "auditor_policy_violations": "Devices, or products' modules, that violate a rule, summed over rules by severity.",
}


_VERDICTS = ("compliant", "violated", "unparseable", "not_seen")


_SEVERITIES = ("error", "warning", "note")


def write_metrics(run: str | Path, path: str | Path, *, rules: "Rules | None" = None) -> None:
    """Writes a run's metrics to a file, which is replaced whole and which everybody may read.

    Args:
        run: a run folder, or a directory of runs, whose newest is meant.
        path: the file; node_exporter's textfile collector reads those that end in ``.prom``.
        rules: to judge the run by; None: nothing is said of a policy.

    Raises:
        RunFolderError: it is no run, or cannot be read.
        RunNotWritableError: the file, or the system's temporary folder, cannot be written.
    """
    folder = find_run(Path(run))
    verdicts = None if rules is None else judge(folder, rules)
    put_metrics(folder, Path(path), verdicts)


def put_metrics(folder: Path, path: Path, verdicts: Judgement | None) -> None:
    """``write_metrics`` of a run that was judged before.

    Raises:
        RunFolderError: the run cannot be read.
        RunNotWritableError: the file, or the system's temporary folder, cannot be written.
    """
    text = metrics_of(folder, verdicts)
    refuse_own_file(path)
    with replacing(path, mode=READABLE) as new:
        new.write_bytes(text)


def metrics_of(folder: Path, verdicts: Judgement | None = None) -> bytes:
    """A run's metrics as text of the Prometheus exposition format.

    Raises:
        RunFolderError: the run cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    with TemporaryDirectory(prefix="auditor-metrics-") as temporary:
        run = freeze(folder, Path(temporary, "rows"))
        samples = _Samples(run.manifest.name)
        with _opened(run, Path(temporary, "spill")) as database:
            _add_devices(samples, database)
            _add_modules(samples, database)
    _add_run(samples, run, verdicts)
    if verdicts is not None:
        _add_policy(samples, verdicts)
    registry = CollectorRegistry()
    registry.register(samples)
    return generate_latest(registry)


class _Samples(Collector):
    """Samples by metric and labels; not the library's gauges, which an environment variable makes write files."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}

    def add(self, name: str, value: float, **labels: object) -> None:
        """Adds a value to the sample with these labels: two names from devices may have one text in a label."""
        key = tuple((label, _label(text)) for label, text in {"run": self._run, **labels}.items())
        values = self._found.setdefault(name, {})
        values[key] = values.get(key, 0) + value

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See ``prometheus_client.registry.Collector``."""
        for name, values in self._found.items():
            family = GaugeMetricFamily(name, _HELP[name], labels=[label for label, _ in next(iter(values))])
            for key, value in values.items():
                family.add_metric([text for _, text in key], value)
            yield family


def _label(text: object) -> str:
    """Text that no parser stumbles over: NUL ends some of them, and half a character is not UTF-8."""
    shown = "" if text is None else safe(str(text)[:LABEL_LENGTH])
    return shown[:LABEL_LENGTH]


@contextmanager
def _opened(run: Frozen, spill: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    database = open_database(spill, READING_MEMORY, READING_THREADS)
    try:
        with reading(run.folder):
            define_sealed_views(database, run.devices.parent)
            define_estimates(database, run.folder)
            database.execute("CREATE TABLE counted AS FROM inventory")
            yield database
    finally:
        database.close()


def _add_devices(samples: _Samples, database: duckdb.DuckDBPyConnection) -> None:
    samples.add("auditor_fleet_devices", number(database, "SELECT count(*) FROM devices"))
    undrawn = "source IS NOT DISTINCT FROM 'unsampled'"
    conditions = {each.name: f"status = '{each.name}' AND NOT ({undrawn})" for each in fields(DeviceCounts)}
    if sampled := number(database, f"SELECT count(*) FROM devices WHERE {undrawn}"):
        conditions["unsampled"] = undrawn
    counted = ", ".join(f"count(*) FILTER ({condition})" for condition in conditions.values())
    accounts = f"SELECT account, count(*) AS devices, {counted} FROM devices GROUP BY account"
    for account, _, *counts in _largest(database, accounts, "account"):
        for state, devices in zip(conditions, counts, strict=True):
            samples.add("auditor_devices", devices, account=account, state=state)
    samples.add("auditor_accounts_left_out", _left_out(database, accounts))
    for failure in count_failures(database):
        samples.add("auditor_failed_devices", failure.devices, code=failure.code)
    for source in ("asked", "carried", *(("unsampled",) if sampled else ())):
        devices = number(database, f"SELECT count(*) FILTER (source = '{source}') FROM devices")
        samples.add("auditor_source_devices", devices, source=source)
    ((oldest,),) = database.execute("SELECT epoch(min(try_cast(audited_at AS TIMESTAMP))) FROM devices").fetchall()
    if oldest is not None:
        samples.add("auditor_oldest_answer_timestamp_seconds", oldest)


def _add_modules(samples: _Samples, database: duckdb.DuckDBPyConnection) -> None:
    module = ("account", "product_key", "module_name")
    named = ", ".join(module)
    sums = f"SELECT {named}, sum(devices)::BIGINT AS devices, count(*) AS versions FROM counted GROUP BY ALL"
    for *names, devices, versions in _largest(database, sums, named):
        labels = dict(zip(module, names, strict=True))
        samples.add("auditor_module_devices", devices, **labels)
        samples.add("auditor_module_versions", versions, **labels)
    for row in _largest(database, "FROM counted", f"{named}, module_version"):
        labels = dict(zip((*module, "module_version"), row, strict=False))
        devices, *bounds = row[len(labels) :]
        samples.add("auditor_module_version_devices", devices, **labels)
        for bound, value in zip(("estimate", "low", "high"), bounds, strict=True) if len(bounds) > 1 else ():
            samples.add("auditor_module_version_share", value, **labels, bound=bound)
    for name, rows in (("auditor_modules_left_out", sums), ("auditor_module_versions_left_out", "FROM counted")):
        samples.add(name, _left_out(database, rows))


def _largest(database: duckdb.DuckDBPyConnection, rows: str, names: str) -> list[tuple[Any, ...]]:
    query = f"FROM ({rows}) ORDER BY devices DESC, {names} LIMIT {SERIES}"
    return database.execute(query).fetchall()


def _left_out(database: duckdb.DuckDBPyConnection, rows: str) -> int:
    return max(0, number(database, f"SELECT count(*) FROM ({rows})") - SERIES)


def _add_run(samples: _Samples, run: Frozen, verdicts: Judgement | None) -> None:
    manifest = run.manifest
    for state in get_args(State):
        samples.add("auditor_run_state", state == manifest.state, state=state)
    unsampled = run.sources.unsampled
    whole = label_of(manifest.state, run.counts, unsampled) in ("complete", "sample")
    incomplete = not whole or run.counts.unanswered > unsampled or manifest.fleet.cut
    doubts = {"incomplete": int(incomplete), "tampered": int(run.tampered), "sample": int(unsampled > 0)}
    doubts["policy"] = len(set(verdicts.doubts) - set(run.doubts)) if verdicts is not None else 0
    for kind, number_of in doubts.items():
        samples.add("auditor_run_doubts", number_of, kind=kind)
    began, ended = _seconds(manifest.started_at), _seconds(manifest.finished_at)
    if began is not None and ended is not None:
        samples.add("auditor_run_duration_seconds", round(ended - began, 3))
    for kind, requests in asdict(manifest.requests).items():
        samples.add("auditor_run_requests", requests, kind=kind)
    for kind, rate in (("target", manifest.rate.target), ("achieved", manifest.rate.achieved)):
        if rate is not None:
            samples.add("auditor_run_requests_per_second", rate, kind=kind)
    for name, at in (("run", began if ended is None else ended), ("success", _last_success(run.folder, manifest))):
        if at is not None:
            samples.add(f"auditor_last_{name}_timestamp_seconds", at)


def _last_success(folder: Path, manifest: Manifest) -> float | None:
    """When the newest complete run of a name and a whole fleet ended: ``prune`` keeps it, however old it is."""
    runs = [(manifest, folder)]
    with suppress(RunFolderError):
        runs += runs_in(folder.resolve().parent)[0]
    whole = (run for run, _ in runs if (run.name, run.state) == (manifest.name, "complete") and not run.fleet.cut)
    ended = (_seconds(run.finished_at) for run in whole)
    return max((at for at in ended if at is not None), default=None)


def _seconds(moment: str | None) -> float | None:
    """A time of a manifest in seconds since 1970; None if it is none, which somebody else must have written."""
    try:
        return None if moment is None else datetime.fromisoformat(moment).timestamp()
    except (ValueError, OverflowError):
        return None


def _add_policy(samples: _Samples, verdicts: Judgement) -> None:
    samples.add("auditor_policy_judged", verdicts.problem is None)
    if verdicts.problem is not None:
        return
    for severity in _SEVERITIES:
        samples.add("auditor_policy_violations", 0, severity=severity)
    for result in verdicts.results:
        rule = {"rule": result.rule.name, "severity": result.rule.severity}
        for verdict in _VERDICTS:
            samples.add("auditor_policy_rule", verdict == result.verdict, **rule, verdict=verdict)
        for verdict in (*_VERDICTS, "excepted", *(("unsampled",) if result.unsampled else ())):
            counted = getattr(result, verdict)
            samples.add("auditor_policy_rule_subjects", counted, **rule, unit=result.unit, verdict=verdict)
        samples.add("auditor_policy_violations", result.violated, severity=result.rule.severity)
