"""What needs attention, the most severe first."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from auditor.analysis.rollout_states import RolloutState
from auditor.analysis.rollouts import Rollout
from auditor.policy.model import Severity
from auditor.query.describe import describe_next_steps, describe_warning, find_rules
from auditor.query.freshness import overdue_interval
from auditor.query.warnings import is_tolerated
from auditor.report.coverage import MIN_ACCOUNT_SHARE, MIN_UNANSWERED, MIN_UNANSWERED_SHARE
from auditor.report.filters import (
    MAX_SENTENCE_LENGTH,
    display_text,
    format_age,
    format_days,
    format_percent,
    format_since,
    format_time,
)
from auditor.report.model import AccountEffort, ProductCoverage, Report
from auditor.runs.manifest import Manifest
from auditor.text.formatting import format_count, format_elapsed, format_rough_duration, parse_manifest_time
from auditor.text.shell import format_command

Tone = Literal["plain", "good", "warn", "bad"]

MAX_NAMED = 3
"""Rollouts, products or accounts that a sentence names."""

_FALL = 0.01
"""Fall of a share that a sentence mentions."""

_RANKS: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}

_TONES: dict[Severity, Tone] = {"error": "bad", "warning": "warn", "note": "plain"}

_SEVERE: dict[str, Severity] = {
    "tampered": "error", "silent": "error", "mismatch": "warning", "recheck": "warning", "not_reached": "warning",
    "discovery_gap": "warning",
}  # fmt: skip
"""Severity of warnings about the run's numbers; that of others is ``note``."""

_TITLES = {
    "tampered": "Files of this run were changed: do not rely on these numbers",
    "silent": "An account reports nothing any more",
    "mismatch": "Answers reached the wrong request",
    "recheck": "Too many carried results are outdated",
    "not_reached": "Devices that may have changed were not queried",
    "discovery_gap": "The device list is incomplete",
    "modules": "The run read one module only",
    "limited": "The run covers a part of its fleet",
    "accounts": "The run excludes accounts",
    "aliases": "Devices are in the fleet twice",
    "shared_identity": "Several devices have one name",
}

_PURPOSES = {"check": "find the cause", "resume": "continue the run", "verify": "see which files"}
"""What the commands of the next steps are for."""

_BEHIND = "installed modules behind"

_STATED = frozenset({"partial", "incomplete", "running", "aborted", "sample"})
"""Warnings that the verdict states."""


@dataclass(frozen=True, slots=True)
class ShellCommand:
    """A command to copy: what it does, and its parts, see ``format_command``."""

    purpose: str
    command: str
    paths: tuple[str, ...] = ()
    flags: tuple[tuple[str, str | None], ...] = ()

    @property
    def line(self) -> str:
        """The command as a line; empty if a word of it cannot be copied from a page."""
        line = format_command(self.command, *self.paths, flags=self.flags)
        words = (*self.paths, *(value or "" for _, value in self.flags))
        return line if all(map(str.isprintable, words)) and len(line) <= _MAX_COMMAND else ""


@dataclass(frozen=True, slots=True)
class AttentionItem:
    """Something that needs attention.

    Attributes:
        severity: how much.
        glyph: its sign.
        title, evidence: what happened, and the numbers that show it.
        number, unit: devices concerned, or what the unit says.
        cases: the worst cases, one a line.
        commands: commands that show more or help, each with what it does.
        series: a value by run that shows it.
        link: section of the page with more.
    """

    severity: Severity
    glyph: str
    title: str
    evidence: str
    number: int
    unit: str
    commands: tuple[ShellCommand, ...] = ()
    cases: tuple[str, ...] = ()
    series: tuple[float | None, ...] = ()
    link: str = ""

    @property
    def tone(self) -> Tone:
        """Its tone."""
        return _TONES[self.severity]


_MAX_COMMAND = 1_000
"""Characters of a command: a few paths of usual lengths."""


