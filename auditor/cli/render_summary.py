"""The summary of a run: at most eight lines, the verdict first, of a label and a text.

The last one is the exit code with its reason; see ``Manifest.describe_exit``. ``auditor status`` has more about each.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from auditor.analysis.device_selection import NET_CHANGES
from auditor.cli.output import COUNT_STYLES
from auditor.cli.render_plan import format_planned_duration
from auditor.hooks.runner import HookResults
from auditor.policy.evaluate import PolicySummary
from auditor.query.describe import describe_unqueried, list_unknown_products
from auditor.query.warnings import is_tolerated, recheck_warnings, state_label
from auditor.runs.manifest import MAX_NUMBER, SUCCESSFUL_STATES, Manifest
from auditor.text.formatting import format_count, format_duration, safe
from auditor.text.shell import format_command

MAX_CODES, MAX_WARNINGS, MAX_RULES, MAX_FILES = 2, 2, 2, 5
"""Failure codes, warnings, unmet rules and written files that a line names."""

MIN_RATE_REQUESTS = 50
"""Requests from which their rate is shown, and compared with what the settings allow."""

MAX_TEXT = 200
"""Characters of a text in a line: another user may have written ``run.json``."""


@dataclass(frozen=True, slots=True)
class SummaryLine:
    """A line of a summary: a label with a style of Rich, and a text, with styles of words in it."""

    label: str
    text: str
    style: str = ""
    styles: Mapping[str, str] = field(default_factory=dict)


def summarize_audit(manifest: Manifest, folder: Path, seconds: float) -> Iterator[SummaryLine]:
    """Yield the lines about an audit, whose session took ``seconds``."""
    label, style = _verdict(manifest)
    yield SummaryLine(label, _describe_devices(manifest), style)
    failures = [*_describe_failures(manifest), *_describe_remaining(manifest, folder)]
    if failures:
        yield SummaryLine("failed" if manifest.failures else "to do", "; ".join(failures), "yellow")
    if warnings := list(_warnings(manifest)):
        yield SummaryLine("warning", _join_first(warnings, MAX_WARNINGS, "more in run.json"), "yellow")
    if manifest.changes is not None and manifest.devices.answered:
        yield _describe_changes(manifest.changes.previous, manifest.changes.counts)
    yield SummaryLine("time", _describe_time(manifest, seconds))


def summarize_hooks(results: HookResults) -> Iterator[SummaryLine]:
    """Yield lines about the policy and each destination, one about messages, and one about files and failed hooks."""
    if results.policy is not None and results.policy.problem is None:
        yield _describe_policy(results.policy)
    for sentence in results.published:
        yield SummaryLine("published", sentence)
    if results.notified:
        yield SummaryLine("notified", ", ".join(results.notified))
    parts = [f"wrote {_join_first(map(str, results.written), MAX_FILES, 'more')}"] if results.written else []
    if results.problems:
        parts += [*(_shorten(problem) for problem in results.problems), "the run itself is fine"]
    if parts:
        label, text = ("hooks", "; ".join(parts)) if results.problems else ("wrote", parts[0].removeprefix("wrote "))
        yield SummaryLine(label, text, "yellow" if results.problems else "")


def _verdict(manifest: Manifest) -> tuple[str, str]:
    """Return a run's state in a word, and its colour."""
    reason = manifest.exit_reason
    if manifest.state == "aborted":
        return "STOPPED", "bold red"
    if reason is not None and reason.code == "interrupted":
        return "STOPPED", "bold yellow"
    if manifest.state in SUCCESSFUL_STATES:
        return "OK", "bold green"
    label = state_label(manifest.state, manifest.devices, manifest.unsampled, tolerated=is_tolerated(manifest))
    return ("SAMPLE", "bold green") if label == "sample" else ("PARTIAL", "bold yellow")


