"""Render a report as one HTML file that needs no network: style, script and charts are in it."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auditor.__about__ import VERSION
from auditor.errors import UsageError
from auditor.query.describe import (
    describe_ages,
    describe_recheck,
    describe_sample,
    describe_unseen_versions,
    describe_warning,
    format_limits,
)
from auditor.query.warnings import is_tolerated, state_label
from auditor.report.builder import build_report
from auditor.report.changes import count_changes
from auditor.report.filters import (
    MAX_SENTENCE_LENGTH,
    UNKNOWN,
    display_text,
    format_age,
    format_day,
    format_number,
    format_percent,
    format_time,
)
from auditor.report.model import COMPLETE_ROLLOUT, Report, VersionShare
from auditor.runs.folder import refuse_run_file
from auditor.stats.intervals import Interval
from auditor.storage.files import atomic_replace
from auditor.text.formatting import format_change, format_duration, format_interval, parse_manifest_time

if TYPE_CHECKING:
    from jinja2 import Environment

    from auditor.policy.model import Policy


MAX_TABLE_BYTES = 900_000
"""Bytes of the table's rows; the rest of a page is smaller than what is left of 2 MB."""

_STATES = (
    ("ok", "ok", "Reporting", "answered with modules and versions"),
    ("empty", "empty", "No modules reported", "answered without a module"),
    ("not_found", "not-found", "Not found", "unknown to the platform"),
    ("failed", "failed", "Failed", "could not be queried"),
    ("pending", "pending", "Pending", "not queried yet"),
)
"""States of devices: name, color, title, hint."""

_UNSAMPLED = ("unsampled", "unsampled", "Not sampled", "not in the random sample")

_DRIFT = (
    (
        ("upgraded", "Upgraded", "modules with a newer version"),
        ("downgraded", "Downgraded", "modules with an older version"),
        ("changed", "Changed", "modules with a version of unknown order"),
        ("appeared", "Appeared", "modules newly reported by a device"),
        ("vanished", "Vanished", "modules no longer reported by a device"),
    ),
    (
        ("joined", "Joined", "new devices"),
        ("left", "Left", "removed devices"),
        ("not_seen", "Not seen", "devices without an answer in one of the runs"),
    ),
)
"""Counts of changes in two groups: name, title, hint."""

_BANNERS = {
    "tampered": "Files of this run were changed: do not rely on these numbers.",
    "running": "The audit is in progress or was killed: these numbers do not cover the whole fleet.",
    "aborted": "The audit was aborted: these numbers do not cover the whole fleet.",
    "sample": "A random sample of the fleet: shares are estimates with 95% intervals.",
}
"""Banner by label, the most important first."""

_CHANGE_COLORS = (("upgraded", "accent"), ("downgraded", "failed"), ("changed", "c3"), ("appeared", "empty"),
                  ("vanished", "not-found"), ("same", "plain"))  # fmt: skip


def write_report(
    run: str | Path,
    path: str | Path,
    *,
    policy: "Policy | None" = None,
    directory: str | Path | None = None,
    now: datetime | None = None,
    group_by: Sequence[str] = (),
) -> Path:
    """Write the report of a run to a file, which is replaced atomically, and return its path.

    The same files and the same ``now`` give the same bytes, fewer than 2 MB for any fleet.

    Args:
        run: a run folder, or a directory of runs, which means its newest run. A run in progress is reported as it is.
        path: the file.
        policy: the policy to evaluate; None: the report has no policy section.
        directory: the directory of earlier runs of the same name; None: the run's own.
        now: time of the report, for ages and rules; None: the current time.
        group_by: attributes by which devices are counted, too. One that no device has is empty.

    Raises:
        UsageError: the extra ``report`` is not installed.
        RunFolderError: the folder is no run, or cannot be read.
        RunNotWritableError: the file cannot be written.
    """
    require_extra()
    report = build_report(run, policy=policy, directory=directory, now=now, group_by=group_by)
    return write_html(report, Path(path))


def require_extra() -> None:
    """Raise UsageError if a package that the report needs is not installed."""
    try:
        import altair as alt  # noqa: F401
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise UsageError(f"the report needs {error.name}: pip install 'auditor[report]'") from None


def write_html(report: Report, path: Path) -> Path:
    """Write a report to a file, which is replaced atomically if its folder allows that, and return its path.

    Raises:
        UsageError: the extra ``report`` is not installed.
        RunNotWritableError: the file cannot be written.
    """
    html = render_html(report)
    refuse_run_file(path)
    with atomic_replace(path, or_overwrite=True) as new:
        new.write_text(html, encoding="utf-8", newline="\n")
    return path


def render_html(report: Report) -> str:
    """Render a report as HTML.

    Raises:
        UsageError: the extra ``report`` is not installed.
    """
    require_extra()
    from auditor.report.charts import adoption_colors, draw_adoption, draw_states, draw_versions

    history = report.history
    adoptions = []
    if history is not None:
        adoptions = [(each, draw_adoption(each, history), adoption_colors(each)) for each in history.modules]
    html: str = (
        _environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            auditor_version=VERSION,
            complete_rollout=COMPLETE_ROLLOUT,
            states=(*_STATES, *((_UNSAMPLED,) if report.coverage.unsampled else ())),
            drift_groups=_DRIFT,
            states_chart=draw_states(report.coverage.by_state),
            modules=[(module, draw_versions(module)) for module in report.versions.modules],
            adoptions=adoptions,
            labelled_runs=sum(run.label is not None for run in history.runs) if history else 0,
            has_samples=any("sample" in (run.label or "") for run in history.runs) if history else False,
            rows=_fitting_rows(report.versions.rows),
            banner=_banner(report),
            tolerated=_tolerated(report),
            ages=_age_groups(report),
            data_time=_data_time(report),
            duration=_run_duration(report),
            completeness=state_label(
                report.manifest.state,
                report.coverage.counts,
                report.coverage.unsampled,
                tolerated=is_tolerated(report.manifest),
            ),
        )
    )
    return html