def list_attention(report: Report) -> list[AttentionItem]:
    """Return what needs attention, by severity, then by number."""
    unfinished = _is_unfinished(report)
    failing = [each for each in report.problems.accounts if _fails(each, unfinished=unfinished)]
    without_answers = _ended_without_answers(report)
    if without_answers and report.problems.account_count == 1:
        failing = []  # the reason of the end is that of its only account
    products = () if unfinished or without_answers else report.coverage.products
    names = {each.name for each in failing}
    items = [
        *_warning_items(report),
        *(_account_item(report, each) for each in failing),
        *_run_items(report, explained=bool(failing)),
        *_rule_items(report),
        *_rollback_items(report),
        *_stalled_items(report),
        *(_product_item(report, each) for each in products if _lacks_answers(each, names)),
        *(() if unfinished or without_answers else _unknown_items(report, names)),
        *_newer_items(report),
        *_stale_items(report),
    ]
    return sorted(items, key=lambda each: (_RANKS[each.severity], -each.number))


def _is_interrupted(report: Report) -> bool:
    """Return whether a signal ended the run before every device was queried."""
    reason = report.manifest.exit_reason
    return reason is not None and reason.code == "interrupted" and not report.manifest.is_success


def _ended_without_answers(report: Report) -> bool:
    """Return whether the run was aborted before any answer, which explains all that is missing."""
    return report.manifest.state == "aborted" and not report.has_answers


def _is_unfinished(report: Report) -> bool:
    """Return whether pending devices are no failure: the run is in progress, or was killed or interrupted."""
    return report.manifest.state == "running" or _is_interrupted(report)


def _expected(account: AccountEffort, *, unfinished: bool) -> int:
    """Return how many devices should have an answer: those that were queried, or all of a run that is finished."""
    return account.answered + account.failed if unfinished else account.devices


def _fails(account: AccountEffort, *, unfinished: bool) -> bool:
    expected = _expected(account, unfinished=unfinished)
    if unfinished and account.failed < MIN_UNANSWERED:  # the first answers say little
        return False
    return expected > 0 and account.answered < (1 - MIN_ACCOUNT_SHARE) * expected


def _lacks_answers(product: ProductCoverage, failing: set[str]) -> bool:
    unanswered = product.counts.unanswered - product.unsampled
    share = 1 - (1.0 if product.answered is None else product.answered)
    return product.account not in failing and unanswered >= MIN_UNANSWERED and share >= MIN_UNANSWERED_SHARE


def _account_item(report: Report, account: AccountEffort) -> AttentionItem:
    expected = _expected(account, unfinished=_is_unfinished(report))
    many = "none" if not account.answered else f"only {format_percent(account.answered / expected)}"
    queried = "" if expected == account.devices else "queried "
    reason = report.manifest.exit_reason
    named = reason is not None and f'"{account.name}"' in reason.message
    why = reason.message if reason is not None and named else ": ".join(filter(None, (account.code, account.message)))
    unknown = report.rollouts.unknown_by_account.get(account.name, 0)
    lost = f". {format_count(unknown, 'module')} of its products {_is(unknown)} unknown in this run" if unknown else ""
    return AttentionItem(
        "error",
        "✕",
        f"Account {display_text(account.name, 32)}: {many} of its {expected:,} {queried}devices answered",
        f"{why or 'its devices were not queried'}{lost}",
        expected - account.answered,
        "without an answer",
        (
            ShellCommand("find the cause", "auditor check", (_settings(report),), (("--account", account.name),)),
            ShellCommand("then query the rest", "auditor resume", (report.path,)),
        ),
        link="audit",
    )


def _run_items(report: Report, *, explained: bool) -> Iterator[AttentionItem]:
    """Yield an item if the run has too few answers, unless a failing account explains that."""
    manifest = report.manifest
    unanswered = report.coverage.counts.unanswered - report.coverage.unsampled
    if _is_interrupted(report):
        unanswered -= report.coverage.counts.failed  # the others were not queried

    def item(severity: Severity, title: str, evidence: str, purpose: str = "continue it") -> AttentionItem:
        glyph, command = ("…", "auditor status") if severity == "warning" else ("✕", "auditor resume")
        cases, show = _last_success(report) if severity == "error" else ((), ())
        commands = (ShellCommand(purpose, command, (report.path,)), *show)
        return AttentionItem(
            severity, glyph, title, evidence, unanswered, "without an answer", commands, cases, link="quality"
        )

    if manifest.state == "aborted":
        yield _aborted_item(report, unanswered)
    elif manifest.state == "running":
        evidence = "Its numbers do not cover the whole fleet" if report.has_answers else "No device has an answer"
        if report.state == "killed":
            yield item("error", "The audit was killed", evidence)
        else:
            yield item("warning", "The audit is in progress", evidence, "see how far it is")
    elif _is_interrupted(report):
        yield item("error", "The audit was interrupted", manifest.describe_unanswered())
    elif unanswered and not explained and not is_tolerated(manifest):
        failure = next(iter(report.problems.failures), None)
        reason = "" if failure is None else f"; most failed with {failure.code}: {failure.message}"
        evidence = f"{manifest.describe_unanswered()}{reason}"
        yield item("error", "Too many devices have no answer", evidence, "query them again")


