"""The page of a report: what its templates show, and the style, script and security policy that it contains."""

import base64
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.resources import files
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemBytecodeCache, PackageLoader, StrictUndefined
from jinja2.bccache import Bucket
from markupsafe import Markup

from auditor.__about__ import VERSION
from auditor.query.describe import (
    describe_ages,
    describe_recheck,
    describe_sample,
    describe_unseen_versions,
    describe_warning,
    format_limits,
)
from auditor.query.warnings import is_tolerated, release_warnings, state_label
from auditor.report.attention import AttentionItem, list_attention
from auditor.report.charts import color_classes, draw_ages, draw_bar, draw_sparkline, state_segments
from auditor.report.filters import (
    MAX_SENTENCE_LENGTH,
    UNKNOWN,
    display_text,
    format_age,
    format_number,
    format_percent,
    format_since,
    format_starts,
    format_time,
)
from auditor.report.model import AGES, Report, VersionShare
from auditor.report.rollout_view import (
    GLYPHS,
    SHADES,
    arrange_heat_map,
    change_tone,
    describe_rollouts,
    describe_states,
    draw_rollout,
    encode_details,
    format_change_of_share,
    list_state_filters,
)
from auditor.report.tiles import Tile, list_tiles, read_verdict
from auditor.report.versions import UNORDERED
from auditor.stats.intervals import Interval
from auditor.text.formatting import format_change, format_count, format_duration, format_interval, parse_manifest_time

MAX_VERSION_BYTES, MAX_ROLLOUT_BYTES = 550_000, 350_000
"""Bytes of the rows of versions and of rollouts; the rest of a page is smaller than what is left of 2 MB."""

MAX_ATTENTION = 6
"""Items of the first screen; more are folded."""

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
    ("downgraded", "Downgraded", "installed modules with an older version", "bad"),
    ("upgraded", "Upgraded", "installed modules with a newer version", "accent"),
    ("changed", "Changed", "installed modules with a version of unknown order", "warn"),
    ("appeared", "Appeared", "installed modules newly reported by a device", "empty"),
    ("vanished", "Vanished", "installed modules no longer reported by a device", "not-found"),
    ("joined", "Joined", "new devices", "good"),
    ("left", "Left", "removed devices", "plain"),
    ("not_seen", "Not seen", "devices without an answer in one of the runs", "muted"),
)
"""Counts of changes: name, title, hint, color."""

_BANNERS = {
    "tampered": "Files of this run were changed: do not rely on these numbers.",
    "killed": "The audit was killed: {}.",
    "running": "The audit is in progress: {}.",
    "aborted": "The audit was aborted: {}.",
    "sample": "A random sample of the fleet: shares are estimates with 95% intervals.",
}
"""Banner by label, the most important first."""


