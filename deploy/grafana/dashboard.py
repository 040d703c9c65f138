"""Write the Grafana dashboard to standard output: ``make dashboard`` writes it to auditor.json.

Run by a Python that has ``grafana-foundation-sdk``: it is none of auditor's dependencies. With an argument, it links to the
documents there: ``dashboard.py https://wiki.example/auditor/docs``.
"""

import json
import sys
from collections.abc import Iterator

from grafana_foundation_sdk.builders import dashboard as builder
from grafana_foundation_sdk.builders import statetimeline, text
from grafana_foundation_sdk.builders.common import VizTextDisplayOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.text import TextMode
from panels import chart, coloured, instant, legend, number, query, rows, rows_of, source, stacked, steps, with_limit

RUN = 'run=~"$run"'
ACCOUNT = f'{RUN}, account=~"$account"'
MODULE = f'{ACCOUNT}, product_key=~"$product", module_name=~"$module"'
NAMES = "account, product_key, module_name"
LEGEND = "{{account}} {{product_key}} {{module_name}}"

GREEN, YELLOW, ORANGE, RED, BLUE, GREY = "green", "yellow", "orange", "red", "blue", "text"

RUN_STATES = {
    "complete": GREEN, "within_tolerance": GREEN, "running": BLUE, "partial": ORANGE, "aborted": RED,
}  # fmt: skip
ROLLOUT_STATES = {
    "done": GREEN, "moving": BLUE, "not_started": GREY, "unknown": GREY, "stalled": ORANGE, "rolled_back": RED,
}  # fmt: skip
SEVERITIES = {"critical": RED, "warning": ORANGE}

UNANSWERED = f'auditor_devices{{{ACCOUNT}, state=~"failed|pending"}}'
SELECTED = f'auditor_devices{{{ACCOUNT}, state!="unsampled"}}'

WHAT_TO_DO = """\
| alert or panel | look here | then |
|---|---|---|
| a run is late or missing | the timer and its log; `auditor status DIRECTORY` | `auditor run CONFIG --resume` continues a run that was killed |
| a run died (killed, or it stands still) | `auditor status DIRECTORY` | `auditor resume DIRECTORY` |
| a run is partial | `auditor devices DIRECTORY --status failed` | `auditor resume DIRECTORY` |
| files were changed | `auditor verify DIRECTORY` | do not rely on the numbers of this run |
| results are too old | `auditor plan CONFIG` | `auditor run CONFIG --max-age 7d` |
| the quota is shared badly | which other program uses the account | set `quota_sharing`, or lower `calls_per_second` |
| a rule is violated | `auditor policy DIRECTORY RULES --devices` | |
| a rollout stalled or was rolled back | `auditor history DIRECTORY --rollouts` | `auditor diff DIRECTORY --last --module MODULE` |

The rules of the alerts are `deploy/prometheus/auditor.rules.yml`; `docs/monitoring.md` describes alerts, metrics and this dashboard.
"""