def _aborted_item(report: Report, unanswered: int) -> AttentionItem:
    """Return the item of an aborted run: the reason, what to do, and the last success if the run has no answers."""
    manifest, reason = report.manifest, report.manifest.exit_reason
    cases: tuple[str, ...] = ()
    commands = [ShellCommand("continue it", "auditor resume", (report.path,))]
    if reason is not None:
        named = replace(manifest, settings_file=_settings(report), settings=None)  # no path of this machine
        sentence, lines = describe_next_steps(named, reason.code, Path(report.path))
        cases = (f"Next: {sentence}",)
        if report.path.isprintable() and _settings(report).isprintable():
            commands = [ShellCommand(_PURPOSES.get(line.split()[1], "go on"), line) for line in lines]
    success, show = _last_success(report)
    message = reason.message if reason is not None else manifest.error or "it has no reason"
    unit = "without an answer" if unanswered else ""
    return AttentionItem("error", "✕", "The audit was aborted", message, unanswered, unit, (*commands, *show),
                         (*cases, *success), link="audit")  # fmt: skip


def _last_success(report: Report) -> tuple[tuple[str, ...], tuple[ShellCommand, ...]]:
    """Return the last success in a sentence, and the command that shows it; nothing if the run has answers."""
    if report.has_answers:
        return (), ()
    if (success := report.last_success) is None:
        return ("Last success: none in this directory",), ()
    started = parse_manifest_time(success.started_at)
    age = "" if started is None else f", {format_age(started, report.written_at)}"
    command = ShellCommand("see the last success", "auditor inventory", (str(Path(report.directory, success.run)),))
    return (f"Last success: {display_text(success.run, 80)}{age}",), (command,)


def _warning_items(report: Report) -> Iterator[AttentionItem]:
    for warning in report.warnings:
        if warning.kind in _STATED or (warning.kind == "discovery_gap" and _ended_without_answers(report)):
            continue
        title = _TITLES.get(warning.kind, warning.kind.replace("_", " ").capitalize())
        commands = {
            "tampered": (ShellCommand("see which files", "auditor verify", (report.path,)),),
            "silent": (ShellCommand("find the cause", "auditor check", (_settings(report),)),),
        }.get(warning.kind, ())
        evidence = describe_warning(warning, Path(warning.run).name)
        yield AttentionItem(_SEVERE.get(warning.kind, "note"), "!", title, evidence, 0, "", commands, link="quality")
    if report.unreadable:
        title = "Some earlier runs could not be read"
        yield AttentionItem("note", "!", title, report.unreadable[0], 0, "", link="changes")


def _rule_items(report: Report) -> Iterator[AttentionItem]:
    policy = report.policy
    if policy is None:
        if (rules := find_rules(report.manifest)) is not None:
            name = Path(rules).name  # without its directory, as that of the settings
            title, evidence = "The rules of the run are not evaluated", f"Its settings name {name}; --rules adds them"
            command = ShellCommand("evaluate them", "auditor policy", (report.path, name))
            yield AttentionItem("note", "?", title, display_text(evidence, 200), 0, "", (command,))
        return
    if policy.problem is not None:
        yield AttentionItem("error", "✕", "The policy could not be evaluated", policy.problem, 0, "", link="policy")
    if policy.is_undecided and report.has_answers:
        title, evidence = "No rule of the policy could be decided", "No device was seen, or no version can be compared"
        yield AttentionItem("warning", "?", title, evidence, policy.undecided, "rules", link="policy")
    paths = (report.path, report.rules or "RULES.toml")
    for each in policy.results:
        if each.verdict == "violated":
            title = f"{display_text(each.rule.name, 80)} ({each.rule.severity})"
            severity, unit = each.rule.severity, "product modules" if each.unit == "modules" else each.unit
            by_name = (("--rule", each.rule.name), ("--devices", None))
            listed = ShellCommand("list the devices", "auditor policy", paths, by_name)
            commands = (listed,) if each.rule.name in policy.rules_with_devices else ()
            yield AttentionItem(severity, "✕", title, each.message, each.violated, unit, commands, link="policy")


