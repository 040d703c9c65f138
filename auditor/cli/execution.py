"""Audits as the command line runs them, and what it prints of them."""

import shlex
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

from auditor.cli.console import say, tell
from auditor.errors import FleetError, RunFolderError
from auditor.text.formatting import safe

if TYPE_CHECKING:
    from auditor.engine.progress import Result, Watch
    from auditor.engine.worker_pool import Stop
    from auditor.hooks.prepare import Following
    from auditor.hooks.runner import Followed
    from auditor.policy.evaluate import Judgement
    from auditor.query.freshness import Ages


RULES_SAID = 20
"""Rules that are named after a run; ``auditor policy`` names all."""


def audit(start: "Callable[[Watch, Stop], Awaitable[Result]]", log_level: str) -> "Result":
    """Runs an audit with progress and signals, and says what it came to."""
    result, seconds = _audited(start, log_level)
    _say_summary(result, seconds)
    return result


def _audited(start: "Callable[[Watch, Stop], Awaitable[Result]]", log_level: str) -> "tuple[Result, float]":
    from auditor.cli.progress import watching
    from auditor.cli.runtime import log_to_stderr, until_signal

    log_to_stderr(log_level)
    began = time.monotonic()
    with watching() as watch:
        result = until_signal(lambda stop: start(watch, stop))
    return result, time.monotonic() - began


def _say_summary(result: "Result", seconds: float) -> None:
    from auditor.cli.render_run import summary

    for line in summary(result.manifest, seconds, _ages(result)):
        say(line)


def _ages(result: "Result") -> "Ages | None":
    """How old a run's answers are, where that is worth a word: some are carried."""
    from auditor.query.run import Run

    try:
        if result.manifest.carried:
            with Run(result.folder) as run:
                return run.ages
    except RunFolderError:  # which says nothing of what the audit came to
        pass
    return None


def audit_and_tell(
    start: "Callable[[Watch, Stop], Awaitable[Result]]", log_level: str, following: "Following | None" = None
) -> int:
    """Runs an audit, does what is to follow it, and tells where its folder is.

    If there is something left to ask, it says how to go on.
    """
    from auditor.cli.runtime import unwinding_on_signals

    with unwinding_on_signals():
        result, seconds = _audited(start, log_level)
        return _follow_and_tell(result, seconds, following)


def _follow_and_tell(result: "Result", seconds: float, following: "Following | None") -> int:
    from auditor.hooks.runner import follow_run

    manifest, code = result.manifest, result.exit_code
    try:
        _say_summary(result, seconds)
        if following is not None:
            followed = follow_run(result.folder, following, exit_code=code)
            code = followed.exit_code
            _say_followed(followed)
    finally:  # the run is sealed, even if somebody does not wait for the rest
        unlisted = any(listing.state != "complete" for listing in manifest.listings)
        left = manifest.to_ask or unlisted or manifest.state == "aborted"
        if left and result.exit_code != FleetError.exit_code:  # a fleet of nobody is nothing to go on with
            to_ask = f"{manifest.to_ask:,} devices are left to ask" if manifest.to_ask or not unlisted else ""
            what = " and ".join(filter(None, (to_ask, "fleets are left to list" if unlisted else "")))
            go_on = f"go on with: auditor resume {safe(shlex.quote(str(result.folder)))}"
            calls_spent = manifest.choice is not None and manifest.choice.calls is not None and manifest.choice.spent
            say(f"{what}; {'the next run asks them first' if calls_spent and not unlisted else go_on}")
        tell(str(result.folder))
    return code


def _say_followed(followed: "Followed") -> None:
    """A line for each rule that is not met, for the policy as a whole, and for what could not be done."""
    if followed.judgement is not None and followed.judgement.problem is None:
        for line in _verdicts(followed.judgement):
            say(safe(line))
    for path in followed.written:
        say(f"written: {safe(path)}")
    for problem in followed.problems:
        say(f"note: {safe(problem)}")
    if followed.problems:
        say("note: nothing of that touches the run itself")


def _verdicts(judgement: "Judgement") -> Iterator[str]:
    """The policy's verdict in lines: rules that are not met, those that are violated first, then a sum of all."""
    others = [each for each in judgement.results if each.verdict not in {"violated", "compliant"}]
    unmet = [*judgement.violated, *others]
    for each in unmet[:RULES_SAID]:
        yield f"policy: {each.verdict} ({each.rule.severity}): {each.rule.name}: {each.message}"
    if len(unmet) > RULES_SAID:
        yield f"policy: and {len(unmet) - RULES_SAID:,} rules more"
    violated, rules = len(judgement.violated), len(judgement.results)
    yield f"policy: {rules:,} rules, {violated:,} violated, {len(others):,} not known, {rules - len(unmet):,} compliant"
    for doubt in judgement.doubts:
        yield f"note: {doubt}"
