"""What each rule of a policy came to: its verdict, its counts, and a sentence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import duckdb

from auditor.policy.model import Rule
from auditor.policy.sampled import Sampled, sampled_rule
from auditor.policy.scope import COMPLIANT, EXCEPTED, NOT_SEEN, SEEN, UNPARSEABLE, UNSAMPLED, VIOLATED

Verdict = Literal["compliant", "violated", "unparseable", "not_seen"]


_WORST: tuple[Verdict, ...] = ("violated", "unparseable", "not_seen")


_COUNTED = {
    "compliant": COMPLIANT,
    "violated": VIOLATED,
    "unparseable": UNPARSEABLE,
    "not_seen": NOT_SEEN,
    "excepted": EXCEPTED,
    "unsampled": UNSAMPLED,
}


_UNSEEN_UNITS = {"devices": "were not seen", "modules": "may or may not, for devices that were not seen"}


_UNDRAWN_UNITS = {"devices": "were not drawn", "modules": "are products that were not drawn"}


@dataclass(frozen=True, slots=True)
class RuleResult:
    """What a rule came to.

    Attributes:
        rule: the rule.
        verdict: the worst that was found.
        compliant, violated, unparseable, not_seen, excepted: how many devices, or modules of products; none is in two.
        unit: which of both.
        message: what was found, in one sentence.
        unsampled: how many devices, or products as a whole, a sample passed over; they are in none of the other counts.
        share, low, high: by a sample, the part that violates the rule of the devices that it is about, or of ``newest``
            the part that runs the newest version in the product's module that decides, and its 95% confidence interval;
            None where all that the rule is about was to be asked, or nothing tells.
    """

    rule: Rule
    verdict: Verdict
    compliant: int
    violated: int
    unparseable: int
    not_seen: int
    excepted: int
    unit: Literal["devices", "modules"]
    message: str
    unsampled: int = 0
    share: float | None = None
    low: float | None = None
    high: float | None = None


def results_of(
    database: duckdb.DuckDBPyConnection, rules: tuple[Rule, ...], *, sampled: bool
) -> tuple[tuple[RuleResult, ...], tuple[str, ...]]:
    """What each rule came to, and a sentence for each that is about nothing."""
    found: dict[tuple[int, int], int] = {}
    for at, rank, devices in database.execute(
        "SELECT rule, rank, sum(number)::BIGINT FROM tally GROUP BY rule, rank"
    ).fetchall():
        found[at, rank] = devices
    results, unmatched = [], []
    for at, rule in enumerate(rules):
        counts = {name: found.get((at, rank), 0) for name, rank in _COUNTED.items()}
        sample = sampled_rule(database, at, rule) if sampled else None
        message = _message(rule, counts, sample)
        interval = None if sample is None else sample.interval
        limits = {} if interval is None else {name: getattr(interval, name) for name in ("share", "low", "high")}
        verdict = _verdict(rule, counts, sample)
        results.append(RuleResult(rule, verdict, **counts, unit=rule.unit, message=message, **limits))
        unseen = counts["not_seen"] + counts["unsampled"]
        if sum(counts.values()) == unseen and (found.get((at, SEEN), 0) or not unseen):
            unmatched.append(f'rule "{rule.name}" is about nothing that was seen in this run: are its patterns right?')
    return tuple(results), tuple(unmatched)


def _verdict(rule: Rule, counts: Mapping[str, int], sample: Sampled | None) -> Verdict:
    if not sum(counts.values()):  # a rule about nothing has not been kept
        return "not_seen"
    # Who was not drawn may violate a rule about devices; modules of products have been judged by that already.
    passed_over = sample is not None and (rule.unit == "devices" or counts["unsampled"])
    told = dict(counts) | ({"not_seen": 1} if passed_over else {})
    return next((verdict for verdict in _WORST if told[verdict]), "compliant")


def _message(rule: Rule, counts: Mapping[str, int], sample: Sampled | None) -> str:
    of = "devices" if rule.unit == "devices" else "modules of products"
    judged = counts["compliant"] + counts["violated"] + counts["unparseable"]
    text = None if sample is None else sample.text
    if text is not None and rule.unit == "devices":
        told = [text]
    elif counts["violated"]:
        told = [f"{counts['violated']:,} of {judged:,} {of} violate it"]
    elif judged:
        told = [f"{counts['compliant']:,} of {judged:,} {of} comply"]
    else:
        told = [f"no {of} to judge"]
    if counts["unparseable"]:
        told.append(f"{counts['unparseable']:,} cannot be judged")
    if counts["not_seen"]:
        drawn = " or not drawn" if sample is not None and rule.unit == "modules" else ""
        told.append(f"{counts['not_seen']:,} {_UNSEEN_UNITS[rule.unit]}{drawn}")
    if counts["unsampled"]:
        told.append(f"{counts['unsampled']:,} {_UNDRAWN_UNITS[rule.unit]}")
    if counts["excepted"]:
        told.append(f"{counts['excepted']:,} excepted")
    if text is not None and rule.unit == "modules":
        told.append(text)
    return ", ".join(told)
