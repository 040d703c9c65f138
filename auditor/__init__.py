"""Inventory the firmware versions of an IoT fleet: which version of which OTA module does every device run?

    settings ──► audit ──────────────► run folder ──► Run ──► inventory
    (TOML)       queries every         (plain files,   select_devices, query_run
                 device, within        resumable,      (also while it is running)
                 the quota             verified)   ──► diff_runs
                                                       (changes between two runs)
                                                   ──► read_history, read_runs,
                                                       read_changes_since, read_timeline
                                                       (versions over time)

    import anyio
    import auditor

    settings = auditor.load_settings("nightly.toml")
    result = anyio.run(auditor.run_audit, settings)  # AuditResult, with the run folder
    with auditor.Run(result.folder) as run:
        for version in run.inventory():              # VersionCount
            print(version.module_name, version.module_version, version.devices)

In a notebook, where an event loop runs: ``result = await auditor.run_audit(settings)``.

``stream_outcomes`` yields outcomes without a run folder. ``auditor.errors`` lists the errors.
Names are imported when they are first used, so that a program loads only what it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from auditor import __about__

if TYPE_CHECKING:
    from auditor.analysis.device_timeline import Timeline as Timeline
    from auditor.analysis.device_timeline import read_timeline as read_timeline
    from auditor.analysis.drift import Drift as Drift
    from auditor.analysis.drift import DriftCounts as DriftCounts
    from auditor.analysis.drift import diff_runs as diff_runs
    from auditor.analysis.history import History as History
    from auditor.analysis.history import RunSummary as RunSummary
    from auditor.analysis.history import read_history as read_history
    from auditor.analysis.net_changes import NetChanges as NetChanges
    from auditor.analysis.net_changes import read_changes_since as read_changes_since
    from auditor.analysis.rollouts import Rollout as Rollout
    from auditor.analysis.rollouts import Rollouts as Rollouts
    from auditor.analysis.rollouts import read_rollouts as read_rollouts
    from auditor.analysis.run_list import RunList as RunList
    from auditor.analysis.run_list import read_runs as read_runs
    from auditor.audit.runner import resume_audit as resume_audit
    from auditor.audit.runner import run_audit as run_audit
    from auditor.audit.stream import stream_outcomes as stream_outcomes
    from auditor.concurrency import StopToken as StopToken
    from auditor.config.loader import load_settings as load_settings
    from auditor.config.loader import parse_settings as parse_settings
    from auditor.config.settings import Settings as Settings
    from auditor.engine.progress import AccountProgress as AccountProgress
    from auditor.engine.progress import AuditResult as AuditResult
    from auditor.engine.progress import Progress as Progress
    from auditor.errors import AuditorError as AuditorError
    from auditor.hooks.prepare import HookConfig as HookConfig
    from auditor.hooks.prepare import prepare_hooks as prepare_hooks
    from auditor.hooks.prometheus import write_metrics as write_metrics
    from auditor.hooks.runner import HookResults as HookResults
    from auditor.hooks.runner import run_hooks as run_hooks
    from auditor.models import Device as Device
    from auditor.models import DeviceFailure as DeviceFailure
    from auditor.models import DeviceResult as DeviceResult
    from auditor.models import ModuleVersion as ModuleVersion
    from auditor.models import Outcome as Outcome
    from auditor.models import RunWarning as RunWarning
    from auditor.planning.models import AccountPlan as AccountPlan
    from auditor.planning.models import Plan as Plan
    from auditor.planning.planner import plan_audit as plan_audit
    from auditor.policy.evaluate import PolicyReport as PolicyReport
    from auditor.policy.evaluate import evaluate_policy as evaluate_policy
    from auditor.policy.loader import load_policy as load_policy
    from auditor.policy.model import Policy as Policy
    from auditor.policy.model import Rule as Rule
    from auditor.policy.results import RuleResult as RuleResult
    from auditor.publish.dlt_source import dlt_source as dlt_source
    from auditor.query.devices import FilteredDevices as FilteredDevices
    from auditor.query.devices import FilteredInventory as FilteredInventory
    from auditor.query.devices import select_devices as select_devices
    from auditor.query.devices import select_inventory as select_inventory
    from auditor.query.filters import DeviceFilter as DeviceFilter
    from auditor.query.run import Run as Run
    from auditor.query.run import VersionCount as VersionCount
    from auditor.query.sql import QueryResult as QueryResult
    from auditor.query.sql import RunsQueryResult as RunsQueryResult
    from auditor.query.sql import query_run as query_run
    from auditor.query.sql import query_runs as query_runs
    from auditor.query.versions import compare_versions as compare_versions
    from auditor.report.render import write_report as write_report
    from auditor.runs.folder import StoredRun as StoredRun
    from auditor.runs.folder import find_run as find_run
    from auditor.runs.manifest import DeviceCounts as DeviceCounts
    from auditor.runs.manifest import Manifest as Manifest
    from auditor.runs.retention import PruneResult as PruneResult
    from auditor.runs.retention import prune_runs as prune_runs
    from auditor.runs.selection_info import ExitReason as ExitReason
    from auditor.runs.verify import verify_run as verify_run
    from auditor.storage.tables import ResultTable as ResultTable

_EXPORTS = {
    "auditor.analysis.device_timeline": ("Timeline", "read_timeline"),
    "auditor.analysis.drift": ("Drift", "DriftCounts", "diff_runs"),
    "auditor.analysis.history": ("History", "RunSummary", "read_history"),
    "auditor.analysis.net_changes": ("NetChanges", "read_changes_since"),
    "auditor.analysis.rollouts": ("Rollout", "Rollouts", "read_rollouts"),
    "auditor.analysis.run_list": ("RunList", "read_runs"),
    "auditor.audit.runner": ("resume_audit", "run_audit"),
    "auditor.audit.stream": ("stream_outcomes",),
    "auditor.config.loader": ("load_settings", "parse_settings"),
    "auditor.config.settings": ("Settings",),
    "auditor.engine.progress": ("AccountProgress", "Progress", "AuditResult"),
    "auditor.concurrency": ("StopToken",),
    "auditor.errors": ("AuditorError",),
    "auditor.hooks.prepare": ("HookConfig", "prepare_hooks"),
    "auditor.hooks.prometheus": ("write_metrics",),
    "auditor.hooks.runner": ("HookResults", "run_hooks"),
    "auditor.models": ("Device", "DeviceFailure", "DeviceResult", "ModuleVersion", "Outcome", "RunWarning"),
    "auditor.planning.models": ("AccountPlan", "Plan"),
    "auditor.planning.planner": ("plan_audit",),
    "auditor.policy.evaluate": ("PolicyReport", "evaluate_policy"),
    "auditor.policy.loader": ("load_policy",),
    "auditor.policy.model": ("Rule", "Policy"),
    "auditor.policy.results": ("RuleResult",),
    "auditor.publish.dlt_source": ("dlt_source",),
    "auditor.query.devices": ("FilteredDevices", "FilteredInventory", "select_devices", "select_inventory"),
    "auditor.query.filters": ("DeviceFilter",),
    "auditor.query.run": ("Run", "VersionCount"),
    "auditor.query.sql": ("QueryResult", "RunsQueryResult", "query_run", "query_runs"),
    "auditor.query.versions": ("compare_versions",),
    "auditor.report.render": ("write_report",),
    "auditor.runs.folder": ("StoredRun", "find_run"),
    "auditor.runs.manifest": ("DeviceCounts", "Manifest"),
    "auditor.runs.retention": ("PruneResult", "prune_runs"),
    "auditor.runs.selection_info": ("ExitReason",),
    "auditor.runs.verify": ("verify_run",),
    "auditor.storage.tables": ("ResultTable",),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__version__ = __about__.VERSION

__all__ = ["__version__", *_MODULE_OF]  # noqa: PLE0604  all of them are strings


if not TYPE_CHECKING:  # a type checker that saw it would believe that every name exists

    def __getattr__(name: str) -> object:
        if (module := _MODULE_OF.get(name)) is None:
            raise AttributeError(f"module 'auditor' has no attribute {name!r}")
        return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
