"""Sentences about a run's numbers: warnings, sample, age of results, rechecks, selection of devices."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from math import ceil, floor
from pathlib import Path

from auditor.errors import ExitReasonCode
from auditor.models import RunWarning
from auditor.query.freshness import AnswerAges
from auditor.runs.estimates import SampleSummary
from auditor.runs.manifest import Manifest
from auditor.runs.selection_info import AccountSelection, OutdatedResults, Recheck, SelectionInfo
from auditor.text.formatting import format_count, format_rough_duration, format_share, safe
from auditor.text.shell import quote_path

MAX_SAMPLE_VERSIONS = 5
"""Versions that the description of a sample lists."""

_RESUME, _CHECK, _VERIFY = "auditor resume {run}", "auditor check {settings}", "auditor verify {run}"

_ALL = "auditor run {settings} --since none"

_FAILED = "auditor devices {run} --status failed"

_NEXT_STEPS: Mapping[ExitReasonCode, tuple[str, tuple[str, ...]]] = {
    "success": ("nothing is to be done; see what changed", ("auditor diff --since={previous} {directory}",)),
    "within_tolerance": ("nothing has to be done; see which devices have no answer", (_FAILED,)),
    "too_many_failed": ("see which devices failed, remove the cause, and retry them", (_FAILED, _RESUME)),
    "too_many_pending": ("continue with the pending devices", (_RESUME,)),
    "unlisted_product": ("continue the device lists", (_RESUME,)),
    "shared_identity": ("see the warning, repair the gateway, and query all devices again", (_CHECK, _ALL)),
    "silent_account": ("check region_id, instance_id and the permission of the access key", (_CHECK,)),
    "imprecise": ("query a larger sample, or with a longer time limit", ("auditor plan {settings}",)),
    "not_verified": ("see which file differs, and start a new run", (_VERIFY, "auditor run {settings}")),
    "unexpected_error": ("report the error, and continue the run", (_RESUME,)),
    "unusable_fleet": ("correct the fleet settings", (_CHECK,)),
    "refused_account": ("correct the key or the permission, and continue the run", (_CHECK, _RESUME)),
    "unreachable_account": ("check the endpoint, the network and the proxy, and continue the run", (_CHECK, _RESUME)),
    "unreadable_run": ("see which file is damaged", (_VERIFY,)),
    "cannot_write": ("free some space or correct the permissions, and continue the run", (_RESUME,)),
    "policy_violated": ("see which devices violate a rule", ("auditor policy {run} {rules} --devices",)),
    "policy_not_evaluated": ("correct the rules, and run the hooks again", (_CHECK, _RESUME)),
    "interrupted": ("continue the run", (_RESUME,)),
}
"""What to do after a run with this exit reason, and the commands for it."""


def describe_warning(warning: RunWarning, run: str | None = None) -> str:
    """Return a warning as one sentence, which names its run as ``run``; None: by its folder as it was given."""
    name = warning.run if run is None else run
    return f"{name}: {warning.detail}" if name else warning.detail


def warning_objects(warnings: Iterable[RunWarning]) -> list[dict[str, str]]:
    """Return warnings as they are written to JSON."""
    return [{"kind": warning.kind, "message": describe_warning(warning)} for warning in warnings]


def format_limits(low: float, high: float, digits: int = 1) -> str:
    """Format the limits of a share as percentages, rounded away from each other."""
    scale = 10.0**digits
    # The last digits of a product of two inexact numbers move no limit.
    lowest, highest = floor(low * 100 * scale + 1e-6) / scale, ceil(high * 100 * scale - 1e-6) / scale
    return f"{lowest:.{digits}f} to {highest:.{digits}f}%"


def describe_sample(sample: SampleSummary) -> str:
    """Return a sentence that a run is a sample, with its size."""
    inactive = f", {sample.never_activated:,} more were never activated" if sample.never_activated else ""
    return (
        f"random sample: {sample.answered:,} of {sample.sampled:,} sampled devices answered, the fleet has "
        f"{sample.devices:,}{inactive}; shares are estimates with 95% intervals"
    )


def describe_sample_estimates(sample: SampleSummary) -> Iterator[str]:
    """Yield lines that describe a sample, its most frequent versions, and what it cannot show."""
    yield describe_sample(sample)
    for each in sample.fleet[:MAX_SAMPLE_VERSIONS]:
        version = safe(each.module_version) or '""'
        of_fleet, of_module = (
            f"{format_share(interval.share)} ({format_limits(interval.low, interval.high)})"
            for interval in (each.of_fleet, each.of_module)
        )
        yield f"{safe(each.module_name)} {version}: {of_fleet} of the fleet, {of_module} of the devices with the module"
    if (line := describe_unseen_versions(sample)) is not None:
        yield line


def describe_unseen_versions(sample: SampleSummary) -> str | None:
    """Return the largest share of a version that is not in the sample; None if no device answered."""
    if sample.unseen is None:
        return None
    return f"a version that is not listed runs on at most {ceil(sample.unseen * 10_000) / 100:g}% of the fleet"


def describe_ages(ages: AnswerAges, now: datetime) -> str | None:
    """Return a sentence about the age of a run's results; None if it has none."""
    if ages.first is None or ages.median is None or ages.last is None:
        return None
    first, last = (f"{point:%Y-%m-%d %H:%M}" for point in (ages.first, ages.last))
    carried = f"{ages.carried:,} of {ages.fleet:,} devices have carried results; " if ages.carried else ""
    span = f"of {first} UTC" if first == last else f"from {first} to {last} UTC"
    half = format_rough_duration((now - ages.median).total_seconds())
    return f"{carried}results are {span}, half of them younger than {half}"