def variables() -> Iterator[object]:
    """Yield the variables: a data source, and what its series are filtered by."""
    yield builder.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    for name, label, series, key in (
        ("run", "Audit", "auditor_last_run_timestamp_seconds", "run"),
        ("account", "Account", f"auditor_devices{{{RUN}}}", "account"),
        ("product", "Product", f"auditor_module_devices{{{ACCOUNT}}}", "product_key"),
        ("module", "Module", f'auditor_module_devices{{{ACCOUNT}, product_key=~"$product"}}', "module_name"),
    ):
        yield (
            builder.QueryVariable(name)
            .label(label)
            .datasource(source())
            .query(f"label_values({series}, {key})")
            .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(model.VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(model.VariableOption(selected=True, text="All", value="$__all"))
        )


def health() -> Iterator[object]:
    """Yield the numbers of the first row: is the audit healthy, is the fleet?"""
    state = number(
        "Last run",
        "State of the last run. partial: more devices have no answer than max_failed allows.",
        instant(f"max by (run, state) (auditor_run_state{{{RUN}}} == 1)", "{{state}}"),
        steps((None, GREEN)),
    )
    state = state.text_mode(common.BigValueTextMode.NAME).color_mode(common.BigValueColorMode.BACKGROUND)
    for name, color in RUN_STATES.items():
        fixed = {"mode": "fixed", "fixedColor": color}
        state = state.override_by_name(name, [model.DynamicConfigValue(id_val="color", value=fixed)])
    yield state
    yield (
        number(
            "Since the last success",
            "Time since the end of the last successful run. Remembered for a week after the machine of the audit is gone.",
            instant(
                f"time() - max by (run) (max_over_time(auditor_last_success_timestamp_seconds{{{RUN}}}[7d]))", "{{run}}"
            ),
            steps((None, GREEN), (25 * 3600, ORANGE), (36 * 3600, RED)),
        )
        .unit("s")
        .decimals(1)
        .no_value("never")
    )
    yield number(
        "Devices",
        "Devices of the fleet, without those outside of a random sample.",
        instant(f"sum({SELECTED})"),
        steps((None, BLUE)),
    ).unit("locale")
    yield (
        number(
            "Coverage",
            "Devices with an answer, of all devices.",
            instant(f"1 - sum({UNANSWERED}) / sum({SELECTED})"),
            steps((None, RED), (0.9, ORANGE), (0.99, GREEN)),
        )
        .unit("percentunit")
        .decimals(1)
    )
    yield number(
        "Without an answer",
        "Devices that failed or are pending.",
        instant(f"sum({UNANSWERED})"),
        steps((None, GREEN), (1, ORANGE)),
    ).unit("locale")
    yield number(
        "Rollouts that need you",
        "Modules of products whose rollout stalled or was rolled back.",
        instant(f'count(auditor_rollout_state{{{MODULE}, state=~"stalled|rolled_back"}} == 1) or vector(0)'),
        steps((None, GREEN), (1, RED)),
    )
    yield (
        number(
            "Policy violations",
            "Devices and modules of products that violate a rule of severity error.",
            instant(f'sum(auditor_policy_violations{{{RUN}, severity="error"}})'),
            steps((None, GREEN), (1, RED)),
        )
        .unit("locale")
        .no_value("no policy")
    )
    yield number(
        "Alerts",
        "Alerts that fire now.",
        instant(f'count(ALERTS{{alertname=~"Auditor.+", alertstate="firing", {RUN}}}) or vector(0)'),
        steps((None, GREEN), (1, RED)),
    )


def attention() -> Iterator[object]:
    """Yield what needs a person."""
    alerts = rows(
        "What needs you now",
        "Alerts that fire. Their annotation `action` has the command to type.",
        rows_of(
            f'max by (alertname, severity, run, product_key, module_name, state) (ALERTS{{alertname=~"Auditor.+", alertstate="firing", {RUN}}})'
        ),
        width=10,
        renamed={
            "severity": "severity",
            "alertname": "alert",
            "run": "audit",
            "product_key": "product",
            "module_name": "module",
            "state": "state",
        },
        hidden=("Value",),
    ).no_value("No alert fires")
    yield coloured(alerts, "severity", SEVERITIES)
    yield (
        statetimeline.Panel()
        .title("Alerts over time")
        .description("When each alert fired: a night without a run, a run that was late or incomplete, a rollback.")
        .datasource(source())
        .height(8)
        .span(14)
        .with_target(
            query(f'max by (alertname) (ALERTS{{alertname=~"Auditor.+", alertstate="firing", {RUN}}})', "{{alertname}}")
        )
        .show_value(common.VisibilityMode.NEVER)
        .row_height(0.8)
        .thresholds(steps((None, RED)))
        .legend(legend(visible=False))
    )


def rollouts() -> Iterator[object]:
    """Yield the rollouts: what moves, how fast, and what is behind."""
    yield (
        chart(
            "Devices on the target version",
            "Fraction of a product's devices with the module that run its target version or a newer one.",
            query(f"max by ({NAMES}) (auditor_rollout_share{{{MODULE}}})", LEGEND),
        )
        .unit("percentunit")
        .max(1)
    )
    yield stacked(
        chart(
            "Devices behind the target, by the state of their update",
            "failed, offered, reverted, never_offered; unknown if no update tasks were read.",
            query(f"sum by (update) (auditor_rollout_devices_behind{{{MODULE}}})", "{{update}}"),
        ).unit("locale")
    )
    states = rows(
        "Rollouts",
        "State, share of the devices on the target version, and devices behind it.",
        rows_of(f"max by ({NAMES}, state) (auditor_rollout_state{{{MODULE}}} == 1)"),
        rows_of(f"max by ({NAMES}) (auditor_rollout_share{{{MODULE}}})", "B"),
        rows_of(f"sum by ({NAMES}) (auditor_rollout_devices_behind{{{MODULE}}})", "C"),
        width=12,
        renamed={
            "state": "state",
            "product_key": "product",
            "module_name": "module",
            "account": "account",
            "Value #B": "on target",
            "Value #C": "devices behind",
        },
        hidden=("Value #A",),
    ).override_by_name("on target", [model.DynamicConfigValue(id_val="unit", value="percentunit")])
    yield coloured(states, "state", ROLLOUT_STATES)
    yield stacked(
        chart(
            "Devices by version",
            "The 20 versions with the most devices of the selected modules.",
            query(
                f"topk(20, sum by (module_name, module_version) (auditor_module_version_devices{{{MODULE}}}))",
                "{{module_name}} {{module_version}}",
            ),
        ).unit("locale")
    )


def coverage() -> Iterator[object]:
    """Yield whether runs come, and what they cover."""
    yield with_limit(
        chart(
            "Time since the last run",
            "Falls to 0 when a run ends. The lines are the limits of AuditorRunLate and AuditorRunMissing. A gap: the machine of the audit reported nothing.",
            query(f"time() - max by (run) (auditor_last_run_timestamp_seconds{{{RUN}}})", "{{run}}"),
        ).unit("s"),
        (None, "transparent"), (25 * 3600, ORANGE), (30 * 3600, RED),
    )  # fmt: skip
    yield (
        chart(
            "Coverage",
            "Devices with an answer, of all devices of an account.",
            query(
                f"1 - sum by (run, account) ({UNANSWERED}) / sum by (run, account) ({SELECTED})", "{{run}} {{account}}"
            ),
        )
        .unit("percentunit")
        .max(1)
    )
    yield stacked(
        chart(
            "Failed devices by code",
            "Error codes of the platform, or of the connection to it; of all accounts.",
            query(f"sum by (code) (auditor_failed_devices{{{RUN}}})", "{{code}}"),
            width=8,
        ).unit("locale")
    )
    yield stacked(
        chart(
            "Devices without an answer by account",
            "failed, or pending: not queried before the run ended.",
            query(f"sum by (account, state) ({UNANSWERED})", "{{account}} {{state}}"),
            width=8,
        ).unit("locale")
    )
    yield with_limit(
        chart(
            "Age of the oldest result",
            "Incremental runs carry results. The line is the limit of AuditorDataTooOld.",
            query(f"time() - min by (run) (auditor_oldest_answer_timestamp_seconds{{{RUN}}})", "{{run}}"),
            width=8,
        ).unit("s"),
        (None, "transparent"), (14 * 86400, ORANGE),
    )  # fmt: skip


def cost() -> Iterator[object]:
    """Yield what a run takes, and how much of the quota."""
    yield chart(
        "Duration of a run",
        "Time from a run's start to its end, including pauses before it was resumed.",
        query(f"max by (run) (auditor_run_duration_seconds{{{RUN}}})", "{{run}}"),
        width=8,
    ).unit("s")
    yield chart(
        "Calls of a run",
        "Requests that were sent, those that were retries, and those that the platform throttled.",
        query(f"sum by (kind) (auditor_run_requests{{{RUN}}})", "{{kind}}"),
        width=8,
    ).unit("locale")
    yield chart(
        "Calls a second, and the quota",
        "target: what the quotas allow as configured; achieved: what the run used.",
        query(f"sum by (run, kind) (auditor_run_requests_per_second{{{RUN}}})", "{{run}} {{kind}}"),
        width=8,
    ).unit("reqps")
    yield with_limit(
        chart(
            "Throttled calls",
            "Part of the calls that the platform refused for the quota. The line is the limit of AuditorQuotaSharedBadly.",
            query(
                f'sum by (run) (auditor_run_requests{{{RUN}, kind="throttled"}}) / (sum by (run) (auditor_run_requests{{{RUN}, kind="sent"}}) > 0)',
                "{{run}}",
            ),
        ).unit("percentunit"),
        (None, "transparent"), (0.02, ORANGE),
    )  # fmt: skip
    yield chart(
        "Warnings about the numbers",
        "Kinds of warnings of the last run; the HELP of auditor_run_warnings describes them.",
        query(f"sum by (kind) (auditor_run_warnings{{{RUN}}}) > 0", "{{kind}}"),
    ).unit("locale")


def under_way() -> Iterator[object]:
    """Yield how far a run is that is under way."""
    devices = f"auditor_running_devices{{{RUN}}}"
    yield number(
        "Under way",
        "1: a run is under way. Its file is written every few seconds (setting metrics.interval).",
        instant(f"max(auditor_running{{{RUN}}})"),
        steps((None, GREY), (1, BLUE)),
    ).height(8)
    yield (
        chart(
            "Progress",
            "Devices of the run that is under way that have a result.",
            query(
                f'1 - sum by (run) (auditor_running_devices{{{RUN}, state="pending"}}) / sum by (run) ({devices})',
                "{{run}}",
            ),
            width=11,
        )
        .unit("percentunit")
        .max(1)
    )
    yield chart(
        "Calls a second now",
        "target: what the quotas allow as configured; allowed: what they currently allow, as learned.",
        query(f"sum by (run, kind) (auditor_running_requests_per_second{{{RUN}}})", "{{run}} {{kind}}"),
        width=10,
    ).unit("reqps")


def policy() -> Iterator[object]:
    """Yield the rules, and what violates them."""
    yield chart(
        "Violations by severity",
        "Devices and modules of products that violate a rule.",
        query(f"sum by (severity) (auditor_policy_violations{{{RUN}}})", "{{severity}}"),
    ).unit("locale")
    yield rows(
        "Rules",
        "Devices, or modules of products (unit), by rule and verdict, in the last run.",
        rows_of(f'sum by (run, rule, severity, unit) (auditor_policy_rule_subjects{{{RUN}, verdict="violated"}})'),
        rows_of(
            f'sum by (run, rule, severity, unit) (auditor_policy_rule_subjects{{{RUN}, verdict="compliant"}})', "B"
        ),
        width=12,
        renamed={
            "run": "audit",
            "rule": "rule",
            "severity": "severity",
            "unit": "unit",
            "Value #A": "violated",
            "Value #B": "compliant",
        },
    )


def limits() -> Iterator[object]:
    """Yield what the metrics leave out, and what to do."""
    omitted = number(
        "Left out of the metrics",
        "Accounts, modules, versions, rollouts and groups without series of their own, because there are too many.",
        instant(
            f'sum by (__name__) ({{__name__=~"auditor_.+_omitted|auditor_groups_combined", {RUN}}})', "{{__name__}}"
        ),
        steps((None, GREEN), (1, YELLOW)),
    )
    yield omitted.unit("locale").height(8).span(8).text(VizTextDisplayOptions().title_size(12).value_size(18))
    yield text.Panel().title("What to do").height(8).span(16).mode(TextMode.MARKDOWN).content(WHAT_TO_DO)


def build(documents: str | None) -> model.Dashboard:
    """Return the dashboard; its panels link to documents at an address, if there is one."""
    found = (
        builder.Dashboard("Auditor: versions of the fleet")
        .uid("auditor-fleet")
        .description(
            "Is the audit healthy, is the rollout moving, what needs me? Generated by deploy/grafana/dashboard.py."
        )
        .tags(["auditor", "ota"])
        .timezone("browser")
        .time("now-30d", "now")
        .refresh("5m")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .editable()
    )
    for variable in variables():
        found = found.with_variable(variable)
    if documents is not None:
        for name in ("monitoring", "rollouts", "rules"):
            link = (
                builder.DashboardLink(name).type(model.DashboardLinkType.LINK).url(f"{documents.rstrip('/')}/{name}.md")
            )
            found = found.link(link.icon("doc").target_blank(True))
    for panel in health():
        found = found.with_panel(panel)
    for title, panels in (
        ("What needs me?", attention()),
        ("Is the rollout moving?", rollouts()),
        ("Do runs come, and what do they cover?", coverage()),
        ("What does a run cost?", cost()),
        ("A run under way", under_way()),
        ("Policy", policy()),
        ("Limits, and what to do", limits()),
    ):
        found = found.with_row(builder.Row(title))
        for panel in panels:
            found = found.with_panel(panel)
    dashboard = found.build()
    for place, each in enumerate(dashboard.panels or [], 1):
        each.id_val = place
    return dashboard


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else None
    sys.stdout.write(json.dumps(build(address), cls=JSONEncoder, indent=2, sort_keys=True) + "\n")
