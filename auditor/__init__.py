"""Which version of which OTA module does every device of a fleet run?

    settings ──► audit ──────────────► run folder ──► Run ──► inventory
    (TOML)       asks every device,    (plain files,   select_devices, query_run
                 within the quota      resumable,      (read it, running or sealed)
                                       proven)    ──► diff_runs
                                                       (what changed between two)
                                                   ──► read_history
                                                       (how versions spread over time)

    import auditor

    settings = auditor.load_settings("nightly.toml")
    result = anyio.run(auditor.run_audit, settings)  # a run folder, see Result
    with auditor.Run(result.folder) as run:
        for version in run.inventory():              # VersionCount
            print(version.module_name, version.module_version, version.devices)

To take outcomes as they come, without a folder, see ``outcomes``; what can go wrong is in ``auditor.errors``.
Names are imported when they are first used, so that a program loads only what it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from auditor import __about__

if TYPE_CHECKING:
    from auditor.analysis.drift import Drift as Drift
    from auditor.analysis.drift import DriftCounts as DriftCounts
    from auditor.analysis.drift import diff_runs as diff_runs
    from auditor.analysis.history import History as History
    from auditor.analysis.history import RunPoint as RunPoint
    from auditor.analysis.history import read_history as read_history
    from auditor.audit.runner import resume_audit as resume_audit
    from auditor.audit.runner import run_audit as run_audit
    from auditor.audit.stream import outcomes as outcomes
    from auditor.config.loader import load_settings as load_settings
    from auditor.config.loader import settings_from as settings_from
    from auditor.config.settings import Settings as Settings
    from auditor.engine.progress import AccountProgress as AccountProgress
    from auditor.engine.progress import Progress as Progress
    from auditor.engine.progress import Result as Result
    from auditor.engine.worker_pool import Stop as Stop
    from auditor.errors import AuditorError as AuditorError
    from auditor.hooks.prepare import Following as Following
    from auditor.hooks.prepare import prepare_following as prepare_following
    from auditor.hooks.prometheus import write_metrics as write_metrics
    from auditor.hooks.runner import Followed as Followed
    from auditor.hooks.runner import follow_run as follow_run
    from auditor.models import Answered as Answered
    from auditor.models import Device as Device
    from auditor.models import Failed as Failed
    from auditor.models import ModuleVersion as ModuleVersion
    from auditor.models import Outcome as Outcome
    from auditor.planning.models import AccountPlan as AccountPlan
    from auditor.planning.models import Plan as Plan
    from auditor.planning.planner import plan_audit as plan_audit
    from auditor.policy.evaluate import Judged as Judged
    from auditor.policy.evaluate import judge_run as judge_run
    from auditor.policy.loader import load_rules as load_rules
    from auditor.policy.model import Rule as Rule
    from auditor.policy.model import Rules as Rules
    from auditor.policy.results import RuleResult as RuleResult
    from auditor.query.devices import Selected as Selected
    from auditor.query.devices import Selection as Selection
    from auditor.query.devices import select_devices as select_devices
    from auditor.query.run import Run as Run
    from auditor.query.run import VersionCount as VersionCount
    from auditor.query.sql import Answer as Answer
    from auditor.query.sql import query_run as query_run
    from auditor.query.versions import compare_versions as compare_versions
    from auditor.report.render import write_report as write_report
    from auditor.runs.manifest import DeviceCounts as DeviceCounts
    from auditor.runs.manifest import Manifest as Manifest
    from auditor.runs.retention import Pruned as Pruned
    from auditor.runs.retention import prune as prune
    from auditor.runs.verify import verify as verify
    from auditor.storage.tables import Table as Table

_ROOMS = {
    "auditor.analysis.drift": ("Drift", "DriftCounts", "diff_runs"),
    "auditor.analysis.history": ("History", "RunPoint", "read_history"),
    "auditor.audit.runner": ("resume_audit", "run_audit"),
    "auditor.audit.stream": ("outcomes",),
    "auditor.config.loader": ("load_settings", "settings_from"),
    "auditor.config.settings": ("Settings",),
    "auditor.engine.progress": ("AccountProgress", "Progress", "Result"),
    "auditor.engine.worker_pool": ("Stop",),
    "auditor.errors": ("AuditorError",),
    "auditor.hooks.prepare": ("Following", "prepare_following"),
    "auditor.hooks.prometheus": ("write_metrics",),
    "auditor.hooks.runner": ("Followed", "follow_run"),
    "auditor.models": ("Answered", "Device", "Failed", "ModuleVersion", "Outcome"),
    "auditor.planning.models": ("AccountPlan", "Plan"),
    "auditor.planning.planner": ("plan_audit",),
    "auditor.policy.evaluate": ("Judged", "judge_run"),
    "auditor.policy.loader": ("load_rules",),
    "auditor.policy.model": ("Rule", "Rules"),
    "auditor.policy.results": ("RuleResult",),
    "auditor.query.devices": ("Selected", "Selection", "select_devices"),
    "auditor.query.run": ("Run", "VersionCount"),
    "auditor.query.sql": ("Answer", "query_run"),
    "auditor.query.versions": ("compare_versions",),
    "auditor.report.render": ("write_report",),
    "auditor.runs.manifest": ("DeviceCounts", "Manifest"),
    "auditor.runs.retention": ("Pruned", "prune"),
    "auditor.runs.verify": ("verify",),
    "auditor.storage.tables": ("Table",),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__version__ = __about__.VERSION

__all__ = ["__version__", *_HOME]  # noqa: PLE0604  all of them are strings


if not TYPE_CHECKING:  # a type checker that saw it would believe that every name exists

    def __getattr__(name: str) -> object:
        if (room := _HOME.get(name)) is None:
            raise AttributeError(f"module 'auditor' has no attribute {name!r}")
        return getattr(import_module(room), name)


def __dir__() -> list[str]:
    return sorted(__all__)