def describe_recheck(recheck: Recheck) -> str:
    """Return a sentence about how many devices without a sign of change a recheck found changed."""
    if recheck.rate is None or recheck.low is None or recheck.high is None:
        return f"recheck: none of {format_count(recheck.checked, 'queried device')} answered"
    return (
        f"recheck: {recheck.changed:,} of {format_count(recheck.answered, 'result')} without a sign of change "
        f"{'was' if recheck.answered == 1 else 'were'} outdated: {100 * recheck.rate:.2f}% "
        f"(95% interval {format_limits(recheck.low, recheck.high, 2)})"
    )


def _describe_outdated(outdated: OutdatedResults) -> Iterator[str]:
    """Yield sentences about the carried results of devices that may have changed, if there are any."""
    if not outdated.may_have_changed:
        return
    devices = format_count(outdated.carried, "carried result")
    yield f"{outdated.may_have_changed:,} of {devices} are of devices that may have changed and were not queried"
    if outdated.low is not None and outdated.high is not None:
        limits = format_limits(outdated.low, outdated.high, 2)
        yield f"of all carried results {limits} are outdated: by the recheck, and none or all of those"


def describe_selection(selection: SelectionInfo) -> Iterator[str]:
    """Yield lines about which devices a run selected for querying, and why."""
    incremental = selection.strategy == "incremental"
    left_out = selection.not_reached or selection.budget_exhausted or any(each.carried for each in selection.accounts)
    if selection.strategy == "rolling" and not left_out:
        return
    if selection.baseline_run is not None:
        yield f"results of devices that are not queried are those of {safe(selection.baseline_run)}"
    elif incremental:
        yield "no earlier run of this name to carry results from: all devices are queried"
    elif selection.strategy == "index":
        yield "results of devices that are not queried are those of the platform's search index"
    for account in selection.accounts:
        yield f"{safe(account.account)}: {_describe_account(account, precise=selection.precision is not None)}"
    if selection.precision is not None and selection.achieved_precision is not None:
        yield (
            f"precision: ±{_percent(selection.achieved_precision)} for the shares ({selection.precision_of}), "
            f"±{_percent(selection.precision)} required"
        )
    yield from describe_unqueried(selection)