def render_page(report: Report) -> str:
    """Render a report as HTML."""
    environment = _environment()
    rollouts, coverage = report.rollouts, report.coverage
    shared = {
        "report": report, "show_account": report.problems.account_count > 1, "unsampled": coverage.unsampled,
        "glyphs": GLYPHS, "state_order": {state: place for place, state in enumerate(GLYPHS)},
    }  # fmt: skip
    parts: Any = environment.get_template("parts.html.j2").make_module(shared)
    rollout_rows = _fit(
        (parts.rollout_row(number, each.rollout, draw_rollout(each.rollout))
         for number, each in enumerate(rollouts.rollouts)), MAX_ROLLOUT_BYTES,
    )  # fmt: skip
    attention = [(item, _attention_chart(item)) for item in list_attention(report)]
    labelled = [at for at, run in enumerate(rollouts.runs) if run.label]
    names: dict[tuple[str, str | None], str | None] = defaultdict(lambda: None)
    names |= {(each.account, each.product_key): each.product_name for each in coverage.products}
    names |= {(r.account, r.product_key): r.product_name for r in (each.rollout for each in rollouts.rollouts)}
    thresholds = rollouts.thresholds
    html: str = environment.get_template("page.html.j2").render(
        **shared,
        auditor_version=VERSION,
        verdict=read_verdict(report),
        age=format_age_of_run(report),
        banner=_banner(report) if report.labels else "",
        tiles=[(tile, _tile_chart(report, tile)) for tile in list_tiles(report)],
        attention=attention,
        attention_item=parts.attention_item,
        urgent=[item for item, _ in attention if item.severity != "note"],
        max_attention=MAX_ATTENTION,
        calm=_calm(report),
        ages=AGES,
        starts=format_starts([run.started_at for run in rollouts.runs]),
        silence=_describe_silence(report),
        ages_chart=_ages_chart(report, labelled),
        marked=len(labelled),
        heat=arrange_heat_map(report, len(rollout_rows)),
        shades=SHADES,
        rollout_rows=rollout_rows,
        rollout_note=describe_rollouts(report),
        state_filters=list_state_filters(report, len(rollout_rows)),
        definition=describe_states(thresholds),
        done=thresholds.done,
        names=names,
        states=(*_STATES, *((_UNSAMPLED,) if coverage.unsampled else ())),
        shown_states=[state for state, count in coverage.by_state.items() if count],
        rule_counts=_rule_counts(report),
        drift_counts=_drift_counts(report),
        drift_columns=_drift_columns,
        states_chart=draw_bar(state_segments(coverage.by_state), "stretch"),
        answer_ages=_answer_ages(report),
        releases=release_warnings(Path(report.folder), report.manifest),
        rows=_fit((parts.version_row(row) for row in report.versions.rows), MAX_VERSION_BYTES),
        island=encode_details(report),
        data_time=_data_time(report),
        duration=_run_duration(report),
        tolerated_state=not report.labels,
        completeness=state_label(
            report.state, coverage.counts, coverage.unsampled, tolerated=is_tolerated(report.manifest)
        ),
    )
    return html


def _fit(rows: Iterable[str], room: int) -> list[str]:
    """Return as many rows as fit into so many bytes."""
    fitting: list[str] = []
    for row in rows:
        room -= len(row.encode())
        if room < 0:
            break
        fitting.append(row)
    return fitting


def _attention_chart(item: AttentionItem) -> str:
    return draw_sparkline(item.series, item.tone if item.tone != "plain" else "muted", 0, 1) if item.series else ""


def _tile_chart(report: Report, tile: Tile) -> str:
    if tile.title == "Policy" and report.policy is not None:
        colors = (("error", "bad"), ("warning", "warn"), ("note", "muted"), ("unparseable", "warn"),
                  ("not_seen", "pending"), ("compliant", "good"))  # fmt: skip
        return draw_bar([(color, report.policy.verdicts.get(name, 0)) for name, color in colors], "mini")
    return draw_sparkline(tile.series, tile.color, *tile.limits)


def _ages_chart(report: Report, labelled: Sequence[int]) -> str:
    rollouts = report.rollouts
    shares = [_age_shares(ages) for ages in rollouts.ages]
    last = shares[-1]
    if last is None:
        return ""
    labels = [f"{name} {format_percent(share)}" if share else "" for name, share in zip(_AGE_LABELS, last, strict=True)]
    return draw_ages(shares, labels, format_starts([run.started_at for run in rollouts.runs]), labelled)


def _age_shares(ages: Sequence[int] | None) -> list[float] | None:
    """Return the share of each age among modules with a target; None: there are none."""
    ordered = () if ages is None else ages[:UNORDERED]
    return [count / sum(ordered) for count in ordered] if any(ordered) else None


_AGE_LABELS = ("on target", "1 behind", "2 behind", "older")