def _describe_devices(manifest: Manifest) -> str:
    """Return the devices by what the platform says of them."""
    counts, fleet = manifest.devices, manifest.fleet.devices
    devices = f"{fleet - manifest.unsampled:,} of {fleet:,} devices" if manifest.unsampled else f"{fleet:,} devices"
    never = f" ({manifest.never_activated:,} never activated)" if manifest.never_activated else ""
    numbers = {
        "reported": counts.ok,
        f"without modules{never}": counts.empty,
        "unknown to the platform": counts.not_found,
        "failed": counts.failed,
        "pending": counts.pending - manifest.unsampled,
    }
    parts = [f"{count:,} {name}" for name, count in numbers.items() if count or name in {"reported", "failed"}]
    return f"{devices}{_describe_selected(manifest)}: {', '.join(parts)}"


def _describe_selected(manifest: Manifest) -> str:
    """Return how many devices were selected for a query, and how many results are carried, in brackets."""
    selection = manifest.selection
    if selection is None or selection.strategy == "sample":
        return ""
    reasons: Counter[str] = Counter()
    for account in selection.accounts:
        reasons.update(account.selected)
    if reasons.total() == manifest.fleet.devices:  # in which order is no matter
        return ""
    why = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in reasons.items() if count)
    missed = f", {selection.not_reached:,} of them not reached" if selection.not_reached else ""
    return f" ({reasons.total():,} to query{missed}{f': {why}' if why else ''}; {manifest.carried:,} carried)"


def _describe_failures(manifest: Manifest) -> Iterator[str]:
    for failure in manifest.failures[:MAX_CODES]:
        yield f"{failure.devices:,} with {_shorten(failure.code)}, such as {_shorten(failure.example)}"
    if (more := len(manifest.failures) - MAX_CODES) > 0:
        yield f"{format_count(more, 'more code')}"


def _describe_remaining(manifest: Manifest, folder: Path) -> Iterator[str]:
    """Yield what is left to do, and how, if anything is; an empty fleet cannot be resumed."""
    unlisted = any(discovery.state != "complete" for discovery in manifest.discovery)
    remaining = manifest.remaining_devices
    unusable = manifest.exit_reason is not None and manifest.exit_reason.code == "unusable_fleet"
    if unusable or not (remaining or unlisted or manifest.state == "aborted"):
        return
    parts = [f"{remaining:,} {'device remains' if remaining == 1 else 'devices remain'}"] if remaining else []
    parts += ["fleets are not completely listed"] if unlisted else []
    if parts:
        yield " and ".join(parts)
    selection = None if unlisted else manifest.selection
    if selection is not None and selection.max_calls is not None and selection.budget_exhausted:
        yield "the next run queries them first"
    elif unknown := list_unknown_products(manifest):
        yield f"correct the products in the settings: the platform has no product {_shorten(', '.join(unknown))}"
    else:
        refused = manifest.exit_reason is not None and manifest.exit_reason.code == "refused_account"
        cause = "correct the key or its permission, and " if refused else ""
        yield f"{cause}resume with: {format_command('auditor resume', folder)}"


def _warnings(manifest: Manifest) -> Iterator[str]:
    """Yield why the numbers are incomplete or not reliable, without what the exit reason says."""
    reason = "" if manifest.exit_reason is None else manifest.exit_reason.message
    found = [str(each) for each in (*manifest.silent, *manifest.mismatched)]
    found += manifest.describe_shared_names()
    found += [warning.detail for discovery in manifest.discovery for warning in discovery.warnings()]
    found += [] if (aliases := manifest.fleet.describe_aliases()) is None else [aliases]
    if manifest.selection is not None:
        found += [warning.detail for warning in recheck_warnings("", manifest.selection)]
        found += describe_unqueried(manifest.selection)
    found += [warning.detail for releases in manifest.releases for warning in releases.warnings()]
    duplicates = manifest.fleet.duplicates - sum(discovery.duplicates for discovery in manifest.discovery)
    if duplicates > 0:
        found.append(f"{format_count(duplicates, 'row')} of the fleet that named a device again dropped")
    yield from (each for each in dict.fromkeys(found) if each not in reason)


