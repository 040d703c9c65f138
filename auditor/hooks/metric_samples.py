"""Samples of metrics, what each metric says, and the formats in which they are written."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from auditor.text.formats import MetricsFormat
from auditor.text.formatting import safe

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
    "auditor_modules_excluded": "Modules of products without series, because the settings leave them out.",
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
    "auditor_running": "1 while a run is under way; 0 after its end.",
    "auditor_running_start_timestamp_seconds": "Start time of the run that is under way.",
    "auditor_running_updated_timestamp_seconds": "Time at which the run that is under way last reported its progress.",
    "auditor_running_devices": "Devices of the run that is under way by state: ok, empty, not_found, failed or "
    "pending.",
    "auditor_running_requests": "Requests of the run that is under way by kind: sent, retried, and throttled by the "
    "platform.",
    "auditor_running_requests_per_second": "Request rate of the run that is under way: the target set by the quotas, "
    "and the one that they currently allow (allowed).",
}
"""What each metric says: text behind ``# HELP``."""


class SampleCollector(Collector):
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
            labels = [label for label, _ in next(iter(values))]
            unit = "seconds" if name.endswith("_seconds") else ""
            family = GaugeMetricFamily(name, HELP[name], labels=labels, unit=unit)
            for key, value in values.items():
                family.add_metric([text for _, text in key], value)
            yield family


def _label_text(text: object) -> str:
    """Return text that any parser can read: NUL ends some parsers, and half a character is not UTF-8."""
    printable = "" if text is None else safe(str(text)[:MAX_LABEL_LENGTH])
    return printable[:MAX_LABEL_LENGTH]


def render_samples(samples: SampleCollector, format_: MetricsFormat = "prometheus") -> bytes:
    """Return samples in the exposition format of Prometheus, or in that of OpenMetrics."""
    registry = CollectorRegistry()
    registry.register(samples)
    if format_ == "openmetrics":
        text: bytes = generate_openmetrics(registry)  # type: ignore[no-untyped-call]  # the library has no type for it
        return text
    return generate_latest(registry)