def _calm(report: Report) -> str:
    """Return what is well, for a run in which nothing needs attention."""
    parts = [
        f"{format_percent(report.coverage.answered)} of {format_number(report.coverage.sampled)} devices have an answer"
    ]
    if report.rollouts.by_state:
        parts.append("no rollout is stalled or rolled back")
    if report.policy is not None:
        parts.append(
            "no rule is violated" if not report.policy.violated else "only rules with severity note are violated"
        )
    if report.changes is not None and report.changes.shares is None:
        upgraded = report.changes.counts.upgraded
        since = format_since(report.changes.started_at, report.manifest.started_at)
        were = "was" if upgraded == 1 else "were"
        parts.append(f"{format_count(upgraded, 'installed module')} {were} upgraded since {since}")
    return ", ".join(parts)[:1].upper() + ", ".join(parts)[1:] + "."


def _rule_counts(report: Report) -> list[tuple[str, str]]:
    """Return the counts of rules that are not zero for all of them: name, title."""
    results = () if report.policy is None else report.policy.results
    titles = {"unsampled": "Not sampled"}
    names = ("compliant", "violated", "unparseable", "not_seen", "exempt", "unsampled")
    shown = [name for name in names if any(getattr(each, name) for each in results)]
    return [(name, titles.get(name, name.replace("_", " ").capitalize())) for name in shown]


def _drift_counts(report: Report) -> list[tuple[str, str, str, int]]:
    """Return the changes that are not zero: name, title, hint, count."""
    changes = report.changes
    if changes is None:
        return []
    found = ((name, title, hint, getattr(changes.counts, name)) for name, title, hint, _ in _DRIFT)
    return [each for each in found if each[3]]