def describe_changes(counts: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield the number of modules with each change, as a text and the change: the most important ones first.

    A device that joined or left counts with each of its modules, or once if it has none.
    """
    unit = "modules "
    for change in (*NET_CHANGES, *sorted(set(counts) - set(NET_CHANGES))):
        if count := counts.get(change, 0):
            yield f"{count:,} {unit}{safe(change).replace('_', ' ')}", change
            unit = ""


def _describe_changes(previous: str, counts: Mapping[str, int]) -> SummaryLine:
    parts = dict(describe_changes(counts))
    styles = {text: COUNT_STYLES.get(change, "") for text, change in parts.items()}
    return SummaryLine("changes", f"since {_shorten(previous)}: {', '.join(parts) or 'none'}", styles=styles)


def _describe_time(manifest: Manifest, seconds: float) -> str:
    """Return how long the audit took, and its requests."""
    requests, rate = manifest.requests, manifest.rate
    querying = requests.sent / rate.achieved if rate.achieved else 0.0
    expected = None if manifest.planned is None else manifest.planned.seconds
    planned = "" if expected is None else f" (planned {format_planned_duration(expected)})"
    achieved = ""  # few requests are sent at once, which says nothing about a rate
    if requests.sent >= MIN_RATE_REQUESTS:
        share = f", {rate.achieved / rate.target:.0%} of {_format_rate(rate.target)}/s" if rate.target else ""
        achieved = f" ({_format_rate(rate.achieved)}/s{share})"
    parts = [f"{format_count(requests.sent, 'request')}{achieved}"]
    parts += [f"{requests.retried:,} of them retries"] if requests.retried else []
    parts += [f"{requests.throttled:,} of them throttled"] if requests.throttled else []
    lists = sum(discovery.requests.sent for discovery in manifest.discovery)
    states = sum(account.requests.sent for account in manifest.selection.accounts) if manifest.selection else 0
    releases = sum(each.requests for each in manifest.releases)
    others = {"lists": lists, "states": states, "releases": releases}
    parts += [f"{number:,} more for {purpose}" for purpose, number in others.items() if number]
    session, sessions = (" in this session", " in all sessions") if manifest.resumed_at else ("", "")
    took = f"{format_duration(seconds)}{session}, queries {format_duration(querying)}{sessions}{planned}"
    return f"{took}; {', '.join(parts)}"


def _format_rate(rate: float) -> str:
    return f"{rate:,.0f}" if 10 <= rate < MAX_NUMBER else f"{rate:.2g}"  # noqa: PLR2004  two digits


def _describe_policy(policy: PolicySummary) -> SummaryLine:
    """Return a line about the unmet rules, violated ones first."""
    undecided = [each for each in policy.results if each.verdict not in {"violated", "compliant"}]
    unmet = [
        f"{each.rule.name} ({each.rule.severity}): {_shorten(each.message)}" for each in (*policy.violated, *undecided)
    ]
    rules = format_count(len(policy.results), "rule")
    counts = [f"{len(policy.violated):,} violated"] if policy.violated else []
    counts += [f"{len(undecided):,} undecided"] if undecided else []
    found = f"{', '.join(counts)}: {_join_first(unmet, MAX_RULES, 'more')}" if unmet else "all compliant"
    details = [f"{rules}, {found}", *(_shorten(warning.detail) for warning in policy.warnings[:1])]
    style = "red" if policy.failed else "yellow" if unmet else "green"
    return SummaryLine("policy", "; ".join(details), style)


def _join_first(texts: Iterable[str], number: int, more: str) -> str:
    """Return the first texts, and how many there are besides."""
    texts = list(texts)
    rest = [f"{len(texts) - number:,} {more}"] if len(texts) > number else []
    return "; ".join([*map(_shorten, texts[:number]), *rest])


def _shorten(text: str) -> str:
    text = safe(text[: MAX_TEXT + 1])
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