def _fitting_rows(rows: Iterable[VersionShare]) -> list[VersionShare]:
    """Return the rows with bounded text, as many as fit into the table."""
    fitting, room = [], MAX_TABLE_BYTES
    for row in rows:
        columns = ("account", "product_key", "module_name", "module_version")
        texts = {column: display_text(getattr(row, column)) for column in columns}
        # A character that HTML escapes takes at most five bytes, any other four.
        room -= 180 + sum(len(text.encode()) + 4 * len(re.findall("[<>&'\"]", text)) for text in texts.values())
        if room < 0:
            break
        fitting.append(replace(row, **texts))  # type: ignore[arg-type]
    return fitting


def _banner(report: Report) -> str:
    """Return the sentence of the page's banner; it is shown if the report has a label."""
    for label, sentence in _BANNERS.items():
        if label in report.labels:
            return sentence
    unanswered = report.coverage.counts.unanswered
    if not unanswered:
        return "These numbers do not cover the whole fleet."
    return f"{unanswered:,} of {report.coverage.fleet:,} devices {'has' if unanswered == 1 else 'have'} no answer."


def _tolerated(report: Report) -> str | None:
    """Return the devices without an answer that ``max_failed`` allows; None if there are none."""
    tolerated = report.manifest.state == "within_tolerance" and not report.labels
    return report.manifest.describe_unanswered() if tolerated else None


def _data_time(report: Report) -> str:
    """Return when the answers were given, and how old the oldest is."""
    first, last = report.coverage.ages.first, report.coverage.ages.last
    if first is None or last is None:
        return "no answer yet"
    begin, end = format_time(first).removesuffix(" UTC"), format_time(last)
    end_day, _, end_hour = end.partition(", ")
    until = "" if f"{begin} UTC" == end else f" to {end_hour if begin.startswith(end_day) else end}"
    return f"data of {begin}{until or ' UTC'}, {format_age(first, report.written_at)} when this was written"


def _run_duration(report: Report) -> str:
    started, finished = map(parse_manifest_time, (report.manifest.started_at, report.manifest.finished_at))
    if started is None or finished is None:
        return UNKNOWN
    return format_duration(max(0.0, (finished - started).total_seconds()))


def _age_groups(report: Report) -> list[tuple[str, str, str, int]]:
    """Return devices by the age of their answer at the run's start, if some answers are carried."""
    ages = report.coverage.ages
    if not ages.carried:
        return []
    return [
        ("queried", "Queried", "answered in this run", ages.queried),
        ("day", "Up to 1 day", "carried; age at the run's start", ages.day),
        ("week", "Up to 7 days", "carried", ages.week),
        ("older", "Older", "carried", ages.older),
    ]


def _state_segments(by_state: Mapping[str, int]) -> list[tuple[str, float]]:
    fleet = sum(by_state.values())
    return [(color, 100 * by_state[state] / fleet) for state, color, _, _ in (*_STATES, _UNSAMPLED)] if fleet else []


def _change_segments(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    total = count_changes(row) + row["same"]
    return [(color, 100 * row[name] / total) for name, color in _CHANGE_COLORS] if total else []


def _format_interval(estimate: VersionShare | Interval) -> str:
    """Format the interval of an estimate; empty if the share is exact."""
    return "" if estimate.low is None or estimate.high is None else format_limits(estimate.low, estimate.high)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("auditor.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "text": display_text,
        "sentence": lambda text: display_text(text, MAX_SENTENCE_LENGTH),
        "warning": lambda warning: describe_warning(warning, Path(warning.run).name),
        "number": format_number, "percent": format_percent, "interval": _format_interval, "day": format_day,
        "time": lambda time: format_time(parse_manifest_time(time) if isinstance(time, str) else time),
        "ages": describe_ages, "recheck": describe_recheck, "sample": describe_sample,
        "unseen": describe_unseen_versions, "state_segments": _state_segments, "change_segments": _change_segments,
        "upper_first": lambda text: text[:1].upper() + text[1:],
    }  # fmt: skip
    style, script = (_read_asset(name) for name in ("style.css", "script.js"))
    security_policy = _content_security_policy(style, script)
    environment.globals |= {"format_interval": format_interval, "format_change": format_change}
    environment.globals |= {"style": Markup(style), "script": Markup(script), "csp": Markup(security_policy)}  # noqa: S704  our own files
    return environment


def _read_asset(name: str) -> str:
    text = files("auditor.report").joinpath("templates", name).read_text(encoding="utf-8")
    if name != "style.css":
        return text
    from auditor.report.charts import COLORS

    uses = (("fill", "fill"), ("stroke", "stroke"), ("bg", "background"))
    return text + "".join(f".{use}-{name} {{ {key}: var(--{name}); }}\n" for name in COLORS for use, key in uses)


def _content_security_policy(style: str, script: str) -> str:
    """Return a policy that allows this style and this script, and nothing else."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