def _drift_columns(modules: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Return the changes that any of the modules has: name, title, color."""
    return [(name, title, color) for name, title, _, color in _DRIFT if any(row.get(name) for row in modules)]


def _change_bar(row: Mapping[str, Any], modules: Sequence[Mapping[str, Any]]) -> str:
    """Draw the changes of a module, as long as they are compared with the module with the most."""
    segments = [(color, row.get(name) or 0) for name, _, color in _drift_columns(modules)]
    longest = max(sum(each.get(name) or 0 for name, *_ in _DRIFT) for each in modules)
    return draw_bar([*segments, ("track", longest - sum(size for _, size in segments))])


def _banner(report: Report) -> str:
    """Return the sentence of the page's banner; it is shown if the report has a label."""
    limit = "these numbers do not cover the whole fleet" if report.has_answers else _describe_silence(report)
    for label, sentence in _BANNERS.items():
        if label in report.labels:
            return sentence.format(limit)
    unanswered, unknown = report.coverage.counts.unanswered, report.rollouts.unknown_count
    if not unanswered:
        return "These numbers do not cover the whole fleet."
    of = f"{unanswered:,} of {report.coverage.fleet:,} devices {'has' if unanswered == 1 else 'have'} no answer"
    modules = f", and {unknown:,} {'module is' if unknown == 1 else 'modules are'} unknown" if unknown else ""
    return f"These numbers do not cover the whole fleet: {of}{modules}."


def _describe_silence(report: Report) -> str:
    """Return what a run without answers has instead of them."""
    so_far = " so far" if report.manifest.state == "running" else ""
    return f"{'no device has an answer' if report.coverage.fleet else 'no device was listed'}{so_far}"


def _data_time(report: Report) -> str:
    """Return when the answers were given, and how old the oldest is."""
    first, last = report.coverage.ages.first, report.coverage.ages.last
    if first is None or last is None:
        return "answers of unknown time" if report.has_answers else ""
    begin, end = format_time(first).removesuffix(" UTC"), format_time(last)
    end_day, _, end_hour = end.partition(", ")
    until = "" if f"{begin} UTC" == end else f" to {end_hour if begin.startswith(end_day) else end}"
    return f"data of {begin}{until or ' UTC'}, {format_age(first, report.written_at)} when this was written"


def _run_duration(report: Report) -> str:
    started, finished = map(parse_manifest_time, (report.manifest.started_at, report.manifest.finished_at))
    if started is None or finished is None:
        return UNKNOWN
    pauses = " with pauses" if report.manifest.resumed_at else ""
    return f"{format_duration(max(0.0, (finished - started).total_seconds()))}{pauses}"


def _answer_ages(report: Report) -> list[tuple[str, str, str, int]]:
    """Return devices by the age of their answer at the run's start, if some answers are carried."""
    ages, inactive = report.coverage.ages, report.coverage.never_activated
    if not ages.carried:
        return []
    return [
        ("queried", "Queried", "answered in this run", ages.queried - inactive),
        ("never_activated", "Never activated", "known without a request", inactive),
        ("day", "Up to 1 day", "carried; age at the run's start", ages.day),
        ("week", "Up to 7 days", "carried", ages.week),
        ("older", "Older", "carried", ages.older),
    ]


def format_age_of_run(report: Report) -> str:
    """Format how old the run was when the report was written."""
    started = parse_manifest_time(report.manifest.started_at)
    return "of an unknown age" if started is None else format_age(started, report.written_at)


def _format_interval(estimate: VersionShare | Interval) -> str:
    """Format the interval of an estimate; empty if the share is exact."""
    return "" if estimate.low is None or estimate.high is None else format_limits(estimate.low, estimate.high)


class _CompiledTemplates(FileSystemBytecodeCache):
    """Keeps compiled templates where Python keeps the compiled modules of this package, if it may write there.

    To compile them takes a third of the time of a small report. Jinja compares a digest of the template's text.
    """

    def __init__(self) -> None:
        modules = Path(cache_from_source(str(Path(__file__).with_name("templates") / "template.py"))).parent
        super().__init__(str(modules), pattern=f"%s.{sys.implementation.cache_tag}.template")

    def load_bytecode(self, bucket: Bucket) -> None:
        """Read a compiled template, if there is one."""
        with suppress(OSError):
            super().load_bytecode(bucket)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Write a compiled template, unless that is switched off or impossible."""
        if not sys.dont_write_bytecode:
            with suppress(OSError):
                Path(self.directory).mkdir(parents=True, exist_ok=True)
                super().dump_bytecode(bucket)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("auditor.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, bytecode_cache=_CompiledTemplates(),
        optimized=False,  # a filter of constants would be called when the template is compiled
    )  # fmt: skip
    environment.filters |= {
        "text": display_text,
        "sentence": lambda text: display_text(text, MAX_SENTENCE_LENGTH),
        "warning": lambda warning: describe_warning(warning, Path(warning.run).name),
        "number": format_number, "percent": format_percent, "interval": _format_interval,
        "time": lambda time: format_time(parse_manifest_time(time) if isinstance(time, str) else time),
        "ages": describe_ages, "recheck": describe_recheck, "sample": describe_sample,
        "unseen": describe_unseen_versions, "state_bar": lambda by_state: draw_bar(state_segments(by_state)),
        "change_bar": _change_bar, "signed": format_change_of_share, "change_tone": change_tone,
        "date": lambda day: UNKNOWN if day is None else f"{day:%-d %b}",
        "upper_first": lambda text: text[:1].upper() + text[1:],
    }  # fmt: skip
    style, script = (_read_asset(name) for name in ("style.css", "script.js"))
    security_policy = _content_security_policy(style, script)
    environment.globals |= {"format_interval": format_interval, "format_change": format_change}
    environment.globals |= {"style": Markup(style), "script": Markup(script), "csp": Markup(security_policy)}  # noqa: S704  our own files
    return environment


def _read_asset(name: str) -> str:
    text = files("auditor.report").joinpath("templates", name).read_text(encoding="utf-8")
    return text if name != "style.css" else text + color_classes()


def _content_security_policy(style: str, script: str) -> str:
    """Return a policy that allows this style and this script, and nothing else."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