def _rollback_items(report: Report) -> Iterator[AttentionItem]:
    found, changes = _by_state(report, "rolled_back"), report.changes
    downgraded = 0 if changes is None or changes.shares is not None else changes.counts.downgraded
    evidence = ""
    commands: tuple[ShellCommand, ...] = ()
    if changes is not None and downgraded:
        since = format_since(changes.started_at, report.manifest.started_at)
        evidence = f"{format_count(downgraded, 'installed module')} {_was(downgraded)} downgraded since {since}"
        paths = (str(Path(report.directory, changes.run)), report.path)
        commands = (ShellCommand("list them by product", "auditor diff", paths, (("--changed", "downgraded"),)),)
    if found:
        new = any(each.runs_in_state <= 1 for each in found)
        count = report.rollouts.by_state["rolled_back"]
        first = f"{_name(found[0])} was rolled back"
        title = first if count.rollouts == 1 else f"{count.rollouts:,} rollouts were rolled back"
        yield AttentionItem(
            "error" if new else "warning",
            "↓",
            title,
            evidence,
            count.behind,
            _BEHIND,
            commands or _behind(report, found[0], of_many=count.rollouts > 1),
            tuple(f"{_name(each)}: {_fall(each)}" for each in found[:MAX_NAMED]),
            found[0].shares,
            "rollouts",
        )
    elif downgraded:
        severity: Severity = "warning" if downgraded > MIN_UNANSWERED_SHARE * report.coverage.fleet else "note"
        further = "No rollout was rolled back as a whole"
        yield AttentionItem(severity, "↓", evidence, further, downgraded, "installed modules", commands, link="changes")


def _stalled_items(report: Report) -> Iterator[AttentionItem]:
    found = _by_state(report, "stalled")
    if not found:
        return
    count, first = report.rollouts.by_state["stalled"], found[0]
    title = f"{_name(first)} is stalled" if count.rollouts == 1 else f"{count.rollouts:,} rollouts are stalled"
    cases = tuple(
        f"{_name(each)}: {_share_and_peak(each)}"
        + (f", stalled for {each.runs_in_state} runs" if each.runs_in_state > 1 else "")
        + (f", {format_count(each.failed, 'update')} failed" if each.failed else "")
        for each in found[:MAX_NAMED]
    )
    thresholds = report.rollouts.thresholds
    evidence = f"Less than {100 * thresholds.moving:g} points more in {format_days(thresholds.stalled_after)}"
    if count.rollouts == 1:
        evidence, cases = f"{_share_and_peak(first)} of its devices run it. {evidence}", ()
    commands = _behind(report, first, of_many=count.rollouts > 1)
    yield AttentionItem(
        "warning", "▪", title, evidence, count.behind, _BEHIND, commands, cases, first.shares, "rollouts"
    )


def _product_item(report: Report, product: ProductCoverage) -> AttentionItem:
    unanswered = product.counts.unanswered - product.unsampled
    failed, pending = product.counts.failed, product.counts.pending - product.unsampled
    name = display_text(product.product_name or product.product_key, 40)
    parts = [f"{count:,} {word}" for count, word in ((failed, "failed"), (pending, "pending")) if count]
    others = report.coverage.counts.unanswered - report.coverage.unsampled - unanswered
    have = "has" if others == 1 else "have"
    evidence = f"{' and '.join(parts)}; {format_count(others, 'device')} of all other products {have} no answer"
    flags = (("--product", product.product_key), ("--status", "failed"))
    command = ShellCommand("list them", "auditor devices", (report.path,), flags)
    return AttentionItem(
        "note" if is_tolerated(report.manifest) else "warning",
        "!",
        f"{name}: {unanswered:,} of {product.devices - product.unsampled:,} devices have no answer",
        evidence,
        unanswered,
        "without an answer",
        (command,) if product.product_key and failed else (),
        link="quality",
    )


