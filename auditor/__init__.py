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
    from auditor.audit.plan import AccountPlan as AccountPlan
    from auditor.audit.plan import Plan as Plan
    from auditor.audit.planning import plan_audit as plan_audit
    from auditor.audit.progress import AccountProgress as AccountProgress
    from auditor.audit.progress import Progress as Progress
    from auditor.audit.progress import Result as Result
    from auditor.audit.prune import Pruned as Pruned
    from auditor.audit.prune import prune as prune
    from auditor.audit.run import resume_audit as resume_audit
    from auditor.audit.run import run_audit as run_audit
    from auditor.audit.scheduler import Stop as Stop
    from auditor.audit.stream import outcomes as outcomes
    from auditor.config import Settings as Settings
    from auditor.config import load_settings as load_settings
    from auditor.config import settings_from as settings_from
    from auditor.errors import AuditorError as AuditorError
    from auditor.following import Followed as Followed
    from auditor.following import Following as Following
    from auditor.following import follow_run as follow_run
    from auditor.following import prepare_following as prepare_following
    from auditor.inventory.drift import Drift as Drift
    from auditor.inventory.drift import DriftCounts as DriftCounts
    from auditor.inventory.drift import diff_runs as diff_runs
    from auditor.inventory.folder import DeviceCounts as DeviceCounts
    from auditor.inventory.folder import Manifest as Manifest
    from auditor.inventory.history import History as History
    from auditor.inventory.history import RunPoint as RunPoint
    from auditor.inventory.history import read_history as read_history
    from auditor.inventory.policy import Judged as Judged
    from auditor.inventory.policy import judge_run as judge_run
    from auditor.inventory.queries import Run as Run
    from auditor.inventory.queries import VersionCount as VersionCount
    from auditor.inventory.rule import Rule as Rule
    from auditor.inventory.rule import Rules as Rules
    from auditor.inventory.rule_results import RuleResult as RuleResult
    from auditor.inventory.rules import load_rules as load_rules
    from auditor.inventory.selection import Selected as Selected
    from auditor.inventory.selection import Selection as Selection
    from auditor.inventory.selection import select_devices as select_devices
    from auditor.inventory.sql import Answer as Answer
    from auditor.inventory.sql import query_run as query_run
    from auditor.inventory.tables import Table as Table
    from auditor.inventory.verify import verify as verify
    from auditor.inventory.versions import compare_versions as compare_versions
    from auditor.model import Answered as Answered
    from auditor.model import Device as Device
    from auditor.model import Failed as Failed
    from auditor.model import ModuleVersion as ModuleVersion
    from auditor.model import Outcome as Outcome
    from auditor.report.html import write_report as write_report
    from auditor.report.metrics import write_metrics as write_metrics

_ROOMS = {
    "auditor.audit.plan": ("AccountPlan", "Plan"),
    "auditor.audit.planning": ("plan_audit",),
    "auditor.audit.progress": ("AccountProgress", "Progress", "Result"),
    "auditor.audit.prune": ("Pruned", "prune"),
    "auditor.audit.run": ("resume_audit", "run_audit"),
    "auditor.audit.scheduler": ("Stop",),
    "auditor.audit.stream": ("outcomes",),
    "auditor.config": ("Settings", "load_settings", "settings_from"),
    "auditor.errors": ("AuditorError",),
    "auditor.following": ("Followed", "Following", "follow_run", "prepare_following"),
    "auditor.inventory.drift": ("Drift", "DriftCounts", "diff_runs"),
    "auditor.inventory.folder": ("DeviceCounts", "Manifest"),
    "auditor.inventory.history": ("History", "RunPoint", "read_history"),
    "auditor.inventory.policy": ("Judged", "judge_run"),
    "auditor.inventory.queries": ("Run", "VersionCount"),
    "auditor.inventory.rule": ("Rule", "Rules"),
    "auditor.inventory.rule_results": ("RuleResult",),
    "auditor.inventory.rules": ("load_rules",),
    "auditor.inventory.selection": ("Selected", "Selection", "select_devices"),
    "auditor.inventory.sql": ("Answer", "query_run"),
    "auditor.inventory.tables": ("Table",),
    "auditor.inventory.verify": ("verify",),
    "auditor.inventory.versions": ("compare_versions",),
    "auditor.model": ("Answered", "Device", "Failed", "ModuleVersion", "Outcome"),
    "auditor.report.metrics": ("write_metrics",),
    "auditor.report.html": ("write_report",),
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