def describe_unqueried(selection: SelectionInfo) -> Iterator[str]:
    """Yield why selected devices were not queried, and what that means for carried results."""
    incremental = selection.strategy == "incremental"
    if selection.budget_exhausted and selection.max_calls is not None:
        yield f"the budget of {format_count(selection.max_calls, 'call')} was exhausted before all were queried"
    if selection.outdated is not None:
        yield from _describe_outdated(selection.outdated)
    elif incremental and (over_budget := sum(account.over_budget for account in selection.accounts)):
        yield f"{format_count(over_budget, 'device')} that may have changed were over budget; their results are carried"
    if selection.not_reached and selection.outdated is None:
        may_differ = ", though they may have changed" if incremental else ""
        devices = format_count(selection.not_reached, "selected device")
        yield f"{devices} were not reached; their results are carried{may_differ}"


def _describe_account(account: AccountSelection, *, precise: bool = False) -> str:
    if set(account.selected) == {"sample"}:
        return f"random sample of {'up to ' if precise else ''}{format_count(account.selected['sample'], 'device')}"
    selected = account.selected if account.carried else {}  # if all devices are queried, no reason matters
    reasons = ", ".join(f"{devices:,} {reason.replace('_', ' ')}" for reason, devices in selected.items())
    parts = [f"{format_count(sum(account.selected.values()), 'device')} to query{f' ({reasons})' if reasons else ''}"]
    if account.carried:
        parts.append(f"{account.carried:,} carried")
    if account.states_requested:
        unknown = f", {account.states_unknown:,} of them unknown" if account.states_unknown else ""
        states = format_count(account.states_requested, "connection state")
        parts.append(f"{states} read in {format_count(account.requests.sent, 'request')}{unknown}")
    if (learned := account.learned_offset) is not None:
        devices = format_count(learned.devices, "online device")
        parts.append(f"last-online times without a zone read as {learned}, as {devices} show it")
    return "; ".join(parts)


def _percent(share: float) -> str:
    return f"{ceil(share * 1e6 - 1e-6) / 1e4:g}%"


def describe_next_steps(manifest: Manifest, code: ExitReasonCode, folder: Path) -> tuple[str, tuple[str, ...]]:
    """Return what to do after a run with this exit reason, and the commands, which name it by this path."""
    if code == "success" and not (manifest.changes and sum(manifest.changes.counts.values())):
        return "nothing is to be done", ()
    sentence, commands = _NEXT_STEPS[code]
    if unknown := list_unknown_products(manifest):
        sentence = f"correct the products in the settings: the platform has no product {', '.join(unknown)}"
        commands = (_CHECK, "auditor run {settings}")
    paths = {
        "run": folder,
        "directory": folder.parent,
        "settings": manifest.settings_file or "SETTINGS.toml",
        "rules": find_rules(manifest) or "RULES.toml",
    }
    quoted = {name: quote_path(path) for name, path in paths.items()}
    previous = shlex.quote(safe("last~1" if manifest.changes is None else manifest.changes.previous))
    return sentence, tuple(command.format(**quoted, previous=previous) for command in commands)


def list_unknown_products(manifest: Manifest) -> list[str]:
    """Return the products in a run's settings that the platform does not have, if a resume has nothing else to do."""
    gaps = [gap for discovery in manifest.discovery for gap in discovery.gaps]
    is_unlisted = manifest.exit_reason is not None and manifest.exit_reason.code == "unlisted_product"
    if not is_unlisted or manifest.remaining_devices or not all(gap.is_unknown_product for gap in gaps):
        return []
    return [safe(gap.product_key) for gap in gaps]


def find_rules(manifest: Manifest) -> str | None:
    """Return the file of the rules in a run's settings; None: they name no rules."""
    policy = (manifest.settings or {}).get("policy")
    file = policy.get("file") if isinstance(policy, dict) else None
    return file if isinstance(file, str) else None