def _unknown_items(report: Report, failing: set[str]) -> Iterator[AttentionItem]:
    """Yield an item about modules that are unknown, unless failing accounts explain all of them."""
    by_account = report.rollouts.unknown_by_account
    count = sum(number for account, number in by_account.items() if account not in failing)
    if not count:
        return
    names = tuple(
        f"{display_text(each.product_name or each.product_key, 32)} · {display_text(each.module_name, 24)}"
        for each in report.rollouts.unknown
        if each.account not in failing
    )
    title = f"{format_count(count, 'module')} {_is(count)} unknown in this run"
    evidence = "Earlier runs had them, and no device with them answered"
    yield AttentionItem("warning", "?", title, evidence, count, "modules", cases=names[:MAX_NAMED], link="unknown")


def _newer_items(report: Report) -> Iterator[AttentionItem]:
    if (newer := report.newer) is None:
        return
    killed = newer.state == "running"  # one in progress is not here
    title = "A newer run was killed" if killed else f"A newer run is {newer.state.replace('_', ' ')}"
    began = format_time(parse_manifest_time(newer.started_at))
    evidence = display_text(
        f"{began}: {newer.describe_exit() or (_describe_answered(newer) if killed else 'no result')}",
        MAX_SENTENCE_LENGTH,
    )
    commands = (ShellCommand("see what to do", "auditor status", (report.directory,)),)
    yield AttentionItem("error", "✕", title, evidence, 0, "", commands)


def _describe_answered(manifest: Manifest) -> str:
    answered, devices = manifest.devices.answered, format_count(manifest.fleet.devices, "device")
    return f"{answered:,} of {devices} {'has' if manifest.fleet.devices == 1 else 'have'} an answer"


def _stale_items(report: Report) -> Iterator[AttentionItem]:
    started = parse_manifest_time(report.manifest.started_at)
    times = [time for run in report.rollouts.runs if (time := parse_manifest_time(run.started_at)) is not None]
    if started is not None and (usual := overdue_interval(times, report.written_at)) is not None:
        age = format_elapsed((report.written_at - started).total_seconds())
        often = format_rough_duration(usual.total_seconds())
        evidence = f"The run started {format_time(started)}; usually there is one every {often}"
        commands = (ShellCommand("audit again", "auditor run", (_settings(report),)),)
        yield AttentionItem("warning", "!", f"The data is {age} old", evidence, 0, "", commands)
    if older := report.coverage.ages.older:
        title = f"{format_count(older, 'answer')} {_is(older)} more than 7 days old"
        yield AttentionItem("note", "!", title, "They were carried from earlier runs", older, "devices", link="quality")


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _by_state(report: Report, state: RolloutState) -> list[Rollout]:
    return [each.rollout for each in report.rollouts.rollouts if each.rollout.state == state]


def _name(rollout: Rollout) -> str:
    product = display_text(rollout.product_name or rollout.product_key, 32)
    return f"{product} · {display_text(rollout.module_name, 24)} {display_text(rollout.target, 24)}"


def _fall(rollout: Rollout) -> str:
    peak = max((share for share in rollout.shares if share is not None), default=None)
    return f"{format_percent(peak)} → {format_percent(rollout.share)}"


def _share_and_peak(rollout: Rollout) -> str:
    """Return the share, and the peak that it has fallen from by a point or more."""
    peak = max((share for share in rollout.shares if share is not None), default=0.0)
    fell = rollout.share is not None and peak - rollout.share >= _FALL
    return format_percent(rollout.share) + (f" (it was {format_percent(peak)})" if fell else "")


def _behind(report: Report, rollout: Rollout, *, of_many: bool) -> tuple[ShellCommand, ...]:
    purpose = "list the devices of the first one" if of_many else "list the devices"
    command = behind_command(report.path, rollout, purpose)
    return () if command is None else (command,)


def behind_command(run: str, rollout: Rollout, purpose: str) -> ShellCommand | None:
    """Return the command that lists the devices behind a rollout's target; None if it has no product or target."""
    if rollout.product_key is None or rollout.target is None:
        return None
    flags = (("--product", rollout.product_key), ("--module", rollout.module_name), ("--below", rollout.target))
    return ShellCommand(purpose, "auditor devices", (run,), flags)


def _settings(report: Report) -> str:
    """Return the name of the settings without their directory, as the report may be sent to others."""
    return Path(report.manifest.settings_file or "").name or "SETTINGS.toml"
